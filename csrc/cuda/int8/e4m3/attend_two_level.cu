// int8 or int4 scores, P·V of e4m3 with sums of 64 keys added in float32: int8_fp8 and int4_fp8.
#include "cuda/int8/attend.cuh"

namespace sage::cuda::int8 {
namespace {

template <int D>
void Launch(const Form& form, const AttendPlan& plan, cudaStream_t stream) {
  if (form.int4) {
    LaunchInstance<Instance<D, true, Values::kE4m3TwoLevel>>(plan, stream);
  } else {
    LaunchInstance<Instance<D, false, Values::kE4m3TwoLevel>>(plan, stream);
  }
}

}  // namespace

void LaunchE4m3TwoLevel(const Form& form, const AttendPlan& plan, cudaStream_t stream) {
  switch (form.dim) {
    case 64:
      return Launch<64>(form, plan, stream);
    case 128:
      return Launch<128>(form, plan, stream);
    default:
      return Launch<256>(form, plan, stream);
  }
}

}  // namespace sage::cuda::int8
