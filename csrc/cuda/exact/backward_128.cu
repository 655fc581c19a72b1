// The gradient kernels for heads of more than 64 dims.
#include "cuda/exact/backward.cuh"

namespace sage::cuda {

void LaunchQueryGradient128(const BackwardPlan& plan, void* stream) {
  LaunchBackwardKernel<128, false>(plan, stream);
}

void LaunchKeyValueGradient128(const BackwardPlan& plan, void* stream) {
  LaunchBackwardKernel<128, true>(plan, stream);
}

}  // namespace sage::cuda
