// P·V halves of the integer tile kernels on AVX-512: VNNI for int8 and int16, BF16 where the
// processor has it.
//
//   outputs 6 rows x 64 dims = 24 accumulators; a value vector holds 16 dims x 4 or 2 keys, a
//           probability is broadcast; between products, units of the next tile's softmax
//           (softmax_ahead.h)
//
// Layout: V [panel of <= 4 vectors][keys/4 or /2][vectors][16][4 or 2].
#ifndef SAGE_CPU_FORWARD_VALUE_TILE_AVX512_H_
#define SAGE_CPU_FORWARD_VALUE_TILE_AVX512_H_

#include <immintrin.h>
#include <string.h>

#include "cpu/forward/score_tile_avx512.h"
#include "cpu/forward/softmax_ahead.h"
#include "cpu/simd/powers_avx512.h"

namespace sage {
namespace {

// o = alpha o + p v (p v without alpha) over keys [first, end) in integers; one panel of kCount
// vectors, dims from `dim` on. With `out` the result goes to the caller's rows instead, scaled. The
// unsigned operand of a byte product is p.
template <class Pv, class Dwords, int kCount, int kActive>
SAGE_INLINE void IntegerOutputTile(const uint8_t* p, const uint8_t* v, int first, int end, float* o,
                                   int64_t stride, const float* alpha, const OutputRows* out,
                                   int64_t dim, SoftmaxAhead* ahead, FetchLines* fetch) {
  constexpr int kBytesPerElement = 4 / Dwords::kElements;
  __m512i acc[kActive][kCount];
#pragma GCC unroll 6
  for (int r = 0; r < kActive; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) acc[r][t] = _mm512_setzero_si512();
  }
  const __m512i* values =
      reinterpret_cast<const __m512i*>(v + first / Dwords::kElements * kCount * 64);
  p += first * kBytesPerElement;
  // Dwords of keys in steps of 4; the last step goes by pairs of rows (kRowsAtEnd).
  constexpr int kSteps = 4;
  for (int j = first + kSteps * Dwords::kElements; j < end; j += kSteps * Dwords::kElements) {
#pragma GCC unroll 4
    for (int u = 0; u < kSteps; ++u) {
      __m512i value[kCount];
#pragma GCC unroll 4
      for (int t = 0; t < kCount; ++t) value[t] = values[u * kCount + t];
#pragma GCC unroll 6
      for (int r = 0; r < kActive; ++r) {
        const __m512i weight = Broadcast4(p + r * kScoreStride * kBytesPerElement + u * 4);
#pragma GCC unroll 4
        for (int t = 0; t < kCount; ++t) acc[r][t] = Dwords::Dot(acc[r][t], weight, value[t]);
      }
      if (u % 2 == 1) SoftmaxUnit<Pv>(ahead);
    }
    FetchStep(fetch);
    values += kSteps * kCount;
    p += kSteps * 4;
  }
#pragma GCC unroll 3
  for (int r0 = 0; r0 < kActive; r0 += kRowsAtEnd) {
    KeepAddresses(values, p, o, alpha);
    KeepAddress(out);
#pragma GCC unroll 4
    for (int u = 0; u < kSteps; ++u) {
      __m512i value[kCount];
#pragma GCC unroll 4
      for (int t = 0; t < kCount; ++t) value[t] = values[u * kCount + t];
#pragma GCC unroll 2
      for (int r = r0; r < r0 + kRowsAtEnd; ++r) {
        const __m512i weight = Broadcast4(p + r * kScoreStride * kBytesPerElement + u * 4);
#pragma GCC unroll 4
        for (int t = 0; t < kCount; ++t) acc[r][t] = Dwords::Dot(acc[r][t], weight, value[t]);
      }
    }
#pragma GCC unroll 2
    for (int r = r0; r < r0 + kRowsAtEnd; ++r) {
      const __m512 a = alpha == nullptr ? _mm512_setzero_ps() : _mm512_set1_ps(alpha[r]);
#pragma GCC unroll 4
      for (int t = 0; t < kCount; ++t) {
        float* before = o + r * stride + 16 * t;
        __m512 sum = _mm512_cvtepi32_ps(acc[r][t]);
        if (alpha != nullptr) sum = _mm512_fmadd_ps(a, _mm512_load_ps(before), sum);
        if (out != nullptr) {
          WriteOutputs(*out, r, dim + 16 * t, {sum});
        } else {
          _mm512_store_ps(before, sum);
        }
      }
    }
  }
}

// P in 13 bits, V in 12 (docs/numerics.md 4.6): 8192 · 2047 · 128 keys < 2^31. kFine: a power of
// two whose error is far below a step of P, for 16-bit scores; with 8-bit ones half a step more at
// the row's maximum is nothing.
// Packing works in 128-bit lanes; `order` puts the keys back in order, products with ones sum them.
// In memory, for units of a softmax ahead.
struct WordConstants {
  alignas(64) int64_t order[8];
  int16_t ones[32];
};
constexpr WordConstants kWordConstants = {{0, 2, 4, 6, 1, 3, 5, 7},
                                          {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                           1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}};
struct ByteConstants {
  alignas(64) int32_t order[16];
  int32_t ones[16];
};
constexpr ByteConstants kByteConstants = {
    {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15},
    {0x01010101, 0x01010101, 0x01010101, 0x01010101, 0x01010101, 0x01010101, 0x01010101, 0x01010101,
     0x01010101, 0x01010101, 0x01010101, 0x01010101, 0x01010101, 0x01010101, 0x01010101,
     0x01010101}};
template <bool kFine>
struct PvWords512 {
  static constexpr int kPanel = 4;
  static constexpr int kBytes = 2;
  static constexpr int kProbabilityBytes = 2;
  static constexpr bool kSoftmaxAhead = true;
  static constexpr int kUnitKeys = 32;
  static constexpr int kFetchKeys = 8;
  static constexpr float kLog2OfTop = 13.0f;

  SAGE_INLINE void Unit(const float* s, uint8_t* p, const float* factor, const float* shift,
                        F32* sum) {
    const TwoVectors e = PowersOfTwo < kFine ? 4 : 3 > (s, factor, shift);
    const WordConstants* k = &kWordConstants;
    KeepAddress(k);
    const __m512i packed =
        _mm512_packs_epi32(_mm512_cvtps_epi32(e.low), _mm512_cvtps_epi32(e.high));
    const __m512i words = _mm512_permutexvar_epi64(_mm512_load_si512(k->order), packed);
    _mm512_store_si512(p, words);
    sum->r = _mm512_castsi512_ps(
        DotWords(_mm512_castps_si512(sum->r), words, _mm512_load_si512(k->ones)));
  }

  static void StoreValues(const float* x, int stride, int count, int keys, uint8_t* panel) {
    for (int j = 0; j < keys; j += 2) {
      for (int t = 0; t < count; ++t) {
        const __m512i low = _mm512_cvtps_epi32(_mm512_loadu_ps(x + j * stride + 16 * t));
        const __m512i high = _mm512_cvtps_epi32(_mm512_loadu_ps(x + (j + 1) * stride + 16 * t));
        const __m512i pair = _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_slli_epi32(high, 16));
        _mm512_storeu_si512(panel + (j / 2 * count + t) * 64, pair);
      }
    }
  }

  SAGE_INLINE F32 FinishSum(F32 sum) { return {_mm512_cvtepi32_ps(_mm512_castps_si512(sum.r))}; }

  SAGE_INLINE F32 Power(F32 x) { return kFine ? Exp2Medium(x) : Exp2Coarse(x); }

  SAGE_INLINE F32 Row(const float* s, uint8_t* p, int first, int end, float c, float m,
                      F32* exact) {
    const F32 factor = Set1(c), shift = Set1(m - 13.0f);  // 2^13 = 8192
    __m512i sum = _mm512_setzero_si512();
    F32 unrounded = Zero();
    // Packing works in 128-bit lanes; the permutation puts the keys back in order.
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    const __m512i ones = _mm512_set1_epi16(1);
    for (int j = first; j < end; j += 32) {
      const F32 e0 = Power(Fms(Load(s + j), factor, shift));
      const F32 e1 = Power(Fms(Load(s + j + 16), factor, shift));
      if (exact != nullptr) unrounded = Add(unrounded, Add(e0, e1));
      const __m512i packed = _mm512_packs_epi32(_mm512_cvtps_epi32(e0.r), _mm512_cvtps_epi32(e1.r));
      const __m512i words = _mm512_permutexvar_epi64(order, packed);
      sum = DotWords(sum, words, ones);
      _mm512_store_si512(p + 2 * j, words);
    }
    if (exact != nullptr) *exact = Add(*exact, Mul(unrounded, Set1(1.0f / 8192.0f)));
    return {_mm512_cvtepi32_ps(sum)};
  }

  template <int kCount, int kActive>
  SAGE_NOINLINE void Panel(const uint8_t* p, const uint8_t* v, int count, float* o, int64_t stride,
                           const float* alpha, const OutputRows* out, int64_t dim,
                           SoftmaxAhead* ahead, FetchLines* fetch) {
    static const float kKeep[kRows] = {1, 1, 1, 1, 1, 1};
    SoftmaxAhead left = *ahead;
    for (int first = 0; first < count; first += kBlock) {
      const int end = count < first + kBlock ? count : first + kBlock;
      IntegerOutputTile<PvWords512, WordDwords, kCount, kActive>(
          p, v, first, end, o, stride, first == 0 ? alpha : kKeep, end == count ? out : nullptr,
          dim, &left, fetch);
    }
    *ahead = left;
  }
};

// P = round(255 p) unsigned, V signed 8 bit: 255 · 127 · 256 keys < 2^24.
struct PvBytes512 {
  static constexpr int kPanel = 4;
  static constexpr int kBytes = 1;
  static constexpr int kProbabilityBytes = 1;
  static constexpr bool kSoftmaxAhead = true;
  static constexpr int kUnitKeys = 64;
  static constexpr int kFetchKeys = 16;
  static constexpr float kLog2OfTop = 7.99435343685885793f;

  SAGE_INLINE void Unit(const float* s, uint8_t* p, const float* factor, const float* shift,
                        F32* sum) {
    const TwoVectors a = PowersOfTwo<3>(s, factor, shift);
    const __m512i low = _mm512_packus_epi32(_mm512_cvtps_epi32(a.low), _mm512_cvtps_epi32(a.high));
    const TwoVectors b = PowersOfTwo<3>(s + 32, factor, shift);
    const __m512i high = _mm512_packus_epi32(_mm512_cvtps_epi32(b.low), _mm512_cvtps_epi32(b.high));
    const ByteConstants* k = &kByteConstants;
    KeepAddress(k);
    const __m512i bytes =
        _mm512_permutexvar_epi32(_mm512_load_si512(k->order), _mm512_packus_epi16(low, high));
    _mm512_store_si512(p, bytes);
    sum->r = _mm512_castsi512_ps(
        DotBytes(_mm512_castps_si512(sum->r), bytes, _mm512_load_si512(k->ones)));
  }

  SAGE_INLINE F32 FinishSum(F32 sum) { return {_mm512_cvtepi32_ps(_mm512_castps_si512(sum.r))}; }

  static void StoreValues(const float* x, int stride, int count, int keys, uint8_t* panel) {
    for (int j = 0; j < keys; j += 4) {
      for (int t = 0; t < count; ++t) {
        __m512i quad = _mm512_setzero_si512();
        for (int e = 0; e < 4; ++e) {
          const __m512i codes = _mm512_cvtps_epi32(_mm512_loadu_ps(x + (j + e) * stride + 16 * t));
          const __m512i byte = _mm512_and_si512(codes, _mm512_set1_epi32(255));
          quad = _mm512_or_si512(quad, _mm512_slli_epi32(byte, static_cast<unsigned>(8 * e)));
        }
        _mm512_storeu_si512(panel + (j / 4 * count + t) * 64, quad);
      }
    }
  }

  SAGE_INLINE F32 Row(const float* s, uint8_t* p, int first, int end, float c, float m,
                      F32* exact) {
    const F32 factor = Set1(c), shift = Set1(m - kLog2OfTop);
    __m512i sum = _mm512_setzero_si512();
    F32 unrounded = Zero();
    // Packing works in 128-bit lanes; whole quads of keys come out, in an order that one
    // permutation mends.
    const __m512i quads = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i ones = _mm512_set1_epi8(1);
    for (int j = first; j < end; j += 64) {
      __m512i codes[4];
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        const F32 e = Exp2Coarse(Fms(Load(s + j + 16 * t), factor, shift));
        codes[t] = _mm512_cvtps_epi32(e.r);
        if (exact != nullptr) unrounded = Add(unrounded, e);
      }
      const __m512i low = _mm512_packus_epi32(codes[0], codes[1]);
      const __m512i high = _mm512_packus_epi32(codes[2], codes[3]);
      const __m512i bytes = _mm512_permutexvar_epi32(quads, _mm512_packus_epi16(low, high));
      sum = DotBytes(sum, bytes, ones);
      _mm512_store_si512(p + j, bytes);
    }
    if (exact != nullptr) *exact = Add(*exact, Mul(unrounded, Set1(1.0f / 255.0f)));
    return {_mm512_cvtepi32_ps(sum)};
  }

  template <int kCount, int kActive>
  SAGE_NOINLINE void Panel(const uint8_t* p, const uint8_t* v, int count, float* o, int64_t stride,
                           const float* alpha, const OutputRows* out, int64_t dim,
                           SoftmaxAhead* ahead, FetchLines* fetch) {
    SoftmaxAhead left = *ahead;
    IntegerOutputTile<PvBytes512, ByteDwords, kCount, kActive>(p, v, 0, count, o, stride, alpha,
                                                               out, dim, &left, fetch);
    *ahead = left;
  }
};

#if defined(SAGE_ISA_AVX512_BF16)
struct PvBf16 {
  static constexpr int kPanel = 4;
  static constexpr int kBytes = 2;
  static constexpr int kProbabilityBytes = 2;
  static constexpr bool kSoftmaxAhead = true;
  static constexpr int kUnitKeys = 32;
  static constexpr int kFetchKeys = 8;
  static constexpr float kLog2OfTop = 0.0f;

  SAGE_INLINE void Unit(const float* s, uint8_t* p, const float* factor, const float* shift,
                        F32* sum) {
    const TwoVectors e = PowersOfTwo<3>(s, factor, shift);
    const __m512bh pair = _mm512_cvtne2ps_pbh(e.high, e.low);
    memcpy(p, &pair, 64);
    sum->r = _mm512_add_ps(sum->r, _mm512_add_ps(e.low, e.high));
  }

  SAGE_INLINE F32 FinishSum(F32 sum) { return sum; }

  static void StoreValues(const float* x, int stride, int count, int keys, uint8_t* panel) {
    for (int j = 0; j < keys; j += 2) {
      for (int t = 0; t < count; ++t) {
        // The values are bf16 already: their upper halves.
        const __m512i low = _mm512_castps_si512(_mm512_loadu_ps(x + j * stride + 16 * t));
        const __m512i high = _mm512_castps_si512(_mm512_loadu_ps(x + (j + 1) * stride + 16 * t));
        const __m512i pair = _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(low, 16), high);
        _mm512_storeu_si512(panel + (j / 2 * count + t) * 64, pair);
      }
    }
  }

  SAGE_INLINE F32 Row(const float* s, uint8_t* p, int first, int end, float c, float m,
                      F32* /*exact*/) {
    const F32 factor = Set1(c), shift = Set1(m);
    F32 sum0 = Zero(), sum1 = Zero();
    int j = first;
    for (; j + 32 <= end; j += 32) {
      const F32 x0 = Fms(Load(s + j), factor, shift), x1 = Fms(Load(s + j + 16), factor, shift);
      const F32 e0 = Exp2Coarse(x0);
      const F32 e1 = Exp2Coarse(x1);
      sum0 = Add(sum0, e0);
      sum1 = Add(sum1, e1);
      const __m512bh pair = _mm512_cvtne2ps_pbh(e1.r, e0.r);
      memcpy(p + 2 * j, &pair, 64);
    }
    return Add(sum0, sum1);
  }

  template <int kCount, int kActive>
  SAGE_NOINLINE void Panel(const uint8_t* p, const uint8_t* v, int count, float* o, int64_t stride,
                           const float* alpha, const OutputRows* out, int64_t first,
                           SoftmaxAhead* ahead, FetchLines* fetch) {
    __m512 acc[kActive][kCount];
#pragma GCC unroll 6
    for (int r = 0; r < kActive; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < kCount; ++t) acc[r][t] = _mm512_setzero_ps();
    }
    if (alpha != nullptr) {
#pragma GCC unroll 6
      for (int r = 0; r < kActive; ++r) {
        const __m512 a = _mm512_set1_ps(alpha[r]);
#pragma GCC unroll 4
        for (int t = 0; t < kCount; ++t) {
          acc[r][t] = _mm512_mul_ps(a, _mm512_load_ps(o + r * stride + 16 * t));
        }
      }
    }
    const __m512i* values = reinterpret_cast<const __m512i*>(v);
    SoftmaxAhead left = *ahead;
    for (int j = 0; j < count; j += 8) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        __m512i value[kCount];
#pragma GCC unroll 4
        for (int t = 0; t < kCount; ++t) value[t] = values[u * kCount + t];
#pragma GCC unroll 6
        for (int r = 0; r < kActive; ++r) {
          const __m512bh weight =
              reinterpret_cast<__m512bh>(Broadcast4(p + r * kScoreStride * 2 + u * 4));
#pragma GCC unroll 4
          for (int t = 0; t < kCount; ++t) {
            acc[r][t] = _mm512_dpbf16_ps(acc[r][t], weight, reinterpret_cast<__m512bh>(value[t]));
          }
        }
        if (u % 2 == 1) SoftmaxUnit<PvBf16>(&left);
      }
      FetchStep(fetch);
      values += 4 * kCount;
      p += 16;
    }
    *ahead = left;
    if (out != nullptr) {
#pragma GCC unroll 6
      for (int r = 0; r < kActive; ++r) {
#pragma GCC unroll 4
        for (int t = 0; t < kCount; ++t) WriteOutputs(*out, r, first + 16 * t, {acc[r][t]});
      }
      return;
    }
#pragma GCC unroll 6
    for (int r = 0; r < kActive; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < kCount; ++t) _mm512_store_ps(o + r * stride + 16 * t, acc[r][t]);
    }
  }
};
#endif  // SAGE_ISA_AVX512_BF16

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_VALUE_TILE_AVX512_H_
