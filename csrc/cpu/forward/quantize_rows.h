// The quantisers of docs/numerics.md 4 on a block of rows in float32, in plain C++ that the
// compiler vectorises.
//
// Rows lie in x[row * dims + d], padded with zeros. Every quantiser replaces the values by their
// codes (integers as floats, or code · group scale for nvfp4) and writes one scale per row.
// Bit-exact against src/numerics/quantize.ts: single float32 operations, no contraction, no
// reordered sums.
#ifndef SAGE_CPU_FORWARD_QUANTIZE_ROWS_H_
#define SAGE_CPU_FORWARD_QUANTIZE_ROWS_H_

#include <math.h>
#include <string.h>

#include "cpu/forward/integer_scale.h"
#include "cpu/forward/plan.h"
#include "formats/formats.h"
#include "formats/token_group.h"

namespace sage {
namespace {

SAGE_INLINE void RoundRow(float* x, int dims, float inverse, Rounding rounding) {
  if (rounding == Rounding::kEven) {
    RoundCodes(x, dims, inverse);
  } else {
    for (int d = 0; d < dims; ++d) x[d] = RoundHalfAway(x[d] * inverse);
  }
}

// Largest magnitude of each row; finite values only.
SAGE_INLINE void RowMaxima(const float* x, int rows, int dims, float* most) {
  int t = 0;
  for (; t + kLanes <= rows; t += kLanes) {
    F32 row[kLanes];
    for (int r = 0; r < kLanes; ++r) {
      const float* values = x + (t + r) * dims;
      row[r] = Zero();
      int d = 0;
      for (; d + kLanes <= dims; d += kLanes) row[r] = MaxMagnitude(row[r], LoadU(values + d));
      if (d < dims) row[r] = MaxMagnitude(row[r], LoadFirst(values + d, dims - d));
    }
    StoreU(most + t, MaxEach(row));
  }
  for (; t + 6 <= rows; t += 6) {
    F32 row[6];
    for (int r = 0; r < 6; ++r) {
      const float* values = x + (t + r) * dims;
      row[r] = Zero();
      int d = 0;
      for (; d + kLanes <= dims; d += kLanes) row[r] = MaxMagnitude(row[r], LoadU(values + d));
      if (d < dims) row[r] = MaxMagnitude(row[r], LoadFirst(values + d, dims - d));
    }
    alignas(64) float all[kLanes];
    Store(all, MaxOfSix(row));
    memcpy(most + t, all, 6 * sizeof(float));
  }
  for (; t < rows; ++t) most[t] = BitsToFloat(static_cast<uint32_t>(MaxBits(x + t * dims, dims)));
}

// Scales of int8 and int4 (4.2) for rows that share none: ScaleOf without branches, so that several
// divisions go together.
SAGE_INLINE void TokenScales(const float* x, int rows, int dims, float top, float* scale,
                             float* inverse) {
  float most[kBlock];
  RowMaxima(x, rows, dims, most);
  const float tiny = BitsToFloat(static_cast<uint32_t>(kTinyBits));
  for (int t = 0; t < rows; ++t) {
    scale[t] = most[t] < tiny ? 0.0f : most[t] / top;
    inverse[t] = most[t] < tiny ? 0.0f : top / most[t];
  }
}

// Scales of int8 and int4 (4.2) for up to 128 rows.
SAGE_NOINLINE void IntegerScales(const float* x, int rows, int dims, float top, TokenGroup kind,
                                 float* scale, float* inverse) {
  if (kind == TokenGroup::kToken) {
    TokenScales(x, rows, dims, top, scale, inverse);
    return;
  }
  float row_most[kBlock];
  RowMaxima(x, rows, dims, row_most);
  int32_t most[kBlock] = {};
  for (int t = 0; t < rows; ++t) {
    const int32_t bits = MagnitudeBits(row_most[t]);
    int32_t& group = most[GroupInBlock(kind, t)];
    group = bits > group ? bits : group;
  }
  for (int t = 0; t < rows; ++t) {
    const ScalePair pair = ScaleOf(most[GroupInBlock(kind, t)], top);
    scale[t] = pair.scale;
    inverse[t] = pair.inverse;
  }
}

// Sums of squares of the 16 dims that one 16-bit lane adds up (4.3), lane 0 and lane 1 of one
// 32-dim segment.
#if defined(SAGE_ISA_AVX2) || defined(SAGE_ISA_AVX512)
SAGE_INLINE void LaneSquares(const float* y, float lane[2]) {
  const __m256 x0 = _mm256_loadu_ps(y), x1 = _mm256_loadu_ps(y + 8);
  const __m256 x2 = _mm256_loadu_ps(y + 16), x3 = _mm256_loadu_ps(y + 24);
  // Halves: pairs 0, 2 | 1, 3 and 4, 6 | 5, 7, each as (lane 0, lane 1).
  const __m256 low = _mm256_hadd_ps(_mm256_mul_ps(x0, x0), _mm256_mul_ps(x1, x1));
  const __m256 high = _mm256_hadd_ps(_mm256_mul_ps(x2, x2), _mm256_mul_ps(x3, x3));
  const __m256 sum = _mm256_add_ps(low, high);
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
  const __m128 both = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  _mm_storel_pi(reinterpret_cast<__m64*>(lane), both);
}

// Largest |x[2m]| + |x[2m+1]|; dims is a multiple of 32.
SAGE_INLINE float LargestPair(const float* x, int dims) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 most = _mm256_setzero_ps();
  for (int d = 0; d < dims; d += 16) {
    const __m256 a = _mm256_andnot_ps(sign, _mm256_loadu_ps(x + d));
    const __m256 b = _mm256_andnot_ps(sign, _mm256_loadu_ps(x + d + 8));
    most = _mm256_max_ps(most, _mm256_hadd_ps(a, b));
  }
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
#else
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

// Largest |x[2m]| + |x[2m+1]|.
SAGE_INLINE float LargestPair(const float* x, int dims) {
  float most = 0.0f;
  for (int d = 0; d < dims; d += 2) {
    const float sum = fabsf(x[d]) + fabsf(x[d + 1]);
    most = sum > most ? sum : most;
  }
  return most;
}
#endif

enum class NormRule { kPairK, kPairQ, kInt16 };

// What the rules limit by the norm of a row of values of at most 1: the largest lane's sum of
// squares (4.3), or their total (4.4). dims is a multiple of 32.
SAGE_INLINE float SquaresOf(const float* x, int dims, NormRule rule) {
  float most = 0.0f, total = 0.0f;
  for (int g = 0; g < dims; g += 32) {
    float lane[2];
    LaneSquares(x + g, lane);
    most = lane[0] > most ? lane[0] : most;
    most = lane[1] > most ? lane[1] : most;
    total = total + lane[0];
    total = total + lane[1];
  }
  return rule == NormRule::kInt16 ? total : most;
}

// What multiplies such a row to codes: 4.3 and 4.4.
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

// The quantisers limited by norms, 4.3 and 4.4. Step by step for several rows, since each step of
// one row waits for the one before it; divisions and roots of eight rows are those of one vector.
template <NormRule kRule>
SAGE_NOINLINE void QuantizeByNorm(float* x, int rows, int dims, float* scale) {
  constexpr int kTogether = 8;
  for (int t0 = 0; t0 < rows; t0 += kTogether) {
    const int count = rows - t0 < kTogether ? rows - t0 : kTogether;
    float* first = x + t0 * dims;
    // 1 stands for rows that are not there.
    float amax[kTogether] = {1, 1, 1, 1, 1, 1, 1, 1}, squares[kTogether] = {1, 1, 1, 1, 1, 1, 1, 1};
    float pair[kTogether] = {1, 1, 1, 1, 1, 1, 1, 1}, limit[kTogether], unit[kTogether];
    RowMaxima(first, count, dims, amax);
    const float tiny = BitsToFloat(static_cast<uint32_t>(kTinyBits));
    for (int t = 0; t < kTogether; ++t) unit[t] = amax[t] < tiny ? 0.0f : 1.0f / amax[t];
    for (int t = 0; t < count; ++t) {
      float* row = first + t * dims;
      const F32 by = Set1(unit[t]);
      for (int d = 0; d < dims; d += kLanes) StoreU(row + d, Mul(LoadU(row + d), by));
      squares[t] = SquaresOf(row, dims, kRule);
      if (kRule == NormRule::kPairQ) pair[t] = LargestPair(row, dims);
    }
    for (int t = 0; t < kTogether; ++t) limit[t] = LimitByNorm(squares[t], pair[t], kRule);
    for (int t = 0; t < count; ++t) {
      // A tiny row is all zeros by now; no limit of its own is finite.
      RoundCodes(first + t * dims, dims, amax[t] < tiny ? 0.0f : limit[t]);
      scale[t0 + t] = amax[t] < tiny ? 0.0f : amax[t] / limit[t];
    }
  }
}

SAGE_INLINE void QuantizeByNorm(float* x, int rows, int dims, NormRule rule, float* scale) {
  switch (rule) {
    case NormRule::kPairK:
      return QuantizeByNorm<NormRule::kPairK>(x, rows, dims, scale);
    case NormRule::kPairQ:
      return QuantizeByNorm<NormRule::kPairQ>(x, rows, dims, scale);
    case NormRule::kInt16:
      return QuantizeByNorm<NormRule::kInt16>(x, rows, dims, scale);
  }
}

// Codes and error of one group of 16 under one scale (4.5).
SAGE_INLINE float Nvfp4Candidate(const float* x, float sf, float* value) {
  const float inverse = sf == 0.0f ? 0.0f : 1.0f / sf;
  for (int i = 0; i < 16; ++i) value[i] = RoundE2m1(x[i] * inverse) * sf;
  float error = 0.0f;
  for (int i = 0; i < 16; ++i) {
    const float d = x[i] - value[i];
    error = error + d * d;
  }
  return error;
}

// One group of 16 values, in place: code · scale.
SAGE_INLINE void QuantizeNvfp4Group(float* x, bool four_six) {
  const int32_t bits = MaxBits(x, 16);
  const float amax = BitsToFloat(static_cast<uint32_t>(bits));
  float best[16];
  float least = Nvfp4Candidate(x, RoundUe4m3(amax / 6.0f), best);
  if (four_six) {
    constexpr float kOtherScales[] = {1.0f / 4.0f, 2.0f / 13.0f};
    for (const float factor : kOtherScales) {
      float tried[16];
      const float error = Nvfp4Candidate(x, RoundUe4m3(amax * factor), tried);
      if (!(error < least)) continue;
      least = error;
      for (int i = 0; i < 16; ++i) best[i] = tried[i];
    }
  }
  for (int i = 0; i < 16; ++i) x[i] = best[i];
}

// 2^e in front of nvfp4: brings the largest input into [16, 32), which leaves e4m3 scales nine
// binades below it and five above (smoothing at most doubles a value, a rotation of 512 multiplies
// it by at most 22.7).
SAGE_INLINE float HeadPower(float amax) {
  if (amax == 0.0f) return 1.0f;
  const int e = 4 - ilogbf(amax);
  return ldexpf(1.0f, e > 100 ? 100 : e);
}

// Fast Walsh-Hadamard transform in blocks of `size`, orthonormal (4.5).
SAGE_INLINE void RotateRow(float* x, int dims, int size) {
  const float norm = static_cast<float>(1.0 / sqrt(static_cast<double>(size)));
  for (int b = 0; b < dims; b += size) {
    float* y = x + b;
    for (int h = 1; h < size; h *= 2) {
      for (int i = 0; i < size; i += 2 * h) {
        for (int j = i; j < i + h; ++j) {
          const float a = y[j], c = y[j + h];
          y[j] = a + c;
          y[j + h] = a - c;
        }
      }
    }
    for (int i = 0; i < size; ++i) y[i] = y[i] * norm;
  }
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_QUANTIZE_ROWS_H_
