// The key/value cache in device memory: the calls of kv_cache_binding.cc for sage::CudaHostCache.
#include <cstdint>
#include <memory>
#include <utility>

#include "addon_state.h"
#include "async_call.h"
#include "buffers.h"
#include "cache_arguments.h"
#include "cache_handle.h"
#include "cache_registry.h"
#include "sage/cuda_host_cache.h"

namespace sage_node {
namespace {

using sage::CudaHostCache;
using sage::Status;
using Handle = CacheHandle<CudaHostCache>;

Handle* HandleOf(napi_env env, napi_value value) {
  return CacheHandleOf<CudaHostCache>(env, value);
}

sage::CudaHostOptions Options(const AddonState* state) {
  sage::CudaHostOptions options;
  options.threads = state->threads;
  return options;
}

napi_value Answer(napi_env env, const Status& status) {
  return status.ok() ? nullptr : ThrowStatus(env, status);
}

}  // namespace

// cudaCacheSupports(batch, kvHeads, qkDim, vDim, form, 0): null, or why the device holds no such
// caches.
napi_value CudaCacheSupports(napi_env env, napi_callback_info info) {
  napi_value arguments[6];
  ReadCall(env, info, arguments);
  sage::KvCacheShape shape;
  int64_t capacity = 0;
  if (!ReadCacheShape(env, arguments, &shape, &capacity)) return nullptr;
  const Status status = sage::CudaHostCacheSupports(shape);
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
  AddonState* state = ReadCall(env, info, arguments);
  sage::KvCacheShape shape;
  int64_t capacity = 0;
  if (!ReadCacheShape(env, arguments, &shape, &capacity)) return nullptr;
  NoteCudaUse(state);
  std::unique_ptr<CudaHostCache> cache;
  const Status status = CudaHostCache::Create(shape, capacity, &cache);
  return status.ok() ? WrapCache(env, std::move(cache)) : ThrowStatus(env, status);
}

// cudaCacheAppend(cache, k, v, n): void
napi_value CudaCacheAppend(napi_env env, napi_callback_info info) {
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
  const Status status = handle->cache->Append(k, v, tokens, Options(state));
  if (!status.ok()) return ThrowStatus(env, status);
  handle->Report(env);
  return nullptr;
}

// cudaCacheTruncate(cache, length): void
napi_value CudaCacheTruncate(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  int64_t length = 0;
  if (!ReadCount(env, arguments[1], &length)) return ThrowCount(env);
  return Answer(env, handle->cache->Truncate(length));
}

// cudaCacheFork(cache): object
napi_value CudaCacheFork(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  std::unique_ptr<CudaHostCache> fork;
  const Status status = handle->cache->Fork(&fork);
  if (!status.ok()) return ThrowStatus(env, status);
  handle->Report(env);
  return WrapCache(env, std::move(fork));
}

// cudaCacheAttend(cache, words, q, mask | null, o, lse | null): void
napi_value CudaCacheAttend(napi_env env, napi_callback_info info) {
  napi_value arguments[6];
  const AddonState* state = ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  ArgumentReader reader(env);
  sage::ForwardBuffers buffers = {};
  const sage::Problem p = ReadAttend(&reader, arguments + 1, &buffers);
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  return Answer(env, handle->cache->Attend(p, buffers, Options(state)));
}

// cudaCacheAttendAsync(cache, words, q, mask | null, o, lse | null, cancelled): Promise<void>, as
// cacheAttendAsync.
napi_value CudaCacheAttendAsync(napi_env env, napi_callback_info info) {
  napi_value arguments[7];
  const AddonState* state = ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  ArgumentReader reader(env);
  sage::ForwardBuffers buffers = {};
  const sage::Problem p = ReadAttend(&reader, arguments + 1, &buffers);
  uint8_t* flag = reader.Byte(arguments[6], "cancelled");
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  std::unique_ptr<CudaHostCache> fork;
  const Status status = handle->cache->Fork(&fork);
  if (!status.ok()) return ThrowStatus(env, status);
  const std::shared_ptr<CudaHostCache> held = std::move(fork);
  sage::CudaHostOptions options = Options(state);
  options.cancelled = reinterpret_cast<const CancelFlag*>(flag);
  return StartAsyncCall(env, "SageKvCache", arguments, 7,
                        [held, p, buffers, options] { return held->Attend(p, buffers, options); });
}

// cudaCacheInspect(the arguments of cacheInspect): void
napi_value CudaCacheInspect(napi_env env, napi_callback_info info) {
  napi_value arguments[8];
  ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  int64_t batch = 0, head = 0;
  if (!ReadCount(env, arguments[1], &batch) || !ReadCount(env, arguments[2], &head))
    return ThrowCount(env);
  const CudaHostCache& cache = *handle->cache;
  sage::CacheCodes out = {};
  if (!ReadCodes(env, arguments + 3, cache.shape(), cache.length(), &out)) return nullptr;
  return Answer(env, cache.Inspect(batch, head, out));
}

// cudaCacheToHost(cache): what cacheCreate returns, with the same codes.
napi_value CudaCacheToHost(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  std::unique_ptr<sage::KvCache> cache;
  const Status status = handle->cache->ToHost(&cache);
  return status.ok() ? WrapCache(env, std::move(cache)) : ThrowStatus(env, status);
}

// cudaCacheBytes(cache): number, of device memory, shared with forks included.
napi_value CudaCacheBytes(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  napi_value bytes = nullptr;
  if (handle != nullptr) napi_create_int64(env, handle->cache->bytes(), &bytes);
  return bytes;
}

// cudaCacheDispose(cache): void. Every later call with it throws.
napi_value CudaCacheDispose(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  if (handle != nullptr) handle->Dispose(env);
  return nullptr;
}

// cudaCacheNumber(cache): number, by which the ops inside TensorFlow find it.
napi_value CudaCacheNumber(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  Handle* handle = HandleOf(env, arguments[0]);
  napi_value number = nullptr;
  if (handle != nullptr) napi_create_int64(env, RegisterCache(handle->cache), &number);
  return number;
}

}  // namespace sage_node
