// Forks of the device cache: each must have the bits of a cache that was filled alone.
#ifndef SAGE_TEST_CUDA_KV_CACHE_FORKS_H_
#define SAGE_TEST_CUDA_KV_CACHE_FORKS_H_

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "sage/cuda_kv_cache.h"
#include "test/cuda/sm90_device.h"
#include "test/cuda/sm90_problem.h"

namespace sage_test {

inline void MustHold(const sage::Status& status, const char* what) {
  if (status.ok()) return;
  std::printf("%s: %s\n", what, status.message);
  std::exit(2);
}

// Tokens [first, end) of the data, those of v times `factor`.
inline void AppendTokens(const Data& data, sage::CudaKvCache* cache, int64_t first, int64_t end,
                         float factor) {
  std::vector<float> scaled = data.v;
  for (float& x : scaled) x *= factor;
  Device k(data.k.size() * 4), v(data.v.size() * 4);
  Upload(k, data.k);
  Upload(v, scaled);
  const Problem& p = data.p;
  MustHold(cache->Append(k.as<float>() + first * p.k.token, p.k, v.as<float>() + first * p.v.token,
                         p.v, end - first, nullptr),
           "Append");
  Require(cudaDeviceSynchronize(), "append");
}

template <class Outputs>
bool Same(const Outputs& a, const Outputs& b) {
  return std::memcmp(a.o.data(), b.o.data(), a.o.size() * 4) == 0 &&
         std::memcmp(a.lse.data(), b.lse.data(), a.lse.size() * 4) == 0;
}

// The first `length` tokens of the data, for Attend.
inline Data Shortened(const Data& data, int64_t length) {
  Data part = data;
  part.p.kv_len = length;
  return part;
}

// Forks must have the bits of caches that were filled alone, whatever the others do.
template <class Attend>
int CheckForks(uint64_t seed, const Attend& attend) {
  Case c;
  c.name = "forks";
  c.causal = sage::Causal::kBottomRight;
  c.heads = 4, c.kv_heads = 2, c.q_len = 3, c.qk_dim = 64, c.v_dim = 48, c.kv_len = 700;
  const Data data = MakeData(c, seed);
  const sage::KvCacheShape shape = {data.p.batch, 2, 64, 48, sage::CacheForm::kInt8};
  int failed = 0;
  const auto expect = [&](bool holds, const char* what, int64_t at) {
    if (holds) return;
    std::printf("FAIL forks at %ld: %s\n", at, what);
    ++failed;
  };
  const auto make = [&](int64_t capacity) {
    std::unique_ptr<sage::CudaKvCache> cache;
    MustHold(sage::CudaKvCache::Create(shape, capacity, nullptr, &cache), "Create");
    return cache;
  };
  // [0, at) as it is, then [at, end) with the factor.
  const auto alone = [&](int64_t at, int64_t end, float factor) {
    auto cache = make(0);
    AppendTokens(data, cache.get(), 0, at, 1.0f);
    if (end > at) AppendTokens(data, cache.get(), at, end, factor);
    return attend(Shortened(data, end), cache.get());
  };
  for (const int64_t at : {int64_t{1}, int64_t{128}, int64_t{300}, int64_t{384}}) {
    for (const int64_t capacity : {int64_t{0}, int64_t{2000}}) {
      auto source = make(capacity);
      AppendTokens(data, source.get(), 0, at, 1.0f);
      const int64_t before = source->bytes();
      std::vector<std::unique_ptr<sage::CudaKvCache>> forks(3);
      for (auto& fork : forks) MustHold(source->Fork(&fork), "Fork");
      expect(forks[0]->exclusive_bytes() == 0, "a fork shares all memory", at);
      // The source goes on where it is, the forks elsewhere.
      AppendTokens(data, source.get(), at, 690, 5.0f);
      expect(capacity == 0 || source->bytes() == before, "the source uses its room", at);
      for (int n = 0; n < 3; ++n) AppendTokens(data, forks[n].get(), at, 650, 2.0f + n);
      expect(Same(attend(Shortened(data, 690), source.get()), alone(at, 690, 5.0f)), "source", at);
      for (int n = 0; n < 3; ++n) {
        expect(Same(attend(Shortened(data, 650), forks[n].get()), alone(at, 650, 2.0f + n)), "fork",
               at);
      }
      // A source that is cut back writes where a fork reads.
      std::unique_ptr<sage::CudaKvCache> late;
      MustHold(source->Fork(&late), "Fork");
      MustHold(source->Truncate(at / 2), "Truncate");
      AppendTokens(data, source.get(), at / 2, 600, 7.0f);
      expect(Same(attend(Shortened(data, 690), late.get()), alone(at, 690, 5.0f)), "late fork", at);
      if (at > 1) {  // else the first append freezes another mean
        auto again = make(0);
        AppendTokens(data, again.get(), 0, at, 1.0f);
        MustHold(again->Truncate(at / 2), "Truncate");
        AppendTokens(data, again.get(), at / 2, 600, 7.0f);
        expect(Same(attend(Shortened(data, 600), source.get()),
                    attend(Shortened(data, 600), again.get())),
               "cut source", at);
      }
      // Emptied, it freezes a mean of its own.
      MustHold(source->Truncate(0), "Truncate");
      AppendTokens(data, source.get(), 200, 500, 1.0f);
      expect(Same(attend(Shortened(data, 650), forks[1].get()), alone(at, 650, 3.0f)),
             "fork of an emptied source", at);
      source.reset();
      late.reset();
      AppendTokens(data, forks[0].get(), 650, 700, 1.0f);
      expect(Same(attend(Shortened(data, 650), forks[2].get()), alone(at, 650, 4.0f)),
             "fork without a source", at);
    }
  }
  // A fork of a fork of a fork: slabs are joined when there are too many.
  auto cache = make(0);
  Case longer = c;
  longer.kv_len = 9000;
  const Data many = MakeData(longer, seed + 1);
  int64_t length = 0;
  for (int64_t step = 130; length < 9000; step = 130) {
    if (length > 0) {
      std::unique_ptr<sage::CudaKvCache> fork;
      MustHold(cache->Fork(&fork), "Fork");
      std::swap(cache, fork);
      const int64_t end = std::min<int64_t>(9000, length + step);
      AppendTokens(many, cache.get(), length, end, 1.0f);
      length = end;
    } else {
      AppendTokens(many, cache.get(), 0, length = 70, 1.0f);
    }
  }
  auto whole = make(0);
  AppendTokens(many, whole.get(), 0, 70, 1.0f);
  AppendTokens(many, whole.get(), 70, 9000, 1.0f);
  expect(Same(attend(many, cache.get()), attend(many, whole.get())), "many slabs", 9000);
  std::printf("%s forks\n", failed == 0 ? "ok  " : "FAIL");
  return failed;
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_KV_CACHE_FORKS_H_
