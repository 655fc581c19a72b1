// Times the backward pass without Node, one case a line, so that another program can take turns
// with it:
//
//   echo "avx512 1 1 12 12 1024 64 causal 300" | backward_bench
//
// A line: instruction set, threads, batch, heads, key/value heads, N, head_dim, `full` or `causal`,
// milliseconds to spend. The answer: median ms, least ms, and the least CPU time of a call in ms
// over all threads, which a busy machine disturbs little; GFLOP/s of it (five products, 10 B H N²
// D, causal counted in full); and the least CPU time of 64 Mi independent float32 FMA lanes on this
// processor in between, as GFLOP/s: what the products could reach at this clock (0 on other
// architectures than x64).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <vector>

#include "sage/attention.h"
#include "sage/capabilities.h"
#include "sage/problem.h"
#include "test/call_times.h"

namespace {

// Some values in [-1.7, 1.7] of variance 1.
std::vector<float> Values(int64_t count, uint32_t seed) {
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) {
    seed = seed * 1664525u + 1013904223u;
    x = (static_cast<float>(seed >> 8) / 8388608.0f - 1.0f) * 1.732f;
  }
  return out;
}

#if defined(__x86_64__)
// Twelve sums of eight lanes: neither their latency nor loads bind.
__attribute__((target("avx2,fma"))) double FmaGflops() {
  typedef float Lanes __attribute__((vector_size(32)));
  Lanes sum[12] = {};
  Lanes x = {1, 2, 3, 4, 5, 6, 7, 8}, y = x * 1e-3f;
  constexpr int kSteps = 200000;
  const double start = sage_test::Seconds(CLOCK_THREAD_CPUTIME_ID);
  for (int i = 0; i < kSteps; ++i) {
    asm volatile(
        "vfmadd231ps %12, %13, %0\n vfmadd231ps %12, %13, %1\n vfmadd231ps %12, %13, %2\n"
        "vfmadd231ps %12, %13, %3\n vfmadd231ps %12, %13, %4\n vfmadd231ps %12, %13, %5\n"
        "vfmadd231ps %12, %13, %6\n vfmadd231ps %12, %13, %7\n vfmadd231ps %12, %13, %8\n"
        "vfmadd231ps %12, %13, %9\n vfmadd231ps %12, %13, %10\n vfmadd231ps %12, %13, %11\n"
        : "+x"(sum[0]), "+x"(sum[1]), "+x"(sum[2]), "+x"(sum[3]), "+x"(sum[4]), "+x"(sum[5]),
          "+x"(sum[6]), "+x"(sum[7]), "+x"(sum[8]), "+x"(sum[9]), "+x"(sum[10]), "+x"(sum[11])
        : "x"(x), "x"(y));
  }
  const double seconds = sage_test::Seconds(CLOCK_THREAD_CPUTIME_ID) - start;
  return 12.0 * 16.0 * kSteps / seconds * 1e-9;
}
#else
double FmaGflops() { return 0.0; }  // not written for this architecture
#endif

int Answer(const char* line) {
  char isa_name[16], mask[16];
  int threads;
  long long batch, heads, kv_heads, n, dim;
  double budget;
  if (std::sscanf(line, "%15s %d %lld %lld %lld %lld %lld %15s %lf", isa_name, &threads, &batch,
                  &heads, &kv_heads, &n, &dim, mask, &budget) != 9) {
    std::printf("error: nine words expected\n");
    return 1;
  }
  sage::Isa isa;
  if (!sage::ParseIsa(isa_name, &isa) || !sage::CanRun(isa)) {
    std::printf("error: %s cannot run here\n", isa_name);
    return 1;
  }
  sage::Problem p = {};
  p.batch = batch;
  p.q_heads = heads;
  p.kv_heads = kv_heads;
  p.q_len = p.kv_len = n;
  p.qk_dim = p.v_dim = dim;
  p.q = p.o = {heads * n * dim, n * dim, dim};
  p.k = p.v = {kv_heads * n * dim, n * dim, dim};
  p.scale = 1 / std::sqrt(static_cast<double>(dim));
  p.causal = std::strcmp(mask, "causal") == 0 ? sage::Causal::kTopLeft : sage::Causal::kNone;
  p.window_left = -1;
  p.window_right = p.causal == sage::Causal::kNone ? -1 : 0;
  p.want_lse = true;
  const int64_t rows = batch * heads * n, keys = batch * kv_heads * n;
  const std::vector<float> q = Values(rows * dim, 1), k = Values(keys * dim, 2),
                           v = Values(keys * dim, 3), d_o = Values(rows * dim, 4);
  // Any outputs serve the clock, but lse must be that of the scores or nearly: these have variance
  // 1.
  const std::vector<float> o = Values(rows * dim, 5);
  std::vector<float> lse(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows; ++i) {
    const double seen = p.causal == sage::Causal::kNone ? static_cast<double>(n) : 1.0 + i % n;
    lse[static_cast<size_t>(i)] = static_cast<float>(0.5 + std::log(seen));
  }
  std::vector<float> d_q(q.size()), d_k(k.size()), d_v(v.size());
  const sage::BackwardBuffers buffers = {q.data(),   k.data(),   v.data(),   nullptr,
                                         o.data(),   lse.data(), d_o.data(), nullptr,
                                         d_q.data(), d_k.data(), d_v.data(), nullptr};
  const sage::EngineOptions options = {isa, threads};
  double fma = 0;
  const sage_test::CallTimes times = sage_test::TimeCalls(
      3, budget, [&] { sage::AttentionBackward(p, buffers, options); },
      [&] { fma = std::max(fma, FmaGflops()); });
  const double flop = 10.0 * static_cast<double>(batch * heads * n) * static_cast<double>(n * dim);
  std::printf("%.4f %.4f %.4f %.1f %.1f\n", times.median, times.least, times.least_cpu,
              flop / times.least_cpu * 1e-6, fma);
  return 0;
}

}  // namespace

int main() {
  char line[256];
  int status = 0;
  while (std::fgets(line, sizeof(line), stdin) != nullptr) {
    status |= Answer(line);
    std::fflush(stdout);
  }
  return status;
}
