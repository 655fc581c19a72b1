// The gradient kernels for heads of up to 64 dims.
#include "cuda/exact/backward.cuh"

namespace sage::cuda {

void LaunchQueryGradient64(const BackwardPlan& plan, void* stream) {
  LaunchBackwardKernel<64, false>(plan, stream);
}

void LaunchKeyValueGradient64(const BackwardPlan& plan, void* stream) {
  LaunchBackwardKernel<64, true>(plan, stream);
}

}  // namespace sage::cuda
