// The asynchronous forward call.
#include "addon_state.h"
#include "async_call.h"
#include "buffers.h"
#include "sage/attention.h"

namespace sage_node {

// forwardAsync(words, q, k, v, mask | null, o, lse | null, cancelled: Uint8Array): Promise<void>
// A 1 written to cancelled[0] ends the call at its next tile with code 'SAGE_CANCELLED'.
napi_value ForwardAsync(napi_env env, napi_callback_info info) {
  napi_value arguments[8];
  const AddonState* state = ReadCall(env, info, arguments);
  ArgumentReader reader(env);
  const sage::Problem problem = reader.ReadProblem(arguments[0]);
  const sage::ForwardBuffers buffers = reader.Forward(arguments + 1, problem);
  uint8_t* flag = reader.Byte(arguments[7], "cancelled");
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  const sage::EngineOptions options = {state->isa, state->threads,
                                       reinterpret_cast<const CancelFlag*>(flag)};
  return StartAsyncCall(env, "sageAttention", arguments, 8, [problem, buffers, options] {
    return sage::AttentionForward(problem, buffers, options);
  });
}

}  // namespace sage_node
