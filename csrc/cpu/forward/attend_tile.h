// What a worker holds while it attends, and one step of it: six rows against up to 256 keys, from
// scores to outputs (attend.h).
#ifndef SAGE_CPU_FORWARD_ATTEND_TILE_H_
#define SAGE_CPU_FORWARD_ATTEND_TILE_H_

#include "cpu/forward/fetch_ahead.h"
#include "cpu/forward/mask_row.h"
#include "cpu/forward/plan.h"
#include "cpu/forward/prepass.h"
#include "cpu/forward/softmax_ahead.h"
#include "cpu/simd/simd_shuffle.h"

namespace sage {
namespace {

// Scratch of one worker in the attention phase.
struct AttendScratch {
  uint8_t* q;      // packed rows
  float* x;        // one group of rows before packing
  float* o;        // [row_space][v_dims]
  float* o_mean;   // [row_space][v_dims], V's means times sums of P
  float* s;        // [6][kScoreStride]
  uint8_t* p;      // probabilities in the kernels' format
  float* partial;  // [6][v_dims], accumulators of 64 keys
  // Whole vectors for each group of rows, [groups][kGroupLanes], at LaneOf(row):
  float* c;      // score factor
  float* m;      // running maximum, log2 domain
  float* l;      // running sum of what the denominator counts
  float* exact;  // running sum of the unrounded p, which lse counts; only where l sums the rounded
                 // ones
  uint8_t* bad;  // [row_space] the row of q is not finite
};

constexpr int kGroupLanes = (kRows + kLanes - 1) / kLanes * kLanes;

// Groups of rows of a task, at most.
constexpr int64_t kMostGroups = 64;

SAGE_INLINE int64_t LaneOf(int64_t row) { return row / kRows * kGroupLanes + row % kRows; }

template <class Kernels>
SAGE_INLINE AttendScratch CarveAttend(const Plan& plan, Carver* carver) {
  AttendScratch scratch;
  scratch.q = carver->Take<uint8_t>(Kernels::QBytes(plan));
  // Groups, or the rows that norm_rows.h takes together.
  scratch.x = carver->Take<float>(MaxOf(kRows, kNormRows) * plan.pack_dims);
  scratch.o = carver->Take<float>(plan.row_space * plan.v_dims);
  scratch.o_mean =
      carver->Take<float>(plan.problem->recipe.smooth_v > 0 ? plan.row_space * plan.v_dims : 0);
  scratch.s = carver->Take<float>(kRows * kScoreStride);
  scratch.p = carver->Take<uint8_t>(Kernels::PBytes());
  scratch.partial = carver->Take<float>(kRows * plan.v_dims);
  const int64_t lanes = plan.row_space / kRows * kGroupLanes;
  scratch.c = carver->Take<float>(lanes);
  scratch.m = carver->Take<float>(lanes);
  scratch.l = carver->Take<float>(lanes);
  scratch.exact = carver->Take<float>(lanes);
  scratch.bad = carver->Take<uint8_t>(plan.row_space);
  return scratch;
}

SAGE_INLINE MaskRow MaskRowOf(const Plan& plan, int64_t batch, int64_t q_head, int64_t i) {
  return MaskRowOf(*plan.problem, plan.buffers->mask, batch, q_head, i);
}

// Row r of the group whose first row is row0 + r0: rows of padding repeat the task's last one.
SAGE_INLINE int64_t RowOfGroup(int64_t row0, int64_t rows, int64_t r0, int r) {
  return row0 + MinOf(r0 + r, rows - 1);
}

// Six rows and some keys between their scores and their outputs.
struct RowTile {
  int64_t g, j0;
  int active, count, multiplied;
  bool fresh, last;
  // The rows' running values, one lane each: P = 2^(s factor - shift), o and l times alpha.
  alignas(64) float factor[kLanes], shift[kLanes], alpha[kLanes];
  // Sums of P by lanes, [half of the keys][row]; horizontal sums wait for all six rows.
  F32 sums[2][kRows], exact[kRows];
};

SAGE_INLINE bool WantsExactSum(const Plan& plan) {
  return plan.buffers->lse != nullptr && plan.problem->recipe.row_sum == RowSum::kQuantized;
}

// Steep scores less their maxima (mask_row.h), and P = 2^s of them.
SAGE_NOINLINE __attribute__((cold)) void FlattenTile(RowTile* tile, float* s) {
  SubtractMaxima(s, kScoreStride, tile->active, tile->count, tile->factor, tile->shift);
  Store(tile->factor, Set1(1.0f));
  Store(tile->shift, Zero());
}

// Scores of the `seen` keys from j0 on that 6 rows see, `count` with padding, masked; the rows'
// running maxima. fresh: these are the first keys, and outputs begin with them.
template <class Kernels>
SAGE_INLINE void BeginTile(const Plan& plan, const Head& head, int64_t row0, int64_t g,
                           int64_t rows, int64_t j0, int64_t seen, int count, bool clip, bool fresh,
                           const AttendScratch& scratch, RowTile* tile, FetchLines* fetch) {
  static_assert(Kernels::kKeyTile == 0 || kRows == 6, "a group's state is one vector, by MaxOfSix");
  const Problem& p = *plan.problem;
  float* s = scratch.s;
  const int64_t r0 = g * kRows;
  F32 most[kRows];
  for (int r = 0; r < kRows; ++r) most[r] = Set1(kMinusInf);
  // Keys are multiplied up to a whole 16 of those seen, which every grouping of keys divides.
  const int multiplied = static_cast<int>(RoundUp(seen, 16));
  const int active = ActiveRows<Kernels>(rows - r0);
  Kernels::Scores(plan, head, scratch.q, g, active, j0, multiplied, s, most, fetch);
  const bool masked = p.mask_kind != MaskKind::kNone;
  const F32 c = masked ? Set1(1.0f) : Load(scratch.c + g * kLanes);
  if (clip || masked) {
    for (int r = 0; r < active; ++r) {
      float* row = s + r * kScoreStride;
      const int64_t last = RowOfGroup(row0, rows, r0, r);
      const int64_t i = last / plan.group, q_head = head.kv_head * plan.group + last % plan.group;
      if (masked) {
        ApplyMask(MaskRowOf(plan, head.batch, q_head, i), j0,
                  static_cast<int>(MinOf(count, p.kv_len - j0)), scratch.c[g * kLanes + r], row);
      }
      most[r] = ClipRow(row, count, FirstKey(plan, i) - j0, EndKey(plan, i) - j0);
      if (p.mask_kind == MaskKind::kAdditive && HoldsNanOrInfinity(row, count)) {
        most[r] = Set1(__builtin_nanf(""));
      }
    }
  } else {
    // The rest of the softmax's last step.
    for (int j = multiplied; j < count; j += kLanes) {
      for (int r = 0; r < active; ++r) Store(s + r * kScoreStride + j, Set1(kMinusInf));
    }
  }
  const F32 old = Load(scratch.m + g * kLanes);
  // Max keeps a NaN of its second operand (an additive mask may make one).
  const F32 top = Max(old, Mul(MaxOfSix(most), c));
  // Where nothing is attended to so far, 0 stands for -Infinity: P = 0 and no difference of
  // infinities.
  const F32 finite = ZeroWhereEqual(top, Set1(kMinusInf), top);
  Store(scratch.m + g * kLanes, top);
  Store(tile->factor, c);
  Store(tile->shift, finite);
  // Sums that begin are multiplied by 0; an additive mask may have made the maximum a NaN.
  Store(tile->alpha, fresh && !masked ? Zero() : Exp2(Sub(old, finite)));
  tile->g = g;
  tile->j0 = j0;
  tile->active = active;
  tile->count = count;
  tile->multiplied = multiplied;
  tile->fresh = fresh;
  if (__builtin_expect(IsSteep(finite), 0)) FlattenTile(tile, s);
}

// The running values of group g before its first keys; lanes without a row hold 0 throughout.
SAGE_INLINE void BeginRows(const Plan& plan, int64_t g, const AttendScratch& scratch) {
  for (int lane = 0; lane < kGroupLanes; lane += kLanes) {
    const int64_t at = g * kGroupLanes + lane;
    Store(scratch.c + at, Zero());
    Store(scratch.m + at, FirstLanes(kRows - lane, Set1(kMinusInf), Zero()));
    Store(scratch.l + at, Zero());
    if (WantsExactSum(plan)) Store(scratch.exact + at, Zero());
  }
}

// The rows' sums, of which `sums` holds those by lanes.
SAGE_INLINE void AddSums(const Plan& plan, const AttendScratch& scratch, const RowTile& tile,
                         F32 first, F32 second) {
  const F32 ratio = Load(tile.alpha);
  float* l = scratch.l + tile.g * kLanes;
  Store(l, Add(Mul(Load(l), ratio), Add(first, second)));
  if (WantsExactSum(plan)) {
    float* unrounded = scratch.exact + tile.g * kLanes;
    Store(unrounded, Add(Mul(Load(unrounded), ratio), SumOfSix(tile.exact)));
  }
}

// Whether outputs are o / l with V's scales and nothing else, but for rows that attend to nothing
// or whose queries are not finite.
SAGE_INLINE bool OutputsArePlain(const Plan& plan, const Head& head) {
  return plan.buffers->lse == nullptr && plan.problem->recipe.smooth_v == 0 &&
         head.any_not_finite == 0;
}

// Where the rows of group g go and by what their sums are multiplied; false where that is not all
// that their outputs need (attend.h: FinishRow).
SAGE_INLINE bool FindOutputs(const Plan& plan, const Head& head, int64_t row0, int64_t g,
                             int64_t rows, int active, const AttendScratch& scratch,
                             OutputRows* out) {
  const Problem& p = *plan.problem;
  if (!OutputsArePlain(plan, head) || p.v_dim != plan.v_dims) return false;
  const float top = p.recipe.row_sum == RowSum::kQuantized ? 1.0f : p.recipe.p_top;
  const int64_t r0 = g * kRows;
  float* o_head = plan.buffers->o + head.batch * p.o.batch + head.kv_head * plan.group * p.o.head;
  const float* l = scratch.l + g * kGroupLanes;
  const int there = static_cast<int>(MinOf(active, rows - r0));
  uint8_t bad = 0;
  for (int r = 0; r < kRows; ++r) bad |= scratch.bad[r0 + r];
  if (bad != 0) return false;
  // Whole vectors; what lanes without a row hold is not looked at, nor are the rows of padding.
  F32 largest = Zero();
  for (int lane = 0; lane < kGroupLanes; lane += kLanes) {
    const F32 sum = FirstLanes(there - lane, Load(l + lane), Set1(1.0f));
    const F32 inverse = Div(Set1(1.0f), sum);
    largest = MaxMagnitude(largest, inverse);
    Store(out->factor + lane, top == 1.0f ? inverse : Div(inverse, Set1(top)));
  }
  if (ReduceMaxBits(largest) >= kInfBits) return false;  // a row that attends to nothing
  if (plan.group == 1) {
    float* row = o_head + (row0 + r0) * p.o.token;
    for (int r = 0; r < kRows; ++r) out->row[r] = row + MinOf(r, there - 1) * p.o.token;
  } else {
    RowWalk at = WalkFrom(plan, row0 + r0);
    for (int r = 0; r < there; ++r, at.Next(plan)) {
      out->row[r] = o_head + at.g * p.o.head + at.i * p.o.token;
    }
  }
  for (int r = there; r < active; ++r) out->row[r] = scratch.o + (r0 + r) * plan.v_dims;
  out->v_scale = head.v_scale;
  return true;
}

// A tile from scores to outputs. last: no keys come after these; true then if the rows' outputs
// have gone to the caller's memory.
template <class Kernels>
SAGE_INLINE bool AttendTile(const Plan& plan, const Head& head, int64_t row0, int64_t g,
                            int64_t rows, int64_t j0, int64_t seen, int count, bool clip,
                            bool fresh, [[maybe_unused]] bool last, const AttendScratch& scratch,
                            FetchLines* fetch) {
  const Problem& p = *plan.problem;
  RowTile tile;
  BeginTile<Kernels>(plan, head, row0, g, rows, j0, seen, count, clip, fresh, scratch, &tile,
                     fetch);
  const bool want_exact = WantsExactSum(plan);
  for (int r = 0; r < kRows; ++r) tile.sums[0][r] = tile.sums[1][r] = tile.exact[r] = Zero();
  for (int r = 0; r < tile.active; ++r) {
    Kernels::Softmax(plan, scratch.s, scratch.p, r, count, tile.factor[r], tile.shift[r],
                     &tile.sums[0][r], &tile.sums[1][r], want_exact ? &tile.exact[r] : nullptr);
    FetchStep(fetch);
  }
  const F32 first = SumOfSix(tile.sums[0]), second = SumOfSix(tile.sums[1]);
  AddSums(plan, scratch, tile, first, second);
  const int64_t r0 = g * kRows;
  float* o = scratch.o + r0 * plan.v_dims;
  const float* alpha = fresh ? nullptr : tile.alpha;
  if constexpr (Kernels::kWritesOutputs) {
    OutputRows out;
    if (last && FindOutputs(plan, head, row0, g, rows, tile.active, scratch, &out) &&
        Kernels::AccumulateTo(plan, head, scratch.s, scratch.p, tile.active, j0, tile.multiplied, o,
                              alpha, out, fetch)) {
      return true;
    }
  }
  Kernels::Accumulate(plan, head, scratch.s, scratch.p, tile.active, j0, tile.multiplied, o, alpha,
                      scratch.partial, fetch);
  if (p.recipe.smooth_v > 0) {
    alignas(64) float weight[2][kLanes];
    Store(weight[0], first);
    Store(weight[1], second);
    for (int r = 0; r < kRows; ++r) {
      float* o = scratch.o_mean + (r0 + r) * plan.v_dims;
      const float* mean = head.v_mean + j0 / kBlock * plan.v_dims;
      for (int d = 0; d < plan.v_dims; ++d) o[d] = o[d] * tile.alpha[r] + weight[0][r] * mean[d];
      if (count <= kBlock) continue;
      for (int d = 0; d < plan.v_dims; ++d) o[d] = o[d] + weight[1][r] * mean[plan.v_dims + d];
    }
  }
  return false;
}

// Tiles whose softmax goes ahead (softmax_ahead.h): the one that waits for its outputs, and the
// next.
template <class Kernels>
struct TilesAhead {
  RowTile tiles[2];
  int next = 0;  // place of the next tile, and of its P
  bool waiting = false;
  bool outputs = false;  // Advance has finished the tile in the place that is the next one's now
  bool written = false;  // and its outputs have gone to the caller's memory

  uint8_t* P(const AttendScratch& scratch, int place) const {
    return scratch.p + place * Kernels::kTilePBytes;
  }

  // After BeginTile for tiles[next]: its softmax, and the outputs of the tile that waits.
  // Then that one is done, and the next one waits.
  void Advance(const Plan& plan, const Head& head, int64_t row0, int64_t rows,
               const AttendScratch& scratch, FetchLines* fetch) {
    RowTile& tile = tiles[next];
    SoftmaxAhead ahead = Kernels::BeginSoftmax(scratch.s, P(scratch, next), tile.active, tile.count,
                                               tile.factor, tile.shift, tile.sums[0]);
    outputs = waiting;
    if (waiting) {
      Outputs(plan, head, row0, rows, scratch, &ahead, fetch);
    } else {
      fetch->Spread(1);
      FetchStep(fetch);
    }
    Kernels::EndSoftmax(ahead, tile.sums[0]);
    AddSums(plan, scratch, tile, SumOfSix(tile.sums[0]), Zero());
    waiting = true;
    next = 1 - next;
  }

  void Outputs(const Plan& plan, const Head& head, int64_t row0, int64_t rows,
               const AttendScratch& scratch, SoftmaxAhead* ahead, FetchLines* fetch) {
    const RowTile& tile = tiles[1 - next];
    OutputRows out;
    written = tile.last && FindOutputs(plan, head, row0, tile.g, rows, tile.active, scratch, &out);
    Kernels::AccumulateAnd(plan, head, P(scratch, 1 - next), tile.active, tile.j0, tile.multiplied,
                           scratch.o + tile.g * kRows * plan.v_dims,
                           tile.fresh ? nullptr : tile.alpha, written ? &out : nullptr, ahead,
                           fetch);
  }
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_ATTEND_TILE_H_
