// `int8_fp8` on Hopper (sm_90a): what csrc/cuda/dispatch.cu calls for problems that Sm90Supports
// accepts.
#ifndef SAGE_CUDA_SM90_FORWARD_H_
#define SAGE_CUDA_SM90_FORWARD_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "sage/attention.h"
#include "sage/problem.h"
#include "sage/status.h"

namespace sage {

// Whether these kernels compute the problem as its recipe says, on the current device. If not,
// `reason` (static storage) tells why.
bool Sm90Supports(const Problem& problem, const char** reason);

// Bytes of device memory that a call needs beside its buffers: O(N), about 1.1 bytes per element of
// q, k and v, and for up to 64 queries, or too few to fill the device, 8 or more per element of q.
int64_t Sm90Workspace(const Problem& problem);

// o (and lse when wanted) in full, from device memory (q, k and v in float32, fp16 or bf16),
// enqueued in `stream`. `workspace` needs no preparation and is aligned to 256 bytes, as cudaMalloc
// gives. kUnsupported for what Sm90Supports refuses, kInternal with the runtime's text after a
// failed launch.
Status Sm90Forward(const Problem& problem, const ForwardBuffers& buffers, void* workspace,
                   cudaStream_t stream);

}  // namespace sage

#endif  // SAGE_CUDA_SM90_FORWARD_H_
