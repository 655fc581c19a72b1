// The tile kernels of AMX for the shared loops of csrc/cpu/forward: packing, and one block of keys
// against one group of 32 rows.
//
//   scores   32 x 256 int32 by tile products, S (32 KiB)
//   softmax  S times the keys' scales, row maxima; m, alpha for 16 rows at a time; P over S
//   outputs  o = alpha o + P v by tile products
//
// Tile products are a fifth of the work of a block; powers of two, conversions and maxima are the
// rest, so these handle whole rows and leave everything per row to vectors of 16 rows.
#ifndef SAGE_CPU_AMX_AMX_KERNELS_H_
#define SAGE_CPU_AMX_AMX_KERNELS_H_

#include "cpu/amx/pack_rows.h"
#include "cpu/amx/score_tiles.h"
#include "cpu/amx/transpose.h"
#include "cpu/amx/value_tiles.h"
#include "cpu/forward/attend.h"

namespace sage {
namespace {

template <class Values>
struct AmxKernels {
  static constexpr int kKeyTile = 64;
  static constexpr int kDimsMultiple = kDimChunk;
  static constexpr bool kBeginsOutputs = true;
  static constexpr bool kSoftmaxAhead = false;
  static constexpr int kSoftmaxKeys = 64;
  static constexpr bool kShortGroups = false;
  static constexpr bool kWritesOutputs = false;
  static constexpr bool kRoundsCodes = false;

  static int64_t KBytes(const Plan& plan) { return plan.keys * plan.qk_dims; }
  static int64_t VBytes(const Plan& plan) { return plan.keys * plan.v_dims * Values::kBytes; }
  static int64_t QBytes(const Plan& plan) { return plan.row_space * plan.qk_dims; }
  // Pauses of a group's softmax in which lines are fetched: a row each.
  static int64_t FetchSteps(const Plan& /*plan*/, int64_t /*keys*/) { return 16; }
  // S and P, in one place.
  static int64_t PBytes() { return kRows * kScoreBytes; }

  static void PackK(const Plan& plan, const Head& head, int64_t first, int /*rows*/, int padded,
                    const float* x, const float* /*copy*/, const float* /*factor*/) {
    PackKeyTiles(x, plan.qk_dims, padded, head.k + first * plan.qk_dims);
  }

  static void PackV(const Plan& plan, const Head& head, int64_t first, int padded, const float* x) {
    ForEachValuePanel(plan.v_dims, [&](int t, int width) {
      uint8_t* panel = head.v + (t * plan.keys + first * width) * 16 * Values::kBytes;
      for (int i = 0; i < width; ++i) {
        Values::PackValues(x + 16 * (t + i), plan.v_dims, padded, width * kTileBytes,
                           panel + i * kTileBytes);
      }
    });
  }

  static float PackQ(const Plan& plan, uint8_t* q, int64_t r, const float* x, float /*factor*/,
                     float scale, const float* /*mean*/) {
    PackQueryRow(x, plan.qk_dims, q + r * plan.qk_dims);
    return scale * plan.q_factor;
  }
};

// Whether rows go to tiles without a stop in memory (pack_rows.h): whole chunks of dims, a scale
// for each row, and nobody who wants to see the codes. All of the public recipes' tuned forms.
SAGE_INLINE bool PacksDirectly(const Plan& plan) {
  const Problem& p = *plan.problem;
  const Recipe& recipe = p.recipe;
  return plan.inspect == nullptr && recipe.k_group == TokenGroup::kToken &&
         recipe.q_group == TokenGroup::kToken && recipe.rounding == Rounding::kEven &&
         recipe.smooth_q == 0 && recipe.smooth_v == 0 && p.qk_dim == plan.qk_dims &&
         p.v_dim == plan.v_dims;
}

// The general packing and preparation under another name, for what the direct ones leave.
template <class Values>
struct GeneralAmxKernels : AmxKernels<Values> {};

// Tokens of a block, and the same in whole tiles.
struct BlockTokens {
  int64_t first;
  int count, padded;
};
template <class Values>
SAGE_INLINE BlockTokens TokensOf(const Plan& plan, int64_t block) {
  const int64_t first = block * kBlock;
  const int count = static_cast<int>(MinOf(kBlock, plan.problem->kv_len - first));
  return {first, count, static_cast<int>(RoundUp(count, AmxKernels<Values>::kKeyTile))};
}

template <class Values>
SAGE_INLINE void PackKBlockOfTiles(const Plan& plan, Head* head, int64_t block,
                                   const PrepassScratch& scratch) {
  if (PacksDirectly(plan)) {
    const BlockTokens at = TokensOf<Values>(plan, block);
    const Source k = KSource(plan, *head, at.first, kBlock);
    const float* mean = plan.problem->recipe.smooth_k ? head->k_mean : nullptr;
    if (PackKeyRows(k.base, k.stride, at.count, at.padded, plan.qk_dims, mean, plan.k_sign,
                    head->k + at.first * plan.qk_dims, head->k_scale + at.first)) {
      memset(head->not_finite + at.first, 0, kBlock);
      return;
    }
  }
  PackKBlock<GeneralAmxKernels<Values>>(plan, head, block, scratch);
}

template <class Values>
SAGE_INLINE void PackVBlockOfTiles(const Plan& plan, Head* head, int64_t block,
                                   const PrepassScratch& scratch) {
  if (PacksDirectly(plan)) {
    const BlockTokens at = TokensOf<Values>(plan, block);
    const Source v = VSource(plan, *head, at.first, kBlock);
    if (PackValueRows<Values>(v.base, v.stride, at.count, at.padded, plan.v_dims, plan.keys,
                              at.first, head->v_inverse, head->v)) {
      return;
    }
  }
  PackVBlock<GeneralAmxKernels<Values>>(plan, head, block, scratch);
}

template <class Values>
SAGE_INLINE void PrepareGroupOfTiles(const Plan& plan, const Head& head, int64_t row0, int64_t rows,
                                     int64_t g, const AttendScratch& scratch) {
  bool done = PacksDirectly(plan);
  RowWalk at = WalkFrom(plan, row0 + g * kRows);
  for (int64_t r0 = g * kRows; done && r0 < (g + 1) * kRows; r0 += 16) {
    const float* row[16];
    for (int r = 0; r < 16; ++r) {
      row[r] = QSource(plan, head, at.g, at.i, 1).base;
      // Rows of padding repeat the task's last one.
      if (r0 + r + 1 < rows) at.Next(plan);
    }
    __m512 scale;
    done = PackQueryRows(row, plan.qk_dims, scratch.q + r0 * plan.qk_dims, &scale);
    if (!done) break;
    const __m512 c = _mm512_mul_ps(scale, _mm512_set1_ps(plan.q_factor));
    // FactorOf of each.
    const __mmask16 zero = _mm512_cmp_ps_mask(c, _mm512_setzero_ps(), _CMP_EQ_OQ);
    _mm512_store_ps(scratch.c + r0, _mm512_mask_mov_ps(c, zero, _mm512_set1_ps(FactorOf(0.0f))));
    memset(scratch.bad + r0, 0, 16);
  }
  if (!done) PrepareGroup<GeneralAmxKernels<Values>>(plan, head, row0, rows, g, scratch);
}

template <>
inline void PackKBlock<AmxKernels<ValuesBf16>>(const Plan& plan, Head* head, int64_t block,
                                               const PrepassScratch& scratch) {
  PackKBlockOfTiles<ValuesBf16>(plan, head, block, scratch);
}
template <>
inline void PackVBlock<AmxKernels<ValuesBf16>>(const Plan& plan, Head* head, int64_t block,
                                               const PrepassScratch& scratch) {
  PackVBlockOfTiles<ValuesBf16>(plan, head, block, scratch);
}
template <>
inline void PackKBlock<AmxKernels<ValuesBytes>>(const Plan& plan, Head* head, int64_t block,
                                                const PrepassScratch& scratch) {
  PackKBlockOfTiles<ValuesBytes>(plan, head, block, scratch);
}
template <>
inline void PackVBlock<AmxKernels<ValuesBytes>>(const Plan& plan, Head* head, int64_t block,
                                                const PrepassScratch& scratch) {
  PackVBlockOfTiles<ValuesBytes>(plan, head, block, scratch);
}
template <>
inline void PrepareGroup<AmxKernels<ValuesBf16>>(const Plan& plan, const Head& head, int64_t row0,
                                                 int64_t rows, int64_t g,
                                                 const AttendScratch& scratch) {
  PrepareGroupOfTiles<ValuesBf16>(plan, head, row0, rows, g, scratch);
}
template <>
inline void PrepareGroup<AmxKernels<ValuesBytes>>(const Plan& plan, const Head& head, int64_t row0,
                                                  int64_t rows, int64_t g,
                                                  const AttendScratch& scratch) {
  PrepareGroupOfTiles<ValuesBytes>(plan, head, row0, rows, g, scratch);
}

// Integer scores of one row times the keys' scales, in place; the largest by lane.
SAGE_INLINE F32 ScaleRow(float* s, const float* k_scale, int count) {
  F32 most0 = Set1(kMinusInf), most1 = most0;
  for (int j = 0; j < count; j += 32) {
    const F32 x0 = {_mm512_cvtepi32_ps(_mm512_load_si512(s + j))};
    const F32 x1 = {_mm512_cvtepi32_ps(_mm512_load_si512(s + j + 16))};
    const F32 y0 = Mul(x0, Load(k_scale + j)), y1 = Mul(x1, Load(k_scale + j + 16));
    Store(s + j, y0);
    Store(s + j + 16, y1);
    most0 = Max(most0, y0);
    most1 = Max(most1, y1);
  }
  return Max(most0, most1);
}

// Mask and limits of row `at` of the task on its scaled scores; the largest by lane, NaN in all
// lanes if the mask makes one NaN or +Infinity.
SAGE_NOINLINE F32 HideScores(const Plan& plan, const Head& head, int64_t row, float c, int64_t j0,
                             int count, float* s) {
  const Problem& p = *plan.problem;
  const int64_t i = row / plan.group, q_head = head.kv_head * plan.group + row % plan.group;
  if (p.mask_kind != MaskKind::kNone) {
    ApplyMask(MaskRowOf(plan, head.batch, q_head, i), j0,
              static_cast<int>(MinOf(count, p.kv_len - j0)), c, s);
  }
  const F32 most = ClipRow(s, count, FirstKey(plan, i) - j0, EndKey(plan, i) - j0);
  if (p.mask_kind == MaskKind::kAdditive && HoldsNanOrInfinity(s, count)) {
    return Set1(__builtin_nanf(""));
  }
  return most;
}

// The online softmax of 16 rows from r0 on: S becomes P, the rows' m, l and exact move on, and
// alpha is what outputs so far are worth now.
template <class Values, bool kHidden>
SAGE_INLINE void SoftmaxRows(const Plan& plan, const AttendScratch& scratch, FetchLines* fetch,
                             float* s, int64_t r0, int count, const F32 most[16], float alpha[16],
                             float sums[2][16]) {
  const F32 c = plan.problem->mask_kind == MaskKind::kNone ? Load(scratch.c + r0) : Set1(1.0f);
  const F32 old = Load(scratch.m + r0), here = Mul(ReduceRows<MaxLanes>(most), c);
  // A NaN (an additive mask may hold one) must not be lost to the comparison.
  const __mmask16 rises = _mm512_cmp_ps_mask(here.r, old.r, _CMP_GT_OQ) |
                          _mm512_cmp_ps_mask(here.r, here.r, _CMP_UNORD_Q);
  const F32 m = {_mm512_mask_mov_ps(old.r, rises, here.r)};
  const __mmask16 empty = _mm512_cmp_ps_mask(m.r, _mm512_set1_ps(kMinusInf), _CMP_EQ_OQ);
  // Nothing attended to even now: 1, and no difference of infinities.
  const F32 a = {_mm512_mask_mov_ps(Exp2(Sub(old, m)).r, empty, _mm512_set1_ps(1.0f))};
  Store(alpha, a);
  Store(scratch.m + r0, m);
  alignas(64) float factor[16], shift[16];
  _mm512_store_ps(factor, _mm512_maskz_mov_ps(static_cast<__mmask16>(~empty), c.r));
  _mm512_store_ps(shift, _mm512_mask_mov_ps(m.r, empty, _mm512_set1_ps(200.0f)));
  if (__builtin_expect(IsSteep(Load(shift)), 0)) {
    SubtractMaxima(s, kScorePitch, 16, count, factor, shift);
    _mm512_store_ps(factor, _mm512_maskz_mov_ps(static_cast<__mmask16>(~empty), Set1(1.0f).r));
    _mm512_store_ps(shift, _mm512_maskz_mov_ps(empty, Set1(200.0f).r));
  }
  if (empty != 0) {
    for (int r = 0; r < 16; ++r) {
      if (!(empty >> r & 1)) continue;
      for (int j = 0; j < count; j += 16) Store(s + r * kScorePitch + j, Zero());
    }
  }
  F32 low[16], high[16], exact[16];
  const int half = count < kBlock ? count : kBlock;
  for (int r = 0; r < 16; ++r) {
    float* row = s + r * kScorePitch;
    exact[r] = Zero();
    low[r] = Values::template Row<kHidden>(row, 0, half, factor[r], shift[r], &exact[r]);
    high[r] = Values::template Row<kHidden>(row, half, count, factor[r], shift[r], &exact[r]);
    // A few lines at a time, and while nothing else waits for memory.
    FetchStep(fetch);
  }
  const auto keep = [&](F32 x) -> F32 {
    return {_mm512_maskz_mov_ps(static_cast<__mmask16>(~empty), x.r)};
  };
  const F32 sum0 = keep(ReduceRows<AddLanes>(low)), sum1 = keep(ReduceRows<AddLanes>(high));
  Store(sums[0], sum0);
  Store(sums[1], sum1);
  Store(scratch.l + r0, Add(Mul(Load(scratch.l + r0), a), Add(sum0, sum1)));
  if (Values::kRoundedSum) {
    const F32 unrounded = Mul(keep(ReduceRows<AddLanes>(exact)), Set1(1.0f / 255.0f));
    Store(scratch.exact + r0, Add(Mul(Load(scratch.exact + r0), a), unrounded));
  }
}

// o_mean = alpha o_mean + sums of P times V's means, per 128 keys.
SAGE_NOINLINE void AddMeans(const Plan& plan, const Head& head, int64_t j0, int count, float* o,
                            const float alpha[kRows], const float sums[2][2][16], int active) {
  const float* mean = head.v_mean + j0 / kBlock * plan.v_dims;
  for (int r = 0; r < active; ++r) {
    float* row = o + r * plan.v_dims;
    const float* sum = &sums[r / 16][0][r % 16];
    for (int d = 0; d < plan.v_dims; ++d) row[d] = row[d] * alpha[r] + sum[0] * mean[d];
    if (count <= kBlock) continue;
    for (int d = 0; d < plan.v_dims; ++d) row[d] = row[d] + sum[16] * mean[plan.v_dims + d];
  }
}

template <class Values, bool kBoth>
SAGE_INLINE void AttendGroup(const Plan& plan, const Head& head, int64_t row0, int64_t g,
                             int64_t rows, int64_t j0, int count, bool clip, bool fresh,
                             const AttendScratch& scratch, FetchLines* fetch) {
  constexpr int kActive = kBoth ? 32 : 16;
  const int64_t r0 = g * kRows;
  float* s = reinterpret_cast<float*>(scratch.p);
  ScoreTiles<kBoth>(scratch.q + r0 * plan.qk_dims, head.k + j0 * plan.qk_dims, plan.qk_dims, count,
                    s);
  F32 most[kActive];
  const float* k_scale = head.k_scale + j0;
  for (int r = 0; r < kActive; ++r) most[r] = ScaleRow(s + r * kScorePitch, k_scale, count);
  const bool hidden = clip || plan.problem->mask_kind != MaskKind::kNone;
  if (hidden) {
    for (int r = 0; r < kActive; ++r) {
      // Rows of padding repeat the last one; their results are dropped.
      most[r] = HideScores(plan, head, row0 + MinOf(r0 + r, rows - 1), scratch.c[r0 + r], j0, count,
                           s + r * kScorePitch);
    }
  }
  alignas(64) float alpha[kRows];
  alignas(64) float sums[2][2][16];
  for (int half = 0; half < kActive / 16; ++half) {
    if (hidden) {
      SoftmaxRows<Values, true>(plan, scratch, fetch, s + 16 * half * kScorePitch, r0 + 16 * half,
                                count, most + 16 * half, alpha + 16 * half, sums[half]);
    } else {
      SoftmaxRows<Values, false>(plan, scratch, fetch, s + 16 * half * kScorePitch, r0 + 16 * half,
                                 count, most + 16 * half, alpha + 16 * half, sums[half]);
    }
  }
  Values::template Accumulate<kBoth>(plan, head, s, j0, count, fresh, scratch.o + r0 * plan.v_dims,
                                     alpha, scratch.partial);
  if (plan.problem->recipe.smooth_v > 0) {
    AddMeans(plan, head, j0, count, scratch.o_mean + r0 * plan.v_dims, alpha, sums, kActive);
  }
}

template <class Values>
SAGE_NOINLINE void AttendRows(const Plan& plan, const Head& head, int64_t row0, int64_t g,
                              int64_t rows, int64_t j0, int count, bool clip, bool fresh,
                              const AttendScratch& scratch, FetchLines* fetch) {
  if (rows - g * kRows > 16) {
    AttendGroup<Values, true>(plan, head, row0, g, rows, j0, count, clip, fresh, scratch, fetch);
  } else {
    AttendGroup<Values, false>(plan, head, row0, g, rows, j0, count, clip, fresh, scratch, fetch);
  }
}

// Takes the place of the row-by-row tile of attend.h. Whole steps of the P·V products cover the
// keys seen; what lies beyond these is hidden by `clip`.
template <>
inline bool AttendTile<AmxKernels<ValuesBf16>>(const Plan& plan, const Head& head,
                                               const TaskRows& task, int64_t g, const KeySpan& keys,
                                               bool fresh, const AttendScratch& scratch,
                                               FetchLines* fetch) {
  const int count = static_cast<int>(RoundUp(keys.count, ValuesBf16::kStep));
  AttendRows<ValuesBf16>(plan, head, task.row0, g, task.rows, keys.first, count, keys.clip, fresh,
                         scratch, fetch);
  return false;
}
template <>
inline bool AttendTile<AmxKernels<ValuesBytes>>(const Plan& plan, const Head& head,
                                                const TaskRows& task, int64_t g,
                                                const KeySpan& keys, bool fresh,
                                                const AttendScratch& scratch, FetchLines* fetch) {
  const int count = static_cast<int>(RoundUp(keys.count, ValuesBytes::kStep));
  AttendRows<ValuesBytes>(plan, head, task.row0, g, task.rows, keys.first, count, keys.clip, fresh,
                          scratch, fetch);
  return false;
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_AMX_AMX_KERNELS_H_
