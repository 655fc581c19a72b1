// The recipes int8_fp16, int8_fp8 and int4_fp8 by mma.sync, for every device from sm_80 on: what
// csrc/cuda/dispatch.cu calls for problems that Int8Supports accepts.
#ifndef SAGE_CUDA_INT8_FORWARD_H_
#define SAGE_CUDA_INT8_FORWARD_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "sage/attention.h"
#include "sage/problem.h"
#include "sage/status.h"

namespace sage::cuda {

// Whether these kernels compute the problem as its recipe says, on the current device. If not,
// `reason` (static storage) tells why.
bool Int8Supports(const Problem& problem, const char** reason);

// Bytes of device memory that a call needs beside its buffers: O(N), about 1.1 bytes per element of
// q and k and 2.1 of v; a smoothed q adds 4 per element of k.
int64_t Int8Workspace(const Problem& problem);

// o (and lse when wanted) in full, from device memory, enqueued in `stream`; q, k and v lie behind
// their pointers as `problem.input` says. `workspace`
// needs no preparation and is aligned to 256 bytes. kUnsupported for what Int8Supports refuses,
// kInternal with the runtime's text after a failed launch.
Status Int8Forward(const Problem& problem, const ForwardBuffers& buffers, void* workspace,
                   cudaStream_t stream);

}  // namespace sage::cuda

#endif  // SAGE_CUDA_INT8_FORWARD_H_
