// The recipes of the int8 kernels as src/numerics/recipes.ts resolves them.
#ifndef SAGE_TEST_CUDA_INT8_RECIPES_H_
#define SAGE_TEST_CUDA_INT8_RECIPES_H_

#include <string>
#include <vector>

#include "sage/problem.h"

namespace sage_test {

struct NamedRecipe {
  std::string name;
  sage::Recipe recipe;
  int capability;  // the device counts as at most this: other kernels serve older ones
};

inline sage::Recipe TunedRecipe(sage::Precision precision) {
  using namespace sage;
  Recipe r = {};
  const bool bytes = precision != Precision::kInt8Fp16, int4 = precision == Precision::kInt4Fp8;
  r.precision = precision;
  r.variant = Variant::kTuned;
  r.qk = int4 ? QkFormat::kInt4 : QkFormat::kInt8;
  r.pv = bytes ? PvFormat::kE4m3 : PvFormat::kFp16;
  r.smooth_k = true;
  r.smooth_q = int4 ? 32 : 0;
  r.smooth_v = bytes ? 128 : 0;
  r.q_group = TokenGroup::kToken;
  r.k_group = TokenGroup::kConsecutive32;
  r.v_scale = VScale::kChannel;
  r.rounding = Rounding::kEven;
  r.row_sum = RowSum::kExact;
  r.p_top = bytes ? 448.0f : 1.0f;
  r.v_top = bytes ? 448.0f : 0.0f;
  r.pv_accumulator = bytes ? PvAccumulator::kFp32Fp32 : PvAccumulator::kFp32;
  return r;
}

inline sage::Recipe PaperRecipe(sage::Precision precision) {
  using namespace sage;
  Recipe r = TunedRecipe(precision);
  r.variant = Variant::kPaper;
  r.rounding = Rounding::kAway;
  if (precision == Precision::kInt8Fp16) {
    r.q_group = TokenGroup::kBlock128;
    r.k_group = TokenGroup::kBlock64;
    r.pv_accumulator = PvAccumulator::kFp16Fp32;
  } else {
    r.q_group = TokenGroup::kThread32;
    r.k_group = TokenGroup::kThread64;
    r.smooth_v = 0;
    if (precision == Precision::kInt4Fp8) r.smooth_q = 128;
  }
  return r;
}

inline sage::Recipe WithAccumulator(sage::Recipe r, sage::PvAccumulator accumulator) {
  r.pv_accumulator = accumulator;
  if (accumulator == sage::PvAccumulator::kFp32Fp16) r.v_top = 2.25f;
  return r;
}

inline sage::Recipe WithGroups(sage::Recipe r, sage::TokenGroup q, sage::TokenGroup k) {
  r.q_group = q;
  r.k_group = k;
  return r;
}

inline std::vector<NamedRecipe> AllRecipes() {
  using namespace sage;
  constexpr int kAny = 1000;
  const Recipe half = TunedRecipe(Precision::kInt8Fp16), bytes = TunedRecipe(Precision::kInt8Fp8),
               int4 = TunedRecipe(Precision::kInt4Fp8);
  Recipe smooth = WithGroups(half, TokenGroup::kToken, TokenGroup::kToken);
  smooth.smooth_q = 128;
  smooth.smooth_v = 128;
  Recipe sums = WithGroups(WithAccumulator(half, PvAccumulator::kFp16), TokenGroup::kThread32,
                           TokenGroup::kThread64);
  Recipe sums_v = sums;
  sums_v.smooth_v = 128;
  Recipe warps = WithGroups(bytes, TokenGroup::kWarp32, TokenGroup::kWarp64);
  Recipe blocks = WithGroups(bytes, TokenGroup::kBlock128, TokenGroup::kBlock64);
  Recipe by64_v = PaperRecipe(Precision::kInt8Fp16);
  by64_v.smooth_v = 128;
  return {
      {"int8_fp16", half, kAny},
      {"int8_fp16 paper", PaperRecipe(Precision::kInt8Fp16), kAny},
      {"int8_fp16 paper smooth v", by64_v, kAny},
      {"int8_fp16 per_thread fp16", sums, kAny},
      {"int8_fp16 per_thread fp16 smooth v", sums_v, kAny},
      {"int8_fp16 per_token smooth q v", smooth, kAny},
      {"int8_fp8", bytes, kAny},
      {"int8_fp8 paper", PaperRecipe(Precision::kInt8Fp8), kAny},
      {"int8_fp8 per_warp", warps, kAny},
      {"int8_fp8 per_block fp32", WithAccumulator(blocks, PvAccumulator::kFp32), kAny},
      {"int8_fp8 fp32+fp16", WithAccumulator(bytes, PvAccumulator::kFp32Fp16), kAny},
      {"int4_fp8", int4, kAny},
      {"int4_fp8 paper", PaperRecipe(Precision::kInt4Fp8), kAny},
      {"int4_fp8 fp32+fp16", WithAccumulator(int4, PvAccumulator::kFp32Fp16), kAny},
      {"int4_fp8 as on sm_89", int4, 89},
      {"int4_fp8 paper as on sm_89", PaperRecipe(Precision::kInt4Fp8), 89},
      {"int8_fp16 as on sm_80", half, 80},
      {"int8_fp16 as on sm_89", half, 89},
      {"int8_fp8 as on sm_80", bytes, 80},
      {"int4_fp8 as on sm_80", int4, 80},
      {"int4_fp8 paper as on sm_80", PaperRecipe(Precision::kInt4Fp8), 80},
  };
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_INT8_RECIPES_H_
