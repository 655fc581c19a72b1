// Brings what a worker needs soon into the caches while it attends, since attention itself reads
// little from memory: the operands of a head to come (the passes that prepare one wait for nothing
// else), the queries of the next task, and the outputs that are about to be written. A few lines at
// a time: many would take all the buffers of outstanding misses, and reads from L2 would wait.
#ifndef SAGE_CPU_FORWARD_FETCH_AHEAD_H_
#define SAGE_CPU_FORWARD_FETCH_AHEAD_H_

#include "cpu/forward/load_rows.h"
#include "cpu/forward/plan.h"
#include "cpu/simd/simd_shuffle.h"

namespace sage {
namespace {

// What a head's packed operands and the rows fetched for the next one may take together: most of
// the L2 of 1 MiB that the processors with AVX-512 have at least. (With 512 KiB beside the operands
// of `exact`, N = 1,024 was 3 % slower than without.)
constexpr int64_t kCachedBytes = int64_t{768} << 10;

// Steps for each tile of attention: one for each row's softmax.
constexpr int64_t kStepsPerTile = kRows;

// AMX has one pause for 32 rows, too few for more than the next queries; not measured there.
constexpr bool kFetchesHeads = kRows == 6;

// How far ahead: short heads are over before memory has answered.
constexpr int64_t kBytesAhead = int64_t{64} << 10;
constexpr int64_t kMostHeadsAhead = 8;

// Rows of K and V, and of Q those of the head's first task.
struct FetchAhead {
  Head head;
  Source k, v;
  int64_t row;       // next row of K and V to fetch
  int64_t rows;      // where to stop; 0 where there is no next head
  int64_t per_step;  // rows for each step
  int64_t q_row;     // next row of Q
  int64_t q_rows;    // where to stop
  int64_t q_per_step;
  // Of the present head, a group of rows: outputs, and queries of the next task.
  RowWalk o_at, next_at;
  int64_t o_rows, next_rows;
};

SAGE_INLINE int64_t HeadsAhead(const Plan& plan) {
  const Problem& p = *plan.problem;
  const int64_t floats = p.kv_len * (p.qk_dim + p.v_dim) + plan.rows * p.qk_dim;
  const int64_t bytes = floats * static_cast<int64_t>(sizeof(float));
  return MaxOf(1, MinOf(kMostHeadsAhead, kBytesAhead / MaxOf(1, bytes)));
}

SAGE_INLINE void PrefetchRow(const float* row, int dim) {
  constexpr int kLineFloats = 16;
  for (int d = 0; d < dim; d += kLineFloats) Prefetch(row + d);
}

// Fetches `head` evenly over the tiles of a head; its first task begins at row q_row.
// `packed`: bytes of a head's packed operands.
SAGE_INLINE FetchAhead MakeFetchAhead(const Plan& plan, const Head& head, int64_t q_row,
                                      int64_t packed) {
  const Problem& p = *plan.problem;
  FetchAhead fetch = {};
  fetch.head = head;
  fetch.k = KSource(plan, head, 0, p.kv_len);
  fetch.v = VSource(plan, head, 0, p.kv_len);
  fetch.row = 0;
  const int64_t row_bytes = (p.qk_dim + p.v_dim) * static_cast<int64_t>(sizeof(float));
  fetch.rows = MinOf(p.kv_len, MaxOf(0, kCachedBytes - packed) / MaxOf(1, row_bytes));
  // Causality and windows leave fewer tiles than these; half of them are counted, so that the fetch
  // is done in time.
  const int64_t tiles =
      (plan.rows + kRows - 1) / kRows * ((p.kv_len + kScoreStride - 1) / kScoreStride);
  const int64_t counted =
      kStepsPerTile * (p.window_right < 0 && p.window_left < 0 ? tiles : (tiles + 1) / 2);
  fetch.per_step = (fetch.rows + counted - 1) / counted;
  fetch.q_row = q_row;
  fetch.q_rows = plan.rows;
  fetch.q_per_step = (fetch.q_rows - fetch.q_row + counted - 1) / counted;
  return fetch;
}

// Fetches with the next tile the outputs of `rows` rows from `row` on, to be written, and the
// queries of a group that begins at row `next` (-1: none).
SAGE_INLINE void FetchRows(const Plan& plan, int64_t row, int64_t rows, int64_t next,
                           FetchAhead* fetch) {
  fetch->o_at = WalkFrom(plan, row);
  fetch->o_rows = kFetchesHeads ? rows : 0;
  if (next < 0) return;
  fetch->next_at = WalkFrom(plan, next);
  fetch->next_rows = kRows;
}

SAGE_INLINE void FetchRow(const Plan& plan, const Head& head, FetchAhead* fetch) {
  const Problem& p = *plan.problem;
  constexpr int64_t kLineFloats = 16;
  if (fetch->o_rows > 0) {
    const int64_t q_head = head.kv_head * plan.group + fetch->o_at.g;
    const float* o =
        plan.buffers->o + head.batch * p.o.batch + q_head * p.o.head + fetch->o_at.i * p.o.token;
    for (int64_t d = 0; d < p.v_dim; d += kLineFloats) __builtin_prefetch(o + d, 1);
    --fetch->o_rows;
    fetch->o_at.Next(plan);
  }
  if (fetch->next_rows > 0) {
    const Source q = QSource(plan, head, fetch->next_at.g, fetch->next_at.i, 1);
    PrefetchRow(q.base, q.dim);
    --fetch->next_rows;
    fetch->next_at.Next(plan);
  }
}

SAGE_INLINE void FetchStep(const Plan& plan, const Head& head, FetchAhead* fetch) {
  for (int64_t r = 0; r < kRows / kStepsPerTile; ++r) FetchRow(plan, head, fetch);
  const int64_t end = MinOf(fetch->rows, fetch->row + fetch->per_step);
  for (; fetch->row < end; ++fetch->row) {
    PrefetchRow(fetch->k.base + fetch->row * fetch->k.stride, fetch->k.dim);
    PrefetchRow(fetch->v.base + fetch->row * fetch->v.stride, fetch->v.dim);
  }
  const int64_t q_end = MinOf(fetch->q_rows, fetch->q_row + fetch->q_per_step);
  if (fetch->q_row >= q_end) return;
  RowWalk at = WalkFrom(plan, fetch->q_row);
  for (; fetch->q_row < q_end; ++fetch->q_row, at.Next(plan)) {
    const Source q = QSource(plan, fetch->head, at.g, at.i, 1);
    PrefetchRow(q.base, q.dim);
  }
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_FETCH_AHEAD_H_
