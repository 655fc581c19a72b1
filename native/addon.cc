// The addon's entry: exports for one JavaScript environment. Glue only; the maths is in csrc/.
#include <napi.h>

#include <new>

#include "addon_state.h"
#include "sage/capabilities.h"

namespace sage_node {
namespace {

// The environment is going: its calls stop at their next tile, and the last of them frees the state.
void OnEnvironmentEnd(napi_async_cleanup_hook_handle handle, void* data) {
  auto* state = static_cast<AddonState*>(data);
  state->closing = true;
  if (state->running == nullptr) {
    delete state;
    napi_remove_async_cleanup_hook(handle);
    return;
  }
  for (RunningCall* call = state->running; call != nullptr; call = call->next) {
    call->cancelled->store(true, std::memory_order_relaxed);
  }
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  AddonState* state = CreateAddonState(env);
  if (state == nullptr) {
    Napi::Error::New(env, "the native addon found no memory for its state").ThrowAsJavaScriptException();
    return exports;
  }
  const struct {
    const char* name;
    napi_callback function;
  } functions[] = {
      {"forward", Forward},   {"forwardAsync", ForwardAsync}, {"backward", Backward},
      {"quantize", Quantize}, {"configure", Configure},       {"capabilities", Capabilities},
  };
  for (const auto& entry : functions) {
    napi_value value;
    if (napi_create_function(env, entry.name, NAPI_AUTO_LENGTH, entry.function, state, &value) != napi_ok) break;
    exports.Set(entry.name, value);
  }
  return exports;
}

}  // namespace

AddonState* CreateAddonState(napi_env env) {
  auto* state = new (std::nothrow) AddonState;
  if (state == nullptr) return nullptr;
  state->isa = sage::DetectIsa();
  state->threads = sage::AvailableProcessors();
  if (state->threads > sage::MaxThreads()) state->threads = sage::MaxThreads();
  if (napi_add_async_cleanup_hook(env, OnEnvironmentEnd, state, &state->cleanup) != napi_ok) {
    delete state;
    return nullptr;
  }
  return state;
}

void AddonState::Add(RunningCall* call) {
  call->next = running;
  call->link = &running;
  if (running != nullptr) running->link = &call->next;
  running = call;
}

void AddonState::Remove(RunningCall* call) {
  *call->link = call->next;
  if (call->next != nullptr) call->next->link = call->link;
  if (!closing || running != nullptr) return;
  const napi_async_cleanup_hook_handle handle = cleanup;
  delete this;
  napi_remove_async_cleanup_hook(handle);
}

NODE_API_MODULE(sage_attention, Init)

}  // namespace sage_node
