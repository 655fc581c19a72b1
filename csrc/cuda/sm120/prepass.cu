// The kernels around prepass.h.
#include "cuda/sm120/forward.h"
#include "cuda/sm120/prepass.h"

namespace sage {
namespace sm120 {
namespace {

// Blocks of a multiprocessor: more warps hide memory's latency, at 80 registers a thread.
constexpr int kQuantiseBlocks = 3;

template <int D, class E>
__global__ void __launch_bounds__(StatisticsThreads(D), 1024 / StatisticsThreads(D))
    StatisticsKernel(const __grid_constant__ PrepassArguments a) {
  __shared__ __align__(16) uint8_t shared[sizeof(StatisticsShared<D>)];
  Statistics<D, E>(a, shared);
}

template <int D, class E>
__global__ void __launch_bounds__(kQuantiseThreads, kQuantiseBlocks)
    QuantiseKernel(const __grid_constant__ PrepassArguments a) {
  __shared__ __align__(16) uint8_t shared[kQuantiseShared];
  Quantise<D, E>(a, shared);
}

template <int D, class E>
void LaunchTyped(const PrepassArguments& a, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(PrepassBlocks(a));
  StatisticsKernel<D, E><<<blocks, StatisticsThreads(D), 0, stream>>>(a);
  QuantiseKernel<D, E><<<blocks, kQuantiseThreads, 0, stream>>>(a);
}

template <int D>
void Launch(InputType input, const PrepassArguments& a, cudaStream_t stream) {
  switch (input) {
    case InputType::kFloat32:
      return LaunchTyped<D, Float32>(a, stream);
    case InputType::kFloat16:
      return LaunchTyped<D, Float16>(a, stream);
    case InputType::kBfloat16:
      return LaunchTyped<D, BFloat16>(a, stream);
  }
}

}  // namespace

bool HasCode() {
  cudaFuncAttributes attributes;
  const bool found =
      cudaFuncGetAttributes(&attributes, StatisticsKernel<64, Float32>) == cudaSuccess;
  if (!found) cudaGetLastError();
  return found;
}

cudaError_t Prepass(const Problem& p, const ForwardBuffers& buffers, const Workspace& space,
                    cudaStream_t stream) {
  const cudaError_t cleared = cudaMemsetAsync(space.arrived, 0, space.zeroed_bytes, stream);
  if (cleared != cudaSuccess) return cleared;
  const PrepassArguments a = PlanPrepass(p, buffers, space);
  if (space.dim == 64) {
    Launch<64>(p.input, a, stream);
  } else if (space.dim == 128) {
    Launch<128>(p.input, a, stream);
  } else {
    Launch<256>(p.input, a, stream);
  }
  return cudaGetLastError();
}

}  // namespace sm120
}  // namespace sage
