// Rows of Q and K for the formats that norms limit (docs/numerics.md 4.3 and 4.4): values and what
// multiplies them to codes, in two passes over the caller's rows, of which the second finds them in
// L1.
//
//   amax = max |x - mean|
//   y = (x - mean) · (1 / amax), n(g, L) = sum of y² over the 16 dims of lane L of 32 dims g
//   factor = limit by n, code = round(y · factor), scale = amax / factor
//
// Rounding is left to packing. Four rows go together: their sums end in one vector, and each step
// of one row waits for the one before. Every sum is in the order of docs/numerics.md: bit-exact
// against src/numerics/quantize.ts.
#ifndef SAGE_CPU_FORWARD_NORM_ROWS_H_
#define SAGE_CPU_FORWARD_NORM_ROWS_H_

#include <math.h>

#include <type_traits>

#include "cpu/forward/integer_scale.h"
#include "cpu/forward/plan.h"
#include "cpu/simd/simd_shuffle.h"
#include "formats/float_bits.h"

namespace sage {
namespace {

enum class NormRule { kPairK, kPairQ, kInt16 };

// Rows that are scaled by one call at most.
constexpr int kNormRows = 16;

// kLanes dims of a row from d on; zeros beyond `dim`, where nothing is read.
SAGE_INLINE F32 LoadDims(const float* row, int d, int dim) {
  if (d + kLanes <= dim) return LoadU(row + d);
  return d < dim ? LoadFirst(row + d, dim - d) : Zero();
}

// Largest |x - mean| of kCount rows, by lanes.
template <int kCount, bool kMean>
SAGE_INLINE void LargestByLanes(const float* const* row, int dim, const float* mean,
                                F32 most[kCount]) {
#pragma GCC unroll 16
  for (int t = 0; t < kCount; ++t) most[t] = Zero();
  int d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    const F32 shift = kMean ? LoadU(mean + d) : Zero();
#pragma GCC unroll 16
    for (int t = 0; t < kCount; ++t) {
      const F32 x = LoadU(row[t] + d);
      most[t] = MaxMagnitude(most[t], kMean ? Sub(x, shift) : x);
    }
  }
  if (d == dim) return;
  const F32 shift = kMean ? LoadFirst(mean + d, dim - d) : Zero();
  for (int t = 0; t < kCount; ++t) {
    most[t] = MaxMagnitude(most[t], Sub(LoadFirst(row[t] + d, dim - d), shift));
  }
}

// Largest |x - mean| of up to kLanes rows, by rows; 0 for those that are not there. `all` becomes
// the largest of all, as MaxMagnitude leaves it.
template <bool kMean>
SAGE_INLINE F32 LargestOfRows(const float* const* row, int rows, int dim, const float* mean,
                              F32* all) {
  if (rows >= kLanes) {
    F32 most[kLanes];
    LargestByLanes<kLanes, kMean>(row, dim, mean, most);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) *all = MaxMagnitude(*all, most[i]);
    return MaxEach(most);
  }
  if (rows == 6) {
    F32 most[6];
    LargestByLanes<6, kMean>(row, dim, mean, most);
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) *all = MaxMagnitude(*all, most[i]);
    return MaxOfSix(most);
  }
  alignas(64) float largest[kLanes] = {};
  for (int t = 0; t < rows && t < kLanes; ++t) {
    F32 most[1];
    LargestByLanes<1, kMean>(row + t, dim, mean, most);
    *all = MaxMagnitude(*all, most[0]);
    largest[t] = BitsToFloat(static_cast<uint32_t>(ReduceMaxBits(most[0])));
  }
  return Load(largest);
}

// NormRowsTogether: y = (x - mean) · unit of kCount rows (1, 2 or 4; stored if kKeep), and what the
// rules limit by their norms: the largest lane's sum of squares (4.3) or their total (4.4), and for
// kPairQ the largest |y[2m]| + |y[2m + 1]|.

#if defined(SAGE_ISA_AVX512)

// By 128 bits: pairs t of 32 dims' squares as (lane 0, lane 1), then pairs t + 4.
SAGE_INLINE __m512 PairsOf(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

// By 128 bits t: pair t + pair t + 4 of 32 dims and of the next 32.
SAGE_INLINE __m512 PairsOfTwo(__m512 first, __m512 second) {
  const __m512d a = _mm512_castps_pd(first), b = _mm512_castps_pd(second);
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
}

// By 128 bits: those of a and b, parts 0 + 1, then parts 2 + 3; or of two such vectors, whole sums.
SAGE_INLINE __m512 SumNeighbours(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

template <NormRule kRule, bool kMean, bool kKeep, int kCount>
SAGE_INLINE void NormRowsTogether(const float* const* row, int dim, int dims, const float* mean,
                                  const float* unit, float* const* y, F32* squares, F32* largest) {
  __m512 result = _mm512_setzero_ps(), pair[kCount];
#pragma GCC unroll 4
  for (int t = 0; t < kCount; ++t) pair[t] = _mm512_setzero_ps();
  // 64 dims, or the last 32 and nothing.
  const auto step = [&](int d, const auto& load, bool whole) {
    __m512 shift[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      shift[i] = kMean ? load(mean, d + 16 * i).r : _mm512_setzero_ps();
    }
    __m512 sums[kCount];
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) {
      const __m512 by = _mm512_set1_ps(unit[t]);
      __m512 pairs[2];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        pairs[half] = _mm512_setzero_ps();
        if (half == 1 && !whole) continue;
        const int at = d + 32 * half;
        __m512 a = load(row[t], at).r, b = load(row[t], at + 16).r;
        if (kMean) {
          a = _mm512_sub_ps(a, shift[2 * half]);
          b = _mm512_sub_ps(b, shift[2 * half + 1]);
        }
        a = _mm512_mul_ps(a, by);
        b = _mm512_mul_ps(b, by);
        if (kKeep) {
          _mm512_storeu_ps(y[t] + at, a);
          _mm512_storeu_ps(y[t] + at + 16, b);
        }
        pairs[half] = PairsOf(_mm512_mul_ps(a, a), _mm512_mul_ps(b, b));
        if (kRule == NormRule::kPairQ) {
          pair[t] = _mm512_max_ps(pair[t], PairsOf(_mm512_abs_ps(a), _mm512_abs_ps(b)));
        }
      }
      sums[t] = PairsOfTwo(pairs[0], pairs[1]);
    }
    // [row][lane 0, lane 1 of 32 dims, lane 0, lane 1 of the next]
    const __m512 low = SumNeighbours(sums[0], sums[kCount > 1 ? 1 : 0]);
    const __m512 high =
        kCount <= 2 ? low : SumNeighbours(sums[kCount > 2 ? 2 : 0], sums[kCount > 3 ? 3 : 0]);
    const __m512 lanes = SumNeighbours(low, high);
    if (kRule == NormRule::kInt16) {
      result = _mm512_add_ps(result, _mm512_permute_ps(lanes, 0x00));
      result = _mm512_add_ps(result, _mm512_permute_ps(lanes, 0x55));
      result = _mm512_add_ps(result, _mm512_permute_ps(lanes, 0xaa));
      result = _mm512_add_ps(result, _mm512_permute_ps(lanes, 0xff));
    } else {
      result = _mm512_max_ps(result, lanes);
    }
  };
  int d = 0;
  for (; d + 64 <= dim; d += 64) {
    step(
        d, [](const float* x, int at) { return LoadU(x + at); }, true);
  }
  for (; d < dims; d += 64) {
    step(
        d, [dim](const float* x, int at) { return LoadDims(x, at, dim); }, d + 64 <= dims);
  }
  if (kRule != NormRule::kInt16) {
    result = _mm512_max_ps(result, _mm512_permute_ps(result, 0xb1));
    result = _mm512_max_ps(result, _mm512_permute_ps(result, 0x4e));
  }
  squares->r = result;
  if (kRule == NormRule::kPairQ) {
    largest->r = Max4({pair[0]}, {pair[kCount > 1 ? 1 : 0]}, {pair[kCount > 2 ? 2 : 0]},
                      {pair[kCount > 3 ? 3 : 0]});
  }
}

// Lane i is row i's, of what NormRowsTogether gave for rows 4 g to 4 g + 3.
SAGE_INLINE F32 JoinSquares(const F32 part[4]) {
  // By 128 bits t: rows t, 4 + t, 8 + t, 12 + t.
  const __m512 even = _mm512_mask_blend_ps(0x2222, part[0].r, part[1].r);
  const __m512 odd = _mm512_mask_blend_ps(0x8888, part[2].r, part[3].r);
  const __m512 all = _mm512_mask_blend_ps(0xcccc, even, odd);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return {_mm512_permutexvar_ps(order, all)};
}

#elif defined(SAGE_ISA_AVX2)

template <NormRule kRule, bool kMean, bool kKeep, int kCount>
SAGE_INLINE void NormRowsTogether(const float* const* row, int dim, int dims, const float* mean,
                                  const float* unit, float* const* y, F32* squares, F32* largest) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 result = _mm256_setzero_ps(), pair[kCount];
#pragma GCC unroll 4
  for (int t = 0; t < kCount; ++t) pair[t] = _mm256_setzero_ps();
  const auto step = [&](int d, const auto& load) {
    __m256 sums[kCount];
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) {
      const __m256 by = _mm256_set1_ps(unit[t]);
      __m256 pairs[2];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int at = d + 16 * half;
        __m256 a = load(row[t], at).r, b = load(row[t], at + 8).r;
        if (kMean) {
          a = _mm256_sub_ps(a, load(mean, at).r);
          b = _mm256_sub_ps(b, load(mean, at + 8).r);
        }
        a = _mm256_mul_ps(a, by);
        b = _mm256_mul_ps(b, by);
        if (kKeep) {
          _mm256_storeu_ps(y[t] + at, a);
          _mm256_storeu_ps(y[t] + at + 8, b);
        }
        pairs[half] = _mm256_hadd_ps(_mm256_mul_ps(a, a), _mm256_mul_ps(b, b));
        if (kRule == NormRule::kPairQ) {
          pair[t] = _mm256_max_ps(
              pair[t], _mm256_hadd_ps(_mm256_andnot_ps(sign, a), _mm256_andnot_ps(sign, b)));
        }
      }
      // Halves: t = 0, 2 | 1, 3 of pair t + pair t + 4, each as (lane 0, lane 1).
      sums[t] = _mm256_add_ps(pairs[0], pairs[1]);
    }
    const auto halves = [](__m256 a, __m256 b) {
      return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    };
    const __m256d low = _mm256_castps_pd(halves(sums[0], sums[kCount > 1 ? 1 : 0]));
    const __m256d high =
        kCount <= 2 ? low
                    : _mm256_castps_pd(halves(sums[kCount > 2 ? 2 : 0], sums[kCount > 3 ? 3 : 0]));
    // Rows 0, 2 | 1, 3, each as (lane 0, lane 1); totals are right where lane 0 is.
    const __m256 lanes = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(low, high)),
                                       _mm256_castpd_ps(_mm256_unpackhi_pd(low, high)));
    if (kRule == NormRule::kInt16) {
      result = _mm256_add_ps(result, lanes);
      result = _mm256_add_ps(result, _mm256_movehdup_ps(lanes));
    } else {
      result = _mm256_max_ps(result, lanes);
    }
  };
  int d = 0;
  for (; d + 32 <= dim; d += 32) {
    step(d, [](const float* x, int at) { return LoadU(x + at); });
  }
  for (; d < dims; d += 32) {
    step(d, [dim](const float* x, int at) { return LoadDims(x, at, dim); });
  }
  if (kRule != NormRule::kInt16) result = _mm256_max_ps(result, _mm256_movehdup_ps(result));
  squares->r = result;
  if (kRule == NormRule::kPairQ) {
    largest->r = Max4({pair[0]}, {pair[kCount > 1 ? 1 : 0]}, {pair[kCount > 2 ? 2 : 0]},
                      {pair[kCount > 3 ? 3 : 0]});
  }
}

// Lane i is row i's, of what NormRowsTogether gave for rows 4 g to 4 g + 3.
SAGE_INLINE F32 JoinSquares(const F32 part[2]) {
  // Rows 0, 4, 2, 6 | 1, 5, 3, 7.
  const __m256 all = _mm256_blend_ps(part[0].r, _mm256_moveldup_ps(part[1].r), 0xaa);
  const __m256i order = _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7);
  return {_mm256_permutevar8x32_ps(all, order)};
}

#else

// Sums of squares of the 16 dims that one 16-bit lane adds up (4.3), lane 0 and lane 1 of 32 dims.
SAGE_INLINE void LaneSquares(const float* y, float lane[2]) {
  float pair[2][8];
  for (int t = 0; t < 8; ++t) {
    for (int side = 0; side < 2; ++side) {
      const float a = y[4 * t + 2 * side], b = y[4 * t + 2 * side + 1];
      pair[side][t] = a * a + b * b;
    }
  }
  for (int side = 0; side < 2; ++side) {
    const float* p = pair[side];
    lane[side] = ((p[0] + p[4]) + (p[1] + p[5])) + ((p[2] + p[6]) + (p[3] + p[7]));
  }
}

template <NormRule kRule, bool kMean, bool kKeep, int kCount>
SAGE_INLINE void NormRowsTogether(const float* const* row, int dim, int dims, const float* mean,
                                  const float* unit, float* const* y, F32* squares, F32* largest) {
  alignas(64) float all[2][kLanes] = {};
  for (int t = 0; t < kCount; ++t) {
    const F32 by = Set1(unit[t]);
    for (int d = 0; d < dims; d += kLanes) {
      const F32 shift = mean == nullptr ? Zero() : LoadDims(mean, d, dim);
      StoreU(y[t] + d, Mul(Sub(LoadDims(row[t], d, dim), shift), by));
    }
    float most = 0.0f, total = 0.0f;
    for (int g = 0; g < dims; g += 32) {
      float lane[2];
      LaneSquares(y[t] + g, lane);
      most = lane[0] > most ? lane[0] : most;
      most = lane[1] > most ? lane[1] : most;
      total = total + lane[0];
      total = total + lane[1];
    }
    all[0][t] = kRule == NormRule::kInt16 ? total : most;
    for (int d = 0; d < dims; d += 2) {
      const float sum = fabsf(y[t][d]) + fabsf(y[t][d + 1]);
      all[1][t] = sum > all[1][t] ? sum : all[1][t];
    }
  }
  *squares = Load(all[0]);
  *largest = Load(all[1]);
}

// Lane i is row i's, of what NormRowsTogether gave for rows 4 g to 4 g + 3.
SAGE_INLINE F32 JoinSquares(const F32 part[2]) {
  alignas(64) float all[2 * kLanes];
  StoreU(all, part[0]);
  StoreU(all + 4, part[1]);
  return Load(all);
}
SAGE_INLINE F32 JoinMaxima(const F32 part[2]) { return JoinSquares(part); }

#endif

// What multiplies rows of values of at most 1 to codes: 4.3 and 4.4.
template <NormRule kRule>
SAGE_INLINE F32 LimitByNorm(F32 squares, F32 pair) {
  // 46,200^2 < 2^31: by Cauchy and Schwarz the integer dot product fits in 32 bits.
  // 178.9^2 < 2^15: a lane's sum of products fits in 16 bits.
  constexpr float kNorm = kRule == NormRule::kInt16 ? 46200.0f : 178.9f;
  constexpr float kMost = kRule == NormRule::kInt16   ? 32700.0f
                          : kRule == NormRule::kPairK ? 107.0f
                                                      : 126.5f;
  F32 limit = Min(Div(Set1(kNorm), Sqrt(squares)), Set1(kMost));
  // 214 · (152 + 1) < 2^15: no saturation in vpmaddubsw.
  if (kRule == NormRule::kPairQ) limit = Min(Div(Set1(152.0f), pair), limit);
  return limit;
}

// What takes rows of x to codes: y = (x - mean) · unit, code = round(y · limit), x - mean about
// code · scale. `largest` is that of |x - mean|.
struct NormFactors {
  alignas(64) float largest[kNormRows], unit[kNormRows], limit[kNormRows], scale[kNormRows];
};

// Largest magnitudes and units of up to 16 rows of `dim` values, less `mean` where kMean. Returns
// the bits of the largest |x - mean|: at least kInfBits, some value is not finite, and nothing else
// is of use.
template <bool kMean>
SAGE_INLINE int32_t UnitsByNorm(const float* const* row, int rows, int dim, const float* mean,
                                NormFactors* out) {
  F32 all = Zero();
#pragma GCC unroll 2
  for (int at = 0; at < kNormRows; at += kLanes) {
    const int left = rows - at;
    const F32 most = left > 0 ? LargestOfRows<kMean>(row + at, left, dim, mean, &all) : Zero();
    Store(out->largest + at, most);
    Store(out->unit + at, ZeroUnlessAbove(Div(Set1(1.0f), most), most, kBelowTiny));
  }
  return ReduceMaxBits(all);
}

// Limits and scales of rows whose units are known, and y[row][dims] if kKeep (zeros beyond dim;
// dims is a multiple of 32). y may be the rows themselves.
template <NormRule kRule, bool kMean, bool kKeep>
SAGE_INLINE void LimitsByNorm(const float* const* row, int rows, int dim, int dims,
                              const float* mean, float* y, NormFactors* out) {
  constexpr int kFours = kLanes / 4;
  F32 squares[kNormRows / 4], pair[kNormRows / 4];
  const auto norm = [&](int first, auto rows_together) {
    constexpr int kCount = decltype(rows_together)::value;
    float* to[kCount] = {};
    for (int i = 0; kKeep && i < kCount; ++i) to[i] = y + (first + i) * dims;
    NormRowsTogether<kRule, kMean, kKeep, kCount>(row + first, dim, dims, mean, out->unit + first,
                                                  to, squares + first / 4, pair + first / 4);
  };
  for (int first = 0; first < kNormRows; first += 4) {
    const int left = rows - first;
    if (left >= 4) {
      norm(first, std::integral_constant<int, 4>());
    } else if (left == 3) {
      norm(first, std::integral_constant<int, 3>());
    } else if (left == 2) {
      norm(first, std::integral_constant<int, 2>());
    } else if (left == 1) {
      norm(first, std::integral_constant<int, 1>());
    } else {
      squares[first / 4] = pair[first / 4] = Zero();
    }
  }
#pragma GCC unroll 2
  for (int at = 0; at < kNormRows; at += kLanes) {
    const F32 limit = LimitByNorm<kRule>(JoinSquares(squares + at / kLanes * kFours),
                                         JoinMaxima(pair + at / kLanes * kFours));
    const F32 most = Load(out->largest + at);
    Store(out->limit + at, ZeroUnlessAbove(limit, most, kBelowTiny));
    Store(out->scale + at, ZeroUnlessAbove(Div(most, limit), most, kBelowTiny));
  }
}

// Both, with y, for what multiplies y to codes, and the rows' scales.
template <NormRule kRule, bool kMean>
SAGE_NOINLINE int32_t ScaleByNorm(const float* const* row, int rows, int dim, int dims,
                                  const float* mean, float* y, float* factor, float* scale) {
  NormFactors factors;
  const int32_t bits = UnitsByNorm<kMean>(row, rows, dim, mean, &factors);
  LimitsByNorm<kRule, kMean, true>(row, rows, dim, dims, mean, y, &factors);
  for (int t = 0; t < rows; ++t) {
    factor[t] = factors.limit[t];
    scale[t] = factors.scale[t];
  }
  return bits;
}

// The same; `mean` null: none.
template <NormRule kRule>
SAGE_INLINE int32_t ScaleByNorm(const float* const* row, int rows, int dim, int dims,
                                const float* mean, float* y, float* factor, float* scale) {
  // Queries have none.
  if (kRule == NormRule::kPairQ || mean == nullptr) {
    return ScaleByNorm<kRule, false>(row, rows, dim, dims, nullptr, y, factor, scale);
  }
  return ScaleByNorm<kRule, true>(row, rows, dim, dims, mean, y, factor, scale);
}

SAGE_INLINE int32_t ScaleByNorm(const float* const* row, int rows, int dim, int dims,
                                const float* mean, NormRule rule, float* y, float* factor,
                                float* scale) {
  switch (rule) {
    case NormRule::kPairK:
      return ScaleByNorm<NormRule::kPairK>(row, rows, dim, dims, mean, y, factor, scale);
    case NormRule::kPairQ:
      return ScaleByNorm<NormRule::kPairQ>(row, rows, dim, dims, mean, y, factor, scale);
    case NormRule::kInt16:
      break;
  }
  return ScaleByNorm<NormRule::kInt16>(row, rows, dim, dims, mean, y, factor, scale);
}

// x[row][dims] to codes.
SAGE_INLINE void QuantizeByNorm(float* x, int rows, int dims, NormRule rule, float* scale) {
  for (int first = 0; first < rows; first += kNormRows) {
    const int count = rows - first < kNormRows ? rows - first : kNormRows;
    const float* row[kNormRows];
    float factor[kNormRows];
    float* y = x + first * dims;
    for (int t = 0; t < count; ++t) row[t] = y + t * dims;
    ScaleByNorm(row, count, dims, dims, nullptr, rule, y, factor, scale + first);
    for (int t = 0; t < count; ++t) RoundCodes(y + t * dims, dims, factor[t]);
  }
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_NORM_ROWS_H_
