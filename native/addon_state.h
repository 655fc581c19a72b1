// What one JavaScript environment (the main thread or a worker thread) keeps in the addon.
#ifndef SAGE_NATIVE_ADDON_STATE_H_
#define SAGE_NATIVE_ADDON_STATE_H_

#include <node_api.h>

#include <atomic>

#include "sage/attention.h"

namespace sage_node {

// Polled by the engine between tiles; it is one byte of a Uint8Array that TypeScript sets to 1.
using CancelFlag = std::atomic<bool>;
static_assert(sizeof(CancelFlag) == 1 && CancelFlag::is_always_lock_free,
              "a cancel flag must be one plain byte, since JavaScript writes it");

// An asynchronous call under way, in a list of its environment.
struct RunningCall {
  CancelFlag* cancelled;
  RunningCall* next;
  RunningCall** link;  // what points at this call
};

// Freed when the environment is torn down, after its last asynchronous call. Touched by its own thread only.
struct AddonState {
  sage::Isa isa;
  int threads;
  RunningCall* running = nullptr;
  bool closing = false;
  napi_async_cleanup_hook_handle cleanup = nullptr;

  void Add(RunningCall* call);
  // After the last call of an environment that is being torn down the state is gone.
  void Remove(RunningCall* call);
};

// The state of a new environment, with a hook that cancels its asynchronous calls at its end. Null: no memory.
AddonState* CreateAddonState(napi_env env);

// State and arguments of a call; missing arguments are `undefined`.
template <size_t kCount>
AddonState* ReadCall(napi_env env, napi_callback_info info, napi_value (&arguments)[kCount]) {
  size_t count = kCount;
  void* state = nullptr;
  napi_get_cb_info(env, info, &count, arguments, nullptr, &state);
  return static_cast<AddonState*>(state);
}

// Exported functions, each with its JavaScript signature above its definition.
napi_value Forward(napi_env env, napi_callback_info info);
napi_value ForwardAsync(napi_env env, napi_callback_info info);
napi_value Backward(napi_env env, napi_callback_info info);
napi_value Quantize(napi_env env, napi_callback_info info);
napi_value Configure(napi_env env, napi_callback_info info);
napi_value Capabilities(napi_env env, napi_callback_info info);

}  // namespace sage_node

#endif  // SAGE_NATIVE_ADDON_STATE_H_
