// The calls that JavaScript makes on a cache, for both kinds: sage::KvCache (kv_cache_binding.cc)
// and sage::CudaHostCache (cuda_cache_binding.cc). `cache` is what a call for that kind returned.
#ifndef SAGE_NATIVE_CACHE_CALLS_H_
#define SAGE_NATIVE_CACHE_CALLS_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "addon_state.h"
#include "async_call.h"
#include "buffers.h"
#include "cache_arguments.h"
#include "cache_handle.h"
#include "cache_registry.h"

namespace sage_node {

inline napi_value Answer(napi_env env, const sage::Status& status) {
  return status.ok() ? nullptr : ThrowStatus(env, status);
}

inline sage::EngineOptions OptionsOf(const AddonState* state, const sage::KvCache*,
                                     const CancelFlag* cancelled) {
  return {state->isa, state->threads, cancelled};
}
inline sage::CudaHostOptions OptionsOf(const AddonState* state, const sage::CudaHostCache*,
                                       const CancelFlag* cancelled) {
  sage::CudaHostOptions options;
  options.threads = state->threads;
  options.cancelled = cancelled;
  return options;
}

// (batch, kvHeads, qkDim, vDim, form: 0 | 1 | 2 | 3, capacity): object
template <class Cache>
napi_value CreateCache(napi_env env, const napi_value* arguments) {
  sage::KvCacheShape shape;
  int64_t capacity = 0;
  if (!ReadCacheShape(env, arguments, &shape, &capacity)) return nullptr;
  std::unique_ptr<Cache> cache;
  const sage::Status status = Cache::Create(shape, capacity, &cache);
  return status.ok() ? WrapCache(env, std::move(cache)) : ThrowStatus(env, status);
}

// (cache, k [B,Hkv,n,D], v [B,Hkv,n,Dv]: Float32Array, n): void
template <class Cache>
napi_value AppendToCache(napi_env env, napi_callback_info info) {
  napi_value arguments[4];
  const AddonState* state = ReadCall(env, info, arguments);
  CacheHandle<Cache>* handle = CacheHandleOf<Cache>(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  int64_t tokens = 0;
  if (!ReadCount(env, arguments[3], &tokens)) return ThrowCount(env);
  const sage::KvCacheShape& shape = handle->cache->shape();
  ArgumentReader reader(env);
  const int64_t rows = Elements({shape.batch, shape.kv_heads, tokens});
  const float* k = reader.Floats(arguments[1], Elements({rows, shape.qk_dim}), "k");
  const float* v = reader.Floats(arguments[2], Elements({rows, shape.v_dim}), "v");
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  Cache* cache = handle->cache.get();
  const sage::Status status = cache->Append(k, v, tokens, OptionsOf(state, cache, nullptr));
  if (!status.ok()) return ThrowStatus(env, status);
  handle->Report(env);
  return nullptr;
}

// (cache, length): void
template <class Cache>
napi_value TruncateCache(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  ReadCall(env, info, arguments);
  CacheHandle<Cache>* handle = CacheHandleOf<Cache>(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  int64_t length = 0;
  if (!ReadCount(env, arguments[1], &length)) return ThrowCount(env);
  const sage::Status status = handle->cache->Truncate(length);
  if (!status.ok()) return ThrowStatus(env, status);
  handle->Report(env);
  return nullptr;
}

// (cache): object, a fork of it
template <class Cache>
napi_value ForkCache(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  CacheHandle<Cache>* handle = CacheHandleOf<Cache>(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  std::unique_ptr<Cache> fork;
  const sage::Status status = handle->cache->Fork(&fork);
  if (!status.ok()) return ThrowStatus(env, status);
  handle->Report(env);
  return WrapCache(env, std::move(fork));
}

// (cache, words: Float64Array, q: Float32Array, mask | null, o: Float32Array,
//  lse: Float32Array | null): void
template <class Cache>
napi_value AttendToCache(napi_env env, napi_callback_info info) {
  napi_value arguments[6];
  const AddonState* state = ReadCall(env, info, arguments);
  CacheHandle<Cache>* handle = CacheHandleOf<Cache>(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  ArgumentReader reader(env);
  sage::ForwardBuffers buffers = {};
  const sage::Problem p = ReadAttend(&reader, arguments + 1, &buffers);
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  Cache* cache = handle->cache.get();
  return Answer(env, cache->Attend(p, buffers, OptionsOf(state, cache, nullptr)));
}

// The same with `cancelled: Uint8Array` at the end: Promise<void> as forwardAsync. It attends to
// the tokens held now: what the cache goes through meanwhile, its disposal included, changes
// nothing.
template <class Cache>
napi_value AttendToCacheAsync(napi_env env, napi_callback_info info) {
  napi_value arguments[7];
  const AddonState* state = ReadCall(env, info, arguments);
  CacheHandle<Cache>* handle = CacheHandleOf<Cache>(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  ArgumentReader reader(env);
  sage::ForwardBuffers buffers = {};
  const sage::Problem p = ReadAttend(&reader, arguments + 1, &buffers);
  uint8_t* flag = reader.Byte(arguments[6], "cancelled");
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  std::unique_ptr<Cache> fork;
  const sage::Status status = handle->cache->Fork(&fork);
  if (!status.ok()) return ThrowStatus(env, status);
  const std::shared_ptr<Cache> held = std::move(fork);
  const auto options = OptionsOf(state, held.get(), reinterpret_cast<const CancelFlag*>(flag));
  return StartAsyncCall(env, "SageKvCache", arguments, 7,
                        [held, p, buffers, options] { return held->Attend(p, buffers, options); });
}

// (cache, batch, kvHead, k: Int16Array, kScale, kMean: Float32Array, v: Int16Array,
//  vScale: Float32Array): void. csrc/include/sage/kv_cache.h has the shapes.
template <class Cache>
napi_value InspectCache(napi_env env, napi_callback_info info) {
  napi_value arguments[8];
  ReadCall(env, info, arguments);
  CacheHandle<Cache>* handle = CacheHandleOf<Cache>(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  int64_t batch = 0, head = 0;
  if (!ReadCount(env, arguments[1], &batch) || !ReadCount(env, arguments[2], &head))
    return ThrowCount(env);
  const Cache& cache = *handle->cache;
  sage::CacheCodes out = {};
  if (!ReadCodes(env, arguments + 3, cache.shape(), cache.length(), &out)) return nullptr;
  return Answer(env, cache.Inspect(batch, head, out));
}

// (cache): number, of all pages that it reads, shared ones included.
template <class Cache>
napi_value BytesOfCache(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  CacheHandle<Cache>* handle = CacheHandleOf<Cache>(env, arguments[0]);
  napi_value bytes = nullptr;
  if (handle != nullptr) napi_create_int64(env, handle->cache->bytes(), &bytes);
  return bytes;
}

// (cache): void. Every later call with it throws.
template <class Cache>
napi_value DisposeCache(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  CacheHandle<Cache>* handle = CacheHandleOf<Cache>(env, arguments[0]);
  if (handle != nullptr) handle->Dispose(env);
  return nullptr;
}

// (cache): number, by which the ops inside TensorFlow find it.
template <class Cache>
napi_value NumberOfCache(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  CacheHandle<Cache>* handle = CacheHandleOf<Cache>(env, arguments[0]);
  napi_value number = nullptr;
  if (handle != nullptr) napi_create_int64(env, RegisterCache(handle->cache), &number);
  return number;
}

}  // namespace sage_node

#endif  // SAGE_NATIVE_CACHE_CALLS_H_
