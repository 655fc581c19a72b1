// The forward kernel for heads of more than 64 dims.
#include "cuda/exact/forward.cuh"

namespace sage::cuda {

void LaunchForward128(const ForwardPlan& plan, void* stream) {
  LaunchForwardKernel<128>(plan, stream);
}

}  // namespace sage::cuda
