// Attention of few rows over many keys, for any operands (packed_operands.h, float_operands.h):
// these bring the steps of the online softmax (packed_steps.h, float_steps.h); here rows and keys
// are shared out to threads, chunks of keys are merged in order, o / l and lse are written, and
// rows that attend to values that are not finite are marked (docs/numerics.md 2).
#ifndef SAGE_CPU_CACHE_ATTEND_ROWS_H_
#define SAGE_CPU_CACHE_ATTEND_ROWS_H_

#include <math.h>
#include <string.h>

#include "cpu/cache/decode_plan.h"
#include "cpu/cache/page_layout.h"
#include "cpu/forward/mask_row.h"
#include "cpu/simd/simd_shuffle.h"
#include "cpu/thread_pool.h"

namespace sage {
namespace {

// Marks o and lse of a row that attends to tokens with values that are not finite.
template <class Operands>
SAGE_NOINLINE void MarkRow(const DecodePlan& plan, const Operands& operands, const RowPlace& place,
                           float* o, float* lse) {
  const Problem& p = *plan.problem;
  const MaskRow mask = MaskRowOf(p, plan.buffers->mask, place.batch, place.q_head, place.i);
  const float nan = __builtin_nanf("");
  const int64_t end = EndKey(plan, place.i);
  for (int64_t j = FirstKey(plan, place.i); j < end; ++j) {
    if (!operands.AnyMarks(j / kStep)) {
      j = (j / kStep + 1) * kStep - 1;
      continue;
    }
    const uint8_t marks = operands.MarksOf(j);
    if (marks == 0 || !MaskAllows(mask, j)) continue;
    if (marks & kKeyMark) {
      for (int64_t d = 0; d < p.v_dim; ++d) o[d] = nan;
      if (lse != nullptr) *lse = nan;
      return;
    }
    for (int d = 0; d < p.v_dim; ++d) {
      if (operands.ValueIsBad(j, d)) o[d] = nan;
    }
  }
}

// Writes o and lse of one row from its sums.
template <class Operands>
SAGE_INLINE void FinishRow(const DecodePlan& plan, const Operands& operands, int64_t head,
                           int64_t row, const float* sums, float m, float l, bool bad, bool marks) {
  const Problem& p = *plan.problem;
  const RowPlace place = PlaceOf(plan, head, row);
  float* o =
      plan.buffers->o + place.batch * p.o.batch + place.q_head * p.o.head + place.i * p.o.token;
  float* lse =
      plan.buffers->lse == nullptr
          ? nullptr
          : plan.buffers->lse + (place.batch * p.q_heads + place.q_head) * p.q_len + place.i;
  if (l == 0.0f) {
    for (int64_t d = 0; d < p.v_dim; ++d) o[d] = 0.0f;
    if (lse != nullptr) *lse = kMinusInf;
    return;
  }
  const float inverse = 1.0f / l;
  for (int64_t d = 0; d < p.v_dim; ++d) o[d] = sums[d] * inverse;
  if (lse != nullptr) {
    double value = kLn2 * (static_cast<double>(m) + log2(static_cast<double>(l)));
    const float* mean = operands.KeyMean();
    if (mean != nullptr) {
      const float* q =
          plan.buffers->q + place.batch * p.q.batch + place.q_head * p.q.head + place.i * p.q.token;
      double dot = 0.0;
      for (int64_t d = 0; d < p.qk_dim; ++d)
        dot += static_cast<double>(q[d]) * static_cast<double>(mean[d]);
      value += p.scale * dot;
    }
    *lse = static_cast<float>(value);
  }
  if (bad) {
    for (int64_t d = 0; d < p.v_dim; ++d) o[d] = __builtin_nanf("");
    if (lse != nullptr) *lse = __builtin_nanf("");
  } else if (marks) {
    MarkRow(plan, operands, place, o, lse);
  }
}

// Sums of the chunks of one row, brought to one maximum, in the order of the keys; into the first.
SAGE_INLINE void MergeChunks(const DecodePlan& plan, const RowResults& all, int64_t row) {
  float m = kMinusInf;
  for (int64_t n = 0; n < plan.chunks; ++n) {
    const float here = all.m[n * plan.rows + row];
    m = here > m || here != here ? here : m;
  }
  float* o = all.o + row * plan.v_dims;
  float l = 0.0f;
  for (int64_t n = 0; n < plan.chunks; ++n) {
    const int64_t at = n * plan.rows + row;
    const float weight = all.m[at] == kMinusInf ? 0.0f : exp2f(all.m[at] - m);
    const float* part = all.o + at * plan.v_dims;
    l = l + all.l[at] * weight;
    for (int d = 0; d < plan.v_dims; ++d) {
      o[d] = n == 0 ? part[d] * weight : o[d] + part[d] * weight;
    }
  }
  all.m[row] = m;
  all.l[row] = l;
}

SAGE_INLINE RowResults CarveResults(const DecodePlan& plan, int64_t rows, Carver* carver) {
  RowResults results;
  results.o = carver->Take<float>(rows * plan.v_dims);
  results.m = carver->Take<float>(rows);
  results.l = carver->Take<float>(rows);
  return results;
}

template <class Operands>
SAGE_INLINE DecodeScratch CarveScratch(const DecodePlan& plan, Carver* carver) {
  // Room for what whole groups or vectors of rows write.
  const int64_t rows = RoundUp(RoundUp(plan.row_tile, kGroupRows), kLanes);
  DecodeScratch scratch = {};
  scratch.results = CarveResults(plan, rows, carver);
  scratch.q = carver->Take<uint8_t>(rows * plan.row_bytes);
  scratch.c = carver->Take<float>(rows);
  scratch.bad = carver->Take<uint8_t>(rows);
  scratch.x = carver->Take<float>(plan.qk_dims);
  Operands::CarveSteps(plan, carver, &scratch);
  return scratch;
}

// One task: rows of a head against a chunk of keys. Returns whether values that are not finite were
// met.
template <class Operands>
SAGE_INLINE bool AttendTask(const DecodePlan& plan, Operands* operands, int64_t head, int64_t row0,
                            int64_t rows, int64_t chunk, const DecodeScratch& scratch) {
  const Problem& p = *plan.problem;
  for (int64_t r = 0; r < rows; ++r) {
    const RowPlace place = PlaceOf(plan, head, row0 + r);
    const float* q =
        plan.buffers->q + place.batch * p.q.batch + place.q_head * p.q.head + place.i * p.q.token;
    float c = 1.0f;
    scratch.bad[r] = !operands->PrepareRow(plan, q, scratch.x, scratch.q + r * plan.row_bytes, &c);
    // A zero factor times a hidden score would be NaN; all scores of such a row are 0.
    scratch.c[r] = c == 0.0f ? 1e-30f : c;
  }
  const int64_t first = chunk * plan.chunk, end = MinOf(plan.steps, first + plan.chunk);
  if (operands->AttendSteps(plan, row0, rows, first, end, scratch, false)) return false;
  operands->AttendSteps(plan, row0, rows, first, end, scratch, true);
  return true;
}

template <class Operands>
SAGE_NOINLINE Status RunDecode(const DecodePlan& plan, const Operands& prototype,
                               const EngineOptions& options, Workspace* workspace) {
  Carver measure = {nullptr, 0};
  CarveScratch<Operands>(plan, &measure);
  const int64_t worker_bytes = static_cast<int64_t>(measure.used);
  measure.used = 0;
  const bool split = plan.chunks > 1;
  const int64_t kept = split ? plan.chunks * plan.rows : 0;
  CarveResults(plan, kept, &measure);
  const int64_t head_bytes = static_cast<int64_t>(measure.used);
  const int64_t flag_bytes = RoundUp(plan.heads * (1 + plan.rows), 64);
  const int64_t per_head = plan.chunks * plan.row_tiles;
  const int threads = static_cast<int>(plan.threads);
  uint8_t* memory = workspace->Reserve(
      static_cast<size_t>(flag_bytes + plan.heads * head_bytes + threads * worker_bytes));
  if (memory == nullptr) return {StatusCode::kOutOfMemory, "no memory for the sums of the rows"};
  // Per head: whether values that are not finite were met; per row: whether q was not finite.
  uint8_t* met = memory;
  uint8_t* bad_rows = memory + plan.heads;
  memset(met, 0, static_cast<size_t>(plan.heads));
  uint8_t* heads_memory = memory + flag_bytes;
  uint8_t* workers_memory = heads_memory + plan.heads * head_bytes;
  const auto results_of = [&](int64_t head) {
    Carver carver = {heads_memory + head * head_bytes, 0};
    return CarveResults(plan, kept, &carver);
  };

  ParallelFor(plan.heads * per_head, threads, [&](int64_t task, int worker) {
    const int64_t head = task / per_head, at = task % per_head;
    Carver carver = {workers_memory + worker * worker_bytes, 0};
    DecodeScratch scratch = CarveScratch<Operands>(plan, &carver);
    Operands operands = prototype;
    operands.Begin(head);
    if (split) {
      if (AttendTask(plan, &operands, head, 0, plan.rows, at, scratch)) {
        __atomic_store_n(met + head, uint8_t{1}, __ATOMIC_RELAXED);
      }
      const RowResults all = results_of(head);
      const size_t row_bytes = sizeof(float) * static_cast<size_t>(plan.rows);
      memcpy(all.o + at * plan.rows * plan.v_dims, scratch.results.o,
             row_bytes * static_cast<size_t>(plan.v_dims));
      memcpy(all.m + at * plan.rows, scratch.results.m, row_bytes);
      memcpy(all.l + at * plan.rows, scratch.results.l, row_bytes);
      if (at == 0) memcpy(bad_rows + head * plan.rows, scratch.bad, static_cast<size_t>(plan.rows));
      return;
    }
    const int64_t row0 = at * plan.row_tile, rows = MinOf(plan.row_tile, plan.rows - row0);
    const bool marks =
        AttendTask(plan, &operands, head, row0, rows, 0, scratch) || operands.HasMarks(plan);
    for (int64_t r = 0; r < rows; ++r) {
      FinishRow(plan, operands, head, row0 + r, scratch.results.o + r * plan.v_dims,
                scratch.results.m[r], scratch.results.l[r], scratch.bad[r] != 0, marks);
    }
  });
  if (split) {
    ParallelFor(plan.heads, plan.rows > 8 ? threads : 1, [&](int64_t head, int /*worker*/) {
      const RowResults all = results_of(head);
      Operands operands = prototype;
      operands.Begin(head);
      const bool marks = met[head] != 0 || operands.HasMarks(plan);
      for (int64_t row = 0; row < plan.rows; ++row) {
        MergeChunks(plan, all, row);
        FinishRow(plan, operands, head, row, all.o + row * plan.v_dims, all.m[row], all.l[row],
                  bad_rows[head * plan.rows + row] != 0, marks);
      }
    });
  }
  if (options.cancelled != nullptr && options.cancelled->load(std::memory_order_relaxed)) {
    return {StatusCode::kCancelled, "cancelled"};
  }
  return Status{};
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_ATTEND_ROWS_H_
