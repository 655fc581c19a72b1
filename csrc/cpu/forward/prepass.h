// The last phase before attention: the packing of quantised K and V for the tile kernels. Rules:
// docs/numerics.md 2 to 4. Statistics come first (head_statistics.h).
#ifndef SAGE_CPU_FORWARD_PREPASS_H_
#define SAGE_CPU_FORWARD_PREPASS_H_

#include <string.h>

#include "cpu/forward/finite_rows.h"
#include "cpu/forward/head_statistics.h"
#include "cpu/forward/load_rows.h"
#include "cpu/forward/norm_rows.h"
#include "cpu/forward/plan.h"
#include "cpu/forward/quantize_rows.h"

namespace sage {
namespace {

// Quantised K of the tokens from `first` on in scratch.x, which holds k' (zeros from its rows up to
// `padded`), their scales, and k' in scratch.copy where the Q mean needs it. `factor`, if there:
// what multiplies rows of int8 to codes, which are left for the packing to round.
SAGE_INLINE void QuantizeK(const Plan& plan, const Head& head, const Source& k, bool finite,
                           int64_t first, int padded, const PrepassScratch& scratch,
                           float* factor) {
  const Recipe& recipe = plan.problem->recipe;
  const int dims = plan.qk_dims;
  float* x = scratch.x;
  float* scale = head.k_scale + first;
  if (!finite) ScrubRows(k, dims, x);
  if (recipe.smooth_q > 0)
    memcpy(scratch.copy, x, sizeof(float) * static_cast<size_t>(k.rows) * dims);
  for (int t = 0; t < k.rows; ++t) scale[t] = 1.0f;
  switch (recipe.qk) {
    case QkFormat::kFloat32:
      break;
    case QkFormat::kInt16:
    case QkFormat::kInt8Pair:
      QuantizeByNorm(x, k.rows, dims,
                     recipe.qk == QkFormat::kInt16 ? NormRule::kInt16 : NormRule::kPairK, scale);
      break;
    case QkFormat::kInt8:
    case QkFormat::kInt4: {
      float inverse[kBlock];
      IntegerScales(x, k.rows, dims, recipe.qk == QkFormat::kInt4 ? 7.0f : 127.0f, recipe.k_group,
                    scale, inverse);
      for (int t = 0; t < k.rows; ++t) {
        if (factor != nullptr) {
          factor[t] = inverse[t];
        } else {
          RoundRow(x + t * dims, dims, inverse[t], recipe.rounding);
        }
      }
      break;
    }
    case QkFormat::kNvfp4:
      for (int t = 0; t < k.rows; ++t) {
        float* row = x + t * dims;
        for (int d = 0; d < dims; ++d) row[d] = row[d] * (head.k_power * head.k_balance[d]);
        if (plan.rotation > 0) RotateRow(row, dims, plan.rotation);
        for (int d = 0; d < dims; d += 16) QuantizeNvfp4Group(row + d, recipe.four_six);
        scale[t] = 1.0f / head.k_power;
      }
      break;
  }
  for (int t = k.rows; t < padded; ++t) {
    scale[t] = 0.0f;
    if (factor != nullptr) factor[t] = 0.0f;
  }
  memset(x + k.rows * dims, 0, sizeof(float) * static_cast<size_t>(padded - k.rows) * dims);
}

// The same for up to 16 tokens of the formats that norms limit, where every value is finite (false:
// some are not): `factor` is what multiplies x to codes.
SAGE_INLINE bool ScaleKeysByNorm(const Plan& plan, const Head& head, const Source& k,
                                 const float* mean, int64_t first, int padded, float* x,
                                 float* factor) {
  const int dims = plan.qk_dims;
  const NormRule rule =
      plan.problem->recipe.qk == QkFormat::kInt16 ? NormRule::kInt16 : NormRule::kPairK;
  const float* row[kNormRows];
  for (int t = 0; t < k.rows; ++t) row[t] = k.base + t * k.stride;
  float* scale = head.k_scale + first;
  if (ScaleByNorm(row, k.rows, k.dim, dims, mean, rule, x, factor, scale) >= kInfBits) return false;
  for (int t = k.rows; t < padded; ++t) scale[t] = factor[t] = 0.0f;
  memset(x + k.rows * dims, 0, sizeof(float) * static_cast<size_t>((padded - k.rows) * dims));
  return true;
}

// Whether V's codes are integers with one scale per channel, rounded to even and not smoothed.
SAGE_INLINE bool VCodesAreIntegers(const Recipe& recipe) {
  return (recipe.pv == PvFormat::kInt16 || recipe.pv == PvFormat::kInt8) &&
         recipe.v_scale == VScale::kChannel && recipe.rounding == Rounding::kEven &&
         recipe.smooth_v == 0;
}

// Quantised V of the tokens from `first` on in scratch.x (code values).
SAGE_INLINE void QuantizeV(const Plan& plan, const Head& head, const Source& v, bool finite,
                           int64_t first, int padded, const PrepassScratch& scratch) {
  const Recipe& recipe = plan.problem->recipe;
  const int dims = plan.v_dims;
  float* x = scratch.x;
  if (recipe.smooth_v > 0) {
    SubtractMean(x, v.rows, v.dim, dims, head.v_mean + first / kBlock * dims);
  }
  if (!finite) ScrubRows(v, dims, x);
  memset(x + v.rows * dims, 0, sizeof(float) * static_cast<size_t>(padded - v.rows) * dims);
  const float* inverse = head.v_inverse;
  switch (recipe.pv) {
    case PvFormat::kFloat32:
      break;
    case PvFormat::kBf16:
      for (int i = 0; i < v.rows * dims; ++i) x[i] = RoundBf16(x[i]);
      break;
    case PvFormat::kFp16:
      for (int t = 0; t < v.rows; ++t) {
        for (int d = 0; d < dims; ++d) x[t * dims + d] = RoundFp16(x[t * dims + d] * inverse[d]);
      }
      break;
    case PvFormat::kE4m3:
      for (int t = 0; t < v.rows; ++t) {
        for (int d = 0; d < dims; ++d) x[t * dims + d] = RoundE4m3(x[t * dims + d] * inverse[d]);
      }
      break;
    case PvFormat::kInt16:
    case PvFormat::kInt8:
      if (recipe.v_scale == VScale::kBlock64) {
        for (int t = 0; t < v.rows; t += 64) {
          const int count = static_cast<int>(MinOf(64, v.rows - t)) * dims;
          const ScalePair pair = ScaleOf(MaxBits(x + t * dims, count), recipe.v_top);
          RoundRow(x + t * dims, count, pair.inverse, recipe.rounding);
          // The scale varies along the keys, so it cannot wait for the end of the row as a
          // channel's does.
          for (int i = t * dims; i < t * dims + count; ++i) x[i] = x[i] * pair.scale;
        }
      } else if (recipe.rounding == Rounding::kEven) {
        // dims of V are whole vectors.
        for (int t = 0; t < v.rows; ++t) {
          float* row = x + t * dims;
          for (int d = 0; d < dims; d += kLanes) {
            StoreU(row + d, RoundCodes(Mul(LoadU(row + d), LoadU(inverse + d))));
          }
        }
      } else {
        for (int t = 0; t < v.rows; ++t) {
          for (int d = 0; d < dims; ++d)
            x[t * dims + d] = RoundHalfAway(x[t * dims + d] * inverse[d]);
        }
      }
      break;
    case PvFormat::kNvfp4:
      for (int t = 0; t < v.rows; t += 16) {
        for (int d = 0; d < dims; ++d) {
          float group[16];
          for (int i = 0; i < 16; ++i) group[i] = x[(t + i) * dims + d] * head.v_power;
          QuantizeNvfp4Group(group, recipe.four_six);
          for (int i = 0; i < 16; ++i) x[(t + i) * dims + d] = group[i];
        }
      }
      break;
  }
}

// Adds the rounded values of x (codes of V) to the sums of their channels, and how many they stand
// for.
SAGE_INLINE void CountRounded(const Plan& plan, const Source& v, bool finite,
                              const PrepassScratch& scratch) {
  for (int t = 0; t < v.rows; ++t) {
    const float* x = scratch.x + t * plan.v_dims;
    const float* row = v.base + t * v.stride;
    for (int d = 0; d < v.dim; ++d) {
      scratch.sum[d] += static_cast<double>(x[d]);
      scratch.count[d] += finite || IsFiniteValue(row[d]) ? 1.0 : 0.0;
    }
  }
}

// What is put back of a block's mean of V: less the mean of the rounded values (docs/numerics.md
// 3).
SAGE_NOINLINE void TakeOffMeanOfRounded(const Plan& plan, const Head& head, int64_t block,
                                        const PrepassScratch& scratch) {
  float* mean = head.v_mean + block * plan.v_dims;
  for (int64_t d = 0; d < plan.problem->v_dim; ++d) {
    if (scratch.count[d] == 0.0) continue;
    const double rounded = scratch.sum[d] * static_cast<double>(head.v_scale[d]) / scratch.count[d];
    mean[d] = static_cast<float>(static_cast<double>(mean[d]) - rounded);
  }
}

// Ways from the caller's rows to packed operands without a stop in memory, for kernels that have
// them (pack_rows_avx512.h, pack_words_avx512.h). They serve plans with packs_rows, and values that
// are finite; keys are handed over by kTokens, values by plan.pack_tokens.
template <class Kernels>
struct DirectRows {
  static constexpr bool kKeys = false, kValues = false, kScalesFirst = false;
};

// Quantise up to plan.pack_tokens tokens of K or V from `first` on, `padded` with padding, and hand
// them to the kernels' packing.
template <class Kernels>
SAGE_INLINE void PackKeys(const Plan& plan, Head* head, int64_t first, int padded,
                          const PrepassScratch& scratch) {
  const Problem& p = *plan.problem;
  const Source k = KSource(plan, *head, first, plan.pack_tokens);
  const float* k_mean = p.recipe.smooth_k ? head->k_mean : nullptr;
  const InspectionBuffers* inspect = plan.inspect;
  float factors[kBlock];
  float* factor = nullptr;
  if (plan.scales_by_norm &&
      ScaleKeysByNorm(plan, *head, k, k_mean, first, padded, scratch.x, factors)) {
    if (Kernels::kRoundsCodes) {
      factor = factors;
    } else {
      for (int t = 0; t < k.rows; ++t) {
        RoundCodes(scratch.x + t * plan.qk_dims, plan.qk_dims, factors[t]);
      }
    }
  } else {
    const bool finite = LoadRows(k, plan.qk_dims, scratch.x, k_mean) < kInfBits;
    if (!finite) MarkTokens(k, kNotFiniteK, head->not_finite + first, &head->any_not_finite);
    if (Kernels::kRoundsCodes && RoundedByPacking(plan, p.recipe.k_group)) factor = factors;
    QuantizeK(plan, *head, k, finite, first, padded, scratch, factor);
  }
  const int64_t kv_at = (head->batch * p.kv_heads + head->kv_head) * p.kv_len + first;
  if (inspect != nullptr && inspect->k_codes != nullptr) {
    for (int t = 0; t < k.rows; ++t) {
      memcpy(inspect->k_codes + (kv_at + t) * plan.code_dims, scratch.x + t * plan.qk_dims,
             sizeof(float) * static_cast<size_t>(plan.code_dims));
    }
  }
  if (inspect != nullptr && inspect->k_scale != nullptr) {
    memcpy(inspect->k_scale + kv_at, head->k_scale + first,
           sizeof(float) * static_cast<size_t>(k.rows));
  }
  if (plan.k_sign < 0.0f) {
    for (int t = 0; t < padded; ++t) head->k_scale[first + t] *= plan.k_sign;
  }
  Kernels::PackK(plan, *head, first, k.rows, padded, scratch.x, scratch.copy, factor);
}

template <class Kernels>
SAGE_INLINE void PackValues(const Plan& plan, Head* head, int64_t first, int padded,
                            const PrepassScratch& scratch) {
  const Problem& p = *plan.problem;
  const Source v = VSource(plan, *head, first, plan.pack_tokens);
  if constexpr (DirectRows<Kernels>::kValues) {
    if (plan.packs_rows && DirectRows<Kernels>::Values(plan, *head, v, first, padded)) return;
  }
  bool finite = VCodesAreIntegers(p.recipe) &&
                LoadCodes(v, plan.v_dims, head->v_inverse, padded, scratch.x) < kInfBits;
  if (!finite) {
    finite = LoadRows(v, plan.v_dims, scratch.x) < kInfBits;
    if (!finite) MarkTokens(v, kNotFiniteV, head->not_finite + first, &head->any_not_finite);
    QuantizeV(plan, *head, v, finite, first, padded, scratch);
    if (p.recipe.smooth_v > 0) CountRounded(plan, v, finite, scratch);
  }
  const InspectionBuffers* inspect = plan.inspect;
  const int64_t kv_at = (head->batch * p.kv_heads + head->kv_head) * p.kv_len + first;
  if (inspect != nullptr && inspect->v_codes != nullptr) {
    for (int t = 0; t < v.rows; ++t) {
      memcpy(inspect->v_codes + (kv_at + t) * p.v_dim, scratch.x + t * plan.v_dims,
             sizeof(float) * static_cast<size_t>(p.v_dim));
    }
  }
  if (inspect != nullptr && inspect->v_scale != nullptr && first == 0) {
    memcpy(inspect->v_scale + (head->batch * p.kv_heads + head->kv_head) * p.v_dim, head->v_scale,
           sizeof(float) * static_cast<size_t>(p.v_dim));
  }
  Kernels::PackV(plan, *head, first, padded, scratch.x);
}

// Calls fn(first token, tokens with padding) for the tokens of a block, `together` at a time.
template <class Kernels, class Fn>
SAGE_INLINE void ForEachPack(const Plan& plan, int64_t block, int64_t together, const Fn& fn) {
  const int64_t begin = block * kBlock;
  const int64_t tokens = MinOf(kBlock, plan.problem->kv_len - begin);
  // Keys are multiplied up to a whole 16 of those seen (attend.h); what a tile holds beyond is
  // never read.
  const int64_t end = begin + RoundUp(tokens, kPackTokens == 16 ? 16 : kKeyMultiple<Kernels>);
  for (int64_t first = begin; first < end; first += together) {
    fn(first, static_cast<int>(MinOf(together, end - first)));
  }
}

// Phase 3: one block of K, packed.
template <class Kernels>
SAGE_NOINLINE void PackKBlock(const Plan& plan, Head* head, int64_t block,
                              const PrepassScratch& scratch) {
  memset(head->not_finite + block * kBlock, 0, kBlock);
  if constexpr (DirectRows<Kernels>::kKeys) {
    using Direct = DirectRows<Kernels>;
    if (plan.packs_rows) {
      const float* mean = plan.problem->recipe.smooth_k ? head->k_mean : nullptr;
      ForEachPack<Kernels>(plan, block, Direct::kTokens, [&](int64_t first, int padded) {
        const Source k = KSource(plan, *head, first, Direct::kTokens);
        if (Direct::Keys(plan, *head, k, mean, first)) return;
        for (int t = 0; t < padded; t += kPackTokens) {
          PackKeys<Kernels>(plan, head, first + t, kPackTokens, scratch);
        }
      });
      return;
    }
  }
  ForEachPack<Kernels>(plan, block, plan.pack_tokens, [&](int64_t first, int padded) {
    PackKeys<Kernels>(plan, head, first, padded, scratch);
  });
}

// Phase 3: one block of V, after its K.
template <class Kernels>
SAGE_NOINLINE void PackVBlock(const Plan& plan, Head* head, int64_t block,
                              const PrepassScratch& scratch) {
  const bool smoothed = plan.problem->recipe.smooth_v > 0;
  if (smoothed) {
    const size_t bytes = sizeof(double) * static_cast<size_t>(plan.v_dims);
    memset(scratch.sum, 0, bytes);
    memset(scratch.count, 0, bytes);
  }
  ForEachPack<Kernels>(plan, block, plan.pack_tokens, [&](int64_t first, int padded) {
    PackValues<Kernels>(plan, head, first, padded, scratch);
  });
  if (smoothed) TakeOffMeanOfRounded(plan, *head, block, scratch);
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_PREPASS_H_
