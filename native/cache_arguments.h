// What the calls of caches are given, as C++ values.
#ifndef SAGE_NATIVE_CACHE_ARGUMENTS_H_
#define SAGE_NATIVE_CACHE_ARGUMENTS_H_

#include <node_api.h>

#include <cstdint>

#include "buffers.h"
#include "sage/attention.h"
#include "sage/kv_cache.h"
#include "sage/problem.h"

namespace sage_node {

// A whole number of at least 0; false for anything else.
bool ReadCount(napi_env env, napi_value value, int64_t* out);
napi_value ThrowCount(napi_env env);
// batch, kvHeads, qkDim, vDim, form and capacity; false after throwing.
bool ReadCacheShape(napi_env env, const napi_value* arguments, sage::KvCacheShape* shape,
                    int64_t* capacity);
// words, q, mask, o and lse of a call; what is wrong with them is told by the reader.
sage::Problem ReadAttend(ArgumentReader* reader, const napi_value* arguments,
                         sage::ForwardBuffers* buffers);
// k, kScale, kMean, v and vScale of a head; false after throwing.
bool ReadCodes(napi_env env, const napi_value* arguments, const sage::KvCacheShape& shape,
               int64_t length, sage::CacheCodes* out);

}  // namespace sage_node

#endif  // SAGE_NATIVE_CACHE_ARGUMENTS_H_
