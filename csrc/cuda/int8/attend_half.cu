// int8 scores, P·V by halves with float32 sums: recipe int8_fp16.
#include "cuda/int8/attend.cuh"

namespace sage::cuda::int8 {

void LaunchHalf(const Form& form, const AttendPlan& plan, cudaStream_t stream) {
  if (form.dim == 64) {
    LaunchInstance<Instance<64, false, Values::kHalf>>(plan, stream);
  } else {
    LaunchInstance<Instance<128, false, Values::kHalf>>(plan, stream);
  }
}

}  // namespace sage::cuda::int8
