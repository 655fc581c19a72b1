// Launches of one head_dim and format of P·V: each instance has a file of its own, so that they
// compile side by side.
#ifndef SAGE_CUDA_SM120_LAUNCH_CUH_
#define SAGE_CUDA_SM120_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/sm120/arguments.h"

namespace sage {
namespace sm120 {

template <int D, bool kFp8>
cudaError_t LaunchAttend(const AttendArguments& a, bool masked, int multiprocessors,
                         cudaStream_t stream);

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_LAUNCH_CUH_
