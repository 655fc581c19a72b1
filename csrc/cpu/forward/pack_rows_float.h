// Rows of Q, K and V straight from the caller's memory to the operands of tile_float.h, where they
// are not rounded (recipe `exact`): whole vectors of dims and finite values; the rest takes the
// general path (prepass.h, attend.h) and gives the same operands. What that one costs besides is a
// copy of every row.
#ifndef SAGE_CPU_FORWARD_PACK_ROWS_FLOAT_H_
#define SAGE_CPU_FORWARD_PACK_ROWS_FLOAT_H_

#include "cpu/forward/prepass.h"
#include "cpu/forward/tile_float.h"
#include "cpu/simd/simd_shuffle.h"

namespace sage {
namespace {

template <>
struct DirectRows<FloatKernels> {
  static constexpr bool kKeys = true, kValues = true, kScalesFirst = false;

  SAGE_INLINE bool Serves(const Plan& plan) {
    return plan.problem->recipe.precision == Precision::kExact;
  }

  // Tokens become columns of a key tile. kPlain: all 16 are there and go as they stand.
  template <bool kPlain>
  SAGE_INLINE F32 Columns(const Plan& plan, const Head& head, const Source& k, const float* mean,
                          int64_t first) {
    constexpr int kKeyTile = FloatKernels::kKeyTile;
    const F32 sign = Set1(plan.k_sign);
    F32 magnitudes = Zero();
    for (int t = 0; t < kPackTokens; t += kLanes) {
      const int64_t at = (first + t) % kKeyTile;
      float* tile = reinterpret_cast<float*>(head.k) + (first + t - at) * plan.qk_dims + at;
      for (int d = 0; d < plan.qk_dims; d += kLanes) {
        const F32 shift = kPlain || mean == nullptr ? Zero() : LoadU(mean + d);
        F32 part[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          const float* x = k.base + (t + i) * k.stride + d;
          part[i] = kPlain ? LoadU(x) : t + i < k.rows ? Mul(Sub(LoadU(x), shift), sign) : Zero();
          magnitudes = MaxMagnitude(magnitudes, part[i]);
        }
        Transpose(part);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) Store(tile + (d + i) * kKeyTile, part[i]);
      }
    }
    return magnitudes;
  }

  static constexpr int kTokens = kPackTokens;
  SAGE_NOINLINE bool Keys(const Plan& plan, const Head& head, const Source& k, const float* mean,
                          int64_t first) {
    if (!Serves(plan)) return false;
    const bool plain = mean == nullptr && plan.k_sign > 0.0f && k.rows == kPackTokens;
    const F32 magnitudes = plain ? Columns<true>(plan, head, k, mean, first)
                                 : Columns<false>(plan, head, k, mean, first);
    return ReduceMaxBits(magnitudes) < kInfBits;
  }

  SAGE_NOINLINE bool Values(const Plan& plan, const Head& head, const Source& v, int64_t first,
                            int padded) {
    if (!Serves(plan)) return false;
    F32 magnitudes = Zero();
    ForEachPanel<kFloatVectors>(plan.v_dims, [&](int vector, int count) {
      float* panel =
          reinterpret_cast<float*>(head.v) + (vector * plan.keys + first * count) * kLanes;
      for (int j = 0; j < padded; ++j, panel += count * kLanes) {
        const float* row = v.base + j * v.stride + vector * kLanes;
        for (int t = 0; t < count; ++t) {
          const F32 x = j < v.rows ? LoadU(row + t * kLanes) : Zero();
          magnitudes = MaxMagnitude(magnitudes, x);
          Store(panel + t * kLanes, x);
        }
      }
    });
    return ReduceMaxBits(magnitudes) < kInfBits;
  }

  // The `active` rows of group g of a task, whose queries lie at `row`; the softmax factor is
  // folded in.
  SAGE_NOINLINE bool Queries(const Plan& plan, const float* const row[kRows], int active, int64_t g,
                             uint8_t* q, F32* factor) {
    if (!Serves(plan)) return false;
    float* out = reinterpret_cast<float*>(q) + g * kRows * plan.qk_dims;
    const F32 by = Set1(plan.q_factor);
    F32 magnitudes = Zero();
    for (int r = 0; r < active; ++r, out += plan.qk_dims) {
      for (int d = 0; d < plan.qk_dims; d += kLanes) {
        const F32 x = LoadU(row[r] + d);
        magnitudes = MaxMagnitude(magnitudes, x);
        StoreU(out + d, Mul(x, by));
      }
    }
    *factor = Set1(1.0f);
    return ReduceMaxBits(magnitudes) < kInfBits;
  }
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_PACK_ROWS_FLOAT_H_
