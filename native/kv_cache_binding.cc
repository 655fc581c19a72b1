// The key/value cache: a JavaScript object wraps one sage::KvCache. Node frees it with the object,
// or with the environment; `cacheDispose` frees its memory at once.
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

#include "addon_state.h"
#include "async_call.h"
#include "buffers.h"
#include "sage/kv_cache.h"

namespace sage_node {
namespace {

using sage::KvCache;
using sage::Status;
using sage::StatusCode;

// Tells an object of this file from any other that may be passed in its place.
constexpr napi_type_tag kCacheTag = {0x5a6e1c0de7b94f21u, 0x9d3c4b8a6f2e7015u};

struct CacheHandle {
  std::unique_ptr<KvCache> cache;  // null once disposed
  int64_t reported = 0;            // bytes that the garbage collector was told of
};

// Tells the garbage collector what this cache alone keeps alive.
void Report(napi_env env, CacheHandle* handle) {
  const int64_t bytes = handle->cache == nullptr ? 0 : handle->cache->exclusive_bytes();
  if (bytes == handle->reported) return;
  int64_t total = 0;
  napi_adjust_external_memory(env, bytes - handle->reported, &total);
  handle->reported = bytes;
}

void Finalize(napi_env env, void* data, void*) {
  auto* handle = static_cast<CacheHandle*>(data);
  handle->cache.reset();
  Report(env, handle);
  delete handle;
}

napi_value Wrap(napi_env env, std::unique_ptr<KvCache> cache) {
  std::unique_ptr<CacheHandle> handle(new (std::nothrow) CacheHandle);
  if (handle == nullptr) {
    return ThrowStatus(env, {StatusCode::kOutOfMemory, "no memory for the cache"});
  }
  handle->cache = std::move(cache);
  napi_value object = nullptr;
  if (napi_create_object(env, &object) != napi_ok ||
      napi_type_tag_object(env, object, &kCacheTag) != napi_ok ||
      napi_wrap(env, object, handle.get(), Finalize, nullptr, nullptr) != napi_ok) {
    return ThrowStatus(env, {StatusCode::kInternal, "Node could not wrap the cache"});
  }
  Report(env, handle.release());
  return object;
}

// The cache behind `value`, or null after throwing.
CacheHandle* HandleOf(napi_env env, napi_value value) {
  napi_valuetype type = napi_undefined;
  bool tagged = false;
  void* data = nullptr;
  if (napi_typeof(env, value, &type) != napi_ok || type != napi_object ||
      napi_check_object_type_tag(env, value, &kCacheTag, &tagged) != napi_ok || !tagged ||
      napi_unwrap(env, value, &data) != napi_ok) {
    ThrowStatus(env, Status::Invalid("cache: expected what cacheCreate returned"));
    return nullptr;
  }
  auto* handle = static_cast<CacheHandle*>(data);
  if (handle->cache == nullptr) {
    ThrowStatus(env, Status::Invalid("cache: it was disposed"));
    return nullptr;
  }
  return handle;
}

// A whole number of at least 0; false for anything else.
bool ReadCount(napi_env env, napi_value value, int64_t* out) {
  double number = 0;
  if (napi_get_value_double(env, value, &number) != napi_ok) return false;
  if (!(number >= 0 && number <= 9007199254740991.0 && number == std::floor(number))) return false;
  *out = static_cast<int64_t>(number);
  return true;
}

napi_value ThrowCount(napi_env env) {
  return ThrowStatus(env, Status::Invalid("cache: a size is not a whole number"));
}

napi_value Number(napi_env env, int64_t value) {
  napi_value result = nullptr;
  napi_create_int64(env, value, &result);
  return result;
}

// Elements of an Int16Array of at least that length; null where it is anything else.
int16_t* Codes(napi_env env, napi_value value, int64_t elements) {
  napi_typedarray_type type;
  size_t length = 0;
  void* data = nullptr;
  if (napi_get_typedarray_info(env, value, &type, &length, &data, nullptr, nullptr) != napi_ok ||
      type != napi_int16_array || static_cast<int64_t>(length) < elements) {
    return nullptr;
  }
  return static_cast<int16_t*>(data);
}

// words, q, mask, o and lse of a call; what is wrong with them is told by the reader.
sage::Problem ReadAttend(ArgumentReader* reader, const napi_value* arguments,
                         sage::ForwardBuffers* buffers) {
  const sage::Problem p = reader->ReadProblem(arguments[0]);
  if (!reader->ok()) return p;
  buffers->q = reader->Floats(arguments[1],
                              RequiredElements(p.q, p.batch, p.q_heads, p.q_len, p.qk_dim), "q");
  buffers->mask = reader->Mask(arguments[2], p);
  buffers->o = reader->Floats(arguments[3],
                              RequiredElements(p.o, p.batch, p.q_heads, p.q_len, p.v_dim), "o");
  if (p.want_lse) buffers->lse = reader->Floats(arguments[4], RowCount(p), "lse");
  return p;
}

}  // namespace

// cacheCreate(batch, kvHeads, qkDim, vDim, form: 0 | 1 | 2 | 3, capacity): object
napi_value CacheCreate(napi_env env, napi_callback_info info) {
  napi_value arguments[6];
  ReadCall(env, info, arguments);
  int64_t sizes[6];
  for (int n = 0; n < 6; ++n) {
    if (!ReadCount(env, arguments[n], &sizes[n])) return ThrowCount(env);
  }
  if (sizes[4] > static_cast<int64_t>(sage::CacheForm::kInt16)) {
    return ThrowStatus(env, Status::Invalid("cache: no such form"));
  }
  const sage::KvCacheShape shape = {sizes[0], sizes[1], sizes[2], sizes[3],
                                    static_cast<sage::CacheForm>(sizes[4])};
  std::unique_ptr<KvCache> cache;
  const Status status = KvCache::Create(shape, sizes[5], &cache);
  return status.ok() ? Wrap(env, std::move(cache)) : ThrowStatus(env, status);
}

// cacheAppend(cache, k [B,Hkv,n,D], v [B,Hkv,n,Dv]: Float32Array, n): void
napi_value CacheAppend(napi_env env, napi_callback_info info) {
  napi_value arguments[4];
  const AddonState* state = ReadCall(env, info, arguments);
  CacheHandle* handle = HandleOf(env, arguments[0]);
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
  Report(env, handle);
  return nullptr;
}

// cacheTruncate(cache, length): void
napi_value CacheTruncate(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  ReadCall(env, info, arguments);
  CacheHandle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  int64_t length = 0;
  if (!ReadCount(env, arguments[1], &length)) return ThrowCount(env);
  const Status status = handle->cache->Truncate(length);
  if (!status.ok()) return ThrowStatus(env, status);
  Report(env, handle);
  return nullptr;
}

// cacheFork(cache): object
napi_value CacheFork(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  CacheHandle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  std::unique_ptr<KvCache> fork;
  const Status status = handle->cache->Fork(&fork);
  if (!status.ok()) return ThrowStatus(env, status);
  Report(env, handle);
  return Wrap(env, std::move(fork));
}

// cacheAttend(cache, words: Float64Array, q: Float32Array, mask | null, o: Float32Array,
//             lse: Float32Array | null): void
napi_value CacheAttend(napi_env env, napi_callback_info info) {
  napi_value arguments[6];
  const AddonState* state = ReadCall(env, info, arguments);
  CacheHandle* handle = HandleOf(env, arguments[0]);
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
  CacheHandle* handle = HandleOf(env, arguments[0]);
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
  CacheHandle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  int64_t batch = 0, head = 0;
  if (!ReadCount(env, arguments[1], &batch) || !ReadCount(env, arguments[2], &head))
    return ThrowCount(env);
  const KvCache& cache = *handle->cache;
  const int64_t length = cache.length();
  ArgumentReader reader(env);
  sage::CacheCodes out = {};
  out.k = Codes(env, arguments[3], Elements({length, cache.shape().qk_dim}));
  out.k_scale = reader.Floats(arguments[4], length, "kScale");
  out.k_mean = reader.Floats(arguments[5], cache.shape().qk_dim, "kMean");
  out.v = Codes(env, arguments[6], Elements({length, cache.shape().v_dim}));
  out.v_scale = reader.Floats(arguments[7], length, "vScale");
  if (!reader.ok()) return ThrowStatus(env, reader.status());
  if (length > 0 && (out.k == nullptr || out.v == nullptr))
    return ThrowStatus(env, Status::Invalid("codes: expected an Int16Array, long enough"));
  const Status status = cache.Inspect(batch, head, out);
  return status.ok() ? nullptr : ThrowStatus(env, status);
}

// cacheBytes(cache): number, of all pages that it reads, shared ones included.
napi_value CacheBytes(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  CacheHandle* handle = HandleOf(env, arguments[0]);
  return handle == nullptr ? nullptr : Number(env, handle->cache->bytes());
}

// cacheDispose(cache): void. Every later call with it throws.
napi_value CacheDispose(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ReadCall(env, info, arguments);
  CacheHandle* handle = HandleOf(env, arguments[0]);
  if (handle == nullptr) return nullptr;
  handle->cache.reset();
  Report(env, handle);
  return nullptr;
}

}  // namespace sage_node
