// The kernels of the ops: TensorFlow's tensors as buffers of the engines.
//
// Inputs of a forward op: call, q, k, v and, in the masked forms, mask; outputs: o and, in the lse
// forms, lse. Inputs of a gradient op: call, q, k, v, mask, o, lse, dO, dLse; outputs: dQ, dK, dV
// and, in one form, dMask. A mask or dLse without elements means that there is none.
#ifndef SAGE_NATIVE_TENSORFLOW_KERNELS_H_
#define SAGE_NATIVE_TENSORFLOW_KERNELS_H_

#include "sage/problem.h"
#include "tensorflow_api.h"

namespace sage_node::tensorflow {

// `call` is int32 [kCallWords], in host memory: the float64 words of the problem as pairs, then the
// instruction set and the threads of the CPU engine. So every call carries its own settings,
// whichever environment, thread or copy of the addon it comes from.
constexpr int kCallWords = 2 * sage::kProblemWords + 2;
// The same and the number of a cache, as a pair.
constexpr int kCacheCallWords = kCallWords + 2;
// Part of the ops' names: grows with every change of `call`, inputs or outputs.
constexpr int kCallVersion = 1;

void* CreateKernel(TF_OpKernelConstruction* construction);
void ForwardOnCpu(void* kernel, TF_OpKernelContext* context);
void ForwardOnGpu(void* kernel, TF_OpKernelContext* context);
void BackwardOnCpu(void* kernel, TF_OpKernelContext* context);
void BackwardOnGpu(void* kernel, TF_OpKernelContext* context);

}  // namespace sage_node::tensorflow

#endif  // SAGE_NATIVE_TENSORFLOW_KERNELS_H_
