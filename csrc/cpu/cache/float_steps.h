// Steps of the online softmax over float32 rows of k and v (row_lanes.h), rows of q in lanes:
//
//   for each step of 128 keys:
//     for each tile of keys, for each block of rows:  s[key][row] = k q
//     for each block: mask; m' = max(m, s); p = 2^(s - m'); l = l 2^(m - m') + sum p
//     for each panel of v, for each block:  o = o 2^(m - m') + p v
//
// A vector of s holds kLanes / lanes keys of `lanes` rows, so maxima and sums go over vectors and
// only their last step over lanes.
#ifndef SAGE_CPU_CACHE_FLOAT_STEPS_H_
#define SAGE_CPU_CACHE_FLOAT_STEPS_H_

#include <string.h>

#include "cpu/cache/decode_plan.h"
#include "cpu/cache/few_rows.h"
#include "cpu/cache/row_lanes.h"
#include "cpu/cache/store_tokens.h"
#include "cpu/forward/mask_row.h"

namespace sage {
namespace {

// How far ahead of the scores lines of k are asked for, and the bytes of v that all panels and
// blocks use before the next, which are asked for meanwhile: lines on their way to L1 must not push
// out what is in use. Where few rows leave the products less work than memory, lines are asked for
// later and values are read nearly in their order. Measured: half and twice as much are up to 10 %
// slower.
struct FetchBytes {
  int keys, values;
};
SAGE_INLINE FetchBytes FetchBytesOf(bool near, int64_t rows) {
  constexpr int64_t kFew = 4, kSome = 8;
  if (!near) return {16384, rows <= kFew ? 8192 : 32768};
  if (rows <= kFew) return {8192, 8192};
  return {16384, rows <= kSome ? 16384 : 32768};
}

// So many keys, in whole tiles, have about so many bytes.
SAGE_INLINE int KeysOfBytes(int bytes, int dim) {
  int keys = kStep;
  while (keys > 16 && keys * dim * 4 > bytes) keys /= 2;
  return keys;
}

// Running maxima and sums of a block's rows and what o is multiplied by, repeated over the keys of
// a vector.
struct alignas(64) LaneSums {
  float m[kLanes], l[kLanes], alpha[kLanes];
};

// Rows of k and v of a step; where the next one's begin.
struct StepRows {
  FloatRows k, v, next_k, next_v;
  const float* k_tail;  // the last tile of keys where it is not a whole one, zeros behind
};

SAGE_INLINE void CarveFloatSteps(const DecodePlan& plan, Carver* carver, DecodeScratch* scratch) {
  const Problem& p = *plan.problem;
  const int64_t rows = RoundUp(plan.row_tile, kLanes);
  scratch->s = carver->Take<float>(rows * kStep);
  // Dims that do not fill a group have a vector each: fewer than two for each lane, over all
  // blocks.
  scratch->q_lanes = carver->Take<float>(rows * p.qk_dim + 2 * kLanes * kLanes);
  scratch->k_tail = carver->Take<float>(kKeyTile * p.qk_dim);
  scratch->k_copy = carver->Take<float>(kStep * p.qk_dim);
  scratch->v_copy = carver->Take<float>(kStep * p.v_dim);
}

// Finite values as they are, 0 for the others.
SAGE_NOINLINE FloatRows Scrub(const FloatRows& rows, int count, int dim, float* copy) {
  for (int t = 0; t < count; ++t) {
    for (int d = 0; d < dim; ++d) {
      const float x = rows.base[t * rows.stride + d];
      copy[t * dim + d] = MagnitudeBits(x) < kNotFiniteBits ? x : 0.0f;
    }
  }
  return {copy, dim};
}

template <class Operands>
SAGE_INLINE StepRows RowsOfStep(const DecodePlan& plan, const Operands& operands, int64_t head,
                                int64_t step, int count, const DecodeScratch& scratch,
                                bool careful) {
  const Problem& p = *plan.problem;
  const int dim = static_cast<int>(p.qk_dim);
  StepRows rows;
  rows.k = operands.KeysAt(head, step * kStep);
  rows.v = operands.ValuesAt(head, step * kStep);
  const bool last = step + 1 == plan.steps;
  const int64_t next_head = last && head + 1 < plan.heads ? head + 1 : head;
  const int64_t next = last ? 0 : (step + 1) * kStep;
  rows.next_k = operands.KeysAt(next_head, next);
  rows.next_v = operands.ValuesAt(next_head, next);
  if (careful) {
    rows.k = Scrub(rows.k, count, dim, scratch.k_copy);
    rows.v = Scrub(rows.v, count, static_cast<int>(p.v_dim), scratch.v_copy);
  }
  rows.k_tail = scratch.k_tail;
  const int whole = count / kKeyTile * kKeyTile;
  if (whole < count) {
    memset(scratch.k_tail, 0, sizeof(float) * static_cast<size_t>(kKeyTile * dim));
    for (int t = whole; t < count; ++t) {
      memcpy(scratch.k_tail + (t - whole) * dim, rows.k.base + t * rows.k.stride,
             sizeof(float) * static_cast<size_t>(dim));
    }
  }
  return rows;
}

// How many blocks from `b` on meet a tile of keys together: two whole ones or two halves, else one.
SAGE_INLINE int BlocksTogether(const RowBlocks& blocks, int b) {
  const int lanes = blocks.block[b].lanes;
  return 2 * lanes >= kLanes && b + 1 < blocks.count && blocks.block[b + 1].lanes == lanes ? 2 : 1;
}

// Scores of one tile of keys, from part kPart of kPairKeys on, for two blocks of kLanes / kGroup
// lanes.
template <int kGroup, int kPart = 0>
SAGE_INLINE void ScorePair(const float* q, const float* k, int64_t stride, LineCursor* ahead,
                           int dim, float* s, F32* bad) {
  constexpr int kKeys = kPairKeys[kPart], kBlockLanes = kLanes / kGroup;
  const int64_t q_block = LaneFloats(dim, kBlockLanes), s_block = int64_t{kBlockLanes} * kStep;
  *bad = Add(*bad, LaneScoresOf<kGroup, 2, kKeys>(q, q_block, k, stride, ahead, dim, s, s_block));
  if constexpr (kPart + 1 < static_cast<int>(sizeof(kPairKeys) / sizeof(kPairKeys[0]))) {
    ScorePair<kGroup, kPart + 1>(q, k + kKeys * stride, stride, ahead, dim, s + kKeys * kBlockLanes,
                                 bad);
  }
}

// Scores of one tile of keys for BlocksTogether(blocks, b) blocks.
SAGE_INLINE void ScoreBlocks(const RowBlocks& blocks, int b, const float* q, const float* k,
                             int64_t stride, LineCursor* ahead, int dim, float* s, F32* bad) {
  const int lanes = blocks.block[b].lanes;
  if (BlocksTogether(blocks, b) == 2) {
    if (lanes == kLanes) return ScorePair<1>(q, k, stride, ahead, dim, s, bad);
    return ScorePair<2>(q, k, stride, ahead, dim, s, bad);
  }
#define SAGE_BLOCK(LANES)                                                                  \
  if constexpr (LANES <= kLanes) {                                                         \
    if (lanes == LANES) {                                                                  \
      for (int j = 0; j < kKeyTile; j += kSingleKeys) {                                    \
        *bad = Add(*bad, LaneScoresOf<kLanes / LANES, 1, kSingleKeys>(                     \
                             q, 0, k + j * stride, stride, ahead, dim, s + j * LANES, 0)); \
      }                                                                                    \
    }                                                                                      \
  }
  SAGE_BLOCK(1)
  SAGE_BLOCK(2)
  SAGE_BLOCK(4)
  SAGE_BLOCK(8)
  SAGE_BLOCK(16)
#undef SAGE_BLOCK
}

// Scores that a row of the block does not see become -Infinity; masks are applied.
SAGE_NOINLINE void MaskBlock(const DecodePlan& plan, int64_t head, int64_t row0,
                             const RowBlock& block, int64_t j0, int count, int padded, float* s) {
  const Problem& p = *plan.problem;
  for (int r = 0; r < block.rows; ++r) {
    const RowPlace place = PlaceOf(plan, head, row0 + block.first + r);
    float* row = s + r;
    if (p.mask_kind != MaskKind::kNone) {
      alignas(64) float x[kStep];
      for (int j = 0; j < count; ++j) x[j] = row[j * block.lanes];
      ApplyMask(MaskRowOf(p, plan.buffers->mask, place.batch, place.q_head, place.i), j0, count,
                1.0f, x);
      for (int j = 0; j < count; ++j) row[j * block.lanes] = x[j];
    }
    const int64_t first = MinOf(FirstKey(plan, place.i) - j0, padded);
    const int64_t end = MaxOf(MinOf(EndKey(plan, place.i) - j0, count), 0);
    for (int64_t j = 0; j < first; ++j) row[j * block.lanes] = kMinusInf;
    for (int64_t j = end; j < padded; ++j) row[j * block.lanes] = kMinusInf;
  }
}

// Scores s[vectors] of a block to p.
SAGE_NOINLINE void SoftmaxLanes(int lanes, int vectors, float* s, LaneSums* sums) {
  constexpr int kTogether = 4;
  F32 most[2] = {Set1(kMinusInf), Set1(kMinusInf)};
  int n = 0;
  for (; n + 2 <= vectors; n += 2) {
    most[0] = Max(most[0], Load(s + n * kLanes));
    most[1] = Max(most[1], Load(s + (n + 1) * kLanes));
  }
  if (n < vectors) most[0] = Max(most[0], Load(s + n * kLanes));
  const F32 old = Load(sums->m);
  // Max keeps a NaN of its second operand (an additive mask may hold one).
  const F32 top =
      Max(old, OverKeys(Max(most[0], most[1]), lanes, [](F32 a, F32 b) { return Max(a, b); }));
  // Where nothing is attended to so far, 0 stands for -Infinity: p = 0 and no difference of
  // infinities.
  const F32 shift = ZeroWhereEqual(top, Set1(kMinusInf), top);
  const F32 alpha = Exp2(Sub(old, shift));
  F32 sum[kTogether] = {Zero(), Zero(), Zero(), Zero()};
  for (n = 0; n + kTogether <= vectors; n += kTogether) {
    F32 x[kTogether];
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) x[i] = Sub(Load(s + (n + i) * kLanes), shift);
    Exp2Together<false>(x);
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) {
      Store(s + (n + i) * kLanes, x[i]);
      sum[i] = Add(sum[i], x[i]);
    }
  }
  for (; n < vectors; ++n) {
    const F32 e = Exp2(Sub(Load(s + n * kLanes), shift));
    Store(s + n * kLanes, e);
    sum[0] = Add(sum[0], e);
  }
  const F32 all = OverKeys(Add(Add(sum[0], sum[1]), Add(sum[2], sum[3])), lanes,
                           [](F32 a, F32 b) { return Add(a, b); });
  Store(sums->m, top);
  Store(sums->l, Fma(Load(sums->l), alpha, all));
  Store(sums->alpha, alpha);
}

// Passes over a panel of v that the rows of a block take.
SAGE_INLINE int OutputPasses(const RowBlock& block) {
  return (block.rows + kOutputTile - 1) / kOutputTile;
}

// o of a block's rows: one panel of `width` dims of v, kOutputTile rows at a time.
SAGE_INLINE void BlockOutputs(const RowBlock& block, const float* p, const float* v, int64_t stride,
                              int count, LineCursor* ahead, int width, const float* alpha, float* o,
                              int64_t o_stride) {
  const int parts = OutputPasses(block);
  // An odd row more than there are may be computed, but never one of the next part.
  const int most = static_cast<int>(RoundUp((block.rows + parts - 1) / parts, parts > 1 ? 2 : 1));
  for (int r = 0; r < block.rows; r += most) {
    const int rows = block.rows - r < most ? block.rows - r : most;
    const float* factor = alpha == nullptr ? nullptr : alpha + r;
    float* out = o + r * o_stride;
#define SAGE_ROWS(R)                                                                             \
  if constexpr (R <= kOutputTile) {                                                              \
    if (rows == R || (R > 2 && rows == R - 1)) {                                                 \
      LaneOutputs<R>(p + r, block.lanes, v, stride, count, ahead, width, factor, out, o_stride); \
    }                                                                                            \
  }
    SAGE_ROWS(1) SAGE_ROWS(2) SAGE_ROWS(4) SAGE_ROWS(6) SAGE_ROWS(8) SAGE_ROWS(10) SAGE_ROWS(12)
#undef SAGE_ROWS
  }
}

// Rows [row0, row0 + rows) of a head against steps [step, end). False if values that are not finite
// were met and `careful` was not set: then the results mean nothing.
template <class Operands>
SAGE_NOINLINE bool AttendFloatSteps(const DecodePlan& plan, const Operands& operands, int64_t head,
                                    int64_t row0, int64_t rows, int64_t step, int64_t end,
                                    const DecodeScratch& scratch, bool careful) {
  const Problem& p = *plan.problem;
  const int dim = static_cast<int>(p.qk_dim), v_dim = static_cast<int>(p.v_dim);
  const RowResults& out = scratch.results;
  const int row_count = static_cast<int>(rows);
  const bool few = rows <= plan.few_rows && HasFewRowLoops(dim) && HasFewRowLoops(v_dim);
  const RowBlocks blocks =
      few ? RowBlocks{{{0, row_count, SlotsOf(row_count)}}, 1} : BlocksOf(row_count);
  float* q_rows = reinterpret_cast<float*>(scratch.q);
  if (few) {
    memset(q_rows + rows * plan.qk_dims, 0,
           sizeof(float) * static_cast<size_t>((ComputedRows(row_count) - rows) * plan.qk_dims));
  }
  LaneSums sums[kMostBlocks];
  float* q[kMostBlocks];
  float* q_at = scratch.q_lanes;
  int lanes = 0, score_passes = 0, output_passes = 0;
  for (int b = 0; b < blocks.count; b += BlocksTogether(blocks, b)) ++score_passes;
  for (int b = 0; b < blocks.count; ++b) {
    const RowBlock& block = blocks.block[b];
    output_passes += OutputPasses(block);
    q[b] = q_at;
    q_at += LaneFloats(dim, block.lanes);
    // Few rows need it for a last tile that is not a whole one.
    if (!few || p.kv_len % kKeyTile != 0) {
      SpreadRows(block, q_rows + block.first * plan.qk_dims, plan.qk_dims, dim, q[b]);
    }
    Store(sums[b].m, Set1(kMinusInf));
    Store(sums[b].l, Zero());
    lanes = block.first + block.lanes;
  }
  memset(out.o, 0, sizeof(float) * static_cast<size_t>(lanes * plan.v_dims));
  const FetchBytes fetch = FetchBytesOf(plan.fetch_near, rows);
  const int key_distance = KeysOfBytes(fetch.keys, dim);
  // As many keys as stay near: all panels of v for all blocks. Panels are equally wide.
  const int near_keys = KeysOfBytes(fetch.values, v_dim);
  const int widest = OutputVectors(MinOf(blocks.block[0].rows, kOutputTile)) * kLanes;
  const int panels = (v_dim + widest - 1) / widest;
  const int panel = static_cast<int>(RoundUp((v_dim + panels - 1) / panels, kLanes));
  const int64_t top = PlaceOf(plan, head, row0).i, bottom = PlaceOf(plan, head, row0 + rows - 1).i;
  // Limits grow with the query: the union of what these rows see, and what all of them see.
  const int64_t from = FirstKey(plan, top), to = EndKey(plan, bottom);
  const int64_t all_from = FirstKey(plan, bottom), all_to = EndKey(plan, top);
  step = MaxOf(step, from / kStep);
  end = MinOf(end, (to + kStep - 1) / kStep);
  for (; step < end; ++step) {
    if (plan.cancelled != nullptr && plan.cancelled->load(std::memory_order_relaxed)) return true;
    const int64_t j0 = step * kStep;
    const int count = static_cast<int>(MinOf(kStep, p.kv_len - j0));
    const int padded = static_cast<int>(RoundUp(count, kKeyTile));
    const StepRows at = RowsOfStep(plan, operands, head, step, count, scratch, careful);
    // Behind the last keys of a step come the first of the next.
    LineCursor keys({at.k.base + key_distance * at.k.stride, at.k.stride}, dim, plan.fetch_near,
                    score_passes);
    LineCursor next_keys(at.next_k, dim, plan.fetch_near, score_passes);
    F32 bad = Zero();
    // Few rows ask for all lines in the order of use: after those of k the first of v.
    const bool in_turns = dim == v_dim;
    const int whole = few ? count / kKeyTile * kKeyTile : 0;
    if (whole > 0) {
      bad = FewScores(row_count, dim, q_rows, at.k, in_turns ? at.v : at.next_k, whole, scratch.s);
    }
    for (int j = whole; j < count; j += kKeyTile) {
      const bool tail = j + kKeyTile > count;
      const float* k = tail ? at.k_tail : at.k.base + j * at.k.stride;
      const int64_t stride = tail ? dim : at.k.stride;
      LineCursor* ahead = j + key_distance < padded ? &keys : &next_keys;
      for (int b = 0; b < blocks.count; b += BlocksTogether(blocks, b)) {
        float* s = scratch.s + int64_t{blocks.block[b].first} * kStep + j * blocks.block[b].lanes;
        ScoreBlocks(blocks, b, q[b], k, stride, ahead, dim, s, &bad);
      }
    }
    if (!careful && ReduceAdd(bad) != 0.0f) return false;
    const bool masked =
        p.mask_kind != MaskKind::kNone || padded != count || all_from > j0 || all_to < j0 + count;
    for (int b = 0; b < blocks.count; ++b) {
      const RowBlock& block = blocks.block[b];
      float* s = scratch.s + int64_t{block.first} * kStep;
      if (masked) MaskBlock(plan, head, row0, block, j0, count, padded, s);
      SoftmaxLanes(block.lanes, padded * block.lanes / kLanes, s, &sums[b]);
    }
    if (few) {
      FewOutputs(row_count, v_dim, scratch.s, at.v, in_turns ? at.next_k : at.next_v, count,
                 sums[0].alpha, out.o);
      continue;
    }
    LineCursor values({at.v.base + near_keys * at.v.stride, at.v.stride}, v_dim, plan.fetch_near,
                      output_passes);
    LineCursor next_values(at.next_v, v_dim, plan.fetch_near, output_passes);
    for (int j = 0; j < count; j += near_keys) {
      const int here = count - j < near_keys ? count - j : near_keys;
      LineCursor* ahead = j + near_keys < count ? &values : &next_values;
      for (int d = 0; d < v_dim; d += panel) {
        const int width = v_dim - d < panel ? v_dim - d : panel;
        for (int b = 0; b < blocks.count; ++b) {
          const RowBlock& block = blocks.block[b];
          BlockOutputs(block, scratch.s + int64_t{block.first} * kStep + j * block.lanes,
                       at.v.base + j * at.v.stride + d, at.v.stride, here, ahead, width,
                       j == 0 ? sums[b].alpha : nullptr, out.o + block.first * plan.v_dims + d,
                       plan.v_dims);
        }
      }
    }
  }
  float sum = 0.0f;
  for (int b = 0; b < blocks.count; ++b) {
    const RowBlock& block = blocks.block[b];
    for (int r = 0; r < block.rows; ++r) {
      out.m[block.first + r] = sums[b].m[r];
      out.l[block.first + r] = sums[b].l[r];
      sum += sums[b].l[r] * 0.0f;
    }
  }
  if (careful) return true;
  F32 bad = Set1(sum);
  for (int64_t n = 0; n < rows * plan.v_dims; n += kLanes) bad = Fma(Load(out.o + n), Zero(), bad);
  return ReduceAdd(bad) == 0.0f;
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_FLOAT_STEPS_H_
