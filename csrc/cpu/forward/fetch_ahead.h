// Brings what a worker needs soon into the caches while it attends, since attention itself reads
// little from memory: the operands of a head to come (the passes that prepare one wait for nothing
// else), the queries of the next task, and the outputs that are about to be written. Each tile has
// its share, and its products fetch a few lines of it at each step (fetch_lines.h).
#ifndef SAGE_CPU_FORWARD_FETCH_AHEAD_H_
#define SAGE_CPU_FORWARD_FETCH_AHEAD_H_

#include "cpu/forward/fetch_lines.h"
#include "cpu/forward/load_rows.h"
#include "cpu/forward/plan.h"
#include "cpu/simd/simd_shuffle.h"

namespace sage {
namespace {

// What a head's packed operands and the rows fetched for the next one may take together: most of
// the L2 of 1 MiB that the processors with AVX-512 have at least. (With 512 KiB beside the operands
// of `exact`, N = 1,024 was 3 % slower than without.)
constexpr int64_t kCachedBytes = int64_t{768} << 10;

// AMX fetches the next queries and its outputs only; more did not pay there.
constexpr bool kFetchesHeads = kRows == 6;

// How far ahead: short heads are over before memory has answered.
constexpr int64_t kBytesAhead = int64_t{64} << 10;
constexpr int64_t kMostHeadsAhead = 8;

// Rows of K and V, and of Q those of the head's first task.
struct FetchAhead {
  Head head = {};
  Source k = {}, v = {};
  int64_t row = 0;       // next row of K and V to fetch
  int64_t rows = 0;      // where to stop; 0 where there is no next head
  int64_t per_tile = 0;  // rows for each tile
  int64_t q_row = 0;     // next row of Q
  int64_t q_rows = 0;    // where to stop
  int64_t q_per_tile = 0;
  // Of the present head, a group of rows: outputs, and queries of the next task.
  int64_t o_row = 0, o_rows = 0, next_row = 0, next_rows = 0;
  FetchLines lines;  // of the present tile
};

SAGE_INLINE int64_t HeadsAhead(const Plan& plan) {
  const Problem& p = *plan.problem;
  const int64_t floats = p.kv_len * (p.qk_dim + p.v_dim) + plan.rows * p.qk_dim;
  const int64_t bytes = floats * static_cast<int64_t>(sizeof(float));
  return MaxOf(1, MinOf(kMostHeadsAhead, kBytesAhead / MaxOf(1, bytes)));
}

// Fetches head `number` evenly over the tiles of a head; its first task begins at row q_row.
// `packed`: bytes of a head's packed operands.
SAGE_INLINE void FetchHead(const Plan& plan, int64_t number, int64_t q_row, int64_t packed,
                           FetchAhead* fetch) {
  const Problem& p = *plan.problem;
  // Where it lies is all that is asked of it.
  fetch->head.batch = number / p.kv_heads;
  fetch->head.kv_head = number % p.kv_heads;
  fetch->k = KSource(plan, fetch->head, 0, p.kv_len);
  fetch->v = VSource(plan, fetch->head, 0, p.kv_len);
  const int64_t row_bytes = (p.qk_dim + p.v_dim) * static_cast<int64_t>(sizeof(float));
  fetch->rows = MinOf(p.kv_len, MaxOf(0, kCachedBytes - packed) / MaxOf(1, row_bytes));
  // Causality and windows leave fewer tiles than these; half of them are counted, so that the fetch
  // is done in time.
  const int64_t tiles =
      (plan.rows + kRows - 1) / kRows * ((p.kv_len + kScoreStride - 1) / kScoreStride);
  const int64_t counted = p.window_right < 0 && p.window_left < 0 ? tiles : (tiles + 1) / 2;
  fetch->per_tile = (fetch->rows + counted - 1) / counted;
  fetch->q_row = q_row;
  fetch->q_rows = plan.rows;
  fetch->q_per_tile = (fetch->q_rows - fetch->q_row + counted - 1) / counted;
}

// Fetches with the next tile the outputs of `rows` rows from `row` on, to be written, and the
// queries of a group that begins at row `next` (-1: none).
SAGE_INLINE void FetchRows(int64_t row, int64_t rows, int64_t next, FetchAhead* fetch) {
  fetch->o_row = row;
  fetch->o_rows = rows;
  fetch->next_row = next;
  fetch->next_rows = next < 0 ? 0 : kRows;
}

// Adds `rows` rows of queries from `row` on, one query head's together where they follow each
// other.
SAGE_INLINE void AddQueries(const Plan& plan, const Head& head, int64_t row, int64_t rows,
                            FetchLines* lines) {
  if (rows <= 0) return;
  RowWalk at = WalkFrom(plan, row);
  if (plan.group == 1) {
    const Source q = QSource(plan, head, at.g, at.i, rows);
    lines->Add(q.base, q.stride, rows, q.dim);
    return;
  }
  for (; rows > 0; --rows, at.Next(plan)) {
    const Source q = QSource(plan, head, at.g, at.i, 1);
    lines->Add(q.base, 0, 1, q.dim);
  }
}

// What a tile is to fetch in `steps` steps.
SAGE_INLINE void BeginFetch(const Plan& plan, const Head& head, int64_t steps, FetchAhead* fetch) {
  const Problem& p = *plan.problem;
  FetchLines* lines = &fetch->lines;
  lines->Clear();
  RowWalk at = fetch->o_rows > 0 ? WalkFrom(plan, fetch->o_row) : RowWalk{0, 0};
  const int64_t together = plan.group == 1 ? fetch->o_rows : 1;
  for (; fetch->o_rows > 0; fetch->o_rows -= together, at.Next(plan)) {
    const int64_t q_head = head.kv_head * plan.group + at.g;
    lines->Add(plan.buffers->o + head.batch * p.o.batch + q_head * p.o.head + at.i * p.o.token,
               p.o.token, together, p.v_dim, true);
  }
  AddQueries(plan, head, fetch->next_row, fetch->next_rows, lines);
  fetch->next_rows = 0;
  const int64_t rows = MinOf(fetch->per_tile, fetch->rows - fetch->row);
  if (rows > 0) {
    lines->Add(fetch->k.base + fetch->row * fetch->k.stride, fetch->k.stride, rows, fetch->k.dim);
    lines->Add(fetch->v.base + fetch->row * fetch->v.stride, fetch->v.stride, rows, fetch->v.dim);
    fetch->row += rows;
  }
  const int64_t q_rows = MinOf(fetch->q_per_tile, fetch->q_rows - fetch->q_row);
  if (q_rows > 0) {
    AddQueries(plan, fetch->head, fetch->q_row, q_rows, lines);
    fetch->q_row += q_rows;
  }
  lines->Spread(steps);
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_FETCH_AHEAD_H_
