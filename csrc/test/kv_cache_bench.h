// Decoding over 4,096 keys in time, beside a plain read of memory.
#ifndef SAGE_TEST_KV_CACHE_BENCH_H_
#define SAGE_TEST_KV_CACHE_BENCH_H_

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <memory>
#include <vector>

#include "sage/attention.h"
#include "sage/capabilities.h"
#include "sage/kv_cache.h"
#include "test/kv_cache_cases.h"
#include "test/kv_cache_fill.h"

namespace sage_test {

// Of one thread's own processor time when there is one, so that others on the machine count less.
inline clockid_t clock_used = CLOCK_MONOTONIC;

inline double Milliseconds() {
  timespec now = {};
  clock_gettime(clock_used, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
}

inline double Median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

// What reading costs when nothing is computed: whole lines by the widest loads there are, lines
// `ahead` bytes further asked for.
typedef uint64_t Line __attribute__((vector_size(64), aligned(4), may_alias));
#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
inline uint64_t
ReadAll(const float* x, size_t floats, size_t ahead) {
  constexpr size_t kLines = 4, kFloats = sizeof(Line) / sizeof(float);
  Line sums[kLines] = {};
  for (size_t i = 0; i + kLines * kFloats <= floats; i += kLines * kFloats) {
    for (size_t n = 0; n < kLines; ++n) {
      sums[n] ^= *reinterpret_cast<const Line*>(x + i + n * kFloats);
      __builtin_prefetch(reinterpret_cast<const char*>(x + i + n * kFloats) + ahead);
    }
  }
  const Line all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  uint64_t kept = 0;
  for (size_t n = 0; n < sizeof(Line) / sizeof(uint64_t); ++n) kept ^= all[n];
  return kept;
}

inline void Time(sage::Isa isa, int threads) {
  const sage::EngineOptions options{isa, threads};
  if (threads == 1) clock_used = CLOCK_THREAD_CPUTIME_ID;
  const Case shapes[] = {{"12,64", 1, 12, 12, 1, 4096, 64, 64},
                         {"16,128", 1, 16, 16, 1, 4096, 128, 128},
                         {"32:8,128", 1, 32, 8, 1, 4096, 128, 128}};
  uint64_t kept = 0;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  for (const Case& shape : shapes) {
    for (const int64_t q_len : {1, 2, 4, 8, 16, 32}) {
      Case c = shape;
      c.q_len = q_len;
      // Several sets in rotation: larger than the last cache, so each call reads from memory.
      const int sets = 8;
      std::vector<Data> data;
      std::vector<std::unique_ptr<sage::KvCache>> packed;
      for (int n = 0; n < sets; ++n) {
        data.push_back(MakeData(c));
        packed.push_back(MakeCache(data.back().p, sage::CacheForm::kInt8));
        Append(data.back(), packed.back().get(), 0, c.kv_len, options);
      }
      Outputs out(data[0].p);
      const double float_bytes = 4.0 * c.kv_heads * c.kv_len * (c.qk_dim + c.v_dim);
      const double packed_bytes = static_cast<double>(packed[0]->bytes());
      constexpr size_t kAhead[] = {0, 4096};  // which is faster hangs on the processor
      std::vector<double> reads[2], decode, cold, hot, hot_decode;
      for (int round = 0; round < 8; ++round) {
        for (int n = 0; n < sets; ++n) {
          double start = Milliseconds();
          AttentionForward(data[n].p, BuffersOf(data[n], &out), options);
          if (round > 0) decode.push_back(Milliseconds() - start);
        }
        for (int way = 0; way < 2; ++way) {
          for (int n = 0; n < sets; ++n) {
            const double start = Milliseconds();
            for (const auto* x : {&data[n].k, &data[n].v})
              kept ^= ReadAll(x->data(), x->size(), kAhead[way]);
            if (round > 0) reads[way].push_back(Milliseconds() - start);
          }
        }
        for (int n = 0; n < sets; ++n) {
          const double start = Milliseconds();
          packed[n]->Attend(data[n].p, BuffersOf(data[n], &out), options);
          if (round > 0) cold.push_back(Milliseconds() - start);
        }
        for (int n = 0; n < sets; ++n) {
          double start = Milliseconds();
          packed[0]->Attend(data[0].p, BuffersOf(data[0], &out), options);
          if (n > 0) hot.push_back(Milliseconds() - start);
        }
        for (int n = 0; n < sets; ++n) {
          double start = Milliseconds();
          AttentionForward(data[0].p, BuffersOf(data[0], &out), options);
          if (n > 0) hot_decode.push_back(Milliseconds() - start);
        }
      }
      const double read = std::min(Median(reads[0]), Median(reads[1]));
      std::printf(
          "%-9s q %2d: read 1T %.3f ms (%.1f GB/s) | float32 cold %.3f (%.1f GB/s, %.0f%% of read, "
          "%.0f GFLOP/s) hot %.3f | int8 cold %.3f (%.1f GB/s) hot %.3f (%.1f GB/s)\n",
          c.name, static_cast<int>(q_len), read, float_bytes / read / 1e6, Median(decode),
          float_bytes / Median(decode) / 1e6, 100 * read / Median(decode),
          4e-6 * c.q_heads * c.q_len * c.kv_len * c.qk_dim / Median(decode), Median(hot_decode),
          Median(cold), packed_bytes / Median(cold) / 1e6, Median(hot),
          packed_bytes / Median(hot) / 1e6);
    }
  }
  if (kept == 42) std::printf("\n");
}

}  // namespace sage_test

#endif  // SAGE_TEST_KV_CACHE_BENCH_H_
