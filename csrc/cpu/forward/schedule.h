// The phases of a forward call: statistics, reduction, packing, attention. Either each worker takes
// whole key/value heads, or all workers share the phases of a wave of heads.
#ifndef SAGE_CPU_FORWARD_SCHEDULE_H_
#define SAGE_CPU_FORWARD_SCHEDULE_H_

#include "cpu/forward/attend.h"
#include "cpu/forward/head_stages.h"
#include "cpu/forward/plan.h"
#include "cpu/forward/prepass.h"
#include "cpu/thread_pool.h"

namespace sage {
namespace {

// Packed operands of a wave: large enough to feed every core, small enough to stay out of the way
// of the caller's memory. Many threads get room for a head of 4,096 tokens each (head_dim 128:
// 1.6 MiB), the L2 that such processors have.
constexpr int64_t kWaveBytes = int64_t{20} << 20;
constexpr int64_t kWaveBytesPerThread = int64_t{2} << 20;
SAGE_INLINE int64_t WaveBytes(int64_t threads) {
  return MaxOf(kWaveBytes, threads * kWaveBytesPerThread);
}

// Tiles of rows that share one pass over a block of keys: K and V stay in L2 meanwhile. Where tiles
// overlap (softmax_ahead.h) the first and the last of a task do less, so longer tasks pay; packed
// float32 queries of as many rows would leave no room in L1. Where limits make tiles differ, tasks
// that begin with the longest rows spread what is fetched ahead better.
constexpr int64_t kRowsPerTask = kRows == 32 ? 128 : 96, kMostRowsPerTask = 128;
static_assert(kMostRowsPerTask <= kMostGroups * kRows, "AttendTask keeps a bit for each group");
template <class Kernels>
SAGE_INLINE int64_t RowsPerTask(const Problem& p) {
  const bool alike = p.window_left < 0 && p.window_right < 0;
  return Kernels::kSoftmaxAhead && alike ? kMostRowsPerTask : kRowsPerTask;
}

// Rows of a task that is cut to occupy more threads: below, preparing a task and reading K and V
// for it cost more than the thread gains.
constexpr int64_t kLeastRowsPerTask = kRows == 32 ? 32 : 24;

constexpr Status kNoMemory = {StatusCode::kOutOfMemory, "no memory for the packed keys and values"};
constexpr Status kCancelled = {StatusCode::kCancelled, "cancelled"};

// What a task holds while it runs the tile kernels of `Kernels`; specialised where an instruction
// set has state of its own.
template <class Kernels>
struct TaskScope {};

// Whether workers take whole heads. That needs no waiting between phases, keeps a head in one cache
// from its first statistic to its last row, and lets a worker fetch its next head. Of fewer than
// four for each worker too few are left when the last are shared.
SAGE_INLINE bool HeadsAreTasks(int64_t heads, int64_t threads) {
  return threads <= 1 || heads >= 4 * threads;
}

SAGE_INLINE int LargestPowerOfTwoDividing(int x) { return x & -x; }

template <class Kernels>
SAGE_INLINE Plan MakePlan(const Problem& p, const ForwardBuffers& buffers,
                          const InspectionBuffers* inspect, const EngineOptions& options) {
  const Recipe& recipe = p.recipe;
  Plan plan = {};
  plan.problem = &p;
  plan.buffers = &buffers;
  plan.inspect = inspect;
  plan.cancelled = options.cancelled;
  plan.group = p.q_heads / p.kv_heads;
  plan.rows = plan.group * p.q_len;
  plan.blocks = (p.kv_len + kBlock - 1) / kBlock;
  plan.keys = plan.blocks * kBlock;
  plan.q_blocks = (p.q_len + kBlock - 1) / kBlock;
  plan.offset = p.causal == Causal::kBottomRight ? p.kv_len - p.q_len : 0;
  const bool by_norm = recipe.qk == QkFormat::kInt16 || recipe.qk == QkFormat::kInt8Pair;
  const int64_t multiple = by_norm                         ? 32
                           : recipe.qk == QkFormat::kNvfp4 ? 16
                                                           : Kernels::kDimsMultiple;
  plan.qk_dims = static_cast<int>(RoundUp(p.qk_dim, multiple));
  plan.code_dims = static_cast<int>(RoundUp(p.qk_dim, by_norm                         ? 32
                                                      : recipe.qk == QkFormat::kNvfp4 ? 16
                                                                                      : 1));
  plan.pack_dims = plan.qk_dims + (recipe.smooth_q > 0 ? static_cast<int>(p.qk_dim) : 0);
  plan.v_dims = static_cast<int>(RoundUp(p.v_dim, MaxOf(kLanes, 16)));
  plan.pack_tokens = recipe.k_group == TokenGroup::kToken && recipe.v_scale != VScale::kBlock64
                         ? kPackTokens
                         : kBlock;
  plan.scales_by_norm = by_norm && plan.pack_tokens == 16 && recipe.smooth_q == 0 &&
                        recipe.rounding == Rounding::kEven && plan.inspect == nullptr;
  plan.rotation = recipe.rotate ? LargestPowerOfTwoDividing(plan.qk_dims) : 0;
  plan.kv_stats = recipe.smooth_k || recipe.smooth_v > 0 || recipe.v_scale == VScale::kChannel ||
                  recipe.head_exponent || recipe.balance;
  plan.q_stats = recipe.smooth_q > 0 || recipe.head_exponent || recipe.balance ||
                 ((recipe.qk == QkFormat::kInt8 || recipe.qk == QkFormat::kInt4) &&
                  recipe.q_group != TokenGroup::kToken);
  // Int8 with a scale for each row in whole chunks of 64 dims, scales by norm in those of 32,
  // `exact` in whole vectors.
  const bool bytes =
      RoundedByPacking(plan, recipe.k_group) && RoundedByPacking(plan, recipe.q_group);
  const bool floats = recipe.precision == Precision::kExact && plan.inspect == nullptr;
  const int whole = bytes ? 64 : plan.scales_by_norm ? 32 : kLanes;
  plan.packs_rows = (bytes || plan.scales_by_norm || floats) && recipe.smooth_q == 0 &&
                    recipe.smooth_v == 0 && !recipe.balance && p.qk_dim % whole == 0 &&
                    p.v_dim == plan.v_dims && plan.pack_tokens == kPackTokens;
  plan.q_factor = static_cast<float>((p.scale < 0 ? -p.scale : p.scale) * 1.44269504088896340736);
  plan.k_sign = p.scale < 0 ? -1.0f : 1.0f;
  // Even blocks of rows, and enough of them to occupy every thread.
  const int64_t heads = p.batch * p.kv_heads;
  const int64_t per_task = RowsPerTask<Kernels>(p);
  int64_t row_blocks = (plan.rows + per_task - 1) / per_task;
  const int64_t wanted =
      HeadsAreTasks(heads, options.threads) ? 1 : (2 * options.threads + heads - 1) / heads;
  const int64_t most_blocks = (plan.rows + kLeastRowsPerTask - 1) / kLeastRowsPerTask;
  row_blocks = MaxOf(row_blocks, MinOf(wanted, most_blocks));
  const int64_t even = RoundUp((plan.rows + row_blocks - 1) / row_blocks, kRowsAtEnd);
  plan.row_space = RoundUp(even, kRows);
  // Of two tasks (128 rows, say) each may end with a group of 4 rows rather than one with 2: as
  // many groups, and 2 rows have too few accumulators to keep the multipliers of AVX2 busy.
  const bool two_short_ends = Kernels::kShortGroups && row_blocks == 2 && even % kRows > kRowsAtEnd;
  plan.row_block = two_short_ends ? even : plan.row_space;
  plan.row_blocks = (plan.rows + plan.row_block - 1) / plan.row_block;
  return plan;
}

template <class Kernels>
SAGE_INLINE Head CarveHead(const Plan& plan, Carver* carver) {
  const Problem& p = *plan.problem;
  const Recipe& recipe = p.recipe;
  const int64_t means = recipe.smooth_q > 0 ? (p.q_len + recipe.smooth_q - 1) / recipe.smooth_q : 0;
  const bool k_stats = recipe.smooth_k || recipe.head_exponent;
  Head head = {};
  head.k = carver->Take<uint8_t>(Kernels::KBytes(plan));
  head.v = carver->Take<uint8_t>(Kernels::VBytes(plan));
  head.k_scale = carver->Take<float>(plan.keys);
  head.k_mean = carver->Take<float>(p.qk_dim);
  head.v_scale = carver->Take<float>(plan.v_dims);
  head.v_inverse = carver->Take<float>(plan.v_dims);
  head.v_mean = carver->Take<float>(recipe.smooth_v > 0 ? plan.blocks * plan.v_dims : 0);
  head.k_sum = carver->Take<double>(k_stats ? plan.blocks * p.qk_dim : 0);
  head.k_count = carver->Take<double>(k_stats ? plan.blocks * p.qk_dim : 0);
  head.v_max = carver->Take<float>(plan.kv_stats ? plan.blocks * plan.v_dims : 0);
  head.block_max = carver->Take<float>(2 * plan.blocks);
  head.not_finite = carver->Take<uint8_t>(plan.keys);
  head.q_mean = carver->Take<float>(plan.group * means * p.qk_dim);
  head.q_scale = carver->Take<float>(plan.q_stats ? plan.group * plan.q_blocks * kBlock : 0);
  head.q_inverse = carver->Take<float>(plan.q_stats ? plan.group * plan.q_blocks * kBlock : 0);
  head.q_max = carver->Take<float>(plan.group * plan.q_blocks);
  head.q_power = carver->Take<float>(plan.group);
  const int64_t balanced = recipe.balance ? p.qk_dim : 0;
  head.k_spread = carver->Take<float>(plan.blocks * balanced);
  head.q_spread = carver->Take<float>(plan.group * plan.q_blocks * balanced);
  const int64_t powers = recipe.qk == QkFormat::kNvfp4 ? plan.qk_dims : 0;
  head.k_balance = carver->Take<float>(powers);
  head.q_balance = carver->Take<float>(powers);
  return head;
}

// Sizes of what a call holds besides its plan.
struct Footprint {
  int64_t head;    // packed operands and statistics of one key/value head
  int64_t worker;  // scratch of one worker
};

template <class Kernels>
SAGE_INLINE Footprint MeasureFootprint(const Plan& plan) {
  Carver carver = {nullptr, 0};
  CarveHead<Kernels>(plan, &carver);
  const int64_t head = static_cast<int64_t>(carver.used);
  carver.used = 0;
  CarvePrepass(plan, &carver);
  CarveAttend<Kernels>(plan, &carver);
  return {head, static_cast<int64_t>(carver.used)};
}

template <class Kernels>
SAGE_INLINE Head HeadAt(const Plan& plan, int64_t number, uint8_t* memory) {
  Carver carver = {memory, 0};
  Head head = CarveHead<Kernels>(plan, &carver);
  head.batch = number / plan.problem->kv_heads;
  head.kv_head = number % plan.problem->kv_heads;
  return head;
}

SAGE_INLINE PrepassScratch PrepassScratchAt(const Plan& plan, uint8_t* memory) {
  Carver carver = {memory, 0};
  return CarvePrepass(plan, &carver);
}

template <class Kernels>
SAGE_INLINE AttendScratch AttendScratchAt(const Plan& plan, uint8_t* memory) {
  Carver carver = {memory, 0};
  CarvePrepass(plan, &carver);
  return CarveAttend<Kernels>(plan, &carver);
}

SAGE_INLINE bool IsCancelled(const Plan& plan) {
  return plan.cancelled != nullptr && plan.cancelled->load(std::memory_order_relaxed);
}

// What a worker keeps from head to head: finding the places of it all takes a tenth of a head of 16
// tokens.
struct HeadWorker {
  Head heads[kMostHeadsAhead];
  PrepassScratch prepass;
  AttendScratch attend;
};

// Heads that a worker takes together: short ones go through each phase one after the other, since
// the phases of one head wait for each other. As many as are fetched ahead, but tasks enough for
// `workers` to end at about the same time.
SAGE_INLINE int64_t HeadsTogether(const Plan& plan, int64_t heads, int64_t workers) {
  const int64_t most = workers > 1 ? heads / (16 * workers) : heads;
  return MaxOf(1, MinOf(HeadsAhead(plan), most));
}

// One worker computes `count` heads from `first` on from beginning to end, and fetches the operands
// of as many from `next` on, if those are heads.
template <class Kernels>
SAGE_NOINLINE void RunHead(const Plan& plan, int64_t first, int64_t count, int64_t next,
                           HeadWorker* worker) {
  const auto each_block = [&](const auto& fn) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t block = 0; block < plan.blocks; ++block) fn(&worker->heads[i], block);
    }
  };
  for (int64_t i = 0; i < count; ++i) {
    Head* head = &worker->heads[i];
    head->batch = (first + i) / plan.problem->kv_heads;
    head->kv_head = (first + i) % plan.problem->kv_heads;
    head->any_not_finite = 0;
    if (!plan.q_stats) continue;
    for (int64_t at = 0; at < plan.group * plan.q_blocks; ++at) {
      QStatistics(plan, head, at / plan.q_blocks, at % plan.q_blocks, worker->prepass);
    }
  }
  // K from its statistics to its operands, then V: one of them in 128 tokens stays in L1 meanwhile.
  if (plan.kv_stats) {
    each_block([&](Head* h, int64_t block) { KStatistics(plan, h, block); });
  }
  for (int64_t i = 0; i < count; ++i) ReduceKStatistics(plan, &worker->heads[i]);
  each_block([&](Head* h, int64_t b) { PackKBlock<Kernels>(plan, h, b, worker->prepass); });
  if (plan.kv_stats) {
    each_block([&](Head* h, int64_t block) { VStatistics(plan, h, block, worker->prepass); });
  }
  for (int64_t i = 0; i < count; ++i) ReduceVStatistics(plan, &worker->heads[i]);
  each_block([&](Head* h, int64_t b) { PackVBlock<Kernels>(plan, h, b, worker->prepass); });
  [[maybe_unused]] const TaskScope<Kernels> scope;
  for (int64_t i = 0; i < count; ++i) {
    FetchAhead fetch;
    if (kFetchesHeads && next + i < plan.problem->batch * plan.problem->kv_heads) {
      const int64_t first_row = (plan.row_blocks - 1) * plan.row_block;
      const int64_t packed = count * (Kernels::KBytes(plan) + Kernels::VBytes(plan));
      FetchHead(plan, next + i, first_row, packed, &fetch);
    }
    for (int64_t task = 0; task < plan.row_blocks; ++task) {
      AttendTask<Kernels>(plan, worker->heads[i], task, worker->attend, &fetch);
    }
  }
}

// The stages of a wave of heads, as the workers of one call see them.
template <class Kernels>
struct Wave {
  const Plan* plan;
  Head* heads;
  HeadStages stages;
  int64_t kv_tasks;  // statistics of K and V come first, then those of Q

  void Run(int64_t worker, uint8_t* scratch) const {
    const Piece piece = stages.Take(worker);
    Head* head = &heads[piece.head];
    switch (piece.stage) {
      case Stage::kStatistics: {
        const PrepassScratch prepass = PrepassScratchAt(*plan, scratch);
        if (piece.at < kv_tasks) {
          KStatistics(*plan, head, piece.at);
          VStatistics(*plan, head, piece.at, prepass);
        } else {
          const int64_t at = piece.at - kv_tasks;
          QStatistics(*plan, head, at / plan->q_blocks, at % plan->q_blocks, prepass);
        }
        if (stages.Finish(piece)) {
          ReduceKStatistics(*plan, head);
          ReduceVStatistics(*plan, head);
          stages.Open(piece.head, Stage::kPacking);
        }
        break;
      }
      case Stage::kPacking:
        PackKBlock<Kernels>(*plan, head, piece.at, PrepassScratchAt(*plan, scratch));
        PackVBlock<Kernels>(*plan, head, piece.at, PrepassScratchAt(*plan, scratch));
        if (stages.Finish(piece)) stages.Open(piece.head, Stage::kRows);
        break;
      case Stage::kRows: {
        [[maybe_unused]] const TaskScope<Kernels> scope;
        FetchAhead none;
        AttendTask<Kernels>(*plan, *head, piece.at, AttendScratchAt<Kernels>(*plan, scratch),
                            &none);
        break;
      }
    }
  }
};

// Memory of a wave, besides its workers' scratch.
SAGE_INLINE int64_t WaveSpace(const Footprint& bytes, int64_t count, int64_t workers) {
  return HeadStages::Bytes(count, workers) +
         RoundUp(count * static_cast<int64_t>(sizeof(Head)), 64) + count * bytes.head;
}

// A wave of `count` heads from `first` on, its first stages open.
template <class Kernels>
SAGE_INLINE Wave<Kernels> OpenWave(const Plan& plan, const Footprint& bytes, int64_t first,
                                   int64_t count, int64_t workers, uint8_t* memory) {
  Head* heads = reinterpret_cast<Head*>(memory + HeadStages::Bytes(count, workers));
  uint8_t* head_memory = memory + WaveSpace(bytes, count, workers) - count * bytes.head;
  const int64_t kv_tasks = plan.kv_stats ? plan.blocks : 0;
  const int64_t q_tasks = plan.q_stats ? plan.group * plan.q_blocks : 0;
  const int64_t pieces[kStages] = {kv_tasks + q_tasks, plan.blocks, plan.row_blocks};
  const Wave<Kernels> wave = {&plan, heads, {memory, count, pieces, workers}, kv_tasks};
  for (int64_t h = 0; h < count; ++h) {
    heads[h] = HeadAt<Kernels>(plan, first + h, head_memory + h * bytes.head);
    if (pieces[0] > 0) continue;
    ReduceKStatistics(plan, &heads[h]);
    ReduceVStatistics(plan, &heads[h]);
    wave.stages.Open(h, Stage::kPacking);
  }
  return wave;
}

// The heads at the end that workers share piece by piece, so that nobody waits for the last head of
// a slower one: what is left over of whole rounds, and one round. A wave's memory is the limit.
SAGE_INLINE int64_t SharedHeads(const Footprint& bytes, int64_t heads, int64_t workers) {
  if (workers <= 1) return 0;
  return MinOf(heads % workers + workers, MaxOf(1, WaveBytes(workers) / bytes.head));
}

// Workers take whole heads, and share the last ones.
template <class Kernels>
SAGE_INLINE Status RunHeads(const Plan& plan, const Footprint& bytes, int64_t heads, int threads,
                            Workspace* workspace) {
  const int workers = static_cast<int>(MinOf(threads, heads));
  const int64_t shared = SharedHeads(bytes, heads, workers), whole = heads - shared;
  const int64_t together = HeadsTogether(plan, heads, workers);
  const int64_t own = RoundUp(static_cast<int64_t>(sizeof(HeadWorker)), 64);
  const int64_t each = own + together * bytes.head + bytes.worker;
  uint8_t* memory =
      workspace->Reserve(static_cast<size_t>(workers * each + WaveSpace(bytes, shared, workers)));
  if (memory == nullptr) return kNoMemory;
  const auto worker_at = [&](int64_t worker) {
    return reinterpret_cast<HeadWorker*>(memory + worker * each);
  };
  const auto scratch_at = [&](int64_t worker) {
    return memory + worker * each + own + together * bytes.head;
  };
  for (int64_t w = 0; w < workers; ++w) {
    for (int64_t i = 0; i < together; ++i) {
      worker_at(w)->heads[i] = HeadAt<Kernels>(plan, 0, memory + w * each + own + i * bytes.head);
    }
    worker_at(w)->prepass = PrepassScratchAt(plan, scratch_at(w));
    worker_at(w)->attend = AttendScratchAt<Kernels>(plan, scratch_at(w));
  }
  const Wave<Kernels> wave =
      OpenWave<Kernels>(plan, bytes, whole, shared, workers, memory + workers * each);
  // Workers take heads in turns, more or less.
  const int64_t ahead = MaxOf(together, HeadsAhead(plan) / together * together) * workers;
  const int64_t tasks = (whole + together - 1) / together;
  ParallelFor(tasks + wave.stages.Pieces(), workers, [&](int64_t task, int worker) {
    if (IsCancelled(plan)) return;
    if (task >= tasks) return wave.Run(worker, scratch_at(worker));
    const int64_t first = task * together;
    RunHead<Kernels>(plan, first, MinOf(together, whole - first), first + ahead, worker_at(worker));
  });
  return IsCancelled(plan) ? kCancelled : Status{};
}

// All workers share the work of a wave of heads.
template <class Kernels>
SAGE_INLINE Status RunWaves(const Plan& plan, const Footprint& bytes, int64_t heads,
                            int most_threads, Workspace* workspace) {
  // Waves of one size: a last wave of few heads would be read into many caches.
  const int64_t fitting = MaxOf(1, WaveBytes(most_threads) / bytes.head);
  const int64_t waves = (heads + fitting - 1) / fitting;
  const int64_t most = (heads + waves - 1) / waves;
  const int threads =
      static_cast<int>(MinOf(most_threads, most * MaxOf(plan.row_blocks, plan.blocks)));
  uint8_t* memory = workspace->Reserve(
      static_cast<size_t>(threads * bytes.worker + WaveSpace(bytes, most, threads)));
  if (memory == nullptr) return kNoMemory;
  for (int64_t first = 0; first < heads; first += most) {
    const int64_t count = MinOf(most, heads - first);
    const Wave<Kernels> wave =
        OpenWave<Kernels>(plan, bytes, first, count, threads, memory + threads * bytes.worker);
    ParallelFor(wave.stages.Pieces(), threads, [&](int64_t /*task*/, int worker) {
      wave.Run(worker, memory + worker * bytes.worker);
    });
    if (IsCancelled(plan)) return kCancelled;
  }
  return Status{};
}

template <class Kernels>
SAGE_NOINLINE Status RunForward(const Problem& p, const ForwardBuffers& buffers,
                                const InspectionBuffers* inspect, const EngineOptions& options,
                                Workspace* workspace) {
  const Plan plan = MakePlan<Kernels>(p, buffers, inspect, options);
  const Footprint bytes = MeasureFootprint<Kernels>(plan);
  const int64_t heads = p.batch * p.kv_heads;
  return HeadsAreTasks(heads, options.threads)
             ? RunHeads<Kernels>(plan, bytes, heads, options.threads, workspace)
             : RunWaves<Kernels>(plan, bytes, heads, options.threads, workspace);
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_SCHEDULE_H_
