#include "cuda/sm120/attend_instance.cuh"

namespace sage {
namespace sm120 {

template cudaError_t LaunchAttend<256, false>(const AttendArguments& a, bool masked,
                                              int multiprocessors, cudaStream_t stream);

}  // namespace sm120
}  // namespace sage
