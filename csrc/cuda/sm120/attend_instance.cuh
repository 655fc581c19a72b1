// The kernels around attend.h, for one head_dim and format of P·V.
#ifndef SAGE_CUDA_SM120_ATTEND_INSTANCE_CUH_
#define SAGE_CUDA_SM120_ATTEND_INSTANCE_CUH_

#include "cuda/sm120/attend.h"
#include "cuda/sm120/launch.cuh"

namespace sage {
namespace sm120 {

template <int D, bool kFp8, bool kMasked>
__global__ void __launch_bounds__(AttendThreads(D), 1)
    AttendKernel(const __grid_constant__ AttendArguments a) {
  extern __shared__ __align__(1024) uint8_t shared_memory[];
  Attend<D, kFp8, kMasked>(a, shared_memory);
}

template <int D, bool kFp8, bool kMasked>
cudaError_t LaunchKernel(const AttendArguments& a, int multiprocessors, cudaStream_t stream) {
  constexpr int kBytes = SharedMap<D, kFp8>::kBytes;
  const cudaError_t error = cudaFuncSetAttribute(
      AttendKernel<D, kFp8, kMasked>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  AttendKernel<D, kFp8, kMasked>
      <<<std::min(multiprocessors, a.work), AttendThreads(D), kBytes, stream>>>(a);
  return cudaGetLastError();
}

template <int D, bool kFp8>
cudaError_t LaunchAttend(const AttendArguments& a, bool masked, int multiprocessors,
                         cudaStream_t stream) {
  return masked ? LaunchKernel<D, kFp8, true>(a, multiprocessors, stream)
                : LaunchKernel<D, kFp8, false>(a, multiprocessors, stream);
}

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_ATTEND_INSTANCE_CUH_
