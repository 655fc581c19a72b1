// The kernels of the ops of key/value caches: TensorFlow's tensors as what caches take, on a CPU
// from sage::KvCache, on a GPU from sage::CudaHostCache.
//
// Inputs of the op that appends: call, k [B,Hkv,n,D], v [B,Hkv,n,Dv]; its output is a float32
// tensor without elements. Inputs of the ops that attend: call, q and, in the masked forms, mask;
// outputs: o and, in the lse forms, lse.
#ifndef SAGE_NATIVE_TENSORFLOW_CACHE_KERNELS_H_
#define SAGE_NATIVE_TENSORFLOW_CACHE_KERNELS_H_

#include "tensorflow_api.h"

namespace sage_node::tensorflow {

// `call` of the op that appends is int32 [kAppendWords]: the number of the cache as a pair, then
// instruction set and threads. That of the others is kCacheCallWords long (tensorflow_kernels.h).
constexpr int kAppendWords = 4;

void AppendOnCpu(void* kernel, TF_OpKernelContext* context);
void AppendOnGpu(void* kernel, TF_OpKernelContext* context);
void AttendOnCpu(void* kernel, TF_OpKernelContext* context);
void AttendOnGpu(void* kernel, TF_OpKernelContext* context);

}  // namespace sage_node::tensorflow

#endif  // SAGE_NATIVE_TENSORFLOW_CACHE_KERNELS_H_
