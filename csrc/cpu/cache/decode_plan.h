// The plan of attention by few queries over many keys: how rows and keys are cut into tasks.
//
// Rows: the query heads of a group share K and V, so row r of a key/value head is query r / group
// of head r % group. Few rows: the keys are cut into chunks of a fixed length, whose results are
// merged in order, so that the bits do not depend on the number of threads. Many rows: the rows are
// cut instead.
#ifndef SAGE_CPU_CACHE_DECODE_PLAN_H_
#define SAGE_CPU_CACHE_DECODE_PLAN_H_

#include "cpu/cpu_features.h"
#include "cpu/forward/plan.h"
#include "sage/attention.h"
#include "sage/problem.h"

namespace sage {
namespace {

// Keys of one step of the online softmax: a page of the cache.
constexpr int kStep = 128;
// Rows that share one pass over a step's codes.
constexpr int kGroupRows = 6;
// Rows of a task. K and V of a step stay in L2 meanwhile.
constexpr int64_t kPackedTaskRows = 48;
constexpr int64_t kFloatTaskRows = 128;
// The keys are cut into chunks of so many steps for each 48 rows, so that what is kept of the
// chunks until they are merged is at most a fortieth of k and v.
constexpr int64_t kChunkSteps = 8;
constexpr int64_t kChunkRows = 48;

// The most rows that the loops of few_rows.h are ahead with: eight are level, and with gaps between
// rows slower.
constexpr int kFewRows = 6;

struct DecodePlan {
  const Problem* problem;
  const ForwardBuffers* buffers;
  const std::atomic<bool>* cancelled;
  int64_t heads;  // batch * kv_heads
  int64_t group, rows, row_tile, row_tiles;
  int64_t steps, chunk, chunks;
  int64_t threads;  // that share the tasks, in the order of heads and chunks
  int64_t offset;
  int qk_dims;      // padded to whole vectors, for rows of q
  int v_dims;       // the same, for rows of o; at least a multiple of 16
  int row_bytes;    // of one prepared row of q
  bool fetch_near;  // lines of k and v that will be needed are brought into L1, else L2
  // So many rows of q have loops of their own (few_rows.h): none where L1 has few line buffers;
  // where it has many, as many rows as there are loops for; elsewhere one (with 4 a Xeon is 10 %
  // slower).
  int few_rows;
};

SAGE_INLINE DecodePlan MakeDecodePlan(const Problem& p, const ForwardBuffers& buffers,
                                      const EngineOptions& options, int64_t task_rows) {
  DecodePlan plan = {};
  plan.problem = &p;
  plan.buffers = &buffers;
  plan.cancelled = options.cancelled;
  plan.heads = p.batch * p.kv_heads;
  plan.group = p.q_heads / p.kv_heads;
  plan.rows = plan.group * p.q_len;
  plan.row_tile = MinOf(plan.rows, task_rows);
  plan.row_tiles = (plan.rows + plan.row_tile - 1) / plan.row_tile;
  plan.steps = (p.kv_len + kStep - 1) / kStep;
  // More rows than a task has are shared out instead.
  const int64_t chunk = (plan.rows + kChunkRows - 1) / kChunkRows * kChunkSteps;
  plan.chunk = plan.rows <= task_rows ? MinOf(plan.steps, chunk) : plan.steps;
  plan.chunks = (plan.steps + plan.chunk - 1) / plan.chunk;
  plan.threads = MinOf(options.threads, plan.heads * plan.chunks * plan.row_tiles);
  plan.offset = p.causal == Causal::kBottomRight ? p.kv_len - p.q_len : 0;
  plan.qk_dims = static_cast<int>(RoundUp(p.qk_dim, 16));
  plan.v_dims = static_cast<int>(RoundUp(p.v_dim, 16));
  plan.fetch_near = HasManyLineBuffers();
  plan.few_rows = HasFewLineBuffers() ? 0 : HasManyLineBuffers() ? kFewRows : 1;
  return plan;
}

SAGE_INLINE int64_t FirstKey(const DecodePlan& plan, int64_t i) {
  const int64_t left = plan.problem->window_left;
  return left < 0 ? 0 : MaxOf(0, i + plan.offset - left);
}
SAGE_INLINE int64_t EndKey(const DecodePlan& plan, int64_t i) {
  const Problem& p = *plan.problem;
  return p.window_right < 0 ? p.kv_len
                            : MinOf(p.kv_len, MaxOf(0, i + plan.offset + p.window_right + 1));
}

// Row `row` of a key/value head: its batch entry, query head and query.
struct RowPlace {
  int64_t batch, q_head, i;
};
SAGE_INLINE RowPlace PlaceOf(const DecodePlan& plan, int64_t head, int64_t row) {
  const int64_t kv_heads = plan.problem->kv_heads;
  return {head / kv_heads, head % kv_heads * plan.group + row % plan.group, row / plan.group};
}

// What a task makes of its rows; with more than one chunk it is merged later.
struct RowResults {
  float* o;  // [rows][v_dims]
  float* m;  // running maximum of the scores, log2 domain
  float* l;  // running sum of p
};

// Scratch of one worker.
struct DecodeScratch {
  RowResults results;  // of row_tile rows
  uint8_t* q;          // [row_tile][row_bytes]
  float* c;            // [row_tile] factor of a row's scores
  uint8_t* bad;        // [row_tile] the row of q is not finite
  float* x;            // one row of q
  float* s;            // scores, then p: [6][128], or [block of rows][128][its lanes]
  // Codes of a cache only:
  uint8_t* digits;  // [6][2][128]
  // Float32 only:
  float* q_lanes;  // rows of q in lanes, block after block
  float* k_tail;   // [tile of keys][qk_dim], the last tile of all keys with zeros behind
  float* k_copy;   // [128][qk_dim] and
  float* v_copy;   // [128][v_dim] without values that are not finite
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_DECODE_PLAN_H_
