// Q·K halves of the integer tile kernels on AVX-512, by VNNI; the P·V halves are in
// value_tile_avx512.h.
//
//   scores  6 rows x 64 keys = 24 accumulators; a key vector holds 16 keys x 4 (int8) or 2 (int16)
//           dims, a query is broadcast
//
// Layouts: K int8 [tile][dims/4][64][4], int16 [tile][dims/2][64][2];
//          Q [group][line][6][64 bytes], zeros up to a whole line of 64 dims or 32.
// vpdpbusd multiplies unsigned by signed: K is stored as code + offset, and -offset · sum(q) starts
// the accumulator.
#ifndef SAGE_CPU_FORWARD_SCORE_TILE_AVX512_H_
#define SAGE_CPU_FORWARD_SCORE_TILE_AVX512_H_

#include <immintrin.h>
#include <string.h>

#include "cpu/forward/tile_integer.h"
#include "cpu/simd/dot_avx512.h"
#include "cpu/simd/keep_addresses.h"
#include "cpu/simd/simd_shuffle.h"

namespace sage {
namespace {

// Integer sums to scores: times the keys' scales, stored, row maxima updated.
template <int kVectors>
SAGE_INLINE void StoreScores(const __m512i acc[kVectors], const __m512 scale[kVectors], float* s,
                             F32* most) {
  __m512 high[2] = {most->r, most->r};
#pragma GCC unroll 4
  for (int t = 0; t < kVectors; ++t) {
    const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[t]), scale[t]);
    _mm512_store_ps(s + 16 * t, value);
    high[t % 2] = _mm512_max_ps(high[t % 2], value);
  }
  most->r = _mm512_max_ps(high[0], high[1]);
}

// The codes of 16 values, times `by` and rounded to even; zeros where `there` is false.
SAGE_INLINE __m512i LoadCodes(const float* x, bool there, __m512 by) {
  return there ? _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), by)) : _mm512_setzero_si512();
}

// What one dword of K, V, Q or P holds: 4 bytes or 2 words, and how two vectors of them multiply.
// Line: the first 16 dwords of a row with `left` dims, with zeros beyond these. Packing works in
// 128-bit lanes, so dword w of the row is in lane LaneOfDword(w).
struct ByteDwords {
  static constexpr int kElements = 4;
  SAGE_INLINE __m512i Dot(__m512i acc, __m512i a, __m512i b) { return DotBytes(acc, a, b); }
  SAGE_INLINE __m512i Line(const float* x, int left, __m512 by) {
    const __m512i low =
        _mm512_packs_epi32(LoadCodes(x, left > 0, by), LoadCodes(x + 16, left > 16, by));
    const __m512i high =
        _mm512_packs_epi32(LoadCodes(x + 32, left > 32, by), LoadCodes(x + 48, left > 48, by));
    return _mm512_packs_epi16(low, high);
  }
  static constexpr int LaneOfDword(int w) { return w % 4 * 4 + w / 4; }
};
struct WordDwords {
  static constexpr int kElements = 2;
  SAGE_INLINE __m512i Dot(__m512i acc, __m512i a, __m512i b) { return DotWords(acc, a, b); }
  SAGE_INLINE __m512i Line(const float* x, int left, __m512 by) {
    return _mm512_packs_epi32(LoadCodes(x, left > 0, by), LoadCodes(x + 16, left > 16, by));
  }
  static constexpr int LaneOfDword(int w) { return w % 8 / 2 * 4 + w / 8 * 2 + w % 2; }
};

constexpr int kLineBytes = 64;
constexpr int LinesBytes(int bytes) { return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes; }

// The codes of 16 rows, plus kOffset, as columns of dwords of a tile; `tile` is that of the first
// row, `factor` what multiplies the rows to codes (null: 1).
template <class Dwords, int kOffset>
SAGE_INLINE void StoreKeyColumns(const float* x, int dims, uint8_t* tile, const float* factor) {
  constexpr int kDims = 16 * Dwords::kElements;
  for (int d = 0; d < dims; d += kDims, tile += 16 * 256) {
    F32 line[16];
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) {
      __m512i codes = Dwords::Line(x + t * dims + d, dims - d,
                                   _mm512_set1_ps(factor == nullptr ? 1.0f : factor[t]));
      if (kOffset != 0)
        codes = _mm512_add_epi8(codes, _mm512_set1_epi8(static_cast<char>(kOffset)));
      line[t].r = _mm512_castsi512_ps(codes);
    }
    Transpose(line);
#pragma GCC unroll 16
    for (int w = 0; w < 16; ++w) {
      if (w * Dwords::kElements >= dims - d) return;
      _mm512_store_ps(tile + w * 256, line[Dwords::LaneOfDword(w)].r);
    }
  }
}

// Row r of a group as lines; each line goes to fn as well.
template <class Dwords, class Fn>
SAGE_INLINE void StoreQueryLines(const float* x, int dims, int r, uint8_t* group, float factor,
                                 const Fn& fn) {
  constexpr int kDims = 16 * Dwords::kElements;
  alignas(64) int32_t lane[16];
  for (int w = 0; w < 16; ++w) lane[w] = Dwords::LaneOfDword(w);
  const __m512i order = _mm512_load_si512(lane);
  for (int d = 0; d < dims; d += kDims, group += kRows * kLineBytes) {
    const __m512i line = Dwords::Line(x + d, dims - d, _mm512_set1_ps(factor));
    fn(line);
    _mm512_store_si512(group + r * kLineBytes, _mm512_permutexvar_epi32(order, line));
  }
}

// Scores of kActive rows and the first kVectors * 16 keys of a tile of 64; `start` holds the rows'
// first sums, or is null for zero.
template <class Dwords, int kVectors, int kActive>
SAGE_INLINE void IntegerScoreTile(const uint8_t* q, const int32_t* start, const uint8_t* k,
                                  int dims, const float* k_scale, float* s, F32 most[kRows],
                                  FetchLines* fetch) {
  __m512i acc[kActive][kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < kActive; ++r) {
    const __m512i first = start == nullptr ? _mm512_setzero_si512() : _mm512_set1_epi32(start[r]);
#pragma GCC unroll 4
    for (int t = 0; t < kVectors; ++t) acc[r][t] = first;
  }
  // Dwords of a row in steps of 4; the last step goes by pairs of rows (kRowsAtEnd).
  constexpr int kSteps = 4, kLineSteps = 16 / kSteps;
  const uint8_t* query = q;
  const int steps = dims / (kSteps * Dwords::kElements);
  for (int step = 1; step < steps; ++step) {
#pragma GCC unroll 4
    for (int u = 0; u < kSteps; ++u) {
      const __m512i* keys = reinterpret_cast<const __m512i*>(k + u * 256);
      __m512i key[kVectors];
#pragma GCC unroll 4
      for (int t = 0; t < kVectors; ++t) key[t] = keys[t];
#pragma GCC unroll 6
      for (int r = 0; r < kActive; ++r) {
        const __m512i a = Broadcast4(query + r * kLineBytes + u * 4);
#pragma GCC unroll 4
        for (int t = 0; t < kVectors; ++t) acc[r][t] = Dwords::Dot(acc[r][t], key[t], a);
      }
    }
    FetchStep(fetch);
    k += kSteps * 256;
    query += step % kLineSteps == 0 ? kRows * kLineBytes - 48 : 16;
  }
#pragma GCC unroll 3
  for (int r0 = 0; r0 < kActive; r0 += kRowsAtEnd) {
    KeepAddresses(query, k, k_scale, s, most);
#pragma GCC unroll 4
    for (int u = 0; u < kSteps; ++u) {
      const __m512i* keys = reinterpret_cast<const __m512i*>(k + u * 256);
      __m512i key[kVectors];
#pragma GCC unroll 4
      for (int t = 0; t < kVectors; ++t) key[t] = keys[t];
#pragma GCC unroll 2
      for (int r = r0; r < r0 + kRowsAtEnd; ++r) {
        const __m512i a = Broadcast4(query + r * kLineBytes + u * 4);
#pragma GCC unroll 4
        for (int t = 0; t < kVectors; ++t) acc[r][t] = Dwords::Dot(acc[r][t], key[t], a);
      }
    }
    __m512 scale[kVectors];
#pragma GCC unroll 4
    for (int t = 0; t < kVectors; ++t) scale[t] = _mm512_load_ps(k_scale + 16 * t);
#pragma GCC unroll 2
    for (int r = r0; r < r0 + kRowsAtEnd; ++r) {
      StoreScores<kVectors>(acc[r], scale, s + r * kScoreStride, &most[r]);
    }
  }
}

// kOffset is 128 for symmetric 8-bit codes, 107 for those of `int8_pair` (any offset that keeps
// code + offset in a byte works).
template <int kOffset>
struct QkBytes512 {
  static constexpr int kKeyTile = 64;
  static constexpr int kDims = 16;
  static constexpr bool kShortGroups = true;
  static constexpr bool kRounds = true;
  static constexpr int kBytes = 1;
  static constexpr int Corrections(int /*dims*/) { return 1; }

  static constexpr int QueryBytes(int dims) { return LinesBytes(dims); }
  static constexpr int FetchSteps(int dims) { return dims / 16 - 1; }

  static void StoreKeys(const float* x, int dims, int key, uint8_t* tile, const float* factor) {
    StoreKeyColumns<ByteDwords, kOffset>(x, dims, tile + key * 4, factor);
  }

  static void StoreQuery(const float* x, int dims, int r, uint8_t* group, int32_t* corrections,
                         float factor) {
    __m512i sum = _mm512_setzero_si512();
    StoreQueryLines<ByteDwords>(x, dims, r, group, factor, [&](__m512i line) {
      sum = DotBytes(sum, _mm512_set1_epi8(1), line);
    });
    corrections[r] = -kOffset * _mm512_reduce_add_epi32(sum);
  }

  template <int kVectors, int kActive>
  SAGE_INLINE void Tile(const uint8_t* q, const int32_t* corrections, const uint8_t* k, int dims,
                        const float* k_scale, float* s, F32 most[kRows], FetchLines* fetch) {
    IntegerScoreTile<ByteDwords, kVectors, kActive>(q, corrections, k, dims, k_scale, s, most,
                                                    fetch);
  }
};

struct QkWords512 {
  static constexpr int kKeyTile = 64;
  static constexpr int kDims = 32;
  static constexpr bool kShortGroups = true;
  static constexpr bool kRounds = true;
  static constexpr int kBytes = 2;
  static constexpr int Corrections(int /*dims*/) { return 0; }

  static constexpr int QueryBytes(int dims) { return LinesBytes(2 * dims); }
  static constexpr int FetchSteps(int dims) { return dims / 8 - 1; }

  static void StoreKeys(const float* x, int dims, int key, uint8_t* tile, const float* factor) {
    StoreKeyColumns<WordDwords, 0>(x, dims, tile + key * 4, factor);
  }

  static void StoreQuery(const float* x, int dims, int r, uint8_t* group, int32_t* /*corrections*/,
                         float factor) {
    StoreQueryLines<WordDwords>(x, dims, r, group, factor, [](__m512i) {});
  }

  template <int kVectors, int kActive>
  SAGE_INLINE void Tile(const uint8_t* q, const int32_t* /*corrections*/, const uint8_t* k,
                        int dims, const float* k_scale, float* s, F32 most[kRows],
                        FetchLines* fetch) {
    IntegerScoreTile<WordDwords, kVectors, kActive>(q, nullptr, k, dims, k_scale, s, most, fetch);
  }
};

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_SCORE_TILE_AVX512_H_
