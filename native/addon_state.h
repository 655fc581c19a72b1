// What one JavaScript environment (the main thread or a worker thread) keeps in the addon.
#ifndef SAGE_NATIVE_ADDON_STATE_H_
#define SAGE_NATIVE_ADDON_STATE_H_

#include <node_api.h>

#include <cstddef>

#include "sage/attention.h"

namespace sage_node {

// Touched by the environment's own thread only, and freed with the environment.
struct AddonState {
  sage::Isa isa;
  int threads;
  bool uses_cuda = false;
};

// Counts the environments that have called the CUDA engine: when the last of them ends, the memory
// that is kept for later calls goes.
void NoteCudaUse(AddonState* state);

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
napi_value CacheCreate(napi_env env, napi_callback_info info);
napi_value CudaSupports(napi_env env, napi_callback_info info);
napi_value CudaForward(napi_env env, napi_callback_info info);
napi_value CudaForwardAsync(napi_env env, napi_callback_info info);
napi_value CudaBackward(napi_env env, napi_callback_info info);
napi_value TimeCudaForward(napi_env env, napi_callback_info info);
napi_value CudaHostSupports(napi_env env, napi_callback_info info);
napi_value CudaChooseDevice(napi_env env, napi_callback_info info);
napi_value CudaState(napi_env env, napi_callback_info info);
napi_value CudaDevices(napi_env env, napi_callback_info info);
napi_value CudaLimitMemory(napi_env env, napi_callback_info info);
napi_value CudaRelease(napi_env env, napi_callback_info info);
napi_value CudaCacheSupports(napi_env env, napi_callback_info info);
napi_value CudaCacheCreate(napi_env env, napi_callback_info info);
napi_value CudaCacheToHost(napi_env env, napi_callback_info info);
napi_value RegisterTensorflowOp(napi_env env, napi_callback_info info);
napi_value TensorflowTrace(napi_env env, napi_callback_info info);
napi_value SetTensorflowStream(napi_env env, napi_callback_info info);
napi_value ProbeTensorflow(napi_env env, napi_callback_info info);

}  // namespace sage_node

#endif  // SAGE_NATIVE_ADDON_STATE_H_
