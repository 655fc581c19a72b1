// The key/value cache of the CPU engine: a JavaScript object holds one sage::KvCache;
// `cacheDispose` frees its memory at once.
#include <cstdint>
#include <memory>
#include <utility>

#include "addon_state.h"
#include "async_call.h"
#include "buffers.h"
#include "cache_arguments.h"
#include "cache_handle.h"
#include "cache_registry.h"
#include "sage/kv_cache.h"

namespace sage_node {
namespace {

using sage::KvCache;
using sage::Status;
using Handle = CacheHandle<KvCache>;

Handle* HandleOf(napi_env env, napi_value value) { return CacheHandleOf<KvCache>(env, value); }

}  // namespace

// cacheCreate(batch, kvHeads, qkDim, vDim, form: 0 | 1 | 2 | 3, capacity): object
napi_value CacheCreate(napi_env env, napi_callback_info info) {
  napi_value arguments[6];
  ReadCall(env, info, arguments);
  sage::KvCacheShape shape;
  int64_t capacity = 0;
  if (!ReadCacheShape(env, arguments, &shape, &capacity)) return nullptr;
  std::unique_ptr<KvCache> cache;
  const Status status = KvCache::Create(shape, capacity, &cache);
  return status.ok() ? WrapCache(env, std::move(cache)) : ThrowStatus(env, status);
}

// cacheAppend(cache, k [B,Hkv,n,D], v [B,Hkv,n,Dv]: Float32Array, n): void
napi_value CacheAppend(napi_env env, napi_callback_info info) {
  napi_value arguments[4];
  const AddonState* state = ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  int64_t tokens = 0;
  if (!ReadCount(env, arguments[3], &tokens)) return ThrowCount(env);
  const sage::KvCacheShape& shape = handle->cache->shape();
  ArgumentReader reader(env);
  const int64_t rows = Elements({shape.batch, shape.kv_heads, tokens});
  const float* k = reader.Floats(arguments[1], Elements({rows, shape.qk_dim}), "k");
  const float* v = reader.Floats(arguments[2], Elements({rows, shape.v_dim}), "v");
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  const Status status = handle->cache->Append(k, v, tokens, {state->isa, state->threads, nullptr});
  if (!status.ok()) return ThrowStatus(env, status);
  handle->Report(env);
  return nullptr;
}

// cacheTruncate(cache, length): void
napi_value CacheTruncate(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  int64_t length = 0;
  if (!ReadCount(env, arguments[1], &length)) return ThrowCount(env);
  const Status status = handle->cache->Truncate(length);
  if (!status.ok()) return ThrowStatus(env, status);
  handle->Report(env);
  return nullptr;
}

// cacheFork(cache): object
napi_value CacheFork(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  std::unique_ptr<KvCache> fork;
  const Status status = handle->cache->Fork(&fork);
  if (!status.ok()) return ThrowStatus(env, status);
  handle->Report(env);
  return WrapCache(env, std::move(fork));
}

// cacheAttend(cache, words: Float64Array, q: Float32Array, mask | null, o: Float32Array,
//             lse: Float32Array | null): void
napi_value CacheAttend(napi_env env, napi_callback_info info) {
  napi_value arguments[6];
  const AddonState* state = ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  ArgumentReader reader(env);
  sage::ForwardBuffers buffers = {};
  const sage::Problem p = ReadAttend(&reader, arguments + 1, &buffers);
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  const Status status = handle->cache->Attend(p, buffers, {state->isa, state->threads, nullptr});
  return status.ok() ? nullptr : ThrowStatus(env, status);
}

// cacheAttendAsync(cache, words, q, mask | null, o, lse | null, cancelled: Uint8Array):
// Promise<void> as forwardAsync. It attends to the tokens held now: what the cache goes through
// meanwhile, its disposal included, changes nothing.
napi_value CacheAttendAsync(napi_env env, napi_callback_info info) {
  napi_value arguments[7];
  const AddonState* state = ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  ArgumentReader reader(env);
  sage::ForwardBuffers buffers = {};
  const sage::Problem p = ReadAttend(&reader, arguments + 1, &buffers);
  uint8_t* flag = reader.Byte(arguments[6], "cancelled");
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  std::unique_ptr<KvCache> fork;
  const Status status = handle->cache->Fork(&fork);
  if (!status.ok()) return ThrowStatus(env, status);
  const std::shared_ptr<KvCache> held = std::move(fork);
  const sage::EngineOptions options = {state->isa, state->threads,
                                       reinterpret_cast<const CancelFlag*>(flag)};
  return StartAsyncCall(env, "SageKvCache", arguments, 7,
                        [held, p, buffers, options] { return held->Attend(p, buffers, options); });
}

// cacheInspect(cache, batch, kvHead, k: Int16Array, kScale, kMean: Float32Array, v: Int16Array,
//              vScale: Float32Array): void. csrc/include/sage/kv_cache.h has the shapes.
napi_value CacheInspect(napi_env env, napi_callback_info info) {
  napi_value arguments[8];
  ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  int64_t batch = 0, head = 0;
  if (!ReadCount(env, arguments[1], &batch) || !ReadCount(env, arguments[2], &head))
    return ThrowCount(env);
  const KvCache& cache = *handle->cache;
  sage::CacheCodes out = {};
  if (!ReadCodes(env, arguments + 3, cache.shape(), cache.length(), &out)) return nullptr;
  const Status status = cache.Inspect(batch, head, out);
  return status.ok() ? nullptr : ThrowStatus(env, status);
}

// cacheBytes(cache): number, of all pages that it reads, shared ones included.
napi_value CacheBytes(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  napi_value bytes = nullptr;
  if (handle != nullptr) napi_create_int64(env, handle->cache->bytes(), &bytes);
  return bytes;
}

// cacheDispose(cache): void. Every later call with it throws.
napi_value CacheDispose(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  handle->Dispose(env);
  return nullptr;
}

// cacheNumber(cache): number, by which the ops inside TensorFlow find it.
napi_value CacheNumber(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  napi_value number = nullptr;
  if (handle != nullptr) napi_create_int64(env, RegisterCache(handle->cache), &number);
  return number;
}

}  // namespace sage_node
