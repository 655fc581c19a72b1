// Times the forward pass without Node, one case a line, so that another program can take turns with
// it (bench/amx_peers.py does):
//
//   echo "amx int8_bf16 16 1 12 12 4096 64 causal 300" | forward_bench
//
// A line: instruction set, recipe (exact, int16, int8_int16, int8_bf16, int8), threads, batch,
// heads, key/value heads, N, head_dim, `full`, `causal`, `window` (causal, 256 keys to the left),
// `boolean` or `additive` (a mask of its own for each head), milliseconds to spend. The answer:
// median ms, least ms, GFLOP/s by the median (4 B H N² D, causal counted in full), and the least
// CPU time of a call in ms over all threads, which a busy machine disturbs little.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "sage/capabilities.h"
#include "test/call_times.h"
#include "test/forward_cases.h"

namespace {

bool ParsePrecision(const char* name, sage::Precision* out) {
  const struct {
    const char* name;
    sage::Precision precision;
  } known[] = {{"exact", sage::Precision::kExact},
               {"int16", sage::Precision::kInt16},
               {"int8_int16", sage::Precision::kInt8Int16},
               {"int8_bf16", sage::Precision::kInt8Bf16},
               {"int8", sage::Precision::kInt8}};
  for (const auto& each : known) {
    if (std::strcmp(name, each.name) != 0) continue;
    *out = each.precision;
    return true;
  }
  return false;
}

// Contiguous [B,H,N,D]: the strides of the data without its gaps.
void Pack(sage::Problem* p) {
  p->q = p->o = {p->q_heads * p->q_len * p->qk_dim, p->q_len * p->qk_dim, p->qk_dim};
  p->k = p->v = {p->kv_heads * p->kv_len * p->qk_dim, p->kv_len * p->qk_dim, p->qk_dim};
}

int Answer(const char* line) {
  char isa_name[16], recipe[16], mask[16];
  int threads;
  long long batch, heads, kv_heads, n, dim;
  double budget;
  if (std::sscanf(line, "%15s %15s %d %lld %lld %lld %lld %lld %15s %lf", isa_name, recipe,
                  &threads, &batch, &heads, &kv_heads, &n, &dim, mask, &budget) != 10) {
    std::printf("error: ten words expected\n");
    return 1;
  }
  sage::Isa isa;
  if (!sage::ParseIsa(isa_name, &isa) || !sage::CanRun(isa)) {
    std::printf("error: %s: %s\n", isa_name,
                sage::ParseIsa(isa_name, &isa) ? sage::IsaRefusal(isa) : "unknown");
    return 1;
  }
  sage_test::ForwardCase c;
  c.batch = batch;
  c.heads = heads;
  c.kv_heads = kv_heads;
  c.q_len = c.kv_len = n;
  c.dim = c.v_dim = dim;
  c.lse = false;
  const auto is = [&](const char* word) { return std::strcmp(mask, word) == 0; };
  if (is("causal") || is("window")) c.causal = sage::Causal::kTopLeft;
  if (is("window")) c.left = 256;
  if (is("boolean")) c.mask = sage::MaskKind::kBoolean;
  if (is("additive")) c.mask = sage::MaskKind::kAdditive;
  sage::Precision precision;
  if (!ParsePrecision(recipe, &precision)) {
    std::printf("error: %s: unknown recipe\n", recipe);
    return 1;
  }
  sage_test::ForwardData d = MakeData(c, precision, 1);
  Pack(&d.p);
  std::vector<float> o(d.o_elements());
  const sage::ForwardBuffers buffers = {d.q.data(), d.k.data(), d.v.data(),
                                        d.mask(),   o.data(),   nullptr};
  const sage::EngineOptions options = {isa, threads};
  const sage_test::CallTimes times = sage_test::TimeCalls(
      5, budget, [&] { sage::AttentionForward(d.p, buffers, options); }, [] {});
  const double flop = 4.0 * static_cast<double>(batch * heads * n) * static_cast<double>(n * dim);
  std::printf("%.4f %.4f %.1f %.4f\n", times.median, times.least, flop / times.median * 1e-6,
              times.least_cpu);
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
