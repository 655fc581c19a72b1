// Rows of Q, K and V straight from the caller's memory to the operands of tile_avx512.h in 16 bits
// (recipe `int16`; V of `int8_int16` too): whole chunks of 32 dims of Q and K, whole vectors of V,
// and finite values; the rest takes the general path (prepass.h, attend.h) and gives the same
// codes.
//
//   y = (x - mean) · unit, code = round(y · limit)                docs/numerics.md 4.4, norm_rows.h
//
// Three passes over 16 rows in L1: largest magnitudes, norms, codes in registers. y is computed
// again for the codes, two instructions, rather than stored and read: a store of 512 bits takes two
// cycles.
#ifndef SAGE_CPU_FORWARD_PACK_WORDS_AVX512_H_
#define SAGE_CPU_FORWARD_PACK_WORDS_AVX512_H_

#include <immintrin.h>

#include "cpu/forward/norm_rows.h"
#include "cpu/forward/pack_rows_avx512.h"

namespace sage {
namespace {

// Dims of one register of codes.
constexpr int kWordDims = 32;

// Codes of 32 dims as the packing instruction leaves them: dword w of the row is in lane
// WordDwords::LaneOfDword(w).
template <bool kMean>
SAGE_INLINE __m512i WordCodes(const float* x, F32 mean0, F32 mean1, F32 unit, F32 limit) {
  F32 a = LoadU(x), b = LoadU(x + 16);
  if (kMean) {
    a = Sub(a, mean0);
    b = Sub(b, mean1);
  }
  return _mm512_packs_epi32(_mm512_cvtps_epi32(Mul(Mul(a, unit), limit).r),
                            _mm512_cvtps_epi32(Mul(Mul(b, unit), limit).r));
}

// Units of 16 rows, and limits once these are known; functions of their own, for those of several
// rows in a row. False where some value is not finite.
template <bool kMean>
SAGE_NOINLINE bool WordUnits(const float* const row[16], int dims, const float* mean,
                             NormFactors* by) {
  return UnitsByNorm<kMean>(row, 16, dims, mean, by) < kInfBits;
}
template <bool kMean>
SAGE_NOINLINE void WordLimits(const float* const row[16], int dims, const float* mean,
                              NormFactors* by) {
  LimitsByNorm<NormRule::kInt16, kMean, false>(row, 16, dims, dims, mean, nullptr, by);
}

// 16 keys to columns of a tile of 64 (dwords 256 bytes apart); `tile` is that of the first.
template <bool kMean>
SAGE_NOINLINE void PackWordRows(const float* const row[16], int dims, const float* mean,
                                const NormFactors& by, uint8_t* tile) {
  for (int d = 0; d < dims; d += kWordDims, tile += 16 * 256) {
    const F32 mean0 = kMean ? LoadU(mean + d) : Zero(),
              mean1 = kMean ? LoadU(mean + d + 16) : mean0;
    F32 line[16];
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) {
      line[t].r = _mm512_castsi512_ps(
          WordCodes<kMean>(row[t] + d, mean0, mean1, Set1(by.unit[t]), Set1(by.limit[t])));
    }
    Transpose(line);
#pragma GCC unroll 16
    for (int w = 0; w < 16; ++w) {
      _mm512_store_ps(tile + w * 256, line[WordDwords::LaneOfDword(w)].r);
    }
  }
}

// Up to 64 keys to a tile, step by step: each step of 16 waits for a maximum, a root or a division
// of the one before, and finds the others' to do meanwhile. False where some value is not finite.
template <bool kMean>
SAGE_INLINE bool PackWordKeys(const Source& k, int dims, const float* mean, float sign,
                              uint8_t* tile, float* k_scale) {
  const float* row[kKeyTokens / 16][16];
  NormFactors by[kKeyTokens / 16];
  const int parts = (k.rows + 15) / 16;
  for (int n = 0; n < parts; ++n) {
    for (int t = 0; t < 16; ++t) row[n][t] = k.base + MinOf(16 * n + t, k.rows - 1) * k.stride;
    if (!WordUnits<kMean>(row[n], dims, mean, &by[n])) return false;
  }
  for (int n = 0; n < parts; ++n) {
    WordLimits<kMean>(row[n], dims, mean, &by[n]);
    // Keys that are not there repeat the last one; a scale of 0 makes their scores 0.
    Store(k_scale + 16 * n,
          FirstLanes(k.rows - 16 * n, Mul(Load(by[n].scale), Set1(sign)), Zero()));
  }
  for (int n = 0; n < parts; ++n) {
    PackWordRows<kMean>(row[n], dims, mean, by[n], tile + 16 * n * 4);
  }
  return true;
}

// A group of 6 queries to lines of 32 dims, [line][6][64 bytes].
SAGE_NOINLINE void PackWordQueries(const float* const row[6], int dims, const float* unit,
                                   const float* limit, uint8_t* group) {
  alignas(64) static constexpr int64_t kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  static_assert(WordDwords::LaneOfDword(2) == 4 && WordDwords::LaneOfDword(8) == 2,
                "pairs of lanes");
  const __m512i order = _mm512_load_si512(kOrder);
  for (int d = 0; d < dims; d += kWordDims, group += 6 * 64) {
#pragma GCC unroll 6
    for (int r = 0; r < 6; ++r) {
      const __m512i codes =
          WordCodes<false>(row[r] + d, Zero(), Zero(), Set1(unit[r]), Set1(limit[r]));
      _mm512_store_si512(group + r * 64, _mm512_permutexvar_epi64(order, codes));
    }
  }
}

// Up to 16 keys, `padded` with zeros, rounded to the codes of their channels, to one panel of
// kCount vectors of V in pairs of keys.
template <int kCount>
SAGE_INLINE void PackWordPanel(const float* rows, int64_t stride, int count, int padded,
                               const float* inverse, uint8_t* panel, F32* magnitudes) {
  F32 most[2] = {*magnitudes, *magnitudes};
  for (int j = 0; j < padded; j += 2, rows += 2 * stride, panel += kCount * 64) {
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) {
      const F32 by = Load(inverse + 16 * t);
      const F32 low = j < count ? LoadU(rows + 16 * t) : Zero();
      const F32 high = j + 1 < count ? LoadU(rows + stride + 16 * t) : Zero();
      most[0] = MaxMagnitude(most[0], low);
      most[1] = MaxMagnitude(most[1], high);
      const __m512i first = _mm512_cvtps_epi32(Mul(low, by).r);
      const __m512i second = _mm512_slli_epi32(_mm512_cvtps_epi32(Mul(high, by).r), 16);
      _mm512_store_si512(panel + t * 64, _mm512_mask_blend_epi16(0xaaaaaaaau, first, second));
    }
  }
  *magnitudes = MaxMagnitude(most[0], most[1]);
}

template <bool kFine>
struct DirectValues<PvWords512<kFine>> {
  static constexpr bool kKnown = true;
  template <int kCount>
  SAGE_INLINE void Panel(const float* rows, const Source& v, int padded, const float* inverse,
                         uint8_t* panel, F32* magnitudes) {
    PackWordPanel<kCount>(rows, v.stride, v.rows, padded, inverse, panel, magnitudes);
  }
};

// `int8_int16`: V alone.
template <>
struct DirectRows<IntegerKernels<QkBytes512<107>, PvWords512<false>>> {
  static constexpr bool kKeys = false, kValues = true, kScalesFirst = false;
  static bool Values(const Plan& plan, const Head& head, const Source& v, int64_t first,
                     int padded) {
    return PackValuePanels<PvWords512<false>>(plan, head, v, first, padded);
  }
};

template <>
struct DirectRows<IntegerKernels<QkWords512, PvWords512<true>>> {
  static constexpr bool kKeys = true, kValues = true, kScalesFirst = true;

  static constexpr int kTokens = kKeyTokens;
  static bool Keys(const Plan& plan, const Head& head, const Source& k, const float* mean,
                   int64_t first) {
    uint8_t* tile = head.k + first * plan.qk_dims * QkWords512::kBytes;
    float* scale = head.k_scale + first;
    return mean == nullptr ? PackWordKeys<false>(k, plan.qk_dims, nullptr, plan.k_sign, tile, scale)
                           : PackWordKeys<true>(k, plan.qk_dims, mean, plan.k_sign, tile, scale);
  }

  static bool Values(const Plan& plan, const Head& head, const Source& v, int64_t first,
                     int padded) {
    return PackValuePanels<PvWords512<true>>(plan, head, v, first, padded);
  }

  static uint64_t Groups(const Plan& plan, const Head& head, int64_t row0, int64_t rows,
                         int64_t groups, const AttendScratch& scratch) {
    return PackQueries<2>(
        plan, head, row0, rows, groups, scratch,
        [&](const float* const(*row)[16], int parts, float* scale, float* const* by)
            __attribute__((always_inline)) {
              NormFactors found[kQueryParts];
              int odd = 0;
              for (int n = 0; n < parts; ++n) {
                odd |= WordUnits<false>(row[n], plan.qk_dims, nullptr, &found[n]) ? 0 : 1 << n;
              }
              for (int n = 0; n < parts; ++n) {
                WordLimits<false>(row[n], plan.qk_dims, nullptr, &found[n]);
                Store(scale + 16 * n, Load(found[n].scale));
                Store(by[0] + 16 * n, Load(found[n].unit));
                Store(by[1] + 16 * n, Load(found[n].limit));
              }
              return odd;
            },
        [&](const float* const row[6], int64_t g, float* by[2]) __attribute__((always_inline)) {
          PackWordQueries(row, plan.qk_dims, by[0], by[1],
                          scratch.q + g * kRows * QkWords512::QueryBytes(plan.qk_dims));
        });
  }
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_PACK_WORDS_AVX512_H_
