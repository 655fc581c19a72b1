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

// Query heads of it, at most; their rows are runs of lines.
constexpr int64_t kMostQueryHeads = 32;

struct FetchAhead {
  FetchLines lines;      // of the present tile, and of a head to come
  int64_t per_tile = 0;  // lines of that head
  float* o = nullptr;    // of the present head
  const float* q = nullptr;
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
  Head head = {};
  head.batch = number / p.kv_heads;
  head.kv_head = number % p.kv_heads;
  const int64_t row_bytes = (p.qk_dim + p.v_dim) * static_cast<int64_t>(sizeof(float));
  const int64_t rows = MinOf(p.kv_len, MaxOf(0, kCachedBytes - packed) / MaxOf(1, row_bytes));
  FetchLines* lines = &fetch->lines;
  // Runs are taken from the last one on, and wanted in the order K, V, Q.
  const int64_t first = QueryOf(plan, q_row);
  for (int64_t g = MinOf(plan.group, kMostQueryHeads) - 1; g >= 0; --g) {
    const Source q = QSource(plan, head, g, first, p.q_len - first);
    lines->Add(q.base, q.stride, q.rows, q.dim);
  }
  const Source k = KSource(plan, head, 0, rows), v = VSource(plan, head, 0, rows);
  lines->Add(v.base, v.stride, v.rows, v.dim);
  lines->Add(k.base, k.stride, k.rows, k.dim);
  lines->Keep();
  // Causality and windows leave fewer tiles than these; half of them are counted, so that the fetch
  // is done in time.
  const int64_t tiles =
      (plan.rows + kRows - 1) / kRows * ((p.kv_len + kScoreStride - 1) / kScoreStride);
  const int64_t counted = p.window_right < 0 && p.window_left < 0 ? tiles : (tiles + 1) / 2;
  fetch->per_tile = (lines->lines + counted - 1) / counted;
}

// Before the tiles of a task of this head.
SAGE_INLINE void BeginTask(const Plan& plan, const Head& head, FetchAhead* fetch) {
  const Problem& p = *plan.problem;
  const int64_t q_head = head.kv_head * plan.group;
  fetch->o = plan.buffers->o + head.batch * p.o.batch + q_head * p.o.head;
  fetch->q = plan.buffers->q + head.batch * p.q.batch + q_head * p.q.head;
}

// Adds rows [row, row + rows) of q or o, whose first query head is at `base`.
template <class Layout>
SAGE_INLINE void AddRows(const Plan& plan, const float* base, const Layout& layout, int64_t dim,
                         int64_t row, int64_t rows, bool to_write, FetchLines* lines) {
  if (plan.group == 1) {
    return lines->Add(base + row * layout.token, layout.token, rows, dim, to_write);
  }
  RowWalk at = WalkFrom(plan, row);
  for (; rows > 0; --rows, at.Next(plan)) {
    lines->Add(base + at.g * layout.head + at.i * layout.token, 0, 1, dim, to_write);
  }
}

// What a tile is to fetch in `steps` steps: the outputs of `rows` rows from `row` on, to be written
// (none: 0), the queries of a group that begins at row `next` (-1: none), and its share of a head
// to come.
SAGE_INLINE void BeginFetch(const Plan& plan, int64_t row, int64_t rows, int64_t next,
                            int64_t steps, FetchAhead* fetch) {
  const Problem& p = *plan.problem;
  FetchLines* lines = &fetch->lines;
  lines->BeginTile(fetch->per_tile);
  if (next >= 0) AddRows(plan, fetch->q, p.q, p.qk_dim, next, kRows, false, lines);
  if (rows > 0) AddRows(plan, fetch->o, p.o, p.v_dim, row, rows, true, lines);
  lines->Spread(steps);
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_FETCH_AHEAD_H_
