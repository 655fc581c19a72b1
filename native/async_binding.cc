// The asynchronous call: the engine runs on a thread of libuv's pool while JavaScript goes on.
//
// The typed arrays are kept alive until it ends. Their memory must stay where it is: no transfer to
// another thread, no growth of a WebAssembly memory that they view. A worker thread that is
// terminated waits for the calls that have begun, since its memory is what they write to; those
// that have not begun are dropped.
#include <atomic>
#include <new>

#include "addon_state.h"
#include "buffers.h"
#include "sage/attention.h"
#include "sage/cuda_host.h"

namespace sage_node {
namespace {

// One byte of a Uint8Array, which TypeScript sets to 1 and the engine polls between tiles.
using CancelFlag = std::atomic<bool>;
static_assert(sizeof(CancelFlag) == 1 && CancelFlag::is_always_lock_free,
              "a cancel flag must be one plain byte, since JavaScript writes it");

struct AsyncCall {
  sage::Problem problem;
  sage::ForwardBuffers buffers;
  sage::EngineOptions options;
  bool on_cuda;
  sage::Status status;
  napi_deferred deferred;
  napi_ref arguments;
  napi_async_work work;
};

void Execute(napi_env, void* data) {
  auto* call = static_cast<AsyncCall*>(data);
  if (!call->on_cuda) {
    call->status = sage::AttentionForward(call->problem, call->buffers, call->options);
    return;
  }
  sage::CudaHostOptions options;
  options.threads = call->options.threads;
  options.cancelled = call->options.cancelled;
  call->status = sage::CudaHostForward(call->problem, call->buffers, options);
}

// Back on the JavaScript thread. While an environment is torn down the Node-API calls may fail, to
// no effect.
void Complete(napi_env env, napi_status ran, void* data) {
  auto* call = static_cast<AsyncCall*>(data);
  if (ran == napi_cancelled)
    call->status = {sage::StatusCode::kCancelled, "the call was cancelled before it began"};
  napi_handle_scope scope = nullptr;
  if (napi_open_handle_scope(env, &scope) == napi_ok) {
    if (call->status.ok()) {
      napi_value undefined = nullptr;
      napi_get_undefined(env, &undefined);
      napi_resolve_deferred(env, call->deferred, undefined);
    } else {
      napi_reject_deferred(env, call->deferred, StatusError(env, call->status));
    }
    napi_close_handle_scope(env, scope);
  }
  napi_delete_reference(env, call->arguments);
  napi_delete_async_work(env, call->work);
  delete call;
}

// One array that holds all arguments, so that one reference keeps them.
napi_status Keep(napi_env env, const napi_value* values, uint32_t count, napi_ref* reference) {
  napi_value array = nullptr;
  napi_status status = napi_create_array_with_length(env, count, &array);
  for (uint32_t i = 0; i < count && status == napi_ok; ++i)
    status = napi_set_element(env, array, i, values[i]);
  return status == napi_ok ? napi_create_reference(env, array, 1, reference) : status;
}

napi_value ThrowInternal(napi_env env) {
  return ThrowStatus(env,
                     {sage::StatusCode::kInternal, "Node could not start the asynchronous call"});
}

napi_value Start(napi_env env, napi_callback_info info, bool on_cuda) {
  napi_value arguments[8];
  AddonState* state = ReadCall(env, info, arguments);
  ArgumentReader reader(env);
  const sage::Problem problem = reader.ReadProblem(arguments[0]);
  const sage::ForwardBuffers buffers = reader.Forward(arguments + 1, problem);
  uint8_t* flag = reader.Byte(arguments[7], "cancelled");
  if (!reader.ok()) return ThrowStatus(env, reader.status());

  auto* call = new (std::nothrow) AsyncCall;
  if (call == nullptr)
    return ThrowStatus(env, {sage::StatusCode::kOutOfMemory, "no memory for the call"});
  call->problem = problem;
  call->buffers = buffers;
  call->on_cuda = on_cuda;
  if (on_cuda) NoteCudaUse(state);
  call->options = {state->isa, state->threads, reinterpret_cast<const CancelFlag*>(flag)};

  if (Keep(env, arguments, 8, &call->arguments) != napi_ok) {
    delete call;
    return ThrowInternal(env);
  }
  napi_value name = nullptr, promise = nullptr;
  napi_create_string_utf8(env, "sageAttention", NAPI_AUTO_LENGTH, &name);
  if (napi_create_async_work(env, nullptr, name, Execute, Complete, call, &call->work) != napi_ok) {
    napi_delete_reference(env, call->arguments);
    delete call;
    return ThrowInternal(env);
  }
  if (napi_create_promise(env, &call->deferred, &promise) != napi_ok ||
      napi_queue_async_work(env, call->work) != napi_ok) {
    napi_delete_async_work(env, call->work);
    napi_delete_reference(env, call->arguments);
    delete call;
    return ThrowInternal(env);
  }
  return promise;
}

}  // namespace

// forwardAsync(words, q, k, v, mask | null, o, lse | null, cancelled: Uint8Array): Promise<void>
// A 1 written to cancelled[0] ends the call at its next tile with code 'SAGE_CANCELLED'.
napi_value ForwardAsync(napi_env env, napi_callback_info info) { return Start(env, info, false); }

// cudaForwardAsync: the same on the CUDA engine, which looks at cancelled[0] between pieces.
napi_value CudaForwardAsync(napi_env env, napi_callback_info info) {
  return Start(env, info, true);
}

}  // namespace sage_node
