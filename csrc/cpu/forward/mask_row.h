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

// Scores become scaled and masked: s c (+ mask · log2 e), -Infinity where a boolean mask is false.
SAGE_NOINLINE void ApplyMask(const MaskRow& mask, int64_t j0, int count, float c, float* s) {
  if (mask.boolean != nullptr) {
    const uint8_t* allowed = mask.boolean + j0 * mask.stride;
    for (int j = 0; j < count; ++j) s[j] = allowed[j * mask.stride] != 0 ? s[j] * c : kMinusInf;
  } else {
    const float* added = mask.additive + j0 * mask.stride;
    for (int j = 0; j < count; ++j) s[j] = s[j] * c + added[j * mask.stride] * kLog2E;
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
