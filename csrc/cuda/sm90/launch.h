// The two halves of a call, apart: tests and benchmarks look between them.
#ifndef SAGE_CUDA_SM90_LAUNCH_H_
#define SAGE_CUDA_SM90_LAUNCH_H_

#include <cuda_runtime.h>

#include "cuda/sm90/workspace.h"
#include "sage/attention.h"
#include "sage/problem.h"

namespace sage {
namespace sm90 {

// Statistics and quantisation: one launch after a clearing of `zeroed_bytes`.
cudaError_t Prepass(const Problem& problem, const ForwardBuffers& buffers, const Workspace& space,
                    cudaStream_t stream);

struct PrepassArguments;

// The part of Prepass where a cluster of blocks holds a head of k or v: short kv_len, head_dim 64
// or 128 in aligned rows, and nothing asked of q. Where it does not serve, `done` is false.
cudaError_t ReadOnce(const PrepassArguments& arguments, InputType input, cudaStream_t stream,
                     bool* done);

// Attention over what Prepass left. May run again over the same workspace.
cudaError_t Attend(const Problem& problem, const ForwardBuffers& buffers, const Workspace& space,
                   cudaStream_t stream);

struct AttendArguments;

// The part of Attend where space.plan has parts: attention by parts of the keys, and their merge.
cudaError_t LaunchParts(const AttendArguments& arguments, int64_t heads, const Workspace& space,
                        cudaStream_t stream);

// o = 0 and lse = -Infinity everywhere: there are no keys.
cudaError_t WriteEmptyRows(const Problem& problem, const ForwardBuffers& buffers,
                           cudaStream_t stream);

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_LAUNCH_H_
