// The key/value cache in device memory: a JavaScript object holds one sage::CudaHostCache. What a
// cache can do is in cache_calls.h; here is what only this kind has.
#include <cstdint>
#include <memory>
#include <utility>

#include "cache_calls.h"
#include "sage/cuda_host_cache.h"

namespace sage_node {

// cudaCacheSupports(batch, kvHeads, qkDim, vDim, form, 0): null, or why the device holds no such
// caches.
napi_value CudaCacheSupports(napi_env env, napi_callback_info info) {
  napi_value arguments[6];
  ReadCall(env, info, arguments);
  sage::KvCacheShape shape;
  int64_t capacity = 0;
  if (!ReadCacheShape(env, arguments, &shape, &capacity)) return nullptr;
  const sage::Status status = sage::CudaHostCacheSupports(shape);
  napi_value result = nullptr;
  if (status.ok()) {
    napi_get_null(env, &result);
  } else {
    napi_create_string_utf8(env, status.message, NAPI_AUTO_LENGTH, &result);
  }
  return result;
}

// cudaCacheCreate(the arguments of cacheCreate): object
napi_value CudaCacheCreate(napi_env env, napi_callback_info info) {
  napi_value arguments[6];
  NoteCudaUse(ReadCall(env, info, arguments));
  return CreateCache<sage::CudaHostCache>(env, arguments);
}

// cudaCacheToHost(cache): what cacheCreate returns, with the same codes.
napi_value CudaCacheToHost(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  CacheHandle<sage::CudaHostCache>* handle = CacheHandleOf<sage::CudaHostCache>(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  std::unique_ptr<sage::KvCache> cache;
  const sage::Status status = handle->cache->ToHost(&cache);
  return status.ok() ? WrapCache(env, std::move(cache)) : ThrowStatus(env, status);
}

}  // namespace sage_node
