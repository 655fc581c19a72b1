// The mask of one row of scores, and hiding what a row does not see.
#ifndef SAGE_CPU_FORWARD_MASK_ROW_H_
#define SAGE_CPU_FORWARD_MASK_ROW_H_

#include "cpu/forward/plan.h"

namespace sage {
namespace {

constexpr float kMinusInf = -__builtin_inff();

// Element (b, h, i, 0) of the mask, by its kind.
struct MaskRow {
  const uint8_t* boolean;
  const float* additive;
  int64_t stride;
};

SAGE_INLINE MaskRow MaskRowOf(const Problem& p, const void* mask, int64_t batch, int64_t q_head,
                              int64_t i) {
  const int64_t at = batch * p.mask.batch + q_head * p.mask.head + i * p.mask.query;
  MaskRow row = {nullptr, nullptr, p.mask.key};
  if (p.mask_kind == MaskKind::kBoolean) row.boolean = static_cast<const uint8_t*>(mask) + at;
  if (p.mask_kind == MaskKind::kAdditive) row.additive = static_cast<const float*>(mask) + at;
  return row;
}

SAGE_INLINE bool MaskAllows(const MaskRow& row, int64_t j) {
  if (row.boolean != nullptr) return row.boolean[j * row.stride] != 0;
  if (row.additive != nullptr) return row.additive[j * row.stride] != kMinusInf;
  return true;
}

// Scores plus additive values, log2 domain. A finite value stays finite: a row whose keys all have
// float32's lowest one attends to all of them (docs/numerics.md 5). Infinities stay what they are.
SAGE_INLINE F32 AddBias(F32 score, F32 bias) {
#if defined(SAGE_ISA_AVX512)
  // Rounded towards zero, what overflows becomes the largest float.
  return {_mm512_fmadd_round_ps(bias.r, Set1(kLog2E).r, score.r,
                                _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)};
#else
  constexpr float kMost = 2.3586e38f;  // times log2 e it is a float
  const F32 held = Min(Set1(kMost), Max(Set1(-kMost), bias));
  // What was cut off is too little to count, unless it is infinite.
  return Fma(Sub(bias, held), Set1(1e-30f), Fma(held, Set1(kLog2E), score));
#endif
}

// Scores become scaled and masked: s c (+ mask · log2 e), -Infinity where a boolean mask is false.
SAGE_NOINLINE void ApplyMask(const MaskRow& mask, int64_t j0, int count, float c, float* s) {
  if (mask.boolean != nullptr) {
    const uint8_t* allowed = mask.boolean + j0 * mask.stride;
    for (int j = 0; j < count; ++j) s[j] = allowed[j * mask.stride] != 0 ? s[j] * c : kMinusInf;
    return;
  }
  const float* added = mask.additive + j0 * mask.stride;
  const F32 by = Set1(c);
  int j = 0;
  for (; mask.stride <= 1 && j + kLanes <= count; j += kLanes) {
    const F32 bias = mask.stride == 1 ? LoadU(added + j) : Set1(*added);
    StoreU(s + j, AddBias(Mul(LoadU(s + j), by), bias));
  }
  for (; j < count; j += kLanes) {
    const int some = count - j < kLanes ? count - j : kLanes;
    alignas(64) float score[kLanes] = {}, bias[kLanes] = {};
    for (int i = 0; i < some; ++i) {
      score[i] = s[j + i];
      bias[i] = added[(j + i) * mask.stride];
    }
    Store(score, AddBias(Mul(Load(score), by), Load(bias)));
    for (int i = 0; i < some; ++i) s[j + i] = score[i];
  }
}

// Scores outside [first, end) become -Infinity; returns the row's maximum.
SAGE_INLINE F32 ClipRow(float* s, int count, int64_t first, int64_t end) {
  F32 most = Set1(kMinusInf);
  const F32 hidden = Set1(kMinusInf);
  for (int j = 0; j < count; j += kLanes) {
    F32 x = Load(s + j);
    if (end < j + kLanes) x = FirstLanes(static_cast<int>(MaxOf(end - j, 0)), x, hidden);
    if (first > j) x = FirstLanes(static_cast<int>(MinOf(first - j, kLanes)), hidden, x);
    Store(s + j, x);
    most = Max(most, x);
  }
  return most;
}

// P = top 2^(s c - m) is a power of s c - (m - log2 top), whose bracket is rounded and whose
// product is not: the largest P is off by what the bracket is, 2^-9 of its octave for |m| up to
// this, with which 255 P rounds to 255 at most. Scores of rows beyond are turned into s c - m
// first, where the largest is 0 as m was rounded like its product.
constexpr float kSteepScore = 32768.0f;

SAGE_INLINE bool IsSteep(F32 m) { return AnyAbove(MaxMagnitude(Zero(), m), kSteepScore); }

// s c - m of `rows` rows, `pitch` apart.
SAGE_NOINLINE __attribute__((cold)) void SubtractMaxima(float* s, int64_t pitch, int rows,
                                                        int count, const float* c, const float* m) {
  for (int r = 0; r < rows; ++r) {
    float* row = s + r * pitch;
    // Not in one expression, which the compiler may round once.
    for (int j = 0; j < count; ++j) row[j] *= c[r];
    for (int j = 0; j < count; ++j) row[j] -= m[r];
  }
}

// Whether some score is NaN or +Infinity, as an additive mask may make them. The row is NaN then
// (docs/numerics.md 1), but a maximum may lose a NaN, and codes of P hold none: its maximum has to
// be made one.
SAGE_INLINE bool HoldsNanOrInfinity(const float* s, int count) {
  F32 odd = Zero();
  for (int j = 0; j < count; j += kLanes) {
    odd = Max(odd, ZeroUnlessAbove(Set1(1.0f), Load(s + j), __FLT_MAX__));
  }
  return ReduceMax(odd) > 0.0f;
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_MASK_ROW_H_
