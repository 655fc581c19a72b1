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

// The keys of a softmax step that a group of rows sees, a union of what its rows see.
struct KeySpan {
  int64_t first, count;
  int multiplied;  // a whole 16, which every grouping of keys divides
  int padded;      // whole steps of the softmax
  bool clip;       // some row does not see all of these
  bool last;       // no keys come after them
  int64_t steps;   // in which lines are fetched (Kernels::FetchSteps)
};

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

// Whether one of `count` bytes is not 0.
template <int kCount>
SAGE_INLINE bool HoldsAny(const uint8_t* bytes) {
  static_assert(kCount % 2 == 0, "whole words");
  uint16_t word, all = 0;
  for (int i = 0; i < kCount; i += 2) {
    memcpy(&word, bytes + i, 2);
    all |= word;
  }
  return all != 0;
}

SAGE_INLINE bool WantsExactSum(const Plan& plan) {
  return plan.buffers->lse != nullptr && plan.problem->recipe.row_sum == RowSum::kQuantized;
}

// Steep scores less their maxima (mask_row.h), and P = 2^s of them.
SAGE_NOINLINE __attribute__((cold)) void FlattenTile(RowTile* tile, float* s) {
  SubtractMaxima(s, kScoreStride, tile->active, tile->count, tile->factor, tile->shift);
  Store(tile->factor, Set1(1.0f));
  Store(tile->shift, Zero());
}

// Whether outputs are o / l with V's scales and nothing else, but for rows that attend to nothing
// or whose queries are not finite.
SAGE_INLINE bool OutputsArePlain(const Plan& plan, const Head& head) {
  return plan.buffers->lse == nullptr && plan.problem->recipe.smooth_v == 0 &&
         head.any_not_finite == 0;
}

// The rows of a task, and what its groups would find out again and again about their outputs.
struct TaskRows {
  int64_t row0, rows;
  bool plain;   // OutputsArePlain
  bool direct;  // and they may go from the accumulators to the caller's rows
  float top;    // sums are of p times this
  float* o;     // of the head's first query head
};

SAGE_INLINE TaskRows FindTaskRows(const Plan& plan, const Head& head, int64_t task) {
  const Problem& p = *plan.problem;
  TaskRows out;
  // Longest rows first: under causality the last block of rows sees the most keys.
  out.row0 = (plan.row_blocks - 1 - task) * plan.row_block;
  out.rows = MinOf(plan.row_block, plan.rows - out.row0);
  out.plain = OutputsArePlain(plan, head);
  out.direct = out.plain && p.v_dim == plan.v_dims;
  out.top = p.recipe.row_sum == RowSum::kQuantized ? 1.0f : p.recipe.p_top;
  out.o = plan.buffers->o + head.batch * p.o.batch + head.kv_head * plan.group * p.o.head;
  return out;
}

// Scores of the keys that 6 rows see, masked; the rows' running maxima. fresh: these are the first
// keys, and outputs begin with them.
template <class Kernels>
SAGE_INLINE void BeginTile(const Plan& plan, const Head& head, const TaskRows& task, int64_t g,
                           const KeySpan& keys, bool fresh, const AttendScratch& scratch,
                           RowTile* tile, FetchLines* fetch) {
  static_assert(Kernels::kKeyTile == 0 || kRows == 6, "a group's state is one vector, by MaxOfSix");
  const Problem& p = *plan.problem;
  float* s = scratch.s;
  const int64_t r0 = g * kRows;
  F32 most[kRows];
  for (int r = 0; r < kRows; ++r) most[r] = Set1(kMinusInf);
  const int64_t j0 = keys.first;
  const int multiplied = keys.multiplied, count = keys.padded;
  const int active = ActiveRows<Kernels>(task.rows - r0);
  Kernels::Scores(plan, head, scratch.q, g, active, j0, multiplied, s, most, fetch);
  const bool masked = p.mask_kind != MaskKind::kNone;
  const F32 c = masked ? Set1(1.0f) : Load(scratch.c + g * kLanes);
  if (keys.clip || masked) {
    for (int r = 0; r < active; ++r) {
      float* row = s + r * kScoreStride;
      const int64_t last = RowOfGroup(task.row0, task.rows, r0, r);
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
  tile->last = keys.last;
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

// Where the rows of group g go and by what their sums are multiplied; false where that is not all
// that their outputs need (attend.h: FinishRow).
SAGE_INLINE bool FindOutputs(const Plan& plan, const Head& head, const TaskRows& task, int64_t g,
                             int active, const AttendScratch& scratch, OutputRows* out) {
  const int64_t r0 = g * kRows;
  if (!task.direct || HoldsAny<kRows>(scratch.bad + r0)) return false;
  const Problem& p = *plan.problem;
  const float* l = scratch.l + g * kGroupLanes;
  const int there = static_cast<int>(MinOf(active, task.rows - r0));
  // Whole vectors; what lanes without a row hold is not looked at, nor are the rows of padding.
  for (int lane = 0; lane < kGroupLanes; lane += kLanes) {
    const F32 sum = FirstLanes(there - lane, Load(l + lane), Set1(1.0f));
    const F32 inverse = Div(Set1(1.0f), sum);
    if (AnyAbove(inverse, __FLT_MAX__)) return false;  // a row that attends to nothing
    Store(out->factor + lane, task.top == 1.0f ? inverse : Div(inverse, Set1(task.top)));
  }
  if (plan.group == 1) {
    StepRows(task.o + (task.row0 + r0) * p.o.token, p.o.token, there, out->row);
  } else {
    RowWalk at = WalkFrom(plan, task.row0 + r0);
    for (int r = 0; r < there; ++r, at.Next(plan)) {
      out->row[r] = task.o + at.g * p.o.head + at.i * p.o.token;
    }
  }
  for (int r = there; r < active; ++r) out->row[r] = scratch.o + (r0 + r) * plan.v_dims;
  out->v_scale = head.v_scale;
  return true;
}

// A tile from scores to outputs. Of the last keys: true if the rows' outputs have gone to the
// caller's memory.
template <class Kernels>
SAGE_INLINE bool AttendTile(const Plan& plan, const Head& head, const TaskRows& task, int64_t g,
                            const KeySpan& keys, bool fresh, const AttendScratch& scratch,
                            FetchLines* fetch) {
  const Problem& p = *plan.problem;
  const int64_t j0 = keys.first;
  const int count = keys.padded;
  RowTile tile;
  BeginTile<Kernels>(plan, head, task, g, keys, fresh, scratch, &tile, fetch);
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
    if (keys.last && FindOutputs(plan, head, task, g, tile.active, scratch, &out) &&
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
  RowTile* next = tiles;  // place of the next tile
  RowTile* before = tiles + 1;
  uint8_t *p, *p_before;  // and of their P
  bool waiting = false;   // the tile before has outputs to come
  bool outputs = false;   // Advance has finished the tile in the place that is the next one's now
  bool written = false;   // and its outputs have gone to the caller's memory

  explicit TilesAhead(const AttendScratch& scratch) : p(scratch.p), p_before(scratch.p) {
    if constexpr (Kernels::kSoftmaxAhead) p_before += Kernels::kTilePBytes;
  }

  // After BeginTile for `next`: its softmax, and the outputs of the tile that waits.
  // Then that one is done, and the next one waits.
  void Advance(const Plan& plan, const Head& head, const TaskRows& task,
               const AttendScratch& scratch, FetchLines* fetch) {
    RowTile* tile = next;
    SoftmaxAhead ahead = Kernels::BeginSoftmax(scratch.s, p, tile->active, tile->count,
                                               tile->factor, tile->shift, tile->sums[0]);
    outputs = waiting;
    if (waiting) {
      Outputs(plan, head, task, scratch, &ahead, fetch);
    } else {
      fetch->SpreadRest();
      FetchStep(fetch);
    }
    Kernels::EndSoftmax(ahead, tile->sums[0]);
    AddSums(plan, scratch, *tile, SumOfSix(tile->sums[0]), Zero());
    waiting = true;
    next = before;
    before = tile;
    uint8_t* place = p;
    p = p_before;
    p_before = place;
  }

  void Outputs(const Plan& plan, const Head& head, const TaskRows& task,
               const AttendScratch& scratch, SoftmaxAhead* ahead, FetchLines* fetch) {
    const RowTile& tile = *before;
    OutputRows out;
    written = tile.last && FindOutputs(plan, head, task, tile.g, tile.active, scratch, &out);
    Kernels::AccumulateAnd(plan, head, p_before, tile.active, tile.j0, tile.multiplied,
                           scratch.o + tile.g * kRows * plan.v_dims,
                           tile.fresh ? nullptr : tile.alpha, written ? &out : nullptr, ahead,
                           fetch);
  }
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_ATTEND_TILE_H_
