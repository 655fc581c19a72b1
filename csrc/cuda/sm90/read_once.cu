// Launch of the pre-pass that reads k and v once.
#include <atomic>

#include "cuda/sm90/launch.h"
#include "cuda/sm90/read_once.cuh"

namespace sage {
namespace sm90 {
namespace {

constexpr int kPortableCluster = 8;  // what devices have without asking

// Whether the device takes clusters of up to `size` of these blocks; found once for each device.
template <int D, class E>
bool Takes(int size, cudaLaunchConfig_t config, cudaLaunchAttribute attribute) {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices][2];  // 0: not known, 1: no, 2: yes
  int device = 0, clusters = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return false;
  std::atomic<int>& answer = known[device][size > kPortableCluster];
  if (answer == 0) {
    attribute.val.clusterDim.x = static_cast<unsigned>(size);
    config.gridDim = dim3(static_cast<unsigned>(size));
    config.attrs = &attribute;
    const bool takes =
        cudaOccupancyMaxActiveClusters(&clusters, ReadOnceKernel<D, E>, &config) == cudaSuccess &&
        clusters > 0;
    cudaGetLastError();
    answer = takes ? 2 : 1;
  }
  return answer == 2;
}

template <int D, class E>
cudaError_t Launch(const PrepassArguments& a, cudaStream_t stream, bool* done) {
  const int cluster = a.space.tiles;  // blocks of a head
  auto* kernel = ReadOnceKernel<D, E>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           kReadOnceBytes<D, E>);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(int64_t{2} * a.kv_count * cluster));
  config.blockDim = dim3(kReadOnceThreads);
  config.dynamicSmemBytes = kReadOnceBytes<D, E>;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return error;
  const int size = cluster > kPortableCluster ? kReadOnceTiles : kPortableCluster;
  if (!Takes<D, E>(size, config, attribute)) return cudaSuccess;
  *done = true;
  return cudaLaunchKernelEx(&config, kernel, a);
}

template <class E>
cudaError_t LaunchFor(const PrepassArguments& a, cudaStream_t stream, bool* done) {
  return a.space.dim == 64 ? Launch<64, E>(a, stream, done) : Launch<128, E>(a, stream, done);
}

}  // namespace

cudaError_t ReadOnce(const PrepassArguments& a, InputType input, cudaStream_t stream, bool* done) {
  *done = false;
  const bool serves = a.q_blocks == 0 && a.space.dim <= 128 && a.space.tiles <= kReadOnceTiles &&
                      a.k.vectors && a.v.vectors &&
                      int64_t{2} * a.kv_count * kReadOnceTiles < (int64_t{1} << 31);
  if (!serves) return cudaSuccess;
  switch (input) {
    case InputType::kFloat16:
      return LaunchFor<Float16>(a, stream, done);
    case InputType::kBfloat16:
      return LaunchFor<BFloat16>(a, stream, done);
    default:
      return LaunchFor<Float32>(a, stream, done);
  }
}

}  // namespace sm90
}  // namespace sage
