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
#include <string.h>

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
template <int kCount>
SAGE_INLINE void LargestByLanes(const float* const* row, int dim, const float* mean,
                                F32 most[kCount]) {
#pragma GCC unroll 16
  for (int t = 0; t < kCount; ++t) most[t] = Zero();
  int d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    const F32 shift = mean == nullptr ? Zero() : LoadU(mean + d);
#pragma GCC unroll 16
    for (int t = 0; t < kCount; ++t) most[t] = MaxMagnitude(most[t], Sub(LoadU(row[t] + d), shift));
  }
  if (d == dim) return;
  const F32 shift = mean == nullptr ? Zero() : LoadFirst(mean + d, dim - d);
  for (int t = 0; t < kCount; ++t) {
    most[t] = MaxMagnitude(most[t], Sub(LoadFirst(row[t] + d, dim - d), shift));
  }
}

// Largest |x - mean| of up to 16 rows; returns the bits of the largest of all.
SAGE_INLINE int32_t LargestOfRows(const float* const* row, int rows, int dim, const float* mean,
                                  float* largest) {
  F32 all = Zero();
  int t = 0;
  for (; t + kLanes <= rows; t += kLanes) {
    F32 most[kLanes];
    LargestByLanes<kLanes>(row + t, dim, mean, most);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) all = MaxMagnitude(all, most[i]);
    StoreU(largest + t, MaxEach(most));
  }
  if (rows - t >= 6) {
    F32 most[6];
    LargestByLanes<6>(row + t, dim, mean, most);
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) all = MaxMagnitude(all, most[i]);
    alignas(64) float six[kLanes];
    Store(six, MaxOfSix(most));
    memcpy(largest + t, six, 6 * sizeof(float));
    t += 6;
  }
  for (; t < rows; ++t) {
    F32 most[1];
    LargestByLanes<1>(row + t, dim, mean, most);
    all = MaxMagnitude(all, most[0]);
    largest[t] = BitsToFloat(static_cast<uint32_t>(ReduceMaxBits(most[0])));
  }
  return ReduceMaxBits(all);
}

// NormRowsTogether: y = (x - mean) · unit of kCount rows (1, 2 or 4), and what the rules limit by
// their norms: the largest lane's sum of squares (4.3) or their total (4.4), and for kPairQ the
// largest |y[2m]| + |y[2m + 1]|.

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

template <NormRule kRule, int kCount>
SAGE_INLINE void NormRowsTogether(const float* const* row, int dim, int dims, const float* mean,
                                  const float* unit, float* const* y, float* squares,
                                  float* largest) {
  __m512 result = _mm512_setzero_ps(), pair[kCount];
#pragma GCC unroll 4
  for (int t = 0; t < kCount; ++t) pair[t] = _mm512_setzero_ps();
  // 64 dims, or the last 32 and nothing.
  const auto step = [&](int d, const auto& load, bool whole) {
    __m512 shift[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      shift[i] = mean == nullptr ? _mm512_setzero_ps() : load(mean, d + 16 * i).r;
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
        const __m512 a = _mm512_mul_ps(_mm512_sub_ps(load(row[t], at).r, shift[2 * half]), by);
        const __m512 b =
            _mm512_mul_ps(_mm512_sub_ps(load(row[t], at + 16).r, shift[2 * half + 1]), by);
        _mm512_storeu_ps(y[t] + at, a);
        _mm512_storeu_ps(y[t] + at + 16, b);
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
        kCount <= 2 ? low : SumNeighbours(sums[kCount > 2 ? 2 : 0], sums[kCount > 2 ? 3 : 0]);
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
  alignas(64) float all[16];
  _mm512_store_ps(all, result);
#pragma GCC unroll 4
  for (int t = 0; t < kCount; ++t) {
    squares[t] = all[4 * t];
    if (kRule == NormRule::kPairQ) largest[t] = _mm512_reduce_max_ps(pair[t]);
  }
}

#elif defined(SAGE_ISA_AVX2)

template <NormRule kRule, int kCount>
SAGE_INLINE void NormRowsTogether(const float* const* row, int dim, int dims, const float* mean,
                                  const float* unit, float* const* y, float* squares,
                                  float* largest) {
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
        if (mean != nullptr) {
          a = _mm256_sub_ps(a, load(mean, at).r);
          b = _mm256_sub_ps(b, load(mean, at + 8).r);
        }
        a = _mm256_mul_ps(a, by);
        b = _mm256_mul_ps(b, by);
        _mm256_storeu_ps(y[t] + at, a);
        _mm256_storeu_ps(y[t] + at + 8, b);
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
                    : _mm256_castps_pd(halves(sums[kCount > 2 ? 2 : 0], sums[kCount > 2 ? 3 : 0]));
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
  alignas(32) float all[8];
  _mm256_store_ps(all, result);
#pragma GCC unroll 4
  for (int t = 0; t < kCount; ++t) {
    squares[t] = all[t % 2 * 4 + t / 2 * 2];
    if (kRule == NormRule::kPairQ) largest[t] = ReduceMax({pair[t]});
  }
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

template <NormRule kRule, int kCount>
SAGE_INLINE void NormRowsTogether(const float* const* row, int dim, int dims, const float* mean,
                                  const float* unit, float* const* y, float* squares,
                                  float* largest) {
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
    squares[t] = kRule == NormRule::kInt16 ? total : most;
    largest[t] = 0.0f;
    for (int d = 0; d < dims; d += 2) {
      const float sum = fabsf(y[t][d]) + fabsf(y[t][d + 1]);
      largest[t] = sum > largest[t] ? sum : largest[t];
    }
  }
}

#endif

// What multiplies a row of values of at most 1 to codes: 4.3 and 4.4.
SAGE_INLINE float LimitByNorm(float squares, float pair, NormRule rule) {
  if (rule == NormRule::kInt16) {
    // 46,200^2 < 2^31: by Cauchy and Schwarz the integer dot product fits in 32 bits.
    const float by_norm = 46200.0f / sqrtf(squares);
    return by_norm < 32700.0f ? by_norm : 32700.0f;
  }
  // 178.9^2 < 2^15: a lane's sum of products fits in 16 bits.
  const float by_norm = 178.9f / sqrtf(squares);
  float limit = rule == NormRule::kPairK ? 107.0f : 126.5f;
  limit = by_norm < limit ? by_norm : limit;
  if (rule == NormRule::kPairQ) {
    // 214 · (152 + 1) < 2^15: no saturation in vpmaddubsw.
    const float by_pair = 152.0f / pair;
    limit = by_pair < limit ? by_pair : limit;
  }
  return limit;
}

// Divisions and roots of eight rows are those of one vector (GCC 12 makes them one by one where it
// unrolls such a loop before it looks for vectors).
constexpr int kEight = 8;
constexpr float kTiny = 0x1p-110f;  // as kTinyBits

SAGE_INLINE void Units(const float* amax, float* unit) {
#pragma GCC unroll 1
  for (int t = 0; t < kEight; ++t) unit[t] = amax[t] < kTiny ? 0.0f : 1.0f / amax[t];
}

// What multiplies rows to codes, and their scales. A tiny row is all zeros by now; no limit of its
// own is finite.
template <NormRule kRule>
SAGE_INLINE void Limits(const float* amax, const float* squares, const float* pair, float* factor,
                        float* scale) {
#pragma GCC unroll 1
  for (int t = 0; t < kEight; ++t) {
    const float limit = LimitByNorm(squares[t], pair[t], kRule);
    factor[t] = amax[t] < kTiny ? 0.0f : limit;
    scale[t] = amax[t] < kTiny ? 0.0f : amax[t] / limit;
  }
}

// Up to 16 rows of `dim` values, less `mean` where there is one, to y[row][dims] (zeros beyond
// dim; dims is a multiple of 32), what multiplies y to codes, and the rows' scales. y may be the
// rows themselves. Returns the bits of the largest |x - mean|: at least kInfBits, some value is not
// finite, and nothing else is of use.
template <NormRule kRule>
SAGE_NOINLINE int32_t ScaleByNorm(const float* const* row, int rows, int dim, int dims,
                                  const float* mean, float* y, float* factor, float* scale) {
  // 1 stands for rows that are not there.
  float amax[kNormRows], unit[kNormRows], squares[kNormRows], pair[kNormRows], limit[kNormRows];
  for (int t = 0; t < kNormRows; ++t) amax[t] = squares[t] = pair[t] = 1.0f;
  const int32_t bits = LargestOfRows(row, rows, dim, mean, amax);
  for (int t0 = 0; t0 < rows; t0 += kEight) Units(amax + t0, unit + t0);
  const auto norm = [&](int first, auto rows_together) {
    constexpr int kCount = decltype(rows_together)::value;
    float* to[kCount];
    for (int i = 0; i < kCount; ++i) to[i] = y + (first + i) * dims;
    NormRowsTogether<kRule, kCount>(row + first, dim, dims, mean, unit + first, to, squares + first,
                                    pair + first);
  };
  int first = 0;
  for (; first + 4 <= rows; first += 4) norm(first, std::integral_constant<int, 4>());
  for (; first + 2 <= rows; first += 2) norm(first, std::integral_constant<int, 2>());
  if (first < rows) norm(first, std::integral_constant<int, 1>());
  for (int t0 = 0; t0 < rows; t0 += kEight) {
    Limits<kRule>(amax + t0, squares + t0, pair + t0, limit + t0, unit + t0);
  }
  for (int t = 0; t < rows; ++t) {
    scale[t] = unit[t];
    factor[t] = limit[t];
  }
  return bits;
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
