#include "cache_registry.h"

#include <map>
#include <mutex>

namespace sage_node {
namespace {

std::mutex g_mutex;
int64_t g_last = 0;

// Never destroyed: worker threads may end after static objects.
template <class Cache>
std::map<int64_t, std::weak_ptr<Cache>>& Caches() {
  static auto* const caches = new std::map<int64_t, std::weak_ptr<Cache>>;
  return *caches;
}

template <class Cache>
int64_t Register(const std::shared_ptr<Cache>& cache) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  auto& caches = Caches<Cache>();
  for (auto at = caches.begin(); at != caches.end();) {
    if (at->second.expired()) {
      at = caches.erase(at);
    } else if (at->second.lock() == cache) {
      return at->first;
    } else {
      ++at;
    }
  }
  caches.emplace(++g_last, cache);
  return g_last;
}

template <class Cache>
std::shared_ptr<Cache> Find(int64_t number) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  const auto at = Caches<Cache>().find(number);
  return at == Caches<Cache>().end() ? nullptr : at->second.lock();
}

}  // namespace

int64_t RegisterCache(const std::shared_ptr<sage::KvCache>& cache) { return Register(cache); }
int64_t RegisterCache(const std::shared_ptr<sage::CudaHostCache>& cache) { return Register(cache); }

template <>
std::shared_ptr<sage::KvCache> FindCache<sage::KvCache>(int64_t number) {
  return Find<sage::KvCache>(number);
}
template <>
std::shared_ptr<sage::CudaHostCache> FindCache<sage::CudaHostCache>(int64_t number) {
  return Find<sage::CudaHostCache>(number);
}

}  // namespace sage_node
