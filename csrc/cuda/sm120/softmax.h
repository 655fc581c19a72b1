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

// V: channels of v, see VChannelsOf.
template <int V>
struct RowState {
  float o[2][V / 32][4][4];  // [row tile][4 channel tiles][channel tile][fragment]
  float m[4];                // kStart - offset, log2 domain; rows g, g+8, g+16, g+24
  float r[4];                // sums of this tile; this thread's keys
};

template <int V>
SAGE_TILE void Clear(RowState<V>& state) {
  SAGE_UNROLL
  for (int row = 0; row < 2; ++row) {
    SAGE_UNROLL
    for (int t = 0; t < V / 32; ++t) {
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
    state.r[i] = 0.0f;
  }
}

// Moves the offsets to the rows' largest scores so far and rescales what was summed.
template <int V>
SAGE_TILE void MoveOffsets(RowState<V>& state, const float (&largest)[4], uint8_t* my_sums) {
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
    state.r[i] *= alpha[i];
  }
  SAGE_UNROLL
  for (int row = 0; row < 2; ++row) {
    SAGE_UNROLL
    for (int t = 0; t < V / 32; ++t) {
      SAGE_UNROLL
      for (int j = 0; j < 4; ++j) {
        SAGE_UNROLL
        for (int e = 0; e < 4; ++e) state.o[row][t][j][e] *= alpha[2 * row + e / 2];
      }
    }
  }
  SAGE_NO_UNROLL
  for (int t = 0; t < kSumSlots; ++t) {
    tile::Floats4* at = reinterpret_cast<tile::Floats4*>(my_sums + t * 512);
    const tile::Floats4 x = *at;
    *at = {x.x * alpha[0], x.y * alpha[1], x.z * alpha[2], x.w * alpha[3]};
  }
}

// O += row sums of the group of tiles that ends with `key_tile`, times the means of v. The last
// slot adds up the same sums: thread q of a quad those of tiles q of all groups.
template <int D, int V>
SAGE_TILE void AddMeans(const AttendArguments& a, RowState<V>& state, uint8_t* sums, int kv_head,
                        int part, int key_tile) {
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
  tile::Floats4* total = reinterpret_cast<tile::Floats4*>(sums + kMeanTiles * 512 + lane * 16);
  const tile::Floats4 before = *total;
  *total = {before.x + x[0], before.y + x[1], before.z + x[2], before.w + x[3]};
  SAGE_UNROLL
  for (int i = 0; i < 4; ++i) x[i] = tile::RoundTf32(x[i]);
  const float* means =
      a.mean_rows +
      (static_cast<int64_t>(kv_head) * a.mean_groups + key_tile / kMeanTiles) * (kMeanTiles * D) +
      (part * 32 + lane) * (V / 8);
  SAGE_UNROLL
  for (int t = 0; t < V / 32; ++t) {
    const tile::Words4 b = tile::LoadConstant(reinterpret_cast<const tile::Words4*>(means) + t);
    const uint32_t words[4] = {b.x, b.y, b.z, b.w};
    SAGE_UNROLL
    for (int j = 0; j < 4; ++j) {
      tile::MmaTf32(state.o[0][t][j], x[0], x[1], BitsToFloat(words[j]));
      tile::MmaTf32(state.o[1][t][j], x[2], x[3], BitsToFloat(words[j]));
    }
  }
}

// Largest of a thread's 8 scores of row `row` of 4.
SAGE_TILE float LargestOfRow(const float (&s)[2][4][4], int row) {
  const int r = row / 2, f = row % 2 * 2;
  float x = tile::Max(s[r][0][f], s[r][0][f + 1]);
  SAGE_UNROLL
  for (int j = 1; j < 4; ++j) x = tile::Max(x, tile::Max(s[r][j][f], s[r][j][f + 1]));
  return x;
}

// 2^(c s + offset) of a thread's 8 scores of a row; returns their sum.
SAGE_TILE float ExponentiateRow(const float (&s)[2][4][4], int row, float c, float offset,
                                float (&x)[8]) {
  SAGE_UNROLL
  for (int j = 0; j < 8; ++j) {
    x[j] = tile::Exp2(tile::Fma(s[row / 2][j / 2][row % 2 * 2 + j % 2], c, offset));
  }
  return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

// ---- P in NVFP4: 64 keys at a time ----

// Per row of a thread's four: the largest score of its group of 16 keys and the sum of its 8 keys'
// p', for the two groups of 32 keys.
struct Groups {
  float top[2][4], sum[2][4];
};

// Codes of P of 32 rows and 32 keys, the second 32 of a step where u = 1.
template <bool kMasked>
SAGE_TILE void Exponentiate(const float (&s)[2][4][4], float c, int u, uint32_t (&p)[2][4],
                            Groups& groups) {
  SAGE_UNROLL
  for (int row = 0; row < 4; ++row) {
    float top = LargestOfRow(s, row);
    // A group of 16 keys is shared by two threads.
    top = tile::Max(top, tile::ShuffleXor(top, 1));
    groups.top[u][row] = top;
    // A group that is hidden as a whole has no largest score to stand on.
    const float anchor = kMasked ? tile::Max(top, -FLT_MAX) : top;
    float x[8];
    groups.sum[u][row] = ExponentiateRow(s, row, c, tile::Fma(-anchor, c, kLog2Six), x);
    p[row / 2][row % 2 + 2 * u] = tile::PackE2m1(x);
  }
}

// What a thread supplies of the scales of P: threads 0 and 1 of a quad those of row g + 8 q of both
// row tiles, in order of groups; nothing is asked of threads 2 and 3. Thread q holds the groups of
// the quad's first half, thread q + 2 the rest. `codes` are, of two groups each, those of rows g,
// g + 16 | g + 8, g + 24: so both need the same word of theirs.
SAGE_TILE void ScaleWordsOf(const uint32_t (&codes)[2], int lane_bytes, uint32_t (&words)[2]) {
  const uint32_t mine = (lane_bytes & 16) != 0 ? codes[1] : codes[0];
  const uint32_t other = tile::ShuffleXor(mine, 2);
  words[0] = tile::SelectBytes(mine, other, 0x5140u);
  words[1] = tile::SelectBytes(mine, other, 0x7362u);
}

// Scales of P of a thread's rows, unrounded, and as codes: of rows g and g + 16, g + 8 and g + 24.
// True where one is as large as a code can be.
template <int V>
SAGE_TILE bool ScalesOfP(const RowState<V>& state, const Groups& groups, float c, float (&sf)[2][4],
                         uint32_t (&codes)[2]) {
  SAGE_UNROLL
  for (int u = 0; u < 2; ++u) {
    SAGE_UNROLL
    for (int row = 0; row < 4; ++row) {
      sf[u][row] = tile::Exp2(tile::Fma(groups.top[u][row], c, state.m[row]));
    }
  }
  codes[0] = tile::PackE4m3(sf[0][0], sf[1][0], sf[0][2], sf[1][2]);
  codes[1] = tile::PackE4m3(sf[0][1], sf[1][1], sf[0][3], sf[1][3]);
  // 0x7e is 448: two more set a byte's highest bit.
  return (((codes[0] + 0x02020202u) | (codes[1] + 0x02020202u)) & 0x80808080u) != 0;
}

// Row sums, offsets and the scales of P of 64 keys: per row tile the word for its product with v.
template <int V>
SAGE_TILE void AddGroups(RowState<V>& state, const Groups& groups, float c, uint8_t* my_sums,
                         int lane_bytes, uint32_t (&p_scale)[2]) {
  float sf[2][4];
  uint32_t codes[2];
  if (tile::Any(ScalesOfP(state, groups, c, sf, codes))) {
    float largest[4];
    SAGE_UNROLL
    for (int row = 0; row < 4; ++row) {
      largest[row] = tile::Max(groups.top[0][row], groups.top[1][row]) * c;
    }
    MoveOffsets<V>(state, largest, my_sums);
    ScalesOfP(state, groups, c, sf, codes);
  }
  SAGE_UNROLL
  for (int row = 0; row < 4; ++row) {
    state.r[row] = tile::Fma(groups.sum[0][row], sf[0][row], state.r[row]);
    state.r[row] = tile::Fma(groups.sum[1][row], sf[1][row], state.r[row]);
  }
  ScaleWordsOf(codes, lane_bytes, p_scale);
}

// ---- P in E4M3: 32 keys at a time ----

template <int V>
SAGE_TILE void ExponentiateE4m3(RowState<V>& state, const float (&s)[2][4][4], float c,
                                uint8_t* my_sums, uint32_t (&p)[2][4]) {
  float top[4];
  bool beyond = false;
  SAGE_UNROLL
  for (int row = 0; row < 4; ++row) {
    top[row] = LargestOfRow(s, row);
    beyond = beyond || tile::Fma(top[row], c, state.m[row]) > kTop;
  }
  if (tile::Any(beyond)) {
    SAGE_UNROLL
    for (int row = 0; row < 4; ++row) top[row] *= c;
    MoveOffsets<V>(state, top, my_sums);
  }
  SAGE_UNROLL
  for (int row = 0; row < 4; ++row) {
    float x[8];
    state.r[row] += ExponentiateRow(s, row, c, state.m[row], x);
    p[row / 2][row % 2] = tile::PackE4m3(x[0], x[1], x[2], x[3]);
    p[row / 2][row % 2 + 2] = tile::PackE4m3(x[4], x[5], x[6], x[7]);
  }
}

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_SOFTMAX_H_
