// Statistics of K, V and Q per 128-token block, and their reduction per head: phases 1 and 2 of a
// forward call (prepass.h has the third). Rules: docs/numerics.md 2 to 4.
//
// Tasks are (head of the wave, block): any order and any thread give the same bits, because each
// block's statistics land in their own place and are reduced in block order.
#ifndef SAGE_CPU_FORWARD_HEAD_STATISTICS_H_
#define SAGE_CPU_FORWARD_HEAD_STATISTICS_H_

#include <string.h>

#include "cpu/forward/channel_balance.h"
#include "cpu/forward/column_statistics.h"
#include "cpu/forward/finite_rows.h"
#include "cpu/forward/load_rows.h"
#include "cpu/forward/norm_rows.h"
#include "cpu/forward/plan.h"
#include "cpu/forward/quantize_rows.h"

namespace sage {
namespace {

SAGE_INLINE float MeanOf(double sum, double count) {
  return count > 0.0 ? static_cast<float>(sum / count) : 0.0f;
}

// Scratch of one worker in the prepass: two blocks of rows (values, and the unquantised copy that
// the Q mean needs).
struct PrepassScratch {
  float* x;
  float* copy;
  double* sum;
  double* count;
};

SAGE_INLINE PrepassScratch CarvePrepass(const Plan& plan, Carver* carver) {
  const int64_t widest = MaxOf(plan.qk_dims, plan.v_dims);
  PrepassScratch scratch;
  scratch.x = carver->Take<float>(kBlock * widest);
  scratch.copy = carver->Take<float>(kBlock * widest);
  scratch.sum = carver->Take<double>(widest);
  scratch.count = carver->Take<double>(widest);
  return scratch;
}

// Phase 1, K: block sums, spreads of channels, the largest magnitude.
SAGE_NOINLINE void KStatistics(const Plan& plan, Head* head, int64_t block) {
  const Recipe& recipe = plan.problem->recipe;
  const Source k = KSource(plan, *head, block * kBlock, kBlock);
  if (recipe.smooth_k || recipe.head_exponent) {
    double* sum = head->k_sum + block * k.dim;
    double* count = head->k_count + block * k.dim;
    bool finite;
    if (recipe.head_exponent) {
      const int32_t bits = SumColumns(k.base, k.stride, k.rows, k.dim, sum);
      finite = bits < kInfBits;
      head->block_max[2 * block] =
          finite ? BitsToFloat(static_cast<uint32_t>(bits)) : LargestFinite(k);
    } else {
      finite = SumFiniteColumns(k.base, k.stride, k.rows, k.dim, sum);
    }
    if (!finite) {
      SumRows(k, false, sum, count);
    } else {
      for (int d = 0; d < k.dim; ++d) count[d] = k.rows;
    }
  }
  if (recipe.balance) {
    float* spread = head->k_spread + block * k.dim;
    memset(spread, 0, sizeof(float) * static_cast<size_t>(k.dim));
    RaiseSpreads(k, recipe.smooth_k, spread);
  }
}

// Phase 1, V: block means, channel maxima, the largest magnitude.
SAGE_NOINLINE void VStatistics(const Plan& plan, Head* head, int64_t block,
                               const PrepassScratch& scratch) {
  const Recipe& recipe = plan.problem->recipe;
  if (recipe.v_scale != VScale::kChannel && recipe.smooth_v == 0 && !recipe.head_exponent) return;
  const Source v = VSource(plan, *head, block * kBlock, kBlock);
  int32_t* most = reinterpret_cast<int32_t*>(head->v_max + block * plan.v_dims);
  for (int d = 0; d < plan.v_dims; ++d) most[d] = 0;
  const int32_t bits = ColumnMaxima(v.base, v.stride, v.rows, v.dim, most);
  const bool finite = bits < kInfBits;
  head->block_max[2 * block + 1] =
      finite ? BitsToFloat(static_cast<uint32_t>(bits)) : LargestFinite(v);
  if (!finite) __atomic_fetch_or(&head->any_not_finite, kNotFiniteV, __ATOMIC_RELAXED);
  if (recipe.smooth_v == 0 && finite) return;
  LoadRows(v, plan.v_dims, scratch.x);
  if (recipe.smooth_v > 0) {
    float* mean = head->v_mean + block * plan.v_dims;
    SumRows(v, finite, scratch.sum, scratch.count);
    for (int d = 0; d < plan.v_dims; ++d) {
      mean[d] = d < v.dim ? MeanOf(scratch.sum[d], scratch.count[d]) : 0.0f;
    }
    SubtractMean(scratch.x, v.rows, v.dim, plan.v_dims, mean);
  }
  if (!finite) ScrubRows(v, plan.v_dims, scratch.x);
  ColumnMaxima(scratch.x, plan.v_dims, v.rows, v.dim, most);
}

// Phase 1, Q: means of blocks of rows, group scales that span rows, head maxima.
SAGE_NOINLINE void QStatistics(const Plan& plan, Head* head, int64_t g, int64_t block,
                               const PrepassScratch& scratch) {
  const Problem& p = *plan.problem;
  const Recipe& recipe = p.recipe;
  const int64_t first = block * kBlock;
  const Source q = QSource(plan, *head, g, first, MinOf(kBlock, p.q_len - first));
  const int32_t bits = LoadRows(q, plan.qk_dims, scratch.x);
  const bool finite = bits < kInfBits;
  head->q_max[g * plan.q_blocks + block] =
      finite ? BitsToFloat(static_cast<uint32_t>(bits)) : LargestFinite(q);
  if (recipe.balance) {
    float* spread = head->q_spread + (g * plan.q_blocks + block) * q.dim;
    memset(spread, 0, sizeof(float) * static_cast<size_t>(q.dim));
    const int part_rows = recipe.smooth_q > 0 ? recipe.smooth_q : static_cast<int>(kBlock);
    for (int t = 0; t < q.rows; t += part_rows) {
      const int rows = static_cast<int>(MinOf(part_rows, q.rows - t));
      RaiseSpreads({q.base + t * q.stride, q.stride, rows, q.dim}, recipe.smooth_q > 0, spread);
    }
  }
  if (recipe.smooth_q > 0) {
    const int per_mean = recipe.smooth_q;
    const int64_t means = (p.q_len + per_mean - 1) / per_mean;
    for (int t = 0; t < q.rows; t += per_mean) {
      const int rows = static_cast<int>(MinOf(per_mean, q.rows - t));
      float* mean = head->q_mean + (g * means + (first + t) / per_mean) * q.dim;
      float* x = scratch.x + t * plan.qk_dims;
      const Source part = {q.base + t * q.stride, q.stride, rows, q.dim};
      SumRows(part, finite, scratch.sum, scratch.count);
      for (int d = 0; d < q.dim; ++d) mean[d] = MeanOf(scratch.sum[d], scratch.count[d]);
      SubtractMean(x, rows, q.dim, plan.qk_dims, mean);
    }
  }
  if (recipe.q_group == TokenGroup::kToken) return;
  if (!finite) ScrubRows(q, plan.qk_dims, scratch.x);
  const int64_t at = g * plan.q_blocks * kBlock + first;
  const float top = recipe.qk == QkFormat::kInt4 ? 7.0f : 127.0f;
  IntegerScales(scratch.x, q.rows, plan.qk_dims, top, recipe.q_group, head->q_scale + at,
                head->q_inverse + at);
}

// The largest of one kind of head.block_max: 0 of K, 1 of V.
SAGE_INLINE float LargestOfBlocks(const Plan& plan, const Head& head, int kind) {
  float most = 0.0f;
  for (int64_t block = 0; block < plan.blocks; ++block) {
    const float value = head.block_max[2 * block + kind];
    most = value > most ? value : most;
  }
  return most;
}

// Phase 2: statistics of the blocks of K and Q become those of the head.
SAGE_NOINLINE void ReduceKStatistics(const Plan& plan, Head* head) {
  const Problem& p = *plan.problem;
  const Recipe& recipe = p.recipe;
  if (recipe.smooth_k) {
    int64_t d = 0;
    for (; d + kHalfLanes <= p.qk_dim; d += kHalfLanes) {
      MeansOfChannels(head->k_sum + d, head->k_count + d, p.qk_dim, plan.blocks, head->k_mean + d);
    }
    for (; d < p.qk_dim; ++d) {
      double sum = 0.0, count = 0.0;
      for (int64_t block = 0; block < plan.blocks; ++block) {
        sum += head->k_sum[block * p.qk_dim + d];
        count += head->k_count[block * p.qk_dim + d];
      }
      head->k_mean[d] = MeanOf(sum, count);
    }
  }
  if (recipe.qk == QkFormat::kNvfp4) {
    for (int d = 0; d < plan.qk_dims; ++d) head->k_balance[d] = head->q_balance[d] = 1.0f;
    if (recipe.balance) BalanceHead(plan, head);
  }
  const bool powers = recipe.head_exponent && recipe.qk == QkFormat::kNvfp4;
  head->k_power = powers ? HeadPower(LargestOfBlocks(plan, *head, 0)) : 1.0f;
  for (int64_t g = 0; g < plan.group; ++g) {
    head->q_power[g] = 1.0f;
    if (!recipe.head_exponent || recipe.qk != QkFormat::kNvfp4) continue;
    float most = 0.0f;
    for (int64_t block = 0; block < plan.q_blocks; ++block) {
      const float value = head->q_max[g * plan.q_blocks + block];
      most = value > most ? value : most;
    }
    head->q_power[g] = HeadPower(most);
  }
}

// The same for V.
SAGE_NOINLINE void ReduceVStatistics(const Plan& plan, Head* head) {
  const Recipe& recipe = plan.problem->recipe;
  const bool powers = recipe.head_exponent && recipe.pv == PvFormat::kNvfp4;
  head->v_power = powers ? HeadPower(LargestOfBlocks(plan, *head, 1)) : 1.0f;
  if (recipe.v_scale != VScale::kChannel) {
    const float scale = recipe.pv == PvFormat::kNvfp4 ? 1.0f / head->v_power : 1.0f;
    for (int d = 0; d < plan.v_dims; ++d) {
      head->v_scale[d] = scale;
      head->v_inverse[d] = 1.0f;
    }
    return;
  }
  // Dims of V are whole vectors.
  for (int d = 0; d < plan.v_dims; d += kLanes) {
    F32 most = Zero();
    for (int64_t block = 0; block < plan.blocks; ++block) {
      most = MaxMagnitude(most, Load(head->v_max + block * plan.v_dims + d));
    }
    F32 scale, inverse;
    ScalesOf(most, recipe.v_top, &scale, &inverse);
    Store(head->v_scale + d, scale);
    Store(head->v_inverse + d, inverse);
  }
  if (recipe.pv != PvFormat::kFp16) return;
  for (int d = 0; d < plan.v_dims; ++d) {
    float most = 0.0f;
    for (int64_t block = 0; block < plan.blocks; ++block) {
      const float here = head->v_max[block * plan.v_dims + d];
      most = here > most ? here : most;
    }
    // A power of two, so that values within fp16's range keep every bit.
    float scale = 1.0f;
    while (most / scale > 65504.0f) scale *= 2.0f;
    head->v_scale[d] = scale;
    head->v_inverse[d] = 1.0f / scale;
  }
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_HEAD_STATISTICS_H_
