// int8 scores, P·V by halves with float32 sums: recipe int8_fp16.
#include <algorithm>

#include "cuda/device.h"
#include "cuda/int8/attend.cuh"

namespace sage::cuda::int8 {
namespace {

// Shared memory of a multiprocessor. A device that counts as an older one (device.h) has no more
// than that.
int MultiprocessorBytes() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device) !=
          cudaSuccess)
    return 0;
  const int capability = ComputeCapability();
  const bool large = capability >= 90 || capability == 80 || capability == 87;
  return capability >= 90 ? bytes : std::min(bytes, (large ? 164 : 100) * 1024);
}

template <class Form>
bool Fits(int bytes) {
  constexpr int kReserved = 1024;  // by the system, for every block
  return bytes >= Form::kBlocks * (Form::kSharedBytes + kReserved);
}

// Two blocks of 4 warps where their shared memory fits, since they wait for their own copies only,
// with a third slot for these where there is room for it as well (sm_90), so that warps may drift
// apart by a step; elsewhere (sm_86, sm_89) one block of 8 warps.
template <int D>
void Launch(const AttendPlan& plan, cudaStream_t stream) {
  using Drifting = Instance<D, false, Values::kHalf, 4, 3>;
  using Small = Instance<D, false, Values::kHalf, 4, 2, false>;  // sm_80
  const int bytes = MultiprocessorBytes();
  if (Fits<Drifting>(bytes)) {
    LaunchInstance<Drifting>(plan, stream);
  } else if (Fits<Small>(bytes)) {
    LaunchInstance<Small>(plan, stream);
  } else {
    LaunchInstance<Instance<D, false, Values::kHalf, 8, 2>>(plan, stream);
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
