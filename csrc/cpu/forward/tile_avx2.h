// Halves of the integer tile kernels on AVX2 without dot-product instructions.
//
//   int8   vpmaddubsw and wrapping vpaddw: 32 products in two instructions. The `int8_pair` codes
//   (docs/numerics.md 4.3) make it
//          exact: no pair of products saturates, and a lane's final sum fits in 16 bits although
//          sums on the way may wrap. After 32 dims (16 in each lane) one vpmaddwd by 1 widens to 32
//          bits.
//   int16  vpmaddwd and vpaddd. The codes of `int8` go through these as words: their products
//          saturate or overflow every way of adding bytes, and widening costs what words cost.
// Register tile: 6 rows x 16 keys (or dims) = 12 accumulators.
// Layouts: K int8 [tile][dims/4][16][4], int16 [tile][dims/2][16][2]; Q [group][dims/4][6][4],
// [group][dims/2][6][2];
//          V [panel of 1 or 2 vectors][keys/2][vectors][8][2].
// GCC 12 spills accumulators around multiply-and-add intrinsics; one asm statement for both keeps
// them in registers.
#ifndef SAGE_CPU_FORWARD_TILE_AVX2_H_
#define SAGE_CPU_FORWARD_TILE_AVX2_H_

#include <immintrin.h>
#include <string.h>

#include "cpu/forward/tile_integer.h"

namespace sage {
namespace {

SAGE_INLINE void MultiplyAddWords(__m256i* acc, __m256i a, __m256i b) {
#if defined(__GNUC__) && !defined(__clang__)
  __m256i product;
  asm("vpmaddwd %3,%2,%1\n\tvpaddd %1,%0,%0" : "+x"(*acc), "=&x"(product) : "x"(a), "x"(b));
#else
  *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(a, b));
#endif
}

SAGE_INLINE void MultiplyAddBytes(__m256i* acc, __m256i unsigned_bytes, __m256i signed_bytes) {
#if defined(__GNUC__) && !defined(__clang__)
  __m256i product;
  asm("vpmaddubsw %3,%2,%1\n\tvpaddw %1,%0,%0"
      : "+x"(*acc), "=&x"(product)
      : "x"(unsigned_bytes), "x"(signed_bytes));
#else
  *acc = _mm256_add_epi16(*acc, _mm256_maddubs_epi16(unsigned_bytes, signed_bytes));
#endif
}

SAGE_INLINE __m256i Broadcast4(const void* p) {
  return _mm256_castps_si256(_mm256_broadcast_ss(static_cast<const float*>(p)));
}

SAGE_INLINE void StoreScores(__m256i a0, __m256i a1, __m256 scale0, __m256 scale1, float* s,
                             F32* most) {
  const __m256 s0 = _mm256_mul_ps(_mm256_cvtepi32_ps(a0), scale0);
  const __m256 s1 = _mm256_mul_ps(_mm256_cvtepi32_ps(a1), scale1);
  _mm256_store_ps(s, s0);
  _mm256_store_ps(s + 8, s1);
  most->r = _mm256_max_ps(most->r, _mm256_max_ps(s0, s1));
}

// The codes of 8 values: times `by`, rounded to even.
SAGE_INLINE __m256i CodesOf(const float* x, __m256 by) {
  return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), by));
}

// Eight dwords of a row of Q to a group of kRows rows, whose dwords lie side by side.
SAGE_INLINE void StoreDwords(__m256i codes, uint8_t* to) {
  alignas(32) uint32_t words[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(words), codes);
#pragma GCC unroll 8
  for (int w = 0; w < 8; ++w) memcpy(to + w * 4 * kRows, &words[w], 4);
}

// The codes of 16 rows as columns of dwords of a tile of 16 keys: pack(row, by) makes 8 dwords of
// `line_dims` dims; `factor` is what multiplies the rows to codes (null: 1).
template <class Pack>
SAGE_INLINE void StoreKeyColumns(const float* x, int dims, int line_dims, uint8_t* tile,
                                 const float* factor, const Pack& pack) {
  for (int d = 0; d < dims; d += line_dims, tile += 8 * 64) {
    for (int half = 0; half < 2; ++half) {
      F32 line[8];
#pragma GCC unroll 8
      for (int t = 0; t < 8; ++t) {
        const int row = 8 * half + t;
        const __m256 by = _mm256_set1_ps(factor == nullptr ? 1.0f : factor[row]);
        line[t].r = _mm256_castsi256_ps(pack(x + row * dims + d, by));
      }
      Transpose(line);
#pragma GCC unroll 8
      for (int w = 0; w < 8; ++w) {
        _mm256_store_ps(reinterpret_cast<float*>(tile + w * 64 + half * 32), line[w].r);
      }
    }
  }
}

struct QkPairBytes256 {
  static constexpr int kKeyTile = 16;
  static constexpr int kDims = 32;
  static constexpr bool kShortGroups = false;
  static constexpr bool kRounds = true;
  static constexpr int kBytes = 1;
  static constexpr int kOffset = 107;  // K codes are at most 107, so K + 107 <= 214 is unsigned
  // A word for each 32-dim segment and row: the two lanes' -107 · sum(q), modulo 2^16.
  static constexpr int Corrections(int dims) { return dims / 32; }

  // 32 codes plus an offset as bytes, in order.
  SAGE_INLINE __m256i Bytes(const float* x, __m256 by, int offset) {
    const __m256i low = _mm256_packs_epi32(CodesOf(x, by), CodesOf(x + 8, by));
    const __m256i high = _mm256_packs_epi32(CodesOf(x + 16, by), CodesOf(x + 24, by));
    const __m256i bytes =
        _mm256_add_epi8(_mm256_packs_epi16(low, high), _mm256_set1_epi8(static_cast<char>(offset)));
    // The packs work in 128-bit halves.
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }

  static constexpr int QueryBytes(int dims) { return dims; }

  static void StoreKeys(const float* x, int dims, int /*key*/, uint8_t* tile, const float* factor) {
    StoreKeyColumns(x, dims, 32, tile, factor,
                    [](const float* row, __m256 by) { return Bytes(row, by, kOffset); });
  }

  static void StoreQuery(const float* x, int dims, int r, uint8_t* group, int32_t* corrections,
                         float factor) {
    const __m256 by = _mm256_set1_ps(factor);
    for (int segment = 0; segment < dims / 32; ++segment, group += 8 * 4 * kRows) {
      const __m256i codes = Bytes(x + segment * 32, by, 0);
      StoreDwords(codes, group + r * 4);
      // By dwords: codes 0 + 1 and 2 + 3 as words, of each four; their sums wrap as the products
      // do.
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
      __m128i sum =
          _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
      sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, 0x4e));
      sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, 0xb1));
      corrections[segment * kRows + r] =
          _mm_cvtsi128_si32(_mm_mullo_epi16(sum, _mm_set1_epi16(-kOffset)));
    }
  }

  template <int kVectors>
  SAGE_INLINE void Tile(const uint8_t* q, const int32_t* corrections, const uint8_t* k, int dims,
                        const float* k_scale, float* s, F32 most[kRows]) {
    const __m256i ones = _mm256_set1_epi16(1);
    // Sums of all segments; in memory, since 12 accumulators and 12 sums do not fit in 16
    // registers.
    alignas(32) int32_t total[kRows][16];
    const int last = dims / 32 - 1;
    for (int segment = 0;; ++segment) {
      __m256i acc[kRows][2];
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r)
        acc[r][0] = acc[r][1] = Broadcast4(corrections + segment * kRows + r);
#pragma GCC unroll 8
      for (int d = 0; d < 8; ++d) {
        const __m256i k0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(k + d * 64));
        const __m256i k1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(k + d * 64 + 32));
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const __m256i query = Broadcast4(q + (d * kRows + r) * 4);
          MultiplyAddBytes(&acc[r][0], k0, query);
          MultiplyAddBytes(&acc[r][1], k1, query);
        }
      }
      k += 8 * 64;
      q += 8 * 4 * kRows;
      if (segment == last) {
        const __m256 scale0 = _mm256_load_ps(k_scale), scale1 = _mm256_load_ps(k_scale + 8);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          __m256i sum[2];
#pragma GCC unroll 2
          for (int t = 0; t < 2; ++t) {
            sum[t] = _mm256_madd_epi16(acc[r][t], ones);
            if (last > 0) {
              const __m256i* before = reinterpret_cast<const __m256i*>(total[r] + 8 * t);
              sum[t] = _mm256_add_epi32(sum[t], _mm256_load_si256(before));
            }
          }
          StoreScores(sum[0], sum[1], scale0, scale1, s + r * kScoreStride, &most[r]);
        }
        return;
      }
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int t = 0; t < 2; ++t) {
          __m256i* sum = reinterpret_cast<__m256i*>(total[r] + 8 * t);
          const __m256i wide = _mm256_madd_epi16(acc[r][t], ones);
          _mm256_store_si256(sum, segment == 0 ? wide : _mm256_add_epi32(*sum, wide));
        }
      }
    }
  }
};

struct QkWords256 {
  static constexpr int kKeyTile = 16;
  static constexpr int kDims = 32;
  static constexpr bool kShortGroups = false;
  static constexpr bool kRounds = true;
  static constexpr int kBytes = 2;
  static constexpr int Corrections(int /*dims*/) { return 0; }

  static constexpr int QueryBytes(int dims) { return 2 * dims; }

  // 16 codes as words, in order.
  SAGE_INLINE __m256i Words(const float* x, __m256 by) {
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(CodesOf(x, by), CodesOf(x + 8, by)), 0xd8);
  }

  static void StoreKeys(const float* x, int dims, int /*key*/, uint8_t* tile, const float* factor) {
    StoreKeyColumns(x, dims, 16, tile, factor,
                    [](const float* row, __m256 by) { return Words(row, by); });
  }

  static void StoreQuery(const float* x, int dims, int r, uint8_t* group, int32_t* /*corrections*/,
                         float factor) {
    const __m256 by = _mm256_set1_ps(factor);
    for (int d = 0; d < dims; d += 16, group += 8 * 4 * kRows) {
      StoreDwords(Words(x + d, by), group + r * 4);
    }
  }

  template <int kVectors>
  SAGE_INLINE void Tile(const uint8_t* q, const int32_t* /*corrections*/, const uint8_t* k,
                        int dims, const float* k_scale, float* s, F32 most[kRows]) {
    __m256i acc[kRows][2];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (int d = 0; d < dims; d += 8) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        const __m256i k0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(k + u * 64));
        const __m256i k1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(k + u * 64 + 32));
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const __m256i query = Broadcast4(q + (u * kRows + r) * 4);
          MultiplyAddWords(&acc[r][0], k0, query);
          MultiplyAddWords(&acc[r][1], k1, query);
        }
      }
      k += 4 * 64;
      q += 4 * 4 * kRows;
    }
    const __m256 scale0 = _mm256_load_ps(k_scale), scale1 = _mm256_load_ps(k_scale + 8);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      StoreScores(acc[r][0], acc[r][1], scale0, scale1, s + r * kScoreStride, &most[r]);
    }
  }
};

// P = round(kTop p). kTop 8192: V in 12 bits (docs/numerics.md 4.6), 8192 · 2047 · 128 keys < 2^31.
// kTop 255: V in 8 bits; vpmaddubsw would saturate at 2 · 255 · 127, so these are words too. kFine:
// a power of two whose error is far below a step of P, for 16-bit scores; with 8-bit ones half a
// step more at the row's maximum is nothing.
template <int kTop, bool kFine>
struct PvWords256 {
  static_assert(kTop == 8192 || kTop == 255, "the logarithm below");
  static constexpr float kLog2OfTop = kTop == 8192 ? 13.0f : 7.99435343685885793f;
  static constexpr int kPanel = 2;
  static constexpr int kBytes = 2;
  static constexpr int kProbabilityBytes = 2;
  static constexpr bool kSoftmaxAhead = false;
  static constexpr int kUnitKeys = 16;

  static void StoreValues(const float* x, int stride, int count, int keys, uint8_t* panel) {
    for (int j = 0; j < keys; j += 2) {
      for (int t = 0; t < count; ++t) {
        const __m256i low = _mm256_cvtps_epi32(_mm256_loadu_ps(x + j * stride + 8 * t));
        const __m256i high = _mm256_cvtps_epi32(_mm256_loadu_ps(x + (j + 1) * stride + 8 * t));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel + (j / 2 * count + t) * 32),
                            _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa));
      }
    }
  }

  SAGE_INLINE F32 Power(F32 x) { return kFine ? Exp2Medium(x) : Exp2Coarse(x); }

  SAGE_INLINE F32 Row(const float* s, uint8_t* p, int first, int end, float c, float m,
                      F32* exact) {
    const F32 factor = Set1(c), shift = Set1(m - kLog2OfTop);
    __m256i sum = _mm256_setzero_si256();
    F32 unrounded = Zero();
    for (int j = first; j < end; j += 16) {
      const F32 p0 = Power(Fms(Load(s + j), factor, shift));
      const F32 p1 = Power(Fms(Load(s + j + 8), factor, shift));
      const __m256i e0 = _mm256_cvtps_epi32(p0.r), e1 = _mm256_cvtps_epi32(p1.r);
      sum = _mm256_add_epi32(sum, _mm256_add_epi32(e0, e1));
      if (exact != nullptr) unrounded = Add(unrounded, Add(p0, p1));
      // vpackssdw works in 128-bit halves; the permutation puts the keys back in order.
      const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(e0, e1), 0xd8);
      _mm256_store_si256(reinterpret_cast<__m256i*>(p + 2 * j), packed);
    }
    if (exact != nullptr) *exact = Add(*exact, Mul(unrounded, Set1(1.0f / kTop)));
    return {_mm256_cvtepi32_ps(sum)};
  }

  template <int kCount>
  SAGE_NOINLINE void Panel(const uint8_t* p, const uint8_t* v, int count, float* o, int64_t stride,
                           const float* alpha, const OutputRows* out, int64_t dim) {
    const __m256i* values = reinterpret_cast<const __m256i*>(v);
    for (int first = 0; first < count; first += kBlock) {
      const int end = count < first + kBlock ? count : first + kBlock;
      __m256i acc[kRows][kCount];
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int t = 0; t < kCount; ++t) acc[r][t] = _mm256_setzero_si256();
      }
      for (int j = first; j < end; j += 8) {
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) {
          __m256i value[kCount];
#pragma GCC unroll 2
          for (int t = 0; t < kCount; ++t) value[t] = _mm256_load_si256(values + u * kCount + t);
#pragma GCC unroll 6
          for (int r = 0; r < kRows; ++r) {
            const __m256i weight = Broadcast4(p + r * kScoreStride * 2 + u * 4);
#pragma GCC unroll 2
            for (int t = 0; t < kCount; ++t) MultiplyAddWords(&acc[r][t], value[t], weight);
          }
        }
        values += 4 * kCount;
        p += 16;
      }
      const OutputRows* to = end == count ? out : nullptr;
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const bool fresh = first == 0 && alpha == nullptr;
        const __m256 a = _mm256_set1_ps(first > 0 || fresh ? 1.0f : alpha[r]);
#pragma GCC unroll 2
        for (int t = 0; t < kCount; ++t) {
          float* before = o + r * stride + 8 * t;
          __m256 sum = _mm256_cvtepi32_ps(acc[r][t]);
          if (!fresh) sum = _mm256_fmadd_ps(a, _mm256_load_ps(before), sum);
          if (to != nullptr) {
            WriteOutputs(*to, r, dim + 8 * t, {sum});
          } else {
            _mm256_store_ps(before, sum);
          }
        }
      }
    }
  }
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_TILE_AVX2_H_
