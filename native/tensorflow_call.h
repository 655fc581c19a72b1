// The first input of every op and the order of its work, for the kernels of all ops.
#ifndef SAGE_NATIVE_TENSORFLOW_CALL_H_
#define SAGE_NATIVE_TENSORFLOW_CALL_H_

#include <cstdint>
#include <string>

#include "sage/attention.h"
#include "sage/problem.h"
#include "tensorflow_api.h"
#include "tensorflow_stream.h"
#include "tensorflow_tensors.h"

namespace sage_node::tensorflow {

struct Call {
  sage::Problem problem;
  sage::EngineOptions options;
};

[[noreturn]] void Refuse(const std::string& message);

// The input `call`, checked. Calls of caches have a number more, which goes to `cache` unless that
// is null.
Call ReadCall(TF_OpKernelContext* context, int64_t* cache);
// Instruction set and threads of such a call.
sage::EngineOptions ReadSettings(int32_t isa, int32_t threads);

// Data of the mask, null when the problem has none.
const void* MaskData(const Tensor& mask, const sage::Problem& problem);

// Work on a GPU, in order with TensorFlow's own. launch(workspace, stream) enqueues.
template <typename Launch>
const char* RunOnGpu(TF_OpKernelContext* context, int64_t workspace_bytes, const Launch& launch) {
  const Tensor workspace = Temporary(context, workspace_bytes);
  StreamOrder order(context);
  ThrowUnlessOk(order.Begin());
  ThrowUnlessOk(launch(workspace.data(), order.stream()));
  ThrowUnlessOk(order.End());
  return StreamModeName(order.mode());
}

}  // namespace sage_node::tensorflow

#endif  // SAGE_NATIVE_TENSORFLOW_CALL_H_
