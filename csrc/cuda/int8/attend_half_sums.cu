// int8 scores, P·V by halves with sums in halves: the published forms of int8_fp16.
#include "cuda/int8/attend.cuh"

namespace sage::cuda::int8 {

void LaunchHalfSums(const Form& form, const AttendPlan& plan, cudaStream_t stream) {
  if (form.values == Values::kHalfSums) {
    if (form.dim == 256)
      return LaunchInstance<Instance<256, false, Values::kHalfSums>>(plan, stream);
    return LaunchInstance<Instance<128, false, Values::kHalfSums>>(plan, stream);
  }
  switch (form.dim) {
    case 64:
      return LaunchInstance<Instance<64, false, Values::kHalfBy64>>(plan, stream);
    case 128:
      return LaunchInstance<Instance<128, false, Values::kHalfBy64>>(plan, stream);
    default:
      return LaunchInstance<Instance<256, false, Values::kHalfBy64>>(plan, stream);
  }
}

}  // namespace sage::cuda::int8
