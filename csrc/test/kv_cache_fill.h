// Caches with the tokens of a case in them.
#ifndef SAGE_TEST_KV_CACHE_FILL_H_
#define SAGE_TEST_KV_CACHE_FILL_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "sage/attention.h"
#include "sage/kv_cache.h"
#include "test/kv_cache_cases.h"

namespace sage_test {

// For what must work before anything can be checked.
inline void Require(const sage::Status& status) {
  if (status.ok()) return;
  std::printf("FAIL %s\n", status.message);
  std::exit(1);
}

inline std::unique_ptr<sage::KvCache> MakeCache(const Problem& p, sage::CacheForm form,
                                                int64_t capacity = 0) {
  std::unique_ptr<sage::KvCache> cache;
  const sage::Status status =
      sage::KvCache::Create({p.batch, p.kv_heads, p.qk_dim, p.v_dim, form}, capacity, &cache);
  Require(status);
  return cache;
}

// Appends tokens [first, end) of the data.
inline void Append(const Data& data, sage::KvCache* cache, int64_t first, int64_t end,
                   const sage::EngineOptions& options) {
  const Problem& p = data.p;
  const int64_t n = end - first, heads = p.batch * p.kv_heads;
  std::vector<float> k, v;
  for (int64_t h = 0; h < heads; ++h) {
    const float* kh = data.k.data() + (h * p.kv_len + first) * p.qk_dim;
    const float* vh = data.v.data() + (h * p.kv_len + first) * p.v_dim;
    k.insert(k.end(), kh, kh + n * p.qk_dim);
    v.insert(v.end(), vh, vh + n * p.v_dim);
  }
  const sage::Status status = cache->Append(k.data(), v.data(), n, options);
  Require(status);
}

inline Outputs Attend(const Data& data, const sage::KvCache& cache,
                      const sage::EngineOptions& options) {
  Outputs out(data.p);
  const sage::Status status = cache.Attend(data.p, BuffersOf(data, &out), options);
  Require(status);
  return out;
}

}  // namespace sage_test

#endif  // SAGE_TEST_KV_CACHE_FILL_H_
