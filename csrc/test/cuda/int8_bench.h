// Times of the int8 kernels: attention alone, the pre-pass alone, and the whole call from float32
// in device memory.
#ifndef SAGE_TEST_CUDA_INT8_BENCH_H_
#define SAGE_TEST_CUDA_INT8_BENCH_H_

#include <cstdio>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/int8/forward.h"
#include "cuda/int8/plan.h"
#include "test/cuda/fill_normal.cuh"
#include "test/cuda/int8_recipes.h"
#include "test/cuda/median_time.h"
#include "test/cuda/sm90_device.h"
#include "test/cuda/sm90_problem.h"

namespace sage_test {

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
    for (const int64_t d : {128, 64, 256}) {
      for (const bool causal : {false, true}) {
        if (causal && choice.full_only) continue;
        for (const int64_t n : {1024, 2048, 4096, 8192, 16384}) {
          if ((choice.dim != 0 && choice.dim != d) || (choice.n != 0 && choice.n != n)) continue;
          Case c;
          c.batch = n > 8192 ? 1 : d > 128 ? 2 : 4;
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
          const double kernel = MedianTime(choice.budget, [&] {
            Require(sage::cuda::int8::Attend(p, form, buffers, space, nullptr), "Attend");
          });
          const double prepass = MedianTime(choice.budget / 3, [&] {
            Require(sage::cuda::int8::Prepass(p, form, buffers, space, nullptr), "Prepass");
          });
          const double total = MedianTime(choice.budget / 3, [&] {
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
