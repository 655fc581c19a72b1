// The key/value cache of the CPU engine: a JavaScript object holds one sage::KvCache;
// `cacheDispose` frees its memory at once. What a cache can do is in cache_calls.h.
#include "cache_calls.h"
#include "sage/kv_cache.h"

namespace sage_node {

// cacheCreate(batch, kvHeads, qkDim, vDim, form: 0 | 1 | 2 | 3, capacity): object
napi_value CacheCreate(napi_env env, napi_callback_info info) {
  napi_value arguments[6];
  ReadCall(env, info, arguments);
  return CreateCache<sage::KvCache>(env, arguments);
}

}  // namespace sage_node
