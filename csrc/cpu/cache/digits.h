// Products of 14-bit rows (q, and p) with the int8 codes of a page.
//
// A row is stored as two unsigned digits of 7 bits, value = 128 · high + low, so that a digit times
// an int8 code, two of them added, fits in 16 bits (127 · 128 · 2 < 2^15: vpmaddubsw never
// saturates) and the same codes serve vpdpbusd. All sums are exact integers.
//
//   ScoreTile<R>       R rows x 64 tokens: sums of q digits · K codes, times the tokens' scales
//   OutputPanel<R, C>  R rows x 16 C dims: o = alpha o + factor (sum of p digits · V codes)
#ifndef SAGE_CPU_CACHE_DIGITS_H_
#define SAGE_CPU_CACHE_DIGITS_H_

#include "cpu/cache/digits_operands.h"
#include "cpu/cache/page_layout.h"
#include "cpu/simd/simd_shuffle.h"
#if defined(SAGE_ISA_AVX512)
#include "cpu/simd/dot_avx512.h"
#elif defined(SAGE_ISA_NEON)
#include "cpu/cache/digits_neon.h"
#endif

namespace sage {
namespace {

#if defined(SAGE_ISA_AVX512)

constexpr int kScoreRows = 3;
constexpr int kOutputRows = 3;

SAGE_INLINE __m512i LoadCodes(const uint8_t* p) {
  return _mm512_castps_si512(LoadArriving(reinterpret_cast<const float*>(p)).r);
}

template <int R>
SAGE_NOINLINE void ScoreTile(const ScoreOperands& a, float* s, int64_t s_stride) {
  __m512i high[R][4], low[R][4];
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) high[r][t] = low[r][t] = _mm512_setzero_si512();
  }
  CodeCursor ahead = *a.ahead;
  for (int d = 0; d < a.dims; d += 4) {
    const uint8_t* at = a.k + d * kTileTokens;
    ahead.Ask<4>();
    __m512i k[4];
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) k[t] = LoadCodes(at + 64 * t);
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) {
      const uint8_t* q = a.q + r * a.q_stride + d;
      const __m512i q_high = Broadcast4(q), q_low = Broadcast4(q + a.dims);
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        high[r][t] = DotBytes(high[r][t], q_high, k[t]);
        low[r][t] = DotBytes(low[r][t], q_low, k[t]);
      }
    }
  }
  *a.ahead = ahead;
#pragma GCC unroll 4
  for (int t = 0; t < 4; ++t) {
    const __m512i first = _mm512_load_si512(a.first_sum + 16 * t);
    const __m512 scale = _mm512_load_ps(a.scale + 16 * t);
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) {
      const __m512i sum =
          _mm512_add_epi32(_mm512_slli_epi32(_mm512_add_epi32(high[r][t], first), 7), low[r][t]);
      _mm512_store_ps(s + r * s_stride + 16 * t, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale));
    }
  }
}

template <int R, int C>
SAGE_NOINLINE void OutputPanel(const OutputOperands& a) {
  __m512i high[R][C], low[R][C];
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < C; ++t) high[r][t] = low[r][t] = _mm512_setzero_si512();
  }
  CodeCursor ahead = *a.ahead;
  for (int j = 0; j < a.groups; ++j) {
    const uint8_t* at = a.v + j * C * 64;
    ahead.Ask<C>();
    __m512i v[C];
#pragma GCC unroll 4
    for (int t = 0; t < C; ++t) v[t] = LoadCodes(at + 64 * t);
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) {
      const uint8_t* p = a.p + r * 2 * kPageTokens + 4 * j;
      const __m512i p_high = Broadcast4(p), p_low = Broadcast4(p + kPageTokens);
#pragma GCC unroll 4
      for (int t = 0; t < C; ++t) {
        high[r][t] = DotBytes(high[r][t], p_high, v[t]);
        low[r][t] = DotBytes(low[r][t], p_low, v[t]);
      }
    }
  }
  *a.ahead = ahead;
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) {
    const __m512 alpha = _mm512_set1_ps(a.alpha[r]), factor = _mm512_set1_ps(a.factor[r]);
#pragma GCC unroll 4
    for (int t = 0; t < C; ++t) {
      float* o = a.o + r * a.o_stride + 16 * t;
      const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[r][t], 7), low[r][t]);
      const __m512 old = _mm512_mul_ps(alpha, _mm512_load_ps(o));
      _mm512_store_ps(o, _mm512_fmadd_ps(factor, _mm512_cvtepi32_ps(sum), old));
    }
  }
}

// Digits of kLanes values in [0, 16383], rounded to nearest even.
SAGE_INLINE void StoreDigits(F32 x, uint8_t* high, uint8_t* low) {
  const __m512i code = _mm512_cvtps_epi32(x.r);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high),
                   _mm512_cvtepi32_epi8(_mm512_srli_epi32(code, 7)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low),
                   _mm512_cvtepi32_epi8(_mm512_and_si512(code, _mm512_set1_epi32(127))));
}

#elif defined(SAGE_ISA_AVX2)

constexpr int kScoreRows = 2;
constexpr int kOutputRows = 1;

SAGE_INLINE __m256i BroadcastDigits(const uint8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

// acc + 128 · (high digits · codes) + low digits · codes, per 4 products.
SAGE_INLINE __m256i DotDigits(__m256i acc, __m256i high, __m256i low, __m256i codes) {
  const __m256i a = _mm256_madd_epi16(_mm256_maddubs_epi16(high, codes), _mm256_set1_epi16(128));
  const __m256i b = _mm256_madd_epi16(_mm256_maddubs_epi16(low, codes), _mm256_set1_epi16(1));
  return _mm256_add_epi32(acc, _mm256_add_epi32(a, b));
}

template <int R>
SAGE_NOINLINE void ScoreTile(const ScoreOperands& a, float* s, int64_t s_stride) {
  CodeCursor ahead = *a.ahead;
  for (int half = 0; half < 2; ++half) {
    __m256i acc[R][4];
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) {
      const __m256i first =
          _mm256_load_si256(reinterpret_cast<const __m256i*>(a.first_sum + 32 * half + 8 * t));
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) acc[r][t] = _mm256_slli_epi32(first, 7);
    }
    for (int d = 0; d < a.dims; d += 4) {
      const int at = d * kTileTokens + 128 * half;
      ahead.Ask<2>();
      __m256i q_high[R], q_low[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        q_high[r] = BroadcastDigits(a.q + r * a.q_stride + d);
        q_low[r] = BroadcastDigits(a.q + r * a.q_stride + a.dims + d);
      }
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        const __m256i k = _mm256_load_si256(reinterpret_cast<const __m256i*>(a.k + at + 32 * t));
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) acc[r][t] = DotDigits(acc[r][t], q_high[r], q_low[r], k);
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) {
      const __m256 scale = _mm256_load_ps(a.scale + 32 * half + 8 * t);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        _mm256_store_ps(s + r * s_stride + 32 * half + 8 * t,
                        _mm256_mul_ps(_mm256_cvtepi32_ps(acc[r][t]), scale));
      }
    }
  }
  *a.ahead = ahead;
}

template <int R, int C>
SAGE_NOINLINE void OutputPanel(const OutputOperands& a) {
  static_assert(R == 1, "eight accumulators a row");
  __m256i acc[2 * C];
#pragma GCC unroll 8
  for (int t = 0; t < 2 * C; ++t) acc[t] = _mm256_setzero_si256();
  CodeCursor ahead = *a.ahead;
  for (int j = 0; j < a.groups; ++j) {
    ahead.Ask<C>();
    const __m256i high = BroadcastDigits(a.p + 4 * j);
    const __m256i low = BroadcastDigits(a.p + kPageTokens + 4 * j);
#pragma GCC unroll 8
    for (int t = 0; t < 2 * C; ++t) {
      const int at = j * C * 64 + 32 * t;
      const __m256i v = _mm256_load_si256(reinterpret_cast<const __m256i*>(a.v + at));
      acc[t] = DotDigits(acc[t], high, low, v);
    }
  }
  *a.ahead = ahead;
  const __m256 alpha = _mm256_set1_ps(a.alpha[0]), factor = _mm256_set1_ps(a.factor[0]);
#pragma GCC unroll 8
  for (int t = 0; t < 2 * C; ++t) {
    float* o = a.o + 8 * t;
    const __m256 old = _mm256_mul_ps(alpha, _mm256_load_ps(o));
    _mm256_store_ps(o, _mm256_fmadd_ps(factor, _mm256_cvtepi32_ps(acc[t]), old));
  }
}

// Digits of kLanes values in [0, 16383], rounded to nearest even.
SAGE_INLINE void StoreDigits(F32 x, uint8_t* high, uint8_t* low) {
  const __m256i code = _mm256_cvtps_epi32(x.r);
  const __m256i h = _mm256_srli_epi32(code, 7);
  const __m256i l = _mm256_and_si256(code, _mm256_set1_epi32(127));
  const __m256i words = _mm256_packs_epi32(h, l);  // h0-3 l0-3 | h4-7 l4-7
  const __m256i bytes = _mm256_packus_epi16(words, words);
  const __m128i a = _mm256_castsi256_si128(bytes), b = _mm256_extracti128_si256(bytes, 1);
  const __m128i both = _mm_unpacklo_epi32(a, b);  // h0-3 h4-7 l0-3 l4-7
  _mm_storel_epi64(reinterpret_cast<__m128i*>(high), both);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(low), _mm_unpackhi_epi64(both, both));
}

#elif !defined(SAGE_ISA_NEON_DOT)

constexpr int kScoreRows = 1;
constexpr int kOutputRows = 1;

template <int R>
SAGE_NOINLINE void ScoreTile(const ScoreOperands& a, float* s, int64_t /*s_stride*/) {
  static_assert(R == 1, "one row");
  int32_t acc[kTileTokens];
  for (int t = 0; t < kTileTokens; ++t) acc[t] = a.first_sum[t] * 128;
  for (int d = 0; d < a.dims; d += 4) {
    const int8_t* k = reinterpret_cast<const int8_t*>(a.k + d * kTileTokens);
    int32_t q[4];
    for (int e = 0; e < 4; ++e) q[e] = 128 * a.q[d + e] + a.q[a.dims + d + e];
    for (int t = 0; t < kTileTokens; ++t) {
      acc[t] += q[0] * k[4 * t] + q[1] * k[4 * t + 1] + q[2] * k[4 * t + 2] + q[3] * k[4 * t + 3];
    }
  }
  for (int t = 0; t < kTileTokens; ++t) s[t] = static_cast<float>(acc[t]) * a.scale[t];
}

template <int R, int C>
SAGE_NOINLINE void OutputPanel(const OutputOperands& a) {
  static_assert(R == 1, "one row");
  int32_t acc[16 * C] = {};
  for (int j = 0; j < a.groups; ++j) {
    const int8_t* v = reinterpret_cast<const int8_t*>(a.v + j * C * 64);
    int32_t p[4];
    for (int e = 0; e < 4; ++e) p[e] = 128 * a.p[4 * j + e] + a.p[kPageTokens + 4 * j + e];
    for (int d = 0; d < 16 * C; ++d) {
      acc[d] += p[0] * v[4 * d] + p[1] * v[4 * d + 1] + p[2] * v[4 * d + 2] + p[3] * v[4 * d + 3];
    }
  }
  for (int d = 0; d < 16 * C; ++d) {
    a.o[d] = a.alpha[0] * a.o[d] + a.factor[0] * static_cast<float>(acc[d]);
  }
}

#if !defined(SAGE_ISA_NEON)
// Digits of kLanes values in [0, 16383], rounded to nearest even.
SAGE_INLINE void StoreDigits(F32 x, uint8_t* high, uint8_t* low) {
  for (int i = 0; i < kLanes; ++i) {
    const int32_t code = static_cast<int32_t>((x.r[i] + 12582912.0f) - 12582912.0f);
    high[i] = static_cast<uint8_t>(code >> 7);
    low[i] = static_cast<uint8_t>(code & 127);
  }
}
#endif

#endif

// ScoreTile and OutputPanel for a number of rows or vectors known at run time.
SAGE_INLINE void ScoreRows(int rows, const ScoreOperands& a, float* s, int64_t s_stride) {
  if constexpr (kScoreRows >= 3) {
    if (rows == 3) return ScoreTile<3>(a, s, s_stride);
  }
  if constexpr (kScoreRows >= 2) {
    if (rows == 2) return ScoreTile<2>(a, s, s_stride);
  }
  ScoreTile<1>(a, s, s_stride);
}

template <int R>
SAGE_INLINE void OutputVectors(int vectors, const OutputOperands& a) {
  switch (vectors) {
    case 1:
      return OutputPanel<R, 1>(a);
    case 2:
      return OutputPanel<R, 2>(a);
    case 3:
      return OutputPanel<R, 3>(a);
    default:
      return OutputPanel<R, 4>(a);
  }
}

SAGE_INLINE void OutputRows(int rows, int vectors, const OutputOperands& a) {
  if constexpr (kOutputRows >= 3) {
    if (rows == 3) return OutputVectors<3>(vectors, a);
    if (rows == 2) return OutputVectors<2>(vectors, a);
  }
  OutputVectors<1>(vectors, a);
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_DIGITS_H_
