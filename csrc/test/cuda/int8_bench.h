// Times of the int8 kernels: attention alone, the pre-pass alone, and the whole call from float32
// in device memory.
#ifndef SAGE_TEST_CUDA_INT8_BENCH_H_
#define SAGE_TEST_CUDA_INT8_BENCH_H_

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/int8/forward.h"
#include "cuda/int8/plan.h"
#include "test/cuda/int8_recipes.h"
#include "test/cuda/sm90_device.h"
#include "test/cuda/sm90_problem.h"

namespace sage_test {

static __global__ void FillNormal(float* x, size_t count, uint64_t seed) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count;
       i += step) {
    uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    const float u = (static_cast<uint32_t>(z) + 1.0f) * 2.3283064e-10f;
    const float v = static_cast<uint32_t>(z >> 32) * 2.3283064e-10f;
    x[i] = sqrtf(-2.0f * logf(fminf(u, 1.0f))) * cospif(2.0f * v);
  }
}

// Median milliseconds of batches that together take about `budget`.
template <class Call>
double Time(double budget, Call call) {
  cudaEvent_t begin, end;
  Require(cudaEventCreate(&begin), "event");
  Require(cudaEventCreate(&end), "event");
  const auto once = [&](int calls) {
    Require(cudaEventRecord(begin), "event");
    for (int i = 0; i < calls; ++i) call();
    Require(cudaEventRecord(end), "event");
    Require(cudaEventSynchronize(end), "run");
    float ms = 0.0f;
    Require(cudaEventElapsedTime(&ms, begin, end), "event");
    return static_cast<double>(ms) / calls;
  };
  once(1);
  const double estimate = std::max(1e-3, once(2));
  constexpr int kBatches = 7;
  const int calls = std::max(1, static_cast<int>(budget / kBatches / estimate));
  std::vector<double> times;
  for (int i = 0; i < kBatches; ++i) times.push_back(once(calls));
  std::sort(times.begin(), times.end());
  Require(cudaEventDestroy(begin), "event");
  Require(cudaEventDestroy(end), "event");
  return times[kBatches / 2];
}

struct BenchChoice {
  std::string recipe;      // "" = int8_fp16
  double budget = 60.0;    // milliseconds per point
  int64_t dim = 0, n = 0;  // 0 = all
  bool full_only = false;
};

inline int RunInt8Bench(const BenchChoice& choice) {
  constexpr size_t kElements = size_t{128} * 8192 * 128;
  Device q(kElements * 4), k(kElements * 4), v(kElements * 4), o(kElements * 4);
  FillNormal<<<1056, 256>>>(q.as<float>(), kElements, 1);
  FillNormal<<<1056, 256>>>(k.as<float>(), kElements, 2);
  FillNormal<<<1056, 256>>>(v.as<float>(), kElements, 3);
  std::printf("%-28s %-12s %6s %10s %8s %10s %10s %8s\n", "recipe", "case", "N", "kernel ms",
              "TOPS", "prepass ms", "total ms", "TOPS");
  for (const NamedRecipe& recipe : AllRecipes()) {
    if (choice.recipe != "all" && recipe.name != choice.recipe) continue;
    sage::cuda::LimitComputeCapability(recipe.capability);
    for (const int64_t d : {128, 64}) {
      for (const bool causal : {false, true}) {
        if (causal && choice.full_only) continue;
        for (const int64_t n : {1024, 2048, 4096, 8192, 16384}) {
          if ((choice.dim != 0 && choice.dim != d) || (choice.n != 0 && choice.n != n)) continue;
          Case c;
          c.batch = n <= 8192 ? 4 : 1;
          c.heads = c.kv_heads = 32;
          c.q_len = c.kv_len = n;
          c.qk_dim = c.v_dim = d;
          c.causal = causal ? Causal::kTopLeft : Causal::kNone;
          Case shape = c;
          shape.batch = 0;  // strides without data
          Problem p = MakeData(shape, 0).p;
          p.batch = c.batch;
          p.want_lse = false;
          p.recipe = recipe.recipe;
          Device workspace(sage::cuda::Int8Workspace(p));
          const sage::ForwardBuffers buffers = {q.as<float>(), k.as<float>(), v.as<float>(),
                                                nullptr,       o.as<float>(), nullptr};
          const sage::Status status =
              sage::cuda::Int8Forward(p, buffers, workspace.as<void>(), nullptr);
          if (!status.ok()) {
            std::printf("%s\n", status.message);
            return 2;
          }
          const sage::cuda::int8::Form form = sage::cuda::int8::FormOf(p);
          const auto space = sage::cuda::int8::LayOut(p, form, workspace.as<void>());
          const double kernel = Time(choice.budget, [&] {
            Require(sage::cuda::int8::Attend(p, form, buffers, space, nullptr), "Attend");
          });
          const double prepass = Time(choice.budget / 3, [&] {
            Require(sage::cuda::int8::Prepass(p, form, buffers, space, nullptr), "Prepass");
          });
          const double total = Time(choice.budget / 3, [&] {
            (void)sage::cuda::Int8Forward(p, buffers, workspace.as<void>(), nullptr);
          });
          const double work = 4.0 * c.batch * c.heads * n * n * d / (causal ? 2.0 : 1.0) * 1e-9;
          std::printf("%-28s hd%-3ld %-6s %6ld %10.4f %8.1f %10.4f %10.4f %8.1f\n",
                      recipe.name.c_str(), d, causal ? "causal" : "full", n, kernel, work / kernel,
                      prepass, total, work / total);
          std::fflush(stdout);
        }
      }
    }
  }
  return 0;
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_INT8_BENCH_H_
