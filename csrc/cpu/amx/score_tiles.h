// Q·K of int8 codes by tile products: 32 queries x 32 keys at a time.
//
// Layouts, d in chunks of 64 dims (head_dim is padded with zeros to a multiple of 64):
//   Q  [row][dims]                                one tile = 16 rows x 64 dims, stride dims
//   K  [keys/16][dims/64][16 dwords][16 keys][4]  one tile = 16 keys x 64 dims, 1 KiB in one piece
//      (a dword is four dims; their order within a chunk is that of CodesToBytes, in Q and K)
//   S  int32 [32][272]                            one tile = 16 rows x 16 keys, stride 1,088
//
// Tiles, by head_dim:  64        Q0 Q1 | K0 K1 | S00 S01 S10 S11: Q stays, 2 loads for 4 products
//                      128       Q00 Q01 Q10 Q11 | K0 K1 | S0 S1: the same, 16 keys at a time
//                      others    as 64, Q loaded again for every chunk: 4 loads for 4 products
#ifndef SAGE_CPU_AMX_SCORE_TILES_H_
#define SAGE_CPU_AMX_SCORE_TILES_H_

#include <immintrin.h>

#include "cpu/amx/tiles.h"
#include "cpu/amx/transpose.h"
#include "cpu/forward/plan.h"

namespace sage {
namespace {

constexpr int kDimChunk = 64;

// A row of scores and the next lie 17 cache lines apart: at 16, the 16 rows of a tile would share
// four sets of L1, and rows four apart the low 12 bits of their addresses, which makes loads wait
// for stores that do not concern them.
constexpr int kScorePitch = kScoreStride + 16;
constexpr int64_t kScoreBytes = kScorePitch * 4;

// Four vectors of 16 codes held as floats, rounded to the nearest integer, become 64 bytes. Groups
// of four dims keep together but change places, 4 x 4 transposed: two instructions less than in
// order, and a product of Q and K does not mind as long as both do it.
SAGE_INLINE __m512i CodesToBytes(const F32 x[4]) {
  const __m512i low = _mm512_packs_epi32(_mm512_cvtps_epi32(x[0].r), _mm512_cvtps_epi32(x[1].r));
  const __m512i high = _mm512_packs_epi32(_mm512_cvtps_epi32(x[2].r), _mm512_cvtps_epi32(x[3].r));
  return _mm512_packs_epi16(low, high);
}
SAGE_INLINE __m512i CodesToBytes(const float* x) {
  const F32 chunk[4] = {LoadU(x), LoadU(x + 16), LoadU(x + 32), LoadU(x + 48)};
  return CodesToBytes(chunk);
}

SAGE_INLINE void PackKeyTiles(const float* x, int dims, int keys, uint8_t* out) {
  for (int j = 0; j < keys; j += 16) {
    for (int d = 0; d < dims; d += kDimChunk) {
      __m512i line[16];
#pragma GCC unroll 16
      for (int t = 0; t < 16; ++t) line[t] = CodesToBytes(x + (j + t) * dims + d);
      Transpose(line);
#pragma GCC unroll 16
      for (int t = 0; t < 16; ++t) _mm512_storeu_si512(out + 64 * t, line[t]);
      out += kTileBytes;
    }
  }
}

SAGE_INLINE void PackQueryRow(const float* x, int dims, uint8_t* out) {
  for (int d = 0; d < dims; d += kDimChunk) _mm512_storeu_si512(out + d, CodesToBytes(x + d));
}

// Tiles 0 and 1 hold Q. kBoth: rows 16 to 31 exist.
template <bool kBoth>
SAGE_INLINE void ScoreTiles64(const uint8_t* q, const uint8_t* k, int count, uint8_t* s) {
  LoadTile<0>(q, 64);
  if (kBoth) LoadTile<1>(q + 16 * 64, 64);
  for (int j = 0; j < count; j += 32) {
    uint8_t* out = s + 4 * j;
    LoadPassingTile<2>(k, 64);
    LoadPassingTile<3>(k + kTileBytes, 64);
    k += 2 * kTileBytes;
    ZeroTile<4>();
    DotInt8<4, 0, 2>();
    ZeroTile<5>();
    DotInt8<5, 0, 3>();
    if (kBoth) {
      ZeroTile<6>();
      DotInt8<6, 1, 2>();
      ZeroTile<7>();
      DotInt8<7, 1, 3>();
    }
    StoreTile<4>(out, kScoreBytes);
    StoreTile<5>(out + 64, kScoreBytes);
    if (kBoth) {
      StoreTile<6>(out + 16 * kScoreBytes, kScoreBytes);
      StoreTile<7>(out + 16 * kScoreBytes + 64, kScoreBytes);
    }
  }
}

// Tiles 0 to 3 hold Q.
template <bool kBoth>
SAGE_INLINE void ScoreTiles128(const uint8_t* q, const uint8_t* k, int count, uint8_t* s) {
  LoadTile<0>(q, 128);
  LoadTile<1>(q + 64, 128);
  if (kBoth) {
    LoadTile<2>(q + 16 * 128, 128);
    LoadTile<3>(q + 16 * 128 + 64, 128);
  }
  for (int j = 0; j < count; j += 16) {
    uint8_t* out = s + 4 * j;
    LoadPassingTile<4>(k, 64);
    LoadPassingTile<5>(k + kTileBytes, 64);
    k += 2 * kTileBytes;
    ZeroTile<6>();
    DotInt8<6, 0, 4>();
    if (kBoth) {
      ZeroTile<7>();
      DotInt8<7, 2, 4>();
    }
    DotInt8<6, 1, 5>();
    if (kBoth) DotInt8<7, 3, 5>();
    StoreTile<6>(out, kScoreBytes);
    if (kBoth) StoreTile<7>(out + 16 * kScoreBytes, kScoreBytes);
  }
}

template <bool kBoth>
SAGE_INLINE void ScoreTilesAny(const uint8_t* q, const uint8_t* k, int dims, int count,
                               uint8_t* s) {
  const int chunks = dims / kDimChunk;
  for (int j = 0; j < count; j += 32) {
    uint8_t* out = s + 4 * j;
    ZeroTile<4>();
    ZeroTile<5>();
    if (kBoth) {
      ZeroTile<6>();
      ZeroTile<7>();
    }
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const uint8_t* keys = k + (j / 16 * chunks + chunk) * kTileBytes;
      LoadTile<0>(q + chunk * kDimChunk, dims);
      LoadPassingTile<2>(keys, 64);
      DotInt8<4, 0, 2>();
      LoadPassingTile<3>(keys + chunks * kTileBytes, 64);
      DotInt8<5, 0, 3>();
      if (kBoth) {
        LoadTile<1>(q + 16 * dims + chunk * kDimChunk, dims);
        DotInt8<6, 1, 2>();
        DotInt8<7, 1, 3>();
      }
    }
    StoreTile<4>(out, kScoreBytes);
    StoreTile<5>(out + 64, kScoreBytes);
    if (kBoth) {
      StoreTile<6>(out + 16 * kScoreBytes, kScoreBytes);
      StoreTile<7>(out + 16 * kScoreBytes + 64, kScoreBytes);
    }
  }
}

// Integer scores of 32 (kBoth) or 16 rows and `count` keys, a multiple of 32, from the first of a
// K tile on.
template <bool kBoth>
SAGE_NOINLINE void ScoreTiles(const uint8_t* q, const uint8_t* k, int dims, int count, float* s) {
  uint8_t* out = reinterpret_cast<uint8_t*>(s);
  if (dims == 64) {
    ScoreTiles64<kBoth>(q, k, count, out);
  } else if (dims == 128) {
    ScoreTiles128<kBoth>(q, k, count, out);
  } else {
    ScoreTilesAny<kBoth>(q, k, dims, count, out);
  }
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_AMX_SCORE_TILES_H_
