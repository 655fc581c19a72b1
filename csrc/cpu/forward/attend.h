// One attention task: a block of rows of one key/value head against all keys they see, by online
// softmax.
//
//   for each block of 256 keys:                          scores s = q k          6 rows x block, in
//   L1
//     for each group of 6 rows:                          m' = max(m, max s)      per row, log2
//     domain
//       scores, mask, softmax, outputs                   p = 2^(s - m'), l = l 2^(m - m') + sum p
//                                                        o = o 2^(m - m') + p v
//   o / l, V's scale and mean, lse
//
// Blocks of keys that no row of a group sees are skipped; only blocks that cross a limit
// (causality, window, kv_len) or carry a mask pay for masking. A row's sums run over keys in order,
// whatever the thread count.
#ifndef SAGE_CPU_FORWARD_ATTEND_H_
#define SAGE_CPU_FORWARD_ATTEND_H_

#include <math.h>
#include <string.h>

#include "cpu/forward/attend_tile.h"
#include "cpu/forward/fetch_ahead.h"
#include "cpu/forward/mask_row.h"
#include "cpu/forward/plan.h"
#include "cpu/forward/prepass.h"
#include "cpu/simd/simd_shuffle.h"

namespace sage {
namespace {

// A zero factor (all-zero row) times a hidden score would be NaN; all its scores are 0, so any
// positive factor serves.
SAGE_INLINE float FactorOf(float c) { return c == 0.0f ? 1e-30f : c; }

// Quantises row r of the task and packs it; returns whether every value was finite.
template <class Kernels>
SAGE_NOINLINE void PrepareRow(const Plan& plan, const Head& head, int64_t row, int64_t r,
                              const AttendScratch& scratch) {
  const Problem& p = *plan.problem;
  const Recipe& recipe = p.recipe;
  const int64_t i = row / plan.group, g = row % plan.group;
  const Source source = QSource(plan, head, g, i, 1);
  float* x = scratch.x;
  const int dims = plan.qk_dims;
  const bool finite = LoadRows(source, dims, x) < kInfBits;
  scratch.bad[r] = !finite;
  const float* mean = nullptr;
  if (recipe.smooth_q > 0) {
    const int64_t means = (p.q_len + recipe.smooth_q - 1) / recipe.smooth_q;
    mean = head.q_mean + (g * means + i / recipe.smooth_q) * p.qk_dim;
    SubtractMean(x, 1, source.dim, dims, mean);
  }
  if (!finite) ScrubRows(source, dims, x);
  float scale = 1.0f;
  switch (recipe.qk) {
    case QkFormat::kFloat32:
      break;
    case QkFormat::kInt16:
      QuantizeByNorm(x, 1, dims, NormRule::kInt16, &scale);
      break;
    case QkFormat::kInt8Pair:
      QuantizeByNorm(x, 1, dims, NormRule::kPairQ, &scale);
      break;
    case QkFormat::kInt8:
    case QkFormat::kInt4: {
      ScalePair pair;
      if (recipe.q_group == TokenGroup::kToken) {
        pair = ScaleOf(MaxBits(x, dims), recipe.qk == QkFormat::kInt4 ? 7.0f : 127.0f);
      } else {
        const int64_t at = g * plan.q_blocks * kBlock + i;
        pair = {head.q_scale[at], head.q_inverse[at]};
      }
      scale = pair.scale;
      RoundRow(x, dims, pair.inverse, recipe.rounding);
      break;
    }
    case QkFormat::kNvfp4:
      for (int d = 0; d < dims; ++d) {
        x[d] = x[d] * (head.q_power[g] * head.q_balance[d]);
      }
      if (plan.rotation > 0) RotateRow(x, dims, plan.rotation);
      for (int d = 0; d < dims; d += 16) QuantizeNvfp4Group(x + d, recipe.four_six);
      scale = 1.0f / head.q_power[g];
      break;
  }
  const InspectionBuffers* inspect = plan.inspect;
  if (inspect != nullptr) {
    const int64_t at = (head.batch * p.q_heads + head.kv_head * plan.group + g) * p.q_len + i;
    if (inspect->q_codes != nullptr) {
      memcpy(inspect->q_codes + at * plan.code_dims, x,
             sizeof(float) * static_cast<size_t>(plan.code_dims));
    }
    if (inspect->q_scale != nullptr) inspect->q_scale[at] = scale;
  }
  const float c = Kernels::PackQ(plan, scratch.q, r, x, 1.0f, scale, mean);
  scratch.c[LaneOf(r)] = FactorOf(c);
}

// Where the queries of kCount rows of the task from r0 on lie; padding repeats the task's last row.
template <int kCount = kRows>
SAGE_INLINE void GroupRows(const Plan& plan, const Head& head, int64_t row0, int64_t rows,
                           int64_t r0, const float* (&row)[kCount]) {
  if (plan.group == 1) {
    const Source q = QSource(plan, head, 0, row0 + r0, 1);
    return StepRows(q.base, q.stride, rows - r0, row);
  }
  RowWalk at = WalkFrom(plan, row0 + r0);
  for (int r = 0; r < kCount; ++r) {
    row[r] = QSource(plan, head, at.g, at.i, 1).base;
    if (r0 + r + 1 < rows) at.Next(plan);
  }
}

// The factors of group `g`'s scores, FactorOf each; lanes without a row stay 0.
SAGE_INLINE void StoreFactors(const AttendScratch& scratch, int64_t g, F32 factor) {
  const F32 used = FirstLanes(kRows, Set1(FactorOf(0.0f)), Zero());
  const F32 c = FirstLanes(kRows, factor, Zero());
  Store(scratch.c + g * kGroupLanes, Add(c, Sub(used, ZeroWhereEqual(c, Zero(), used))));
  memset(scratch.bad + g * kRows, 0, kRows);
}

// Packs rows [r0, r0 + count) of the task: values x, what multiplies these to codes (null: they are
// codes), and their scales.
template <class Kernels>
SAGE_INLINE void PackRows(const Plan& plan, int64_t r0, int count, float* x, const float* factor,
                          const float* scale, const AttendScratch& scratch) {
  const int dims = plan.qk_dims;
  for (int r = 0; r < count; ++r, x += dims) {
    const bool rounds = factor != nullptr && Kernels::kRoundsCodes;
    if (factor != nullptr && !rounds) RoundCodes(x, dims, factor[r]);
    const float c =
        Kernels::PackQ(plan, scratch.q, r0 + r, x, rounds ? factor[r] : 1.0f, scale[r], nullptr);
    scratch.c[LaneOf(r0 + r)] = FactorOf(c);
    scratch.bad[r0 + r] = 0;
  }
}

// Quantises and packs the task's rows in a format that norms limit, kNormRows at a time. A bit for
// each group whose values are all finite; the others are left.
template <class Kernels>
SAGE_NOINLINE uint64_t PrepareByNorm(const Plan& plan, const Head& head, int64_t row0, int64_t rows,
                                     int64_t groups, const AttendScratch& scratch) {
  const NormRule rule =
      plan.problem->recipe.qk == QkFormat::kInt16 ? NormRule::kInt16 : NormRule::kPairQ;
  uint64_t left = 0;
  for (int64_t r0 = 0; r0 < rows; r0 += kNormRows) {
    const float* row[kNormRows];
    GroupRows<kNormRows>(plan, head, row0, rows, r0, row);
    const int count = static_cast<int>(MinOf(kNormRows, rows - r0));
    float scale[kNormRows], factor[kNormRows];
    if (ScaleByNorm(row, kNormRows, static_cast<int>(plan.problem->qk_dim), plan.qk_dims, nullptr,
                    rule, scratch.x, factor, scale) >= kInfBits) {
      for (int64_t r = r0; r < r0 + count; ++r) left |= uint64_t{1} << (r / kRows);
      continue;
    }
    PackRows<Kernels>(plan, r0, count, scratch.x, factor, scale, scratch);
    if (r0 + count < rows) continue;
    // Rows of padding repeat the last one, which PackRows may have turned into codes.
    const int last = count - 1;
    const float* by = Kernels::kRoundsCodes ? factor + last : nullptr;
    for (int64_t r = rows; r < groups * kRows; ++r) {
      PackRows<Kernels>(plan, r, 1, scratch.x + last * plan.qk_dims, by, scale + last, scratch);
    }
  }
  return ~left;
}

// Quantises and packs group `g` of the task. Codes with a scale for each row, by far the most
// common forms, take all scales in one go.
template <class Kernels>
SAGE_NOINLINE void PrepareGroup(const Plan& plan, const Head& head, int64_t row0, int64_t rows,
                                int64_t g, const AttendScratch& scratch) {
  const Problem& p = *plan.problem;
  const Recipe& recipe = p.recipe;
  const int64_t r0 = g * kRows;
  if constexpr (DirectRows<Kernels>::kKeys && !DirectRows<Kernels>::kScalesFirst) {
    const float* row[kRows];
    GroupRows(plan, head, row0, rows, r0, row);
    F32 c;
    const int active = ActiveRows<Kernels>(rows - r0);
    if (plan.packs_rows && DirectRows<Kernels>::Queries(plan, row, active, g, scratch.q, &c)) {
      StoreFactors(scratch, g, c);
      return;
    }
  }
  const int dims = plan.qk_dims;
  const auto pack = [&](const float* factor, const float* scale) {
    PackRows<Kernels>(plan, r0, kRows, scratch.x, factor, scale, scratch);
  };
  float scale[kRows], factor[kRows];
  const bool by_row = RoundedByPacking(plan, recipe.q_group);
  const bool together = (by_row || recipe.qk == QkFormat::kFloat32) && recipe.smooth_q == 0 &&
                        plan.inspect == nullptr;
  if (together) {
    const float* row[kRows];
    GroupRows(plan, head, row0, rows, r0, row);
    F32 all = Zero();
    for (int r = 0; r < kRows; ++r) {
      all = LoadRow(row[r], static_cast<int>(p.qk_dim), dims, all, scratch.x + r * dims,
                    [](F32 value, int, int) { return value; });
    }
    if (ReduceMaxBits(all) < kInfBits) {
      if (by_row) {
        TokenScales(scratch.x, kRows, dims, 127.0f, scale, factor);
        return pack(factor, scale);
      }
      for (int r = 0; r < kRows; ++r) scale[r] = 1.0f;
      return pack(nullptr, scale);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    PrepareRow<Kernels>(plan, head, RowOfGroup(row0, rows, r0, r), r0 + r, scratch);
  }
}

// All groups of the task.
template <class Kernels>
SAGE_INLINE void PrepareGroups(const Plan& plan, const Head& head, int64_t row0, int64_t rows,
                               int64_t groups, const AttendScratch& scratch) {
  for (int64_t g = 0; g < groups; ++g) BeginRows(plan, g, scratch);
  uint64_t packed = 0;  // a bit for each group
  if constexpr (DirectRows<Kernels>::kScalesFirst) {
    if (plan.packs_rows) {
      packed = DirectRows<Kernels>::Groups(plan, head, row0, rows, groups, scratch);
    }
  }
  if (packed == 0 && plan.scales_by_norm) {
    packed = PrepareByNorm<Kernels>(plan, head, row0, rows, groups, scratch);
  }
  for (int64_t g = 0; g < groups; ++g) {
    if ((packed >> g & 1) == 0) PrepareGroup<Kernels>(plan, head, row0, rows, g, scratch);
  }
}

// Marks the outputs of a row that attends to tokens of K or V with values that are not finite
// (docs/numerics.md 2).
SAGE_NOINLINE void MarkRow(const Plan& plan, const Head& head, int64_t i, int64_t q_head, float* o,
                           float* lse) {
  const Problem& p = *plan.problem;
  const MaskRow mask = MaskRowOf(plan, head.batch, q_head, i);
  const float nan = __builtin_nanf("");
  for (int64_t j = FirstKey(plan, i); j < EndKey(plan, i); ++j) {
    const uint8_t marks = head.not_finite[j];
    if (marks == 0 || !MaskAllows(mask, j)) continue;
    if (marks & kNotFiniteK) {
      for (int64_t d = 0; d < p.v_dim; ++d) o[d] = nan;
      if (lse != nullptr) *lse = nan;
      return;
    }
    const float* v =
        plan.buffers->v + head.batch * p.v.batch + head.kv_head * p.v.head + j * p.v.token;
    for (int64_t d = 0; d < p.v_dim; ++d) {
      if (!IsFiniteValue(v[d])) o[d] = nan;
    }
  }
}

// o = acc · code · V's scales.
SAGE_INLINE void ScaleOutputs(const float* acc, float code, const float* v_scale, int64_t v_dim,
                              float* o) {
  const F32 codes = Set1(code);
  int64_t d0 = 0;
  for (; d0 + kLanes <= v_dim; d0 += kLanes) {
    StoreU(o + d0, Mul(Load(acc + d0), Mul(codes, Load(v_scale + d0))));
  }
  for (; d0 < v_dim; ++d0) o[d0] = acc[d0] * (code * v_scale[d0]);
}

// o / l with V's scale and mean, and lse, for row r of the task.
SAGE_NOINLINE void FinishRow(const Plan& plan, const Head& head, int64_t row, int64_t r,
                             const AttendScratch& scratch) {
  const Problem& p = *plan.problem;
  const Recipe& recipe = p.recipe;
  const int64_t i = row / plan.group, q_head = head.kv_head * plan.group + row % plan.group;
  float* o = plan.buffers->o + head.batch * p.o.batch + q_head * p.o.head + i * p.o.token;
  float* lse = plan.buffers->lse == nullptr
                   ? nullptr
                   : plan.buffers->lse + (head.batch * p.q_heads + q_head) * p.q_len + i;
  const float l = scratch.l[LaneOf(r)];
  if (l == 0.0f) {
    for (int64_t d = 0; d < p.v_dim; ++d) o[d] = 0.0f;
    if (lse != nullptr) *lse = kMinusInf;
    return;
  }
  const bool rounded_sum = recipe.row_sum == RowSum::kQuantized;
  const float inverse = 1.0f / l;
  const float code = rounded_sum ? inverse : inverse / recipe.p_top;
  ScaleOutputs(scratch.o + r * plan.v_dims, code, head.v_scale, p.v_dim, o);
  if (recipe.smooth_v > 0) {
    const float* mean = scratch.o_mean + r * plan.v_dims;
    for (int64_t d = 0; d < p.v_dim; ++d) o[d] = o[d] + mean[d] * inverse;
  }
  if (lse != nullptr) {
    const double sum = rounded_sum ? scratch.exact[LaneOf(r)] : l;
    double value = kLn2 * (static_cast<double>(scratch.m[LaneOf(r)]) + log2(sum));
    if (recipe.smooth_k) {
      const float* q = plan.buffers->q + head.batch * p.q.batch + q_head * p.q.head + i * p.q.token;
      double dot = 0.0;
      for (int64_t d = 0; d < p.qk_dim; ++d)
        dot += static_cast<double>(q[d]) * static_cast<double>(head.k_mean[d]);
      value += p.scale * dot;
    }
    *lse = static_cast<float>(value);
  }
  if (scratch.bad[r]) {
    for (int64_t d = 0; d < p.v_dim; ++d) o[d] = __builtin_nanf("");
    if (lse != nullptr) *lse = __builtin_nanf("");
  } else if (head.any_not_finite != 0) {
    MarkRow(plan, head, i, q_head, o, lse);
  }
}

// FinishRow for a group: rows without lse, means and values that are not finite, by far the most
// common ones, take few instructions.
SAGE_INLINE void FinishGroup(const Plan& plan, const Head& head, const TaskRows& task, int64_t g,
                             const AttendScratch& scratch) {
  const Problem& p = *plan.problem;
  RowWalk at = WalkFrom(plan, task.row0 + g * kRows);
  for (int64_t r = g * kRows; r < MinOf(g * kRows + kRows, task.rows); ++r, at.Next(plan)) {
    const float l = scratch.l[LaneOf(r)];
    if (!task.plain || l == 0.0f || scratch.bad[r]) {
      FinishRow(plan, head, task.row0 + r, r, scratch);
      continue;
    }
    ScaleOutputs(scratch.o + r * plan.v_dims, (1.0f / l) / task.top, head.v_scale, p.v_dim,
                 task.o + at.g * p.o.head + at.i * p.o.token);
  }
}

// Of the keys from j0 on, those that group g of the task sees.
template <class Kernels>
SAGE_INLINE KeySpan FindKeys(const Plan& plan, const TaskRows& task, int64_t g, int64_t j0) {
  const int64_t top = QueryOf(plan, task.row0 + g * kRows);
  const int64_t bottom = QueryOf(plan, task.row0 + MinOf(g * kRows + kRows, task.rows) - 1);
  // Limits grow with the query.
  const int64_t from = FirstKey(plan, top), to = EndKey(plan, bottom);
  const int64_t skip = MaxOf(0, from - j0) / kBlock * kBlock;
  KeySpan keys;
  keys.first = j0 + skip;
  keys.count = MinOf(kScoreStride, to - j0) - skip;
  keys.multiplied = static_cast<int>(RoundUp(keys.count, 16));
  keys.padded = static_cast<int>(RoundUp(keys.count, Kernels::kSoftmaxKeys));
  // The softmax's padding beyond the keys multiplied is hidden by BeginTile; AMX has its own.
  const int64_t within = keys.first + (kRows == 6 ? keys.multiplied : keys.padded);
  keys.clip = FirstKey(plan, bottom) > keys.first || EndKey(plan, top) < within;
  keys.last = j0 + kScoreStride >= to;
  keys.steps = keys.count > 0 ? Kernels::FetchSteps(plan, keys.multiplied) : 0;
  return keys;
}

template <class Kernels>
SAGE_NOINLINE void AttendTask(const Plan& plan, const Head& head, int64_t number,
                              const AttendScratch& scratch, FetchAhead* fetch) {
  const TaskRows task = FindTaskRows(plan, head, number);
  const int64_t groups = (task.rows + kRows - 1) / kRows;
  PrepareGroups<Kernels>(plan, head, task.row0, task.rows, groups, scratch);
  const size_t o_bytes = sizeof(float) * static_cast<size_t>(groups * kRows * plan.v_dims);
  if (!Kernels::kBeginsOutputs) memset(scratch.o, 0, o_bytes);
  if (plan.problem->recipe.smooth_v > 0) memset(scratch.o_mean, 0, o_bytes);

  const int64_t first_i = QueryOf(plan, task.row0);
  const int64_t last_i = QueryOf(plan, task.row0 + task.rows - 1);
  const int64_t end = EndKey(plan, last_i);
  const int64_t start = FirstKey(plan, first_i) / kScoreStride * kScoreStride;
  // Without limits all groups see the same keys.
  const bool alike = plan.problem->window_left < 0 && plan.problem->window_right < 0;
  [[maybe_unused]] TilesAhead<Kernels> ahead(scratch);
  [[maybe_unused]] const bool goes_ahead =
      Kernels::kSoftmaxAhead && plan.problem->recipe.smooth_v == 0 && !WantsExactSum(plan);
  BeginTask(plan, head, fetch);
  uint64_t begun = 0, finished = 0;  // a bit for each group
  for (int64_t j0 = start; j0 < end; j0 += kScoreStride) {
    if (plan.cancelled != nullptr && plan.cancelled->load(std::memory_order_relaxed)) return;
    KeySpan keys;
    for (int64_t g = 0; g < groups; ++g) {
      if (g == 0 || !alike) keys = FindKeys<Kernels>(plan, task, g, j0);
      if (keys.count <= 0) continue;
      // Tasks of a head come in descending order: the queries that take these rows' places.
      const int64_t row = task.row0 + g * kRows;
      const int64_t next = keys.last && task.row0 > 0 ? row - plan.row_block : -1;
      BeginFetch(plan, row, keys.last ? MinOf(kRows, task.rows - g * kRows) : 0, next, keys.steps,
                 fetch);
      const uint64_t bit = uint64_t{1} << g;
      const bool fresh = (begun & bit) == 0;
      begun |= bit;
      if constexpr (Kernels::kSoftmaxAhead) {
        if (goes_ahead) {
          BeginTile<Kernels>(plan, head, task, g, keys, fresh, scratch, ahead.next, &fetch->lines);
          ahead.Advance(plan, head, task, scratch, &fetch->lines);
          if (const RowTile& done = *ahead.next; ahead.outputs && done.last) {
            if (!ahead.written) FinishGroup(plan, head, task, done.g, scratch);
            finished |= uint64_t{1} << done.g;
          }
          continue;
        }
      }
      const bool written =
          AttendTile<Kernels>(plan, head, task, g, keys, fresh, scratch, &fetch->lines);
      if (keys.last) {
        // At once, while the outputs are in L1, and so that the writes of one group go to memory
        // while the next computes.
        if (!written) FinishGroup(plan, head, task, g, scratch);
        finished |= bit;
      }
    }
  }
  if constexpr (Kernels::kSoftmaxAhead) {
    if (ahead.waiting) {
      SoftmaxAhead none = {};
      ahead.Outputs(plan, head, task, scratch, &none, &fetch->lines);
      if (ahead.written) finished |= uint64_t{1} << ahead.before->g;
    }
  }
  // Groups that attend to nothing.
  for (int64_t g = 0; g < groups; ++g) {
    if ((finished >> g & 1) == 0) FinishGroup(plan, head, task, g, scratch);
  }
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_ATTEND_H_
