// The addon's entry: exports for one JavaScript environment. Glue only; the maths is in csrc/.
#include <napi.h>

#include <atomic>
#include <new>

#include "addon_state.h"
#include "cache_calls.h"
#include "sage/capabilities.h"
#include "sage/cuda_host.h"

namespace sage_node {
namespace {

std::atomic<int> cuda_users{0};

AddonState* CreateState(napi_env env) {
  auto* state = new (std::nothrow) AddonState;
  if (state == nullptr) return nullptr;
  state->isa = sage::DetectIsa();
  state->threads = sage::AvailableProcessors();
  if (state->threads > sage::MaxThreads()) state->threads = sage::MaxThreads();
  const auto free_state = [](napi_env, void* data, void*) {
    auto* ending = static_cast<AddonState*>(data);
    if (ending->uses_cuda && --cuda_users == 0) sage::ReleaseCudaMemory();
    delete ending;
  };
  if (napi_set_instance_data(env, state, free_state, nullptr) == napi_ok) return state;
  delete state;
  return nullptr;
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  AddonState* state = CreateState(env);
  if (state == nullptr) {
    Napi::Error::New(env, "the native addon found no memory for its state")
        .ThrowAsJavaScriptException();
    return exports;
  }
  const struct {
    const char* name;
    napi_callback function;
  } functions[] = {
      {"forward", Forward},
      {"forwardAsync", ForwardAsync},
      {"backward", Backward},
      {"quantize", Quantize},
      {"configure", Configure},
      {"capabilities", Capabilities},
      {"cacheCreate", CacheCreate},
      {"cacheAppend", AppendToCache<sage::KvCache>},
      {"cacheTruncate", TruncateCache<sage::KvCache>},
      {"cacheFork", ForkCache<sage::KvCache>},
      {"cacheAttend", AttendToCache<sage::KvCache>},
      {"cacheAttendAsync", AttendToCacheAsync<sage::KvCache>},
      {"cacheInspect", InspectCache<sage::KvCache>},
      {"cacheBytes", BytesOfCache<sage::KvCache>},
      {"cacheDispose", DisposeCache<sage::KvCache>},
      {"cudaSupports", CudaSupports},
      {"cudaForward", CudaForward},
      {"cudaForwardAsync", CudaForwardAsync},
      {"cudaBackward", CudaBackward},
      {"timeCudaForward", TimeCudaForward},
      {"cudaHostSupports", CudaHostSupports},
      {"cudaChooseDevice", CudaChooseDevice},
      {"cudaState", CudaState},
      {"cudaDevices", CudaDevices},
      {"cudaLimitMemory", CudaLimitMemory},
      {"cudaRelease", CudaRelease},
      {"cacheNumber", NumberOfCache<sage::KvCache>},
      {"cudaCacheNumber", NumberOfCache<sage::CudaHostCache>},
      {"cudaCacheSupports", CudaCacheSupports},
      {"cudaCacheCreate", CudaCacheCreate},
      {"cudaCacheAppend", AppendToCache<sage::CudaHostCache>},
      {"cudaCacheTruncate", TruncateCache<sage::CudaHostCache>},
      {"cudaCacheFork", ForkCache<sage::CudaHostCache>},
      {"cudaCacheAttend", AttendToCache<sage::CudaHostCache>},
      {"cudaCacheAttendAsync", AttendToCacheAsync<sage::CudaHostCache>},
      {"cudaCacheInspect", InspectCache<sage::CudaHostCache>},
      {"cudaCacheToHost", CudaCacheToHost},
      {"cudaCacheBytes", BytesOfCache<sage::CudaHostCache>},
      {"cudaCacheDispose", DisposeCache<sage::CudaHostCache>},
      {"registerTensorflowOp", RegisterTensorflowOp},
      {"tensorflowTrace", TensorflowTrace},
      {"setTensorflowStream", SetTensorflowStream},
      {"probeTensorflow", ProbeTensorflow},
  };
  for (const auto& entry : functions) {
    napi_value value;
    if (napi_create_function(env, entry.name, NAPI_AUTO_LENGTH, entry.function, state, &value) !=
        napi_ok)
      break;
    exports.Set(entry.name, value);
  }
  return exports;
}

}  // namespace

void NoteCudaUse(AddonState* state) {
  if (state->uses_cuda) return;
  state->uses_cuda = true;
  ++cuda_users;
}

NODE_API_MODULE(sage_attention, Init)

}  // namespace sage_node
