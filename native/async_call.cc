#include "async_call.h"

#include <new>
#include <utility>

#include "buffers.h"

namespace sage_node {
namespace {

struct AsyncCall {
  std::function<sage::Status()> run;
  sage::Status status;
  napi_deferred deferred;
  napi_ref arguments;
  napi_async_work work;
};

void Execute(napi_env, void* data) {
  auto* call = static_cast<AsyncCall*>(data);
  call->status = call->run();
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

}  // namespace

napi_value StartAsyncCall(napi_env env, const char* name, const napi_value* arguments,
                          uint32_t count, std::function<sage::Status()> run) {
  auto* call = new (std::nothrow) AsyncCall;
  if (call == nullptr)
    return ThrowStatus(env, {sage::StatusCode::kOutOfMemory, "no memory for the call"});
  call->run = std::move(run);
  if (Keep(env, arguments, count, &call->arguments) != napi_ok) {
    delete call;
    return ThrowInternal(env);
  }
  napi_value label = nullptr, promise = nullptr;
  napi_create_string_utf8(env, name, NAPI_AUTO_LENGTH, &label);
  if (napi_create_async_work(env, nullptr, label, Execute, Complete, call, &call->work) !=
      napi_ok) {
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

}  // namespace sage_node
