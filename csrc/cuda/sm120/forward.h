// `fp4` and `fp4_fp8` on a device: what csrc/cuda/dispatch.cu calls for problems that Fp4Supports
// accepts. Native on compute capability 12.x, by exact emulation from 8.0 on.
#ifndef SAGE_CUDA_SM120_FORWARD_H_
#define SAGE_CUDA_SM120_FORWARD_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/sm120/workspace.h"
#include "sage/attention.h"
#include "sage/problem.h"
#include "sage/status.h"

namespace sage {

// Whether these kernels compute the problem as its recipe says, on the current device. `reason`
// (static storage) tells why not, or how: natively or by emulation.
bool Fp4Supports(const Problem& problem, const char** reason);

// Bytes of device memory that a call needs beside its buffers: O(N), about .6 bytes per element of
// q, k and v, 1.2 of v in fp4_fp8, and where q is smoothed 2 of k and .1 of q.
int64_t Fp4Workspace(const Problem& problem);

// o (and lse when wanted) in full, from device memory (q, k and v float32, or 16-bit as
// problem.input says), enqueued in `stream`. `workspace`
// needs no preparation and is aligned to 256 bytes, as cudaMalloc gives. kUnsupported for what
// Fp4Supports refuses, kInternal with the runtime's text after a failed launch.
Status Fp4Forward(const Problem& problem, const ForwardBuffers& buffers, void* workspace,
                  void* stream);

namespace sm120 {

// Whether this build has machine code for the current device.
bool HasCode();

// The two halves of a call, apart: tests and benchmarks look between them. Prepass is two launches
// after one clearing of `zeroed_bytes`; Attend may run again over the same workspace.
cudaError_t Prepass(const Problem& problem, const ForwardBuffers& buffers, const Workspace& space,
                    cudaStream_t stream);
cudaError_t Attend(const Problem& problem, const ForwardBuffers& buffers, const Workspace& space,
                   cudaStream_t stream);

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_FORWARD_H_
