// The online softmax of a warp: its rows' state, P from scores, and V's means. attend.h has the
// maths.
#ifndef SAGE_CUDA_SM120_SOFTMAX_H_
#define SAGE_CUDA_SM120_SOFTMAX_H_

#include <cfloat>

#include "cuda/core/products.h"
#include "cuda/sm120/block.h"

namespace sage {
namespace sm120 {

constexpr float kTop = 8.807354922057604f;  // log2 448
constexpr float kStart =
    6.0f;  // a row's largest scale (or P) starts at 2^6 of 448, without rounding
constexpr float kLog2Six = 2.584962500721156f;

template <int D>
struct RowState {
  float o[2][D / 32][4][4];  // [row tile][4 channel tiles][channel tile][fragment]
  float m[4];                // kStart - offset, log2 domain; rows g, g+8, g+16, g+24
  float l[4], r[4];          // sums of all tiles before this one, of this one; this thread's keys
};

template <int D>
SAGE_TILE void Clear(RowState<D>& state) {
  SAGE_UNROLL
  for (int row = 0; row < 2; ++row) {
    SAGE_UNROLL
    for (int t = 0; t < D / 32; ++t) {
      SAGE_UNROLL
      for (int j = 0; j < 4; ++j) {
        SAGE_UNROLL
        for (int e = 0; e < 4; ++e) state.o[row][t][j][e] = 0.0f;
      }
    }
  }
  SAGE_UNROLL
  for (int i = 0; i < 4; ++i) {
    state.m[i] = FLT_MAX;
    state.l[i] = state.r[i] = 0.0f;
  }
}

// Moves the offsets to the rows' largest scores so far and rescales what was summed, and the scales
// of P that wait for their product.
template <int D>
SAGE_TILE void MoveOffsets(RowState<D>& state, const float (&largest)[4], uint8_t* my_sums,
                           float (&waiting)[4]) {
  float alpha[4];
  SAGE_UNROLL
  for (int i = 0; i < 4; ++i) {
    float x = largest[i];
    x = tile::Max(x, tile::ShuffleXor(x, 1));
    x = tile::Max(x, tile::ShuffleXor(x, 2));
    // The offset is kStart - m; it never falls.
    const float m = tile::Max(x, kStart - state.m[i]);
    const float moved = kStart - m;
    alpha[i] = tile::Exp2(moved - state.m[i]);
    state.m[i] = moved;
    state.l[i] *= alpha[i];
    state.r[i] *= alpha[i];
    waiting[i] *= alpha[i];
  }
  SAGE_UNROLL
  for (int row = 0; row < 2; ++row) {
    SAGE_UNROLL
    for (int t = 0; t < D / 32; ++t) {
      SAGE_UNROLL
      for (int j = 0; j < 4; ++j) {
        SAGE_UNROLL
        for (int e = 0; e < 4; ++e) state.o[row][t][j][e] *= alpha[2 * row + e / 2];
      }
    }
  }
  SAGE_NO_UNROLL
  for (int t = 0; t < kMeanTiles; ++t) {
    tile::Floats4* at = reinterpret_cast<tile::Floats4*>(my_sums + t * 512);
    const tile::Floats4 x = *at;
    *at = {x.x * alpha[0], x.y * alpha[1], x.z * alpha[2], x.w * alpha[3]};
  }
}

// O += row sums of the group of tiles that ends with `key_tile`, times the means of v.
template <int D>
SAGE_TILE void AddMeans(const AttendArguments& a, RowState<D>& state, const uint8_t* sums,
                        int kv_head, int key_tile) {
  const int lane = tile::Lane(), q = lane & 3;
  float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  // Later slots hold sums of the group before.
  if (q <= key_tile % kMeanTiles) {
    SAGE_UNROLL
    for (int peer = 0; peer < 4; ++peer) {
      const tile::Floats4 y =
          *reinterpret_cast<const tile::Floats4*>(sums + q * 512 + ((lane & ~3) + peer) * 16);
      x[0] += y.x;
      x[1] += y.y;
      x[2] += y.z;
      x[3] += y.w;
    }
  }
  SAGE_UNROLL
  for (int i = 0; i < 4; ++i) x[i] = tile::RoundTf32(x[i]);
  const float* means =
      a.mean_rows +
      (static_cast<int64_t>(kv_head) * a.mean_groups + key_tile / kMeanTiles) * (kMeanTiles * D) +
      lane * (D / 8);
  SAGE_UNROLL
  for (int t = 0; t < D / 32; ++t) {
    const tile::Words4 b = tile::LoadConstant(reinterpret_cast<const tile::Words4*>(means) + t);
    const uint32_t words[4] = {b.x, b.y, b.z, b.w};
    SAGE_UNROLL
    for (int j = 0; j < 4; ++j) {
      tile::MmaTf32(state.o[0][t][j], x[0], x[1], BitsToFloat(words[j]));
      tile::MmaTf32(state.o[1][t][j], x[2], x[3], BitsToFloat(words[j]));
    }
  }
}

// Largest scores of a thread's four rows per group of 16 keys, and that in units of P's scales.
struct Tops {
  float top[4], e[4];
};

// Of kGroups times 32 keys. Moves the offsets where a scale would pass the largest; `waiting` are
// the scales of P that wait for their product.
template <int D, bool kFp8, int kGroups>
SAGE_TILE void FindTops(RowState<D>& state, const float (&s)[kGroups][2][4][4], float c,
                        uint8_t* my_sums, float (&waiting)[4], Tops (&tops)[kGroups]) {
  bool beyond = false;
  SAGE_UNROLL
  for (int u = 0; u < kGroups; ++u) {
    SAGE_UNROLL
    for (int row = 0; row < 4; ++row) {
      const int r = row / 2, f = row % 2 * 2;
      float x = tile::Max(s[u][r][0][f], s[u][r][0][f + 1]);
      SAGE_UNROLL
      for (int j = 1; j < 4; ++j) {
        x = tile::Max(x, tile::Max(s[u][r][j][f], s[u][r][j][f + 1]));
      }
      // A group of 16 keys is shared by two threads.
      if (!kFp8) x = tile::Max(x, tile::ShuffleXor(x, 1));
      tops[u].top[row] = x;
      tops[u].e[row] = tile::Fma(x, c, state.m[row]);
      beyond = beyond || tops[u].e[row] > kTop;
    }
  }
  if (tile::Any(beyond)) {
    float largest[4];
    SAGE_UNROLL
    for (int row = 0; row < 4; ++row) {
      largest[row] = tops[0].top[row];
      SAGE_UNROLL
      for (int u = 1; u < kGroups; ++u) largest[row] = tile::Max(largest[row], tops[u].top[row]);
      largest[row] *= c;
    }
    MoveOffsets<D>(state, largest, my_sums, waiting);
    SAGE_UNROLL
    for (int i = 0; i < 4 * kGroups; ++i) {
      tops[i / 4].e[i % 4] = tile::Fma(tops[i / 4].top[i % 4], c, state.m[i % 4]);
    }
  }
}

// P of 32 rows and 32 keys, the second 32 of a step where u = 1, and their row sums. `sf` becomes
// the unrounded scales; fp8 has none.
template <int D, bool kFp8, bool kMasked>
SAGE_TILE void Exponentiate(RowState<D>& state, const float (&s)[2][4][4], const Tops& tops,
                            float c, int u, uint32_t (&p)[2][4], float (&sf)[4]) {
  SAGE_UNROLL
  for (int row = 0; row < 4; ++row) {
    const int r = row / 2, f = row % 2 * 2;
    // A group that is hidden as a whole has no largest score to stand on.
    const float anchor = kMasked ? tile::Max(tops.top[row], -FLT_MAX) : tops.top[row];
    const float offset = kFp8 ? state.m[row] : tile::Fma(-anchor, c, kLog2Six);
    float x[8];
    SAGE_UNROLL
    for (int j = 0; j < 8; ++j) {
      x[j] = tile::Exp2(tile::Fma(s[r][j / 2][f + j % 2], c, offset));
    }
    const float sum = ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
    if (kFp8) {
      state.r[row] += sum;
      p[r][row % 2] = tile::PackE4m3(x[0], x[1], x[2], x[3]);
      p[r][row % 2 + 2] = tile::PackE4m3(x[4], x[5], x[6], x[7]);
    } else {
      sf[row] = tile::Exp2(tops.e[row]);
      state.r[row] = tile::Fma(sum, sf[row], state.r[row]);
      p[r][row % 2 + 2 * u] = tile::PackE2m1(x);
    }
  }
}

// The word of scales of P that this thread supplies: of row g + 8 (q % 2) of row tile q / 2.
SAGE_TILE uint32_t ScalesOfP(const float (&sf)[2][4]) {
  const int q = tile::Lane() & 3;
  const uint32_t tile0 = tile::PackE4m3(sf[0][0], sf[0][1], sf[1][0], sf[1][1]);
  const uint32_t tile1 = tile::PackE4m3(sf[0][2], sf[0][3], sf[1][2], sf[1][3]);
  // Each thread gives its peer the scales of the peer's row tile and gets those of its own.
  const uint32_t own = q < 2 ? tile0 : tile1;
  const uint32_t peer = tile::ShuffleXor(q < 2 ? tile1 : tile0, 2);
  // Bytes in order of groups: threads 0 and 1 of the quad hold the first of each 32 keys.
  const uint32_t order = q < 2 ? (q == 0 ? 0x6240u : 0x7351u) : (q == 2 ? 0x2604u : 0x3715u);
  return tile::SelectBytes(own, peer, order);
}

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_SOFTMAX_H_
