// The forward kernel for heads of up to 64 dims.
#include "cuda/exact/forward.cuh"

namespace sage::cuda {

void LaunchForward64(const ForwardPlan& plan, void* stream) {
  LaunchForwardKernel<64>(plan, stream);
}

}  // namespace sage::cuda
