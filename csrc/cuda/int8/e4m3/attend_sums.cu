// int8 scores, P·V of e4m3 with sums in the tensor core's accumulator, or in halves: the other
// published forms of int8_fp8.
#include "cuda/int8/attend.cuh"

namespace sage::cuda::int8 {

void LaunchE4m3(const Form& form, const AttendPlan& plan, cudaStream_t stream) {
  if (form.values == Values::kE4m3) {
    if (form.dim == 256) return LaunchInstance<Instance<256, false, Values::kE4m3>>(plan, stream);
    return LaunchInstance<Instance<128, false, Values::kE4m3>>(plan, stream);
  }
  switch (form.dim) {
    case 64:
      return LaunchInstance<Instance<64, false, Values::kE4m3HalfSums>>(plan, stream);
    case 128:
      return LaunchInstance<Instance<128, false, Values::kE4m3HalfSums>>(plan, stream);
    default:
      return LaunchInstance<Instance<256, false, Values::kE4m3HalfSums>>(plan, stream);
  }
}

}  // namespace sage::cuda::int8
