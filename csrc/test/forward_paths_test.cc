// The forward pass of every instruction set of this processor against the portable one: the same
// quantised operands bit for bit, outputs within the rounding of P, the same bits with any number
// of threads, nothing written outside o and lse. (That the portable one is right is tested against
// float64 from TypeScript.)
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "sage/attention.h"
#include "sage/quantize.h"

using namespace sage;

namespace {

constexpr float kGuard = 12345.0f;

struct Shape {
  int64_t batch, heads, kv_heads, q_len, kv_len, qk_dim, v_dim;
  bool causal;
  int64_t window_left;
  MaskKind mask;
  bool not_finite;
  int smooth_v;
  bool negative_scale = false;
};

const Shape kShapes[] = {
    {1, 1, 1, 1, 1, 8, 8, false, -1, MaskKind::kNone, false, 0},
    {1, 2, 1, 67, 127, 64, 64, true, -1, MaskKind::kNone, false, 0},
    {2, 4, 2, 129, 129, 40, 72, true, -1, MaskKind::kNone, true, 0},
    {1, 3, 3, 100, 300, 128, 64, false, -1, MaskKind::kBoolean, false, 0},
    {1, 2, 2, 200, 513, 64, 128, true, 70, MaskKind::kAdditive, false, 0},
    {1, 2, 2, 130, 257, 100, 17, false, -1, MaskKind::kNone, true, 128},
    {1, 2, 2, 131, 1000, 32, 48, true, -1, MaskKind::kNone, false, 0},
    // Many short heads: operands of later ones are fetched early.
    {5, 6, 2, 17, 16, 64, 64, false, -1, MaskKind::kNone, false, 0},
    {3, 4, 4, 150, 150, 64, 64, true, -1, MaskKind::kNone, false, 0},
    // Whole chunks of dims, which go to tiles without a stop in memory, and a last token of its own
    // in a group of packed ones.
    {1, 4, 2, 131, 143, 128, 192, false, -1, MaskKind::kNone, true, 0},
    {2, 2, 2, 15, 33, 64, 16, false, -1, MaskKind::kNone, false, 0, true},
    {1, 2, 1, 40, 86, 192, 48, true, -1, MaskKind::kNone, false, 0, true},
    // Two tasks that both end with a group of 4 rows, and ends of 2 rows.
    {2, 3, 3, 128, 128, 64, 64, false, -1, MaskKind::kNone, false, 0},
    {1, 2, 2, 128, 300, 128, 128, true, -1, MaskKind::kNone, false, 0},
    {1, 2, 2, 68, 270, 64, 64, false, -1, MaskKind::kNone, true, 0},
};

Recipe RecipeOf(Precision precision) {
  Recipe r = {};
  r.precision = precision;
  r.variant = Variant::kTuned;
  r.q_group = r.k_group = TokenGroup::kToken;
  r.rounding = Rounding::kEven;
  r.p_top = 1.0f;
  r.pv_accumulator = PvAccumulator::kFp32;
  if (precision == Precision::kExact) return r;
  r.smooth_k = true;
  r.qk = QkFormat::kInt8;
  if (precision == Precision::kInt8Bf16) {
    r.pv = PvFormat::kBf16;
    return r;
  }
  r.v_scale = VScale::kChannel;
  r.row_sum = RowSum::kQuantized;
  if (precision == Precision::kInt8) {
    r.pv = PvFormat::kInt8;
    r.p_top = 255.0f;
    r.v_top = 127.0f;
    return r;
  }
  r.qk = precision == Precision::kInt16 ? QkFormat::kInt16 : QkFormat::kInt8Pair;
  r.pv = PvFormat::kInt16;
  r.p_top = 8192.0f;
  r.v_top = 2047.0f;
  return r;
}

struct Inputs {
  std::vector<float> q, k, v, additive;
  std::vector<uint8_t> allowed;
};

Inputs MakeInputs(const Shape& s) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  Inputs in;
  in.q.resize(static_cast<size_t>(s.batch * s.heads * s.q_len * s.qk_dim));
  in.k.resize(static_cast<size_t>(s.batch * s.kv_heads * s.kv_len * s.qk_dim));
  in.v.resize(static_cast<size_t>(s.batch * s.kv_heads * s.kv_len * s.v_dim));
  for (float& x : in.q) x = 2.0f * normal(random);
  for (float& x : in.k) x = normal(random) + 1.5f;
  for (float& x : in.v) x = normal(random) + 1.0f;
  if (s.not_finite) {
    in.q[in.q.size() / 3] = std::numeric_limits<float>::infinity();
    in.k[in.k.size() - 3] = std::numeric_limits<float>::quiet_NaN();
    in.v[in.v.size() / 2] = -std::numeric_limits<float>::infinity();
    in.v[5] = 3e38f;
  }
  const size_t cells = static_cast<size_t>(s.q_len * s.kv_len);
  if (s.mask != MaskKind::kNone) {
    in.additive.resize(cells);
    in.allowed.resize(cells);
    for (size_t i = 0; i < cells; ++i) {
      in.allowed[i] = random() % 4 != 0 && i / static_cast<size_t>(s.kv_len) != 3;
      in.additive[i] = in.allowed[i] ? normal(random) : -std::numeric_limits<float>::infinity();
    }
  }
  return in;
}

Problem ProblemOf(const Shape& s, Precision precision) {
  Problem p = {};
  p.batch = s.batch;
  p.q_heads = s.heads;
  p.kv_heads = s.kv_heads;
  p.q_len = s.q_len;
  p.kv_len = s.kv_len;
  p.qk_dim = s.qk_dim;
  p.v_dim = s.v_dim;
  p.q = {s.heads * s.q_len * s.qk_dim, s.q_len * s.qk_dim, s.qk_dim};
  p.k = {s.kv_heads * s.kv_len * s.qk_dim, s.kv_len * s.qk_dim, s.qk_dim};
  p.v = {s.kv_heads * s.kv_len * s.v_dim, s.kv_len * s.v_dim, s.v_dim};
  p.o = {s.heads * s.q_len * s.v_dim, s.q_len * s.v_dim, s.v_dim};
  p.scale = (s.negative_scale ? -1.0 : 1.0) / std::sqrt(static_cast<double>(s.qk_dim));
  p.causal = s.causal ? Causal::kBottomRight : Causal::kNone;
  p.window_left = s.window_left;
  p.window_right = s.causal ? 0 : -1;
  p.mask_kind = s.mask;
  p.mask = {0, 0, s.kv_len, 1};
  p.want_lse = true;
  p.recipe = RecipeOf(precision);
  if (precision != Precision::kExact) p.recipe.smooth_v = s.smooth_v;
  return p;
}

struct Answer {
  std::vector<float> o, lse, q_codes, k_codes, v_codes;
  bool ok;
};

Answer Run(const Problem& p, const Inputs& in, Isa isa, int threads, bool inspect,
           bool want_lse = true) {
  const size_t rows = static_cast<size_t>(p.batch * p.q_heads * p.q_len);
  const size_t tokens = static_cast<size_t>(p.batch * p.kv_heads * p.kv_len);
  const size_t dims = static_cast<size_t>(QuantizedDims(p)), o_size = rows * p.v_dim;
  Answer a;
  a.o.assign(o_size + 16, kGuard);
  a.lse.assign(rows + 16, kGuard);
  const void* mask = p.mask_kind == MaskKind::kBoolean
                         ? static_cast<const void*>(in.allowed.data())
                         : static_cast<const void*>(in.additive.data());
  const ForwardBuffers buffers = {in.q.data(), in.k.data(), in.v.data(),
                                  mask,        a.o.data(),  want_lse ? a.lse.data() : nullptr};
  const EngineOptions options = {isa, threads, nullptr};
  if (inspect) {
    a.q_codes.resize(rows * dims);
    a.k_codes.resize(tokens * dims);
    a.v_codes.resize(tokens * static_cast<size_t>(p.v_dim));
    InspectionBuffers out = {};
    out.q_codes = a.q_codes.data();
    out.k_codes = a.k_codes.data();
    out.v_codes = a.v_codes.data();
    a.ok = InspectForward(p, buffers, out, options).ok();
  } else {
    a.ok = AttentionForward(p, buffers, options).ok();
  }
  for (size_t i = 0; i < 16; ++i) {
    a.ok = a.ok && a.o[o_size + i] == kGuard && a.lse[rows + i] == kGuard;
  }
  return a;
}

// Sum of |a - b| over the sum of |b|; infinite if one is NaN or infinite where the other is not so.
double Distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0.0, size = 1e-30;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isfinite(a[i]) != std::isfinite(b[i]) || std::isnan(a[i]) != std::isnan(b[i])) {
      return std::numeric_limits<double>::infinity();
    }
    if (!std::isfinite(b[i])) continue;
    difference += std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    size += std::fabs(static_cast<double>(b[i]));
  }
  return difference / size;
}

bool SameValues(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(a[i] == b[i])) return false;
  }
  return true;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

int failures = 0;

void Check(bool good, const char* what, Precision precision, Isa isa, size_t shape) {
  if (good) return;
  ++failures;
  std::printf("FAILED: %s, precision %d, %s, shape %zu\n", what, static_cast<int>(precision),
              IsaName(isa), shape);
}

}  // namespace

int main() {
  const Precision precisions[] = {Precision::kExact, Precision::kInt16, Precision::kInt8Int16,
                                  Precision::kInt8Bf16, Precision::kInt8};
  // What one rounding of P more or less may move o by, of o's mean magnitude.
  const double tolerances[] = {2e-6, 1e-4, 3e-4, 2e-3, 3e-3};
  const int best = static_cast<int>(DetectIsa());
  int runs = 0;
  for (size_t shape = 0; shape < sizeof(kShapes) / sizeof(kShapes[0]); ++shape) {
    const Inputs in = MakeInputs(kShapes[shape]);
    for (size_t i = 0; i < 5; ++i) {
      const Precision precision = precisions[i];
      const Problem p = ProblemOf(kShapes[shape], precision);
      const Answer expected = Run(p, in, Isa::kPortable, 1, true);
      Check(expected.ok, "runs", precision, Isa::kPortable, shape);
      for (int number = 0; number <= best; ++number) {
        const Isa isa = static_cast<Isa>(number);
        const Answer recorded = Run(p, in, isa, 1, true), one = Run(p, in, isa, 1, false);
        const Answer three = Run(p, in, isa, 3, false);
        const Answer alone = Run(p, in, isa, 1, false, false);
        runs += 4;
        Check(recorded.ok && one.ok && three.ok && alone.ok, "runs and stays within o and lse",
              precision, isa, shape);
        Check(SameValues(recorded.q_codes, expected.q_codes), "codes of q", precision, isa, shape);
        Check(SameValues(recorded.k_codes, expected.k_codes), "codes of k", precision, isa, shape);
        Check(SameValues(recorded.v_codes, expected.v_codes), "codes of v", precision, isa, shape);
        Check(SameBits(one.o, recorded.o), "o with and without a record", precision, isa, shape);
        Check(SameBits(one.o, three.o) && SameBits(one.lse, three.lse), "o with three threads",
              precision, isa, shape);
        Check(SameBits(one.o, alone.o), "o without lse", precision, isa, shape);
        Check(Distance(one.o, expected.o) <= tolerances[i], "o", precision, isa, shape);
        Check(Distance(one.lse, expected.lse) <= 2e-6, "lse", precision, isa, shape);
      }
    }
  }
  std::printf("%d runs up to %s, %d failures\n", runs, IsaName(static_cast<Isa>(best)), failures);
  return failures == 0 ? 0 : 1;
}
