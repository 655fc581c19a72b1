// AttentionBackward: which instruction set, which tasks, and the memory they share. The arithmetic
// is in backward_kernels.cc.
//
// Work is cut into units, which may run at the same time: one batch and key/value head each, or all
// that share elements of a wanted mask gradient. A unit runs as one task over whole heads, five
// products per tile, as long as that keeps every thread busy; units left over are cut by keys and
// by queries, four and three products, into any number of tasks. Every sum has one owner and one
// order, so the same inputs and thread count give the same bits.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "cpu/backward.h"
#include "cpu/large_pages.h"
#include "cpu/thread_pool.h"
#include "sage/attention.h"
#include "sage/capabilities.h"

namespace sage {
namespace {

struct AlignedDeleter {
  void operator()(float* memory) const { std::free(memory); }
};
using AlignedFloats = std::unique_ptr<float, AlignedDeleter>;

// 64-byte aligned; null when memory is out.
AlignedFloats Allocate(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64;
  return AlignedFloats(static_cast<float*>(std::aligned_alloc(64, bytes)));
}

const BackwardKernels* KernelsOf(Isa isa) {
  switch (KernelIsa(isa)) {
#if defined(SAGE_WITH_AVX512_BF16)
    case Isa::kAvx512Bf16:
      return BackwardKernels_avx512_bf16();
#endif
#if defined(SAGE_WITH_AVX512)
    case Isa::kAvx512:
      return BackwardKernels_avx512();
#endif
#if defined(SAGE_WITH_AVX2)
    case Isa::kAvx2:
      return BackwardKernels_avx2();
#endif
#if defined(SAGE_WITH_NEON)
    case Isa::kNeon:
      return BackwardKernels_neon();
#endif
#if defined(SAGE_WITH_NEON_DOT)
    case Isa::kNeonDot:
      return BackwardKernels_neon_dot();
#endif
    default:
      return BackwardKernels_portable();
  }
}

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of delta per task: some 100 KiB of o and dO.
constexpr int64_t kDeltaRows = 256;

// Below some ten microseconds of work per thread, handing tasks out costs more than it saves.
constexpr double kFlopsPerThread = 1e6;

int UsefulThreads(const Problem& p, int threads) {
  const double pairs = static_cast<double>(p.batch * p.q_heads) * static_cast<double>(p.q_len) *
                       static_cast<double>(p.kv_len);
  const double useful = pairs * static_cast<double>(6 * p.qk_dim + 4 * p.v_dim) / kFlopsPerThread;
  return useful < 1 ? 1 : useful < threads ? static_cast<int>(useful) : threads;
}

// Calls fn(element offset) for the first key of every row of the mask that has elements of its own.
template <typename Fn>
void ForEachMaskRow(const Problem& p, const Fn& fn) {
  const MaskStrides& s = p.mask;
  for (int64_t b = 0; b < (s.batch == 0 ? 1 : p.batch); ++b) {
    for (int64_t h = 0; h < (s.head == 0 ? 1 : p.q_heads); ++h) {
      for (int64_t i = 0; i < (s.query == 0 ? 1 : p.q_len); ++i)
        fn(b * s.batch + h * s.head + i * s.query);
    }
  }
}

void ZeroMaskGradient(const Problem& p, float* d_mask) {
  if (p.batch == 0 || p.q_heads == 0 || p.q_len == 0 || p.kv_len == 0) return;
  const int64_t keys = p.mask.key == 0 ? 1 : p.kv_len;
  ForEachMaskRow(p, [&](int64_t row) {
    if (p.mask.key <= 1) {
      std::memset(d_mask + row, 0, static_cast<size_t>(keys) * sizeof(float));
    } else {
      for (int64_t j = 0; j < keys; ++j) d_mask[row + j * p.mask.key] = 0.0f;
    }
  });
}

// Adds the sums per head and key up over the axes that the mask does not have.
void ReduceMaskColumns(const Problem& p, const float* columns, float* d_mask) {
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.q_heads; ++h, columns += p.kv_len) {
      float* out = d_mask + b * p.mask.batch + h * p.mask.head;
      for (int64_t j = 0; j < p.kv_len; ++j) out[j * p.mask.key] += columns[j];
    }
  }
}

// The tasks of a call by number: units run whole, then the keys, then the queries of the units that
// are cut.
class Schedule {
 public:
  Schedule(const BackwardPlan& plan, const BackwardKernels& kernels, int threads)
      : problem_(*plan.problem), kernels_(kernels), group_(plan.group) {
    const Problem& p = problem_;
    // Elements of a mask with a query axis have one owner. (Without one, sums are kept per head.)
    const bool owned = plan.mask_gradient == MaskGradient::kElements;
    batches_ = owned && p.mask.batch == 0 ? p.batch : 1;
    heads_ = owned && p.mask.head == 0 ? p.kv_heads : 1;
    group_tasks_ = owned && p.mask.head == 0 ? 1 : group_;
    units_ = p.batch == 0 || p.kv_heads == 0 ? 0 : (p.batch / batches_) * (p.kv_heads / heads_);
    whole_ = units_ / threads * threads;
    // The rest as whole units takes the time of one (5 products), cut up 7/threads of each.
    if (5 * threads <= 7 * (units_ - whole_)) whole_ = units_;
    key_blocks_ = CeilDivide(p.kv_len, kernels.key_rows);
    query_blocks_ = CeilDivide(p.q_len, kernels.query_rows);
    key_tasks_ = (units_ - whole_) * batches_ * heads_ * key_blocks_;
    query_tasks_ = (units_ - whole_) * group_tasks_ * query_blocks_;
  }

  int64_t tasks() const { return whole_ + key_tasks_ + query_tasks_; }

  void Run(const BackwardPlan& plan, int64_t task, float* scratch) const {
    if (task < whole_) {
      kernels_.heads(plan, Unit(task), scratch);
    } else if (task < whole_ + key_tasks_) {
      RunKeys(plan, task - whole_, scratch);
    } else {
      RunQueries(plan, task - whole_ - key_tasks_, scratch);
    }
  }

 private:
  BackwardRange Unit(int64_t unit) const {
    const int64_t per_batch = problem_.kv_heads / heads_;
    BackwardRange range = {};
    range.batch_begin = unit / per_batch * batches_;
    range.batch_end = range.batch_begin + batches_;
    range.kv_begin = unit % per_batch * heads_;
    range.kv_end = range.kv_begin + heads_;
    range.head_end = group_;
    return range;
  }

  // Under causality the first keys and the last queries have most to do: they go first.
  void RunKeys(const BackwardPlan& plan, int64_t task, float* scratch) const {
    const int64_t members = batches_ * heads_, cut = units_ - whole_;
    const int64_t block = task / (members * cut), member = task % members;
    BackwardRange range = Unit(whole_ + task / members % cut);
    range.batch_begin += member / heads_;
    range.batch_end = range.batch_begin + 1;
    range.kv_begin += member % heads_;
    range.kv_end = range.kv_begin + 1;
    range.row_begin = block * kernels_.key_rows;
    range.row_end = range.row_begin + kernels_.key_rows < problem_.kv_len
                        ? range.row_begin + kernels_.key_rows
                        : problem_.kv_len;
    kernels_.keys(plan, range, scratch);
  }

  void RunQueries(const BackwardPlan& plan, int64_t task, float* scratch) const {
    const int64_t cut = units_ - whole_;
    const int64_t block = query_blocks_ - 1 - task / (group_tasks_ * cut);
    BackwardRange range = Unit(whole_ + task / group_tasks_ % cut);
    if (group_tasks_ > 1) {
      range.head_begin = task % group_tasks_;
      range.head_end = range.head_begin + 1;
    }
    range.row_begin = block * kernels_.query_rows;
    range.row_end = range.row_begin + kernels_.query_rows < problem_.q_len
                        ? range.row_begin + kernels_.query_rows
                        : problem_.q_len;
    kernels_.queries(plan, range, scratch);
  }

  const Problem& problem_;
  const BackwardKernels& kernels_;
  int64_t group_;
  int64_t batches_, heads_;  // of one unit
  int64_t group_tasks_;      // tasks per unit and query block
  int64_t units_, whole_;
  int64_t key_blocks_, query_blocks_, key_tasks_, query_tasks_;
};

bool IsCancelled(const void* flag) {
  return flag != nullptr &&
         static_cast<const std::atomic<bool>*>(flag)->load(std::memory_order_relaxed);
}

constexpr Status kOutOfMemory = {StatusCode::kOutOfMemory,
                                 "the gradient's working memory cannot be allocated"};

}  // namespace

Status AttentionBackward(const Problem& problem, const BackwardBuffers& buffers,
                         const EngineOptions& options) {
  if (problem.input != InputType::kFloat32) return {StatusCode::kUnsupported, kFloat32InputOnly};
  if (buffers.d_mask != nullptr && problem.mask_kind != MaskKind::kAdditive) {
    return Status::Invalid("only an additive mask has a gradient");
  }
  const BackwardKernels& kernels = *KernelsOf(options.isa);
  const int threads = UsefulThreads(problem, options.threads < 1 ? 1 : options.threads);

  BackwardPlan plan = {};
  plan.problem = &problem;
  plan.buffers = &buffers;
  plan.group = problem.group();
  plan.offset = problem.offset();
  plan.mask_gradient = buffers.d_mask == nullptr ? MaskGradient::kNone
                       : problem.mask.query == 0 ? MaskGradient::kColumns
                                                 : MaskGradient::kElements;
  plan.cancelled = IsCancelled;
  plan.cancelled_context = options.cancelled;

  const int64_t rows = problem.batch * problem.q_heads * problem.q_len;
  const int64_t columns = plan.mask_gradient == MaskGradient::kColumns
                              ? problem.batch * problem.q_heads * problem.kv_len
                              : 0;
  const int64_t scratch_floats = (kernels.scratch_floats(problem) + 15) / 16 * 16;
  const AlignedFloats delta = Allocate(rows + 1);
  const AlignedFloats mask_columns = Allocate(columns + 1);
  const AlignedFloats scratch = Allocate(scratch_floats * threads);
  if (delta == nullptr || mask_columns == nullptr || scratch == nullptr) return kOutOfMemory;
  std::memset(mask_columns.get(), 0, static_cast<size_t>(columns) * sizeof(float));
  plan.delta = delta.get();
  plan.mask_columns = mask_columns.get();
  const Problem& p = problem;
  PrepareResults(buffers.d_q, p.q, p.batch, p.q_heads, p.q_len, p.qk_dim, threads);
  PrepareResults(buffers.d_k, p.k, p.batch, p.kv_heads, p.kv_len, p.qk_dim, threads);
  PrepareResults(buffers.d_v, p.v, p.batch, p.kv_heads, p.kv_len, p.v_dim, threads);
  if (buffers.d_mask != nullptr) ZeroMaskGradient(problem, buffers.d_mask);

  ParallelFor(CeilDivide(rows, kDeltaRows), threads, [&](int64_t task, int) {
    const int64_t begin = task * kDeltaRows;
    kernels.delta(plan, begin, begin + kDeltaRows < rows ? begin + kDeltaRows : rows);
  });

  const Schedule schedule(plan, kernels, threads);
  ParallelFor(schedule.tasks(), threads, [&](int64_t task, int worker) {
    if (!IsCancelled(options.cancelled))
      schedule.Run(plan, task, scratch.get() + scratch_floats * worker);
  });
  if (IsCancelled(options.cancelled)) return {StatusCode::kCancelled, "cancelled"};

  if (columns > 0) ReduceMaskColumns(problem, mask_columns.get(), buffers.d_mask);
  return Status::Ok();
}

}  // namespace sage
