// The AMX kernels against the AVX-512 ones and float64, over the option space: with emulated tiles
// wherever AVX-512 BF16 runs, with the processor's own where it has them.
//
//   amx_test [part of a case's name]
//
// int8: codes, integer scores and P are those of the AVX-512 kernels, so one block of keys gives
// the same bits; over several, powers of two of the maxima's steps differ by a unit in the last
// place. The processor's tiles and the emulated ones give the same bits in every case. int8_bf16:
// equal up to the order of float32 sums.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "cpu/forward/forward.h"
#include "sage/capabilities.h"
#include "test/forward_cases.h"

namespace sage {
Status Forward_amx_emulated(const Problem&, const ForwardBuffers&, const InspectionBuffers*,
                            const EngineOptions&, Workspace*);
}

namespace {

using sage::Causal;
using sage::MaskKind;
using sage::Precision;
using sage_test::ForwardCase;
using sage_test::ForwardData;
using sage_test::ForwardResult;

constexpr float kUntouched = 1e30f;
int failures = 0;

void Fail(const char* what, const ForwardCase& c, Precision precision, double value) {
  ++failures;
  std::printf("failed: %s, %s, %s: %g\n", c.name.c_str(),
              precision == Precision::kInt8 ? "int8" : "int8_bf16", what, value);
}

ForwardResult Run(const ForwardData& d, sage::ForwardFunction function, int threads) {
  static sage::Workspace workspace;
  ForwardResult out;
  out.o.assign(d.o_elements(), kUntouched);
  out.lse.assign(static_cast<size_t>(d.p.batch * d.p.q_heads * d.p.q_len), kUntouched);
  const sage::ForwardBuffers buffers = {d.q.data(),   d.k.data(),
                                        d.v.data(),   d.mask(),
                                        out.o.data(), d.p.want_lse ? out.lse.data() : nullptr};
  sage::EngineOptions options = {sage::Isa::kAmx, threads};
  const sage::Status status = function(d.p, buffers, nullptr, options, &workspace);
  if (!status.ok()) {
    std::printf("failed: %s\n", status.message);
    std::exit(1);
  }
  return out;
}

// Largest difference; NaN against a number, or an infinity against another value, counts as
// Infinity.
double LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) continue;
    const double difference = std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    most = std::isnan(difference) ? std::numeric_limits<double>::infinity()
                                  : std::max(most, difference);
  }
  return most;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Sum of errors over sum of magnitudes (docs/numerics.md 7), over rows that attend to something.
void CheckError(const ForwardCase& c, Precision precision, const ForwardData& d,
                const ForwardResult& out) {
  std::vector<double> lse;
  const std::vector<double> o = Reference(d, &lse);
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < o.size(); ++i) {
    if (out.o[i] == kUntouched) continue;
    error += std::fabs(static_cast<double>(out.o[i]) - o[i]);
    size += std::fabs(o[i]);
  }
  // Normal inputs with biased channels stand at .009 and .018; peaky ones at twice that.
  const double limit = (precision == Precision::kInt8 ? 0.022 : 0.0125) * (c.peaky ? 4.0 : 1.0);
  if (!(error <= limit * size)) Fail("relative L1 error", c, precision, error / size);
  for (size_t i = 0; d.p.want_lse && i < lse.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(out.lse[i]) - lse[i]);
    if (static_cast<double>(out.lse[i]) != lse[i] && !(difference < (c.peaky ? 0.8 : 0.15))) {
      Fail("lse", c, precision, difference);
      break;
    }
  }
}

void Check(const ForwardCase& c, Precision precision) {
  const ForwardData d = MakeData(c, precision, 7);
  const ForwardResult wide = Run(d, sage::Forward_avx512_bf16, 1);
  const ForwardResult emulated = Run(d, sage::Forward_amx_emulated, 1);
  const bool one_block = c.kv_len <= 256 && precision == Precision::kInt8;
  // Another power of two may move a p across a step of bf16: 2^-8 of one v.
  const double o_limit = one_block ? 0.0 : precision == Precision::kInt8 ? 2e-6 : 0.012;
  const double o_difference = LargestDifference(wide.o, emulated.o);
  if (!(o_difference <= o_limit)) Fail("o against AVX-512", c, precision, o_difference);
  // lse counts unrounded powers of two: relative error 7.5e-5 of either kernel's.
  const double lse_difference = LargestDifference(wide.lse, emulated.lse);
  if (!(lse_difference <= 3e-4)) Fail("lse against AVX-512", c, precision, lse_difference);
  if (!SameBits(emulated.o, Run(d, sage::Forward_amx_emulated, 3).o)) {
    Fail("three threads give other bits", c, precision, 3);
  }
  if (!c.not_finite && !c.mask_nan && c.kv_len > 0) CheckError(c, precision, d, emulated);
#if defined(SAGE_WITH_AMX)
  if (!sage::CanRun(sage::Isa::kAmx)) return;
  const ForwardResult own = Run(d, sage::Forward_amx, 1);
  if (!SameBits(own.o, Run(d, sage::Forward_amx, 3).o)) {
    Fail("three threads give other bits, processor's tiles", c, precision, 3);
  }
  if (precision == Precision::kInt8) {
    if (!SameBits(own.o, emulated.o)) {
      Fail("bits of the processor's tiles", c, precision, LargestDifference(own.o, emulated.o));
    }
  } else if (!(LargestDifference(own.o, emulated.o) <= 2e-5)) {
    // Order of the sums in a tile product.
    Fail("o of the processor's tiles", c, precision, LargestDifference(own.o, emulated.o));
  }
  if (!(LargestDifference(own.lse, emulated.lse) <= 1e-6)) {
    Fail("lse of the processor's tiles", c, precision, LargestDifference(own.lse, emulated.lse));
  }
#endif
}

std::vector<ForwardCase> Cases() {
  std::vector<ForwardCase> cases;
  const auto add = [&](const char* name, const auto& change) {
    ForwardCase c;
    c.name = name;
    change(&c);
    cases.push_back(c);
  };
  for (const int64_t n : {1, 15, 16, 17, 31, 33, 127, 129, 257, 1000}) {
    add("length", [&](ForwardCase* c) { c->q_len = c->kv_len = n, c->name += std::to_string(n); });
    add("causal", [&](ForwardCase* c) {
      c->q_len = c->kv_len = n, c->causal = Causal::kTopLeft, c->name += std::to_string(n);
    });
  }
  for (const int64_t dim : {1, 8, 40, 80, 96, 128, 192, 256}) {
    add("head_dim", [&](ForwardCase* c) {
      c->q_len = 70, c->kv_len = 300, c->dim = c->v_dim = dim, c->name += std::to_string(dim);
    });
  }
  add("dv below dk", [](ForwardCase* c) { c->q_len = 50, c->dim = 128, c->v_dim = 48; });
  add("dv above dk", [](ForwardCase* c) { c->q_len = 50, c->dim = 32, c->v_dim = 144; });
  add("few queries", [](ForwardCase* c) { c->q_len = 5, c->kv_len = 700; });
  add("no keys seen",
      [](ForwardCase* c) { c->q_len = 90, c->kv_len = 40, c->causal = Causal::kBottomRight; });
  add("bottom right",
      [](ForwardCase* c) { c->q_len = 130, c->kv_len = 700, c->causal = Causal::kBottomRight; });
  add("groups", [](ForwardCase* c) { c->heads = 6, c->kv_heads = 2, c->q_len = c->kv_len = 333; });
  add("groups causal", [](ForwardCase* c) {
    c->heads = 8, c->kv_heads = 1, c->q_len = c->kv_len = 150, c->causal = Causal::kTopLeft;
  });
  add("batches, token major",
      [](ForwardCase* c) { c->batch = 3, c->token_major = true, c->q_len = 65, c->kv_len = 129; });
  add("window", [](ForwardCase* c) { c->q_len = c->kv_len = 900, c->left = 300, c->right = 20; });
  add("narrow window", [](ForwardCase* c) {
    c->q_len = c->kv_len = 600, c->left = 3, c->causal = Causal::kTopLeft;
  });
  add("boolean mask",
      [](ForwardCase* c) { c->q_len = 100, c->kv_len = 555, c->mask = MaskKind::kBoolean; });
  add("boolean mask, one block",
      [](ForwardCase* c) { c->q_len = 100, c->kv_len = 200, c->mask = MaskKind::kBoolean; });
  add("additive mask, groups", [](ForwardCase* c) {
    c->heads = 4, c->q_len = 77, c->kv_len = 400, c->mask = MaskKind::kAdditive;
    c->causal = Causal::kBottomRight;
  });
  add("smoothed v", [](ForwardCase* c) { c->q_len = 40, c->kv_len = 700, c->smooth_v = true; });
  add("smoothed v, short", [](ForwardCase* c) {
    c->q_len = 40, c->kv_len = 129, c->smooth_v = true, c->dim = c->v_dim = 128;
  });
  add("negative scale",
      [](ForwardCase* c) { c->q_len = c->kv_len = 300, c->negative_scale = true; });
  add("peaky", [](ForwardCase* c) { c->q_len = 200, c->kv_len = 1500, c->peaky = true; });
  add("not finite", [](ForwardCase* c) { c->q_len = c->kv_len = 200, c->not_finite = true; });
  add("not finite, causal", [](ForwardCase* c) {
    c->q_len = c->kv_len = 600, c->not_finite = true, c->causal = Causal::kTopLeft;
  });
  add("no lse", [](ForwardCase* c) { c->q_len = c->kv_len = 100, c->lse = false; });
  return cases;
}

// docs/numerics.md 1: a NaN in the mask gives NaN in that row, whatever the integer codes hold.
void CheckMaskNan(Precision precision) {
  ForwardCase c;
  c.name = "NaN in the mask";
  c.q_len = 40;
  c.kv_len = 600;
  c.mask = MaskKind::kAdditive;
  c.mask_nan = true;
  const ForwardData d = MakeData(c, precision, 7);
  const ForwardResult out = Run(d, sage::Forward_amx_emulated, 1);
  for (int64_t i = 0; i < c.q_len; ++i) {
    const float* row = out.o.data() + i * d.p.o.token;
    for (int64_t x = 0; x < c.v_dim; ++x) {
      if (std::isnan(row[x]) != (i == 0)) return Fail("row, wrongly", c, precision, i);
    }
    if (std::isnan(out.lse[static_cast<size_t>(i)]) != (i == 0)) {
      return Fail("lse, wrongly", c, precision, i);
    }
  }
}

// Keys that causality hides count for nothing, however large their values: a power of two that is
// only small would let 3e38 through.
void CheckHiddenValues() {
  ForwardCase c;
  c.name = "huge values that are hidden";
  c.q_len = c.kv_len = 600;
  c.causal = Causal::kTopLeft;
  ForwardData d = MakeData(c, Precision::kInt8Bf16, 7);
  const ForwardResult before = Run(d, sage::Forward_amx_emulated, 1);
  constexpr int64_t kHuge = 500;
  for (int64_t x = 0; x < c.v_dim; ++x) d.v[static_cast<size_t>(kHuge * d.p.v.token + x)] = 3e38f;
  const ForwardResult after = Run(d, sage::Forward_amx_emulated, 1);
  for (int64_t i = 0; i < kHuge; ++i) {
    const size_t at = static_cast<size_t>(i * d.p.o.token);
    if (std::memcmp(&before.o[at], &after.o[at], sizeof(float) * static_cast<size_t>(c.v_dim)) !=
        0) {
      return Fail("row", c, Precision::kInt8Bf16, static_cast<double>(i));
    }
  }
}

// Rows attend to one key, up to scores of which float32 has few digits: 2^(s c - m) has to stay at
// most 1 although m is rounded, or its byte wraps.
void CheckSteepScores(Precision precision) {
  for (const double steep : {1e3, 1e4, 1e5, 1e7, 1e10}) {
    ForwardCase c;
    c.name = "steep scores";
    c.q_len = 200;
    c.kv_len = 600;
    c.steep = steep;
    // Rows of masks see other keys, some none.
    if (steep == 1e5) c.mask = MaskKind::kBoolean;
    const ForwardData d = MakeData(c, precision, 7);
    const ForwardResult out = Run(d, sage::Forward_amx_emulated, 1);
    const double difference = LargestDifference(Run(d, sage::Forward_avx512_bf16, 1).o, out.o);
    if (!(difference <= 0.02)) Fail("o against AVX-512", c, precision, difference);
    // Of v in bf16, or in codes of 8 bits.
    double away = 0.0;
    std::vector<double> lse;
    const std::vector<double> o = Reference(d, &lse);
    for (size_t i = 0; i < o.size(); ++i) {
      if (out.o[i] == kUntouched) continue;
      if (!(std::fabs(static_cast<double>(out.o[i]) - o[i]) < 0.1)) away += 1.0;
    }
    // Codes of q and k prefer another key in some rows.
    if (!(away < 0.1 * static_cast<double>(o.size()))) Fail("values", c, precision, away);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (!sage::CanRun(sage::Isa::kAvx512Bf16)) {
    std::puts("amx_test: skipped, this processor has no AVX-512 BF16");
    return 0;
  }
  int ran = 0;
  for (const Precision precision : {Precision::kInt8Bf16, Precision::kInt8}) {
    for (const ForwardCase& c : Cases()) {
      if (count > 1 && c.name.find(arguments[1]) == std::string::npos) continue;
      Check(c, precision);
      ++ran;
    }
    CheckMaskNan(precision);
    CheckSteepScores(precision);
  }
  CheckHiddenValues();
  const char* refusal = sage::IsaRefusal(sage::Isa::kAmx);
  std::printf("amx_test: %d cases, %d failures, %s%s\n", ran, failures,
              refusal == nullptr ? "emulated tiles and the processor's" : "emulated tiles; amx: ",
              refusal == nullptr ? "" : refusal);
  return failures == 0 ? 0 : 1;
}
