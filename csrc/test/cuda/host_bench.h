// Large calls on host arrays: their results against the CPU engine, and their times.
#ifndef SAGE_TEST_CUDA_HOST_BENCH_H_
#define SAGE_TEST_CUDA_HOST_BENCH_H_

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <thread>
#include <vector>

#include "sage/attention.h"
#include "sage/capabilities.h"
#include "sage/cuda_host.h"
#include "test/backward_cases.h"

namespace sage_test {

// The tuned form of int8_fp8 (src/numerics/recipes.ts).
inline sage::Recipe Int8Fp8() {
  sage::Recipe r = {};
  r.precision = sage::Precision::kInt8Fp8;
  r.qk = sage::QkFormat::kInt8;
  r.pv = sage::PvFormat::kE4m3;
  r.smooth_k = true;
  r.smooth_v = 128;
  r.k_group = sage::TokenGroup::kConsecutive32;
  r.v_scale = sage::VScale::kChannel;
  r.p_top = r.v_top = 448.0f;
  r.pv_accumulator = sage::PvAccumulator::kFp32Fp32;
  return r;
}

// A problem with random inputs, without the float64 answers.
struct Timed {
  Problem p = {};
  std::vector<float> q, k, v, o, lse;

  Timed(const Case& c, bool int8_fp8) {
    p.batch = c.batch;
    p.q_heads = c.heads;
    p.kv_heads = c.kv_heads;
    p.q_len = c.q_len;
    p.kv_len = c.kv_len;
    p.qk_dim = c.qk_dim;
    p.v_dim = c.v_dim;
    p.q = StridesOf(c.tokens_first, c.heads, c.q_len, c.qk_dim);
    p.k = StridesOf(c.tokens_first, c.kv_heads, c.kv_len, c.qk_dim);
    p.v = StridesOf(c.tokens_first, c.kv_heads, c.kv_len, c.v_dim);
    p.o = StridesOf(c.tokens_first, c.heads, c.q_len, c.v_dim);
    p.scale = 1 / std::sqrt(static_cast<double>(c.qk_dim));
    p.causal = c.causal;
    p.window_left = -1;
    p.window_right = c.causal == Causal::kNone ? -1 : 0;
    p.want_lse = true;
    p.recipe.p_top = 1.0f;
    if (int8_fp8) p.recipe = Int8Fp8();
    Random random{1};
    const auto fill = [&](std::vector<float>* x, int64_t count) {
      x->resize(static_cast<size_t>(count));
      // Sums of bytes: near enough to normal, and fast.
      for (float& value : *x) {
        const uint64_t bits = random.Next();
        int sum = -510;
        for (int n = 0; n < 4; ++n) sum += static_cast<int>(bits >> (8 * n) & 255);
        value = static_cast<float>(sum) / 148.0f;
      }
    };
    fill(&q, p.batch * p.q_heads * p.q_len * p.qk_dim);
    fill(&k, p.batch * p.kv_heads * p.kv_len * p.qk_dim);
    fill(&v, p.batch * p.kv_heads * p.kv_len * p.v_dim);
    o.resize(static_cast<size_t>(p.batch * p.q_heads * p.q_len * p.v_dim));
    lse.resize(static_cast<size_t>(p.batch * p.q_heads * p.q_len));
  }

  sage::ForwardBuffers buffers() {
    return {q.data(), k.data(), v.data(), nullptr, o.data(), lse.data()};
  }
  sage::Status Run(const sage::CudaHostOptions& options) {
    return sage::CudaHostForward(p, buffers(), options);
  }
};

inline double RelativeL1(const std::vector<float>& actual, const std::vector<float>& expected) {
  double error = 0, total = 0;
  for (size_t n = 0; n < expected.size(); ++n) {
    error += std::fabs(static_cast<double>(actual[n]) - expected[n]);
    total += std::fabs(static_cast<double>(expected[n]));
  }
  return error / total;
}

// Several pieces, chunks that end inside rows, uneven heads.
inline int CheckLarge() {
  int failures = 0;
  for (const bool int8_fp8 : {false, true}) {
    for (const bool tokens_first : {false, true}) {
      Case c{"large"};
      c.batch = 2;
      c.heads = 14;
      c.kv_heads = 7;
      c.q_len = 1999;
      c.kv_len = 2101;
      c.qk_dim = c.v_dim = 128;
      c.tokens_first = tokens_first;
      c.causal = Causal::kBottomRight;
      Timed problem(c, int8_fp8);
      sage::CudaHostOptions options;
      options.threads = sage::AvailableProcessors();
      std::fill(problem.o.begin(), problem.o.end(), 1e30f);
      sage::Status status = problem.Run(options);
      const std::vector<float> got = problem.o, got_lse = problem.lse;
      if (status.code == sage::StatusCode::kUnsupported && int8_fp8) {
        std::printf("large int8_fp8: %s\n", status.message);
        continue;
      }
      const sage::EngineOptions cpu = {sage::DetectIsa(), sage::AvailableProcessors(), nullptr};
      if (status.ok()) status = sage::AttentionForward(problem.p, problem.buffers(), cpu);
      const double o = RelativeL1(got, problem.o), lse = RelativeL1(got_lse, problem.lse);
      // The same codes; P is rounded against another running maximum.
      const bool right = status.ok() && o <= (int8_fp8 ? 0.04 : 2e-6) && lse <= 1e-4;
      std::printf("%s large %s %s: o %.2g, lse %.2g from the CPU engine %s\n",
                  right ? "ok  " : "FAIL", int8_fp8 ? "int8_fp8" : "exact",
                  tokens_first ? "NHD" : "HND", o, lse, status.message);
      failures += right ? 0 : 1;
    }
  }
  return failures;
}

// Medians of alternated calls, B1 H32 N4096 D128.
inline int TimeOverlap() {
  using Clock = std::chrono::steady_clock;
  std::printf("%-9s %-4s %7s %11s %11s %7s\n", "recipe", "", "threads", "serial ms", "overlap ms",
              "ratio");
  for (const bool int8_fp8 : {false, true}) {
    for (const bool tokens_first : {false, true}) {
      for (const int threads : {1, 4, 16}) {
        Case c{"time"};
        c.heads = c.kv_heads = 32;
        c.q_len = c.kv_len = 4096;
        c.qk_dim = c.v_dim = 128;
        c.tokens_first = tokens_first;
        Timed problem(c, int8_fp8);
        std::vector<double> times[2];
        for (int n = -2; n < 9; ++n) {
          for (const bool overlap : {false, true}) {
            sage::CudaHostOptions options;
            options.threads = threads;
            options.overlap = overlap;
            const auto start = Clock::now();
            const sage::Status status = problem.Run(options);
            const std::chrono::duration<double, std::milli> took = Clock::now() - start;
            if (!status.ok()) {
              std::printf("%s\n", status.message);
              return 1;
            }
            if (n >= 0) times[overlap].push_back(took.count());
          }
        }
        for (std::vector<double>& x : times) std::sort(x.begin(), x.end());
        const double serial = times[0][4], overlapped = times[1][4];
        std::printf("%-9s %-4s %7d %11.2f %11.2f %7.2f\n", int8_fp8 ? "int8_fp8" : "exact",
                    tokens_first ? "NHD" : "HND", threads, serial, overlapped, serial / overlapped);
      }
    }
  }
  float samples[9];
  for (const bool int8_fp8 : {false, true}) {
    Case c{"time"};
    c.heads = c.kv_heads = 32;
    c.q_len = c.kv_len = 4096;
    c.qk_dim = c.v_dim = 128;
    Timed problem(c, int8_fp8);
    const sage::Status status = sage::TimeCudaForward(problem.p, problem.buffers(), 9, samples);
    if (!status.ok()) {
      std::printf("%s\n", status.message);
      return 1;
    }
    std::sort(samples, samples + 9);
    std::printf("%s from device memory: %.3f ms\n", int8_fp8 ? "int8_fp8" : "exact", samples[4]);
  }
  return 0;
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_HOST_BENCH_H_
