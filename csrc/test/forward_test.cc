// The forward pass on every instruction set of this machine: against float64, and its quantised
// operands against those of the portable path, bit for bit.
//
//   forward_test [quick]   exit code 0 if all holds; quick: a third of the cases
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "sage/attention.h"
#include "sage/capabilities.h"
#include "sage/quantize.h"
#include "test/kv_cache_cases.h"
#include "test/kv_cache_reference.h"

namespace {

using sage::Isa;
using sage::Precision;
using sage::PvFormat;
using sage::QkFormat;
using sage::Recipe;
using sage::RowSum;
using sage::VScale;
using namespace sage_test;

// The tuned recipes of src/numerics/recipes.ts that have kernels of their own somewhere, and one
// that is emulated. `bound`: largest relative L1 of o, `lse`: largest error.
struct TestRecipe {
  const char* name;
  Precision precision;
  QkFormat qk;
  PvFormat pv;
  VScale v_scale;
  int32_t smooth_v;
  float p_top, v_top;
  double bound, lse;
};

const TestRecipe kRecipes[] = {
    {"exact", Precision::kExact, QkFormat::kFloat32, PvFormat::kFloat32, VScale::kNone, 0, 1, 0,
     6e-6, 2e-5},
    {"int16", Precision::kInt16, QkFormat::kInt16, PvFormat::kInt16, VScale::kChannel, 0, 8192,
     2047, 3e-3, 5e-3},
    {"int8_int16", Precision::kInt8Int16, QkFormat::kInt8Pair, PvFormat::kInt16, VScale::kChannel,
     0, 8192, 2047, 0.035, 0.2},
    {"int8_bf16", Precision::kInt8Bf16, QkFormat::kInt8, PvFormat::kBf16, VScale::kNone, 0, 1, 0,
     0.035, 0.2},
    {"int8_fp8", Precision::kInt8Fp8, QkFormat::kInt8, PvFormat::kE4m3, VScale::kChannel, 128, 448,
     448, 0.09, 0.2},
};

const Case kForwardCases[] = {
    {"one key", 1, 1, 1, 1, 1, 64, 64},
    {"127", 2, 3, 3, 127, 127, 17, 80},
    {"129", 1, 4, 2, 129, 129, 80, 17},
    {"300, D 128", 1, 2, 2, 60, 300, 128, 128},
    {"more keys", 1, 2, 1, 100, 530, 64, 64},
    {"more queries", 1, 2, 2, 90, 33, 32, 33},
    {"not causal", 1, 2, 1, 70, 260, 64, 64, Causal::kNone},
    {"top left", 1, 2, 1, 140, 300, 64, 64, Causal::kTopLeft},
    {"window", 1, 2, 2, 80, 300, 64, 64, Causal::kBottomRight, 40},
    {"boolean mask", 2, 4, 2, 60, 210, 64, 64, Causal::kBottomRight, -1, MaskKind::kBoolean},
    {"additive mask", 1, 4, 2, 57, 190, 48, 64, Causal::kNone, -1, MaskKind::kAdditive},
    {"hidden rows", 1, 2, 1, 64, 190, 64, 64, Causal::kNone, -1, MaskKind::kBoolean, 0, false,
     false, true},
    {"negative scale", 1, 2, 1, 64, 190, 64, 64, Causal::kBottomRight, -1, MaskKind::kNone, -0.2},
    {"not finite", 2, 4, 2, 60, 210, 64, 64, Causal::kBottomRight, -1, MaskKind::kBoolean, 0, true},
};

int failures = 0;

void Check(bool holds, const std::string& what) {
  if (holds) return;
  std::printf("FAIL %s\n", what.c_str());
  ++failures;
}

Recipe RecipeOf(const TestRecipe& of) {
  Recipe recipe = {};
  recipe.precision = of.precision;
  recipe.qk = of.qk;
  recipe.pv = of.pv;
  recipe.smooth_k = of.precision != Precision::kExact;
  recipe.smooth_v = of.smooth_v;
  recipe.v_scale = of.v_scale;
  recipe.row_sum = of.pv == PvFormat::kInt16 ? RowSum::kQuantized : RowSum::kExact;
  recipe.p_top = of.p_top;
  recipe.v_top = of.v_top;
  return recipe;
}

// Outputs and quantised operands.
struct Result {
  Outputs out;
  std::vector<float> codes[6];
};

Result Run(const Data& data, Isa isa, int threads) {
  const Problem& p = data.p;
  Result result = {Outputs(p), {}};
  const int64_t dims = QuantizedDims(p), heads = p.batch * p.kv_heads;
  const int64_t sizes[6] = {p.batch * p.q_heads * p.q_len * dims,
                            p.batch * p.q_heads * p.q_len,
                            heads * p.kv_len * dims,
                            heads * p.kv_len,
                            heads * p.kv_len * p.v_dim,
                            heads * p.v_dim};
  for (int n = 0; n < 6; ++n) result.codes[n].assign(static_cast<size_t>(sizes[n]), 0.0f);
  const sage::InspectionBuffers inspect = {result.codes[0].data(), result.codes[1].data(),
                                           result.codes[2].data(), result.codes[3].data(),
                                           result.codes[4].data(), result.codes[5].data()};
  const sage::Status status =
      InspectForward(p, BuffersOf(data, &result.out), inspect, {isa, threads});
  Check(status.ok(), status.message == nullptr ? "" : status.message);
  return result;
}

// Outputs alone: without lse, and with nobody looking into operands, they go another way to the
// caller's rows.
std::vector<float> OutputsAlone(Data data, Isa isa, int threads) {
  data.p.want_lse = false;
  Outputs out(data.p);
  sage::ForwardBuffers buffers = BuffersOf(data, &out);
  buffers.lse = nullptr;
  const sage::Status status = AttentionForward(data.p, buffers, {isa, threads});
  Check(status.ok(), status.message == nullptr ? "" : status.message);
  return out.o;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void CheckData(const Case& c, Data data, const TestRecipe& recipe) {
  data.p.recipe = RecipeOf(recipe);
  std::vector<double> o, lse;
  Reference(data, &o, &lse);
  const Result portable = Run(data, Isa::kPortable, 1);
  for (int index = 0; index < sage::kIsaCount; ++index) {
    const Isa isa = static_cast<Isa>(index);
    if (!sage::CanRun(isa) || sage::KernelIsa(isa) != isa) continue;
    const auto title = [&](const char* what) {
      return std::string(c.name) + ", " + recipe.name + ", " + sage::IsaName(isa) + ": " + what;
    };
    const Result result = Run(data, isa, 1);
    const double error = RelativeL1(result.out.o, o);
    Check(error <= recipe.bound, title("o") + " " + std::to_string(error));
    double worst = 0;
    for (size_t i = 0; i < lse.size(); ++i) {
      const double difference = std::fabs(lse[i] - static_cast<double>(result.out.lse[i]));
      if (std::isfinite(lse[i])) worst = std::max(worst, difference);
    }
    Check(worst <= recipe.lse && std::isfinite(RelativeL1(result.out.lse, lse)),
          title("lse") + " " + std::to_string(worst));
    for (int n = 0; n < 6; ++n) {
      Check(SameBits(result.codes[n], portable.codes[n]), title("codes") + std::to_string(n));
    }
    // The same codes and nearly the same P: what is left is the order of sums and ties of P.
    const std::vector<double> same(portable.out.o.begin(), portable.out.o.end());
    const double apart = RelativeL1(result.out.o, same);
    Check(apart <= (recipe.precision == Precision::kExact ? 6e-6 : recipe.bound / 10),
          title("o of the portable path") + " " + std::to_string(apart));
    const std::vector<float> alone = OutputsAlone(data, isa, 1);
    Check(SameBits(alone, result.out.o), title("o without lse"));
    Check(SameBits(alone, OutputsAlone(data, isa, 3)), title("threads change bits without lse"));
    const Result threaded = Run(data, isa, 3);
    Check(result.out == threaded.out, title("threads change bits"));
  }
}

// A NaN in one query alone, a NaN and an Infinity in rows of an additive mask: those rows and no
// others, with K and V that leave outputs their shortest way to the caller's memory.
void CheckOddRows(const TestRecipe& recipe) {
  Case c = {"one query not finite", 1, 2, 2, 70, 128, 64, 64, Causal::kNone};
  Data data = MakeData(c);
  data.q[static_cast<size_t>(8 * c.qk_dim + 1)] = kNan;
  CheckData(c, data, recipe);
  c.name = "mask not finite";
  c.mask = MaskKind::kAdditive;
  c.kv_len = 300;
  data = MakeData(c);
  data.additive[static_cast<size_t>(8 * c.kv_len + 1)] = kNan;
  data.additive[static_cast<size_t>(9 * c.kv_len + 280)] = kNan;
  data.additive[static_cast<size_t>(20 * c.kv_len + 30)] = kInf;
  CheckData(c, data, recipe);
  c.causal = Causal::kTopLeft;  // which hides the second and the third
  Data causal = MakeData(c);
  causal.additive = data.additive;
  CheckData(c, causal, recipe);
}

// Scores of which float32 has few digits, or none: rows attend to one key, on every instruction set
// to the same (mask_row.h, SubtractMaxima).
void CheckSteepRows(const TestRecipe& recipe) {
  for (const double scale : {1e4, 1e6, 1e8, 1e11}) {
    for (const MaskKind mask : {MaskKind::kNone, MaskKind::kAdditive}) {
      Case c = {"steep", 1, 2, 2, 70, 300, 64, 64, Causal::kNone, -1, mask};
      c.scale = scale;
      Data data = MakeData(c);
      data.p.recipe = RecipeOf(recipe);
      std::vector<double> o, lse;
      Reference(data, &o, &lse);
      for (int index = 0; index < sage::kIsaCount; ++index) {
        const Isa isa = static_cast<Isa>(index);
        if (!sage::CanRun(isa) || sage::KernelIsa(isa) != isa) continue;
        const std::string title = std::string("steep, ") + recipe.name + ", " + sage::IsaName(isa);
        const std::vector<float> portable = OutputsAlone(data, Isa::kPortable, 1);
        const std::vector<double> same(portable.begin(), portable.end());
        const double apart = RelativeL1(OutputsAlone(data, isa, 1), same);
        Check(apart <= 0.01, title + ": o of the portable path " + std::to_string(apart));
        // Codes of q and k prefer another key in some rows.
        const double error = RelativeL1(portable, o);
        Check(error <= 0.2, title + ": o " + std::to_string(error));
      }
    }
  }
}

// Rows whose keys all have float32's lowest value in an additive mask attend to all of them, beside
// it -Infinity hides and 0 outweighs (mask_row.h, AddBias).
void CheckLowestMask(const TestRecipe& recipe) {
  Case c = {"lowest", 1, 2, 2, 70, 300, 64, 64, Causal::kNone, -1, MaskKind::kAdditive};
  Data data = MakeData(c);
  data.p.recipe = RecipeOf(recipe);
  for (size_t at = 0; at < data.additive.size(); ++at) {
    const int64_t i = static_cast<int64_t>(at) / c.kv_len % 4;
    const float beside = i < 2 ? -FLT_MAX : i == 2 ? 0.0f : -kInf;
    data.additive[at] = at % 2 == 0 ? -FLT_MAX : beside;
  }
  std::vector<double> o, lse;
  Reference(data, &o, &lse);
  for (int index = 0; index < sage::kIsaCount; ++index) {
    const Isa isa = static_cast<Isa>(index);
    if (!sage::CanRun(isa) || sage::KernelIsa(isa) != isa) continue;
    const double error = RelativeL1(OutputsAlone(data, isa, 1), o);
    Check(error <= 0.2, std::string("lowest mask, ") + recipe.name + ", " + sage::IsaName(isa) +
                            ": o " + std::to_string(error));
  }
}

// q, k and v of 16 bits are refused, before any of them is read.
void CheckRefusal() {
  sage::Problem p = {};
  p.batch = p.q_heads = p.kv_heads = p.q_len = p.kv_len = p.qk_dim = p.v_dim = 1;
  p.input = sage::InputType::kFloat16;
  const sage::EngineOptions options = {sage::DetectIsa(), 1};
  for (const sage::Status& status :
       {sage::AttentionForward(p, {}, options), sage::AttentionBackward(p, {}, options),
        sage::InspectForward(p, {}, {}, options)}) {
    if (status.code == sage::StatusCode::kUnsupported && std::strlen(status.message) > 0) continue;
    std::printf("FAIL 16-bit inputs are not refused\n");
    ++failures;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::strcmp(argv[1], "quick") == 0;
  int n = 0;
  CheckRefusal();
  for (const Case& c : kForwardCases) {
    for (const TestRecipe& recipe : kRecipes) {
      if (!quick || n++ % 3 == 0) CheckData(c, MakeData(c), recipe);
    }
  }
  for (const TestRecipe& recipe : kRecipes) CheckOddRows(recipe);
  for (const TestRecipe& recipe : kRecipes) CheckSteepRows(recipe);
  for (const TestRecipe& recipe : kRecipes) CheckLowestMask(recipe);
  std::printf(failures == 0 ? "all checks hold\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
