// JavaScript objects that hold a cache: sage::KvCache or sage::CudaHostCache. Node frees it with
// the object, or with the environment.
#ifndef SAGE_NATIVE_CACHE_HANDLE_H_
#define SAGE_NATIVE_CACHE_HANDLE_H_

#include <node_api.h>

#include <cstdint>
#include <memory>
#include <new>
#include <utility>

#include "buffers.h"
#include "sage/cuda_host_cache.h"
#include "sage/kv_cache.h"

namespace sage_node {

// Tells an object of one kind from any other that may be passed in its place.
template <class Cache>
constexpr napi_type_tag kCacheTag = {};
template <>
inline constexpr napi_type_tag kCacheTag<sage::KvCache> = {0x5a6e1c0de7b94f21u,
                                                           0x9d3c4b8a6f2e7015u};
template <>
inline constexpr napi_type_tag kCacheTag<sage::CudaHostCache> = {0x1f8b3d5c7a9e4260u,
                                                                 0xb7e2c4961d0f8a53u};

template <class Cache>
struct CacheHandle {
  std::shared_ptr<Cache> cache;  // null once disposed
  int64_t reported = 0;          // bytes that the garbage collector was told of

  // Tells the garbage collector what this cache alone keeps alive.
  void Report(napi_env env) {
    const int64_t bytes = cache == nullptr ? 0 : cache->exclusive_bytes();
    if (bytes == reported) return;
    int64_t total = 0;
    napi_adjust_external_memory(env, bytes - reported, &total);
    reported = bytes;
  }
  void Dispose(napi_env env) {
    cache.reset();
    Report(env);
  }
};

template <class Cache>
napi_value WrapCache(napi_env env, std::unique_ptr<Cache> cache) {
  const auto finalize = [](napi_env finalizing, void* data, void*) {
    auto* handle = static_cast<CacheHandle<Cache>*>(data);
    handle->Dispose(finalizing);
    delete handle;
  };
  std::unique_ptr<CacheHandle<Cache>> handle(new (std::nothrow) CacheHandle<Cache>);
  if (handle == nullptr) {
    return ThrowStatus(env, {sage::StatusCode::kOutOfMemory, "no memory for the cache"});
  }
  handle->cache = std::move(cache);
  napi_value object = nullptr;
  if (napi_create_object(env, &object) != napi_ok ||
      napi_type_tag_object(env, object, &kCacheTag<Cache>) != napi_ok ||
      napi_wrap(env, object, handle.get(), finalize, nullptr, nullptr) != napi_ok) {
    return ThrowStatus(env, {sage::StatusCode::kInternal, "Node could not wrap the cache"});
  }
  handle.release()->Report(env);
  return object;
}

// The cache behind `value`, or null after throwing.
template <class Cache>
CacheHandle<Cache>* CacheHandleOf(napi_env env, napi_value value) {
  napi_valuetype type = napi_undefined;
  bool tagged = false;
  void* data = nullptr;
  if (napi_typeof(env, value, &type) != napi_ok || type != napi_object ||
      napi_check_object_type_tag(env, value, &kCacheTag<Cache>, &tagged) != napi_ok || !tagged ||
      napi_unwrap(env, value, &data) != napi_ok) {
    ThrowStatus(env, sage::Status::Invalid("cache: expected what cacheCreate returned"));
    return nullptr;
  }
  auto* handle = static_cast<CacheHandle<Cache>*>(data);
  if (handle->cache == nullptr) {
    ThrowStatus(env, sage::Status::Invalid("cache: it was disposed"));
    return nullptr;
  }
  return handle;
}

}  // namespace sage_node

#endif  // SAGE_NATIVE_CACHE_HANDLE_H_
