// The kernels around prepass.h.
#include "cuda/sm120/forward.h"
#include "cuda/sm120/prepass.h"

namespace sage {
namespace sm120 {
namespace {

template <int D>
__global__ void __launch_bounds__(StatisticsThreads(D))
    StatisticsKernel(const __grid_constant__ PrepassArguments a) {
  __shared__ __align__(16) uint8_t shared[16];
  Statistics<D>(a, shared);
}

template <int D>
__global__ void __launch_bounds__(kQuantiseThreads)
    QuantiseKernel(const __grid_constant__ PrepassArguments a) {
  __shared__ __align__(16) uint8_t shared[kQuantiseShared<D>];
  Quantise<D>(a, shared);
}

template <int D>
void Launch(const PrepassArguments& a, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(PrepassBlocks(a));
  StatisticsKernel<D><<<blocks, StatisticsThreads(D), 0, stream>>>(a);
  QuantiseKernel<D><<<blocks, kQuantiseThreads, 0, stream>>>(a);
}

}  // namespace

bool HasCode() {
  cudaFuncAttributes attributes;
  const bool found = cudaFuncGetAttributes(&attributes, StatisticsKernel<64>) == cudaSuccess;
  if (!found) cudaGetLastError();
  return found;
}

cudaError_t Prepass(const Problem& p, const ForwardBuffers& buffers, const Workspace& space,
                    cudaStream_t stream) {
  const cudaError_t cleared = cudaMemsetAsync(space.arrived, 0, space.zeroed_bytes, stream);
  if (cleared != cudaSuccess) return cleared;
  const PrepassArguments a = PlanPrepass(p, buffers, space);
  if (space.dim == 64) {
    Launch<64>(a, stream);
  } else if (space.dim == 128) {
    Launch<128>(a, stream);
  } else {
    Launch<256>(a, stream);
  }
  return cudaGetLastError();
}

}  // namespace sm120
}  // namespace sage
