// Benchmark of the Hopper kernels: attention alone, the pre-pass alone, and the whole call from
// float32 in device memory.
#ifndef SAGE_TEST_CUDA_SM90_BENCH_CUH_
#define SAGE_TEST_CUDA_SM90_BENCH_CUH_

#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "cuda/sm90/forward.h"
#include "cuda/sm90/launch.h"
#include "sage/cuda_attention.h"
#include "test/cuda/fill_normal.cuh"
#include "test/cuda/median_time.h"
#include "test/cuda/sm90_device.h"
#include "test/cuda/sm90_problem.h"

namespace sage_test {

static __global__ void ToBfloat16(const float* from, __nv_bfloat16* to, size_t count) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count;
       i += step) {
    to[i] = __float2bfloat16_rn(from[i]);
  }
}

// N(0,1) in float32 and the same in bf16; outputs.
struct BenchData {
  explicit BenchData(size_t count) : q(count), k(count), v(count), o(count * 4) {}
  struct Operand {
    explicit Operand(size_t count) : wide(count * 4), narrow(count * 2) {
      static uint64_t seed = 0;
      FillNormal<<<1056, 256>>>(wide.as<float>(), count, ++seed);
      ToBfloat16<<<1056, 256>>>(wide.as<float>(), narrow.as<__nv_bfloat16>(), count);
    }
    Device wide, narrow;
  };
  sage::ForwardBuffers Buffers(sage::InputType type) const {
    const auto at = [&](const Operand& x) {
      return (type == sage::InputType::kFloat32 ? x.wide : x.narrow).as<float>();
    };
    return {at(q), at(k), at(v), nullptr, o.as<float>(), nullptr};
  }
  Operand q, k, v;
  Device o;
};

// The problem of a case without its data.
inline Problem ShapeOf(Case c) {
  const int64_t batch = c.batch;
  c.batch = 0;
  Problem p = MakeData(c, 0).p;
  p.batch = batch;
  p.want_lse = false;
  return p;
}

// Few queries: attention as planned (parts of the keys), without parts, the pre-pass, the whole
// call from float32 and from bf16, and the exact kernels from float32. Microseconds.
inline int RunFew(double budget) {
  struct Shape {
    int64_t batch, heads, kv_heads, q_len, kv_len, dim;
  };
  const Shape shapes[] = {
      {1, 32, 8, 1, 4096, 128},   {1, 32, 8, 1, 32768, 128},   {8, 32, 8, 1, 32768, 128},
      {1, 32, 32, 1, 32768, 128}, {1, 32, 8, 16, 32768, 128},  {1, 32, 8, 64, 32768, 128},
      {1, 8, 8, 128, 32768, 128}, {1, 8, 8, 512, 512, 128},    {1, 8, 8, 1024, 1024, 128},
      {1, 8, 8, 1024, 1024, 64},  {1, 12, 12, 1024, 1024, 64}, {1, 4, 4, 2048, 2048, 128},
      {1, 32, 8, 1, 32768, 256},  {4, 32, 32, 64, 2048, 128},
  };
  const BenchData data(size_t{64} * 32768 * 128);
  std::printf("%-34s %7s %9s %9s %9s %9s %9s %9s\n", "B H/Hkv q kv d", "parts", "as is", "no parts",
              "pre-pass", "float32", "bf16", "exact");
  for (const Shape& s : shapes) {
    Case c;
    c.batch = s.batch, c.heads = s.heads, c.kv_heads = s.kv_heads, c.q_len = s.q_len;
    c.kv_len = s.kv_len, c.qk_dim = c.v_dim = s.dim;
    Problem p = ShapeOf(c);
    const sage::ForwardBuffers buffers = data.Buffers(p.input);
    Problem exact = p;
    exact.recipe = {};
    exact.recipe.precision = sage::Precision::kExact;
    const sage::sm90::PartsPlan usual = sage::sm90::PlanParts(p);
    const sage::sm90::PartsPlan none = {s.dim > 128 ? 1 : 0, false};
    Device workspace(std::max({sage::sm90::LayOut(p, nullptr, usual).bytes,
                               sage::sm90::LayOut(p, nullptr, none).bytes,
                               sage::CudaForwardWorkspace(exact), int64_t{256}}));
    const auto attend = [&](const sage::sm90::PartsPlan& plan) {
      const sage::sm90::Workspace space = sage::sm90::LayOut(p, workspace.as<void>(), plan);
      Require(sage::sm90::Prepass(p, buffers, space, nullptr), "Prepass");
      return 1e3 * MedianTime(budget, [&] {
               Require(sage::sm90::Attend(p, buffers, space, nullptr), "Attend");
             });
    };
    const double parts = attend(usual), whole = attend(none);
    const sage::sm90::Workspace space = sage::sm90::LayOut(p, workspace.as<void>());
    const double prepass = 1e3 * MedianTime(budget, [&] {
                             Require(sage::sm90::Prepass(p, buffers, space, nullptr), "Prepass");
                           });
    const auto call = [&](const Problem& problem) {
      return 1e3 * MedianTime(budget, [&] {
               (void)sage::CudaForward(problem, data.Buffers(problem.input), workspace.as<void>(),
                                       nullptr);
             });
    };
    const double from_float32 = call(p);
    p.input = sage::InputType::kBfloat16;
    const double from_bf16 = call(p);
    char name[64];
    std::snprintf(name, sizeof(name), "B%ld H%ld/%ld q %ld kv %ld d %ld", s.batch, s.heads,
                  s.kv_heads, s.q_len, s.kv_len, s.dim);
    std::printf("%-34s %4d%s %9.1f %9.1f %9.1f %9.1f %9.1f %9.1f\n", name, usual.parts,
                usual.shared_rows ? " x2" : "   ", parts, whole, prepass, from_float32, from_bf16,
                call(exact));
    std::fflush(stdout);
  }
  return 0;
}

// `all`: the pre-pass and the whole call too. `codes`: attention over codes of q from the
// workspace, as with lse, in place of attention that rounds q. Only `only_dim` and `only_n` where
// not 0. `deviation`: of the scores, in nats.
inline int RunBench(bool all, bool codes, double budget, int64_t only_dim, int64_t only_n,
                    double deviation) {
  const BenchData data(size_t{128} * 8192 * 128);
  std::printf("%-16s %6s %10s %10s %10s %10s %10s %10s %10s\n", "case", "N", "kernel ms", "TOPS",
              "prepass ms", "total ms", "TOPS", "bf16: pre-", "TOPS");
  for (const int64_t d : {128, 64, 256}) {
    for (const bool causal : {false, true}) {
      for (const int64_t n : {1024, 2048, 4096, 8192, 16384, 32768}) {
        if ((only_dim != 0 && only_dim != d) || (only_n != 0 && only_n != n)) continue;
        Case c;
        c.batch = n <= 8192 ? 4 : 1;
        c.heads = c.kv_heads = d == 256 ? 16 : 32;
        c.q_len = c.kv_len = n;
        c.qk_dim = c.v_dim = d;
        c.causal = causal ? Causal::kTopLeft : Causal::kNone;
        Problem p = ShapeOf(c);
        p.scale *= deviation;
        Problem laid_out = p;
        laid_out.want_lse = codes;
        Device workspace(sage::Sm90Workspace(laid_out));
        const sage::ForwardBuffers buffers = data.Buffers(p.input);
        const sage::Status status = sage::Sm90Forward(p, buffers, workspace.as<void>(), nullptr);
        if (!status.ok()) {
          std::printf("%s\n", status.message);
          return 2;
        }
        const sage::sm90::Workspace space = sage::sm90::LayOut(laid_out, workspace.as<void>());
        Require(sage::sm90::Prepass(p, buffers, space, nullptr), "Prepass");
        const double kernel = MedianTime(
            budget, [&] { Require(sage::sm90::Attend(p, buffers, space, nullptr), "Attend"); });
        double prepass = NAN, total = NAN, narrow = NAN, narrow_total = NAN;
        if (all) {
          prepass = MedianTime(budget / 2, [&] {
            Require(sage::sm90::Prepass(p, buffers, space, nullptr), "Prepass");
          });
          total = MedianTime(budget / 2, [&] {
            (void)sage::Sm90Forward(p, buffers, workspace.as<void>(), nullptr);
          });
          p.input = sage::InputType::kBfloat16;
          const sage::ForwardBuffers bits = data.Buffers(p.input);
          narrow = MedianTime(budget / 2, [&] {
            Require(sage::sm90::Prepass(p, bits, space, nullptr), "Prepass");
          });
          narrow_total = MedianTime(
              budget / 2, [&] { (void)sage::Sm90Forward(p, bits, workspace.as<void>(), nullptr); });
        }
        const double operations = 4.0 * c.batch * c.heads * n * n * d / (causal ? 2.0 : 1.0) * 1e-9;
        std::printf("hd%-3ld %-10s %6ld %10.4f %10.1f %10.4f %10.4f %10.1f %10.4f %10.1f\n", d,
                    causal ? "causal" : "full", n, kernel, operations / kernel, prepass, total,
                    operations / total, narrow, operations / narrow_total);
        std::fflush(stdout);
      }
    }
  }
  return 0;
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_SM90_BENCH_CUH_
