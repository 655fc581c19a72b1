// int8 scores, P·V by halves with float32 sums: recipe int8_fp16.
#include "cuda/int8/attend.cuh"

namespace sage::cuda::int8 {
namespace {

// Two blocks of 4 warps where their shared memory fits (sm_80, sm_90), since they wait for their
// own copies only; elsewhere one block of 8 warps.
template <int D>
void Launch(const AttendPlan& plan, cudaStream_t stream) {
  using Small = Instance<D, false, Values::kHalf, 4>;
  constexpr int kReserved = 1024;  // by the system, for every block
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device) !=
          cudaSuccess)
    return;
  if (bytes >= Small::kBlocks * (Small::kSharedBytes + kReserved)) {
    LaunchInstance<Small>(plan, stream);
  } else {
    LaunchInstance<Instance<D, false, Values::kHalf>>(plan, stream);
  }
}

}  // namespace

void LaunchHalf(const Form& form, const AttendPlan& plan, cudaStream_t stream) {
  switch (form.dim) {
    case 64:
      return Launch<64>(plan, stream);
    case 128:
      return Launch<128>(plan, stream);
    default:
      return LaunchInstance<Instance<256, false, Values::kHalf>>(plan, stream);
  }
}

}  // namespace sage::cuda::int8
