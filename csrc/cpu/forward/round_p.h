// P in the recipe's format, and the accumulators of P·V that the published kernels use
// (docs/numerics.md 5), emulated.
#ifndef SAGE_CPU_FORWARD_ROUND_P_H_
#define SAGE_CPU_FORWARD_ROUND_P_H_

#include "cpu/forward/plan.h"
#include "formats/formats.h"

namespace sage {
namespace {

// One group of 16 probabilities in two-level NVFP4: scale e4m3(g) from the unrounded g = max / 6,
// codes of p / g.
SAGE_INLINE void RoundGroupNvfp4(float* p) {
  float x[16];
  float most = 0.0f;
  for (int i = 0; i < 16; ++i) {
    x[i] = p[i] * 2688.0f;
    most = x[i] > most ? x[i] : most;
  }
  const float g = most / 6.0f;
  const float sf = RoundE4m3(g);
  for (int i = 0; i < 16; ++i) p[i] = g == 0.0f ? 0.0f : RoundE2m1(x[i] / g) * sf;
}

// p in [0, 1] to the code whose meaning is code / p_top, for keys that start at a multiple of 16.
SAGE_NOINLINE void RoundProbabilities(const Recipe& recipe, float* p, int count) {
  switch (recipe.pv) {
    case PvFormat::kFloat32:
      break;
    case PvFormat::kBf16:
      for (int j = 0; j < count; ++j) p[j] = RoundBf16(p[j]);
      break;
    case PvFormat::kFp16:
      for (int j = 0; j < count; ++j) p[j] = RoundFp16(p[j]);
      break;
    case PvFormat::kInt16:
    case PvFormat::kInt8: {
      const float top = recipe.p_top;
      for (int j = 0; j < count; ++j) p[j] = RoundHalfEven(p[j] * top);
      break;
    }
    case PvFormat::kE4m3:
      for (int j = 0; j < count; ++j) p[j] = RoundE4m3(p[j] * 448.0f);
      break;
    case PvFormat::kNvfp4:
      for (int j = 0; j < count; j += 16) RoundGroupNvfp4(p + j);
      break;
  }
}

// How P·V accumulates: step = keys between two roundings (0 = plain float32).
struct AccumulatorModel {
  int step;
  bool per_64_keys;  // fresh accumulator for every 64 keys, added to float32
  bool fp16;         // rounds to fp16; else cuts to 13 mantissa bits
};

SAGE_INLINE AccumulatorModel ModelOf(const Recipe& recipe) {
  switch (recipe.pv_accumulator) {
    case PvAccumulator::kFp32:
      return recipe.pv == PvFormat::kE4m3 ? AccumulatorModel{32, false, false}
                                          : AccumulatorModel{0, false, false};
    case PvAccumulator::kFp32Fp32:
      return {0, false, false};
    case PvAccumulator::kFp16:
      return {16, false, true};
    case PvAccumulator::kFp16Fp32:
      return {16, true, true};
    case PvAccumulator::kFp32Fp16:
      return {32, true, true};
  }
  return {0, false, false};
}

SAGE_INLINE void RoundAccumulator(const AccumulatorModel& model, float* o, int64_t count) {
  if (model.fp16) {
    for (int64_t i = 0; i < count; ++i) o[i] = RoundFp16(o[i]);
  } else {
    // 10 of 23 mantissa bits go, towards zero.
    for (int64_t i = 0; i < count; ++i) o[i] = BitsToFloat(FloatToBits(o[i]) & ~0x3ffu);
  }
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_ROUND_P_H_
