// Steps of the online softmax over the pages of a cache in 8 or 16 bits (packed_operands.h):
//
//   for each step of 128 keys:  for each group of 6 rows:
//     scores s = q k; mask; m' = max(m, s); p = 2^(s - m'); l = l 2^(m - m') + sum p
//     o = o 2^(m - m') + p v
#ifndef SAGE_CPU_CACHE_PACKED_STEPS_H_
#define SAGE_CPU_CACHE_PACKED_STEPS_H_

#include <math.h>
#include <string.h>

#include "cpu/cache/decode_plan.h"
#include "cpu/cache/page_layout.h"
#include "cpu/forward/mask_row.h"
#include "cpu/simd/simd_shuffle.h"

namespace sage {
namespace {

// What became of one row in one step.
struct RowStep {
  float alpha;   // factor of what was there before
  float factor;  // of the products of this step
};

// Scores of row r (of the group; `at` of the task) to p, maxima and sums updated. `padded` keys are
// written, those past `count` as 0.
template <class Operands>
SAGE_INLINE RowStep SoftmaxRow(const DecodePlan& plan, Operands* operands, const RowPlace& place,
                               int64_t j0, int count, int padded, int r, int64_t at,
                               const DecodeScratch& scratch) {
  const Problem& p = *plan.problem;
  float* s = scratch.s + r * kStep;
  float c = scratch.c[at];
  if (p.mask_kind != MaskKind::kNone) {
    ApplyMask(MaskRowOf(p, plan.buffers->mask, place.batch, place.q_head, place.i), j0, count, c,
              s);
    c = 1.0f;
  }
  const int64_t first = FirstKey(plan, place.i) - j0;
  const int64_t end = MinOf(EndKey(plan, place.i) - j0, count);
  const float here = ReduceMax(ClipRow(s, padded, first, end)) * c;
  const float old = scratch.results.m[at];
  // A NaN (an additive mask may hold one) must not be lost to the comparison.
  float m = here > old || here != here ? here : old;
  // Nor to the maximum, where all that the row sees is NaN: beside a finite score its p would tell.
  if (m == kMinusInf && p.mask_kind == MaskKind::kAdditive && HoldsNanOrInfinity(s, padded)) {
    m = __builtin_nanf("");
  }
  if (m == kMinusInf) {
    for (int j = 0; j < padded; ++j) s[j] = 0.0f;
    return {1.0f, operands->Weigh(r, padded, scratch)};
  }
  float less = m;
  if (__builtin_expect(__builtin_fabsf(m) > kSteepScore, 0)) {
    SubtractMaxima(s, 0, 1, padded, &c, &m);
    c = 1.0f;
    less = 0.0f;
  }
  const F32 factor = Set1(c), shift = Set1(less);
  F32 sum = Zero();
  for (int j = 0; j < padded; j += kLanes) {
    operands->AskInSoftmax();
    const F32 x = Fms(Load(s + j), factor, shift);
    const F32 e = ZeroUnlessAbove(Exp2(x), x, kExp2Floor);
    sum = Add(sum, e);
    Store(s + j, e);
  }
  const float alpha = old == kMinusInf ? 0.0f : exp2f(old - m);
  scratch.results.m[at] = m;
  scratch.results.l[at] = scratch.results.l[at] * alpha + ReduceAdd(sum);
  return {alpha, operands->Weigh(r, padded, scratch)};
}

// Rows [row0, row0 + rows) of a head against steps [step, end).
template <class Operands>
SAGE_NOINLINE void AttendPackedSteps(const DecodePlan& plan, Operands* operands, int64_t head,
                                     int64_t row0, int64_t rows, int64_t step, int64_t end,
                                     const DecodeScratch& scratch) {
  const Problem& p = *plan.problem;
  const RowResults& out = scratch.results;
  for (int64_t r = 0; r < rows; ++r) {
    out.m[r] = kMinusInf;
    out.l[r] = 0.0f;
  }
  memset(out.o, 0, sizeof(float) * static_cast<size_t>(rows * plan.v_dims));
  const int64_t top = PlaceOf(plan, head, row0).i, bottom = PlaceOf(plan, head, row0 + rows - 1).i;
  // Limits grow with the query: the union of what these rows see.
  const int64_t from = FirstKey(plan, top), to = EndKey(plan, bottom);
  step = MaxOf(step, from / kStep);
  end = MinOf(end, (to + kStep - 1) / kStep);
  for (; step < end; ++step) {
    if (plan.cancelled != nullptr && plan.cancelled->load(std::memory_order_relaxed)) return;
    const int64_t j0 = step * kStep;
    const int count = static_cast<int>(MinOf(kStep, p.kv_len - j0));
    const int padded = static_cast<int>(RoundUp(count, 16));
    operands->BeginStep(plan, step, end, rows);
    for (int64_t r0 = 0; r0 < rows; r0 += kGroupRows) {
      const int group = static_cast<int>(MinOf(kGroupRows, rows - r0));
      operands->Scores(plan, r0, group, count, scratch);
      float alpha[kGroupRows], factor[kGroupRows];
      operands->BeginSoftmax(rows);
      for (int r = 0; r < group; ++r) {
        const RowStep row = SoftmaxRow(plan, operands, PlaceOf(plan, head, row0 + r0 + r), j0,
                                       count, padded, r, r0 + r, scratch);
        alpha[r] = row.alpha;
        factor[r] = row.factor;
      }
      operands->Accumulate(plan, r0, group, padded, alpha, factor, scratch);
    }
  }
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_PACKED_STEPS_H_
