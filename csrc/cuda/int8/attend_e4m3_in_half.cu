// P and v of e4m3 multiplied as halves, which hold every e4m3 value: int8_fp8 and int4_fp8 on
// devices without e4m3 products.
#include "cuda/int8/attend.cuh"

namespace sage::cuda::int8 {
namespace {

template <int D>
void Launch(const Form& form, const AttendPlan& plan, cudaStream_t stream) {
  if (form.int4) {
    LaunchInstance<Instance<D, true, Values::kE4m3InHalf>>(plan, stream);
  } else {
    LaunchInstance<Instance<D, false, Values::kE4m3InHalf>>(plan, stream);
  }
}

}  // namespace

void LaunchE4m3InHalf(const Form& form, const AttendPlan& plan, cudaStream_t stream) {
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
