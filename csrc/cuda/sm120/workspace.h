// The workspace of one fp4 or fp4_fp8 call: where the pre-pass leaves what attention reads.
//
// Everything lies in the order in which the threads of a warp hold it as fragments of
// cuda/core/products.h (lane = 4g + q), so that a tile is one contiguous copy and a fragment one
// vector load per thread: nothing is transposed or swizzled in the attention kernel. B = batch, Hq
// / Hkv = heads of q / of k and v, D = 64, 128 or 256 (both head_dims padded with zeros), T =
// ceil(kv_len / 128) tiles of keys, R = q_len rounded up to whole blocks of rows, S = D / 64 steps
// along head_dim. Whatever a thread loads of a tile lies at 16 lane from a constant: one register
// addresses it all.
//
//   q_codes   [B·Hq][R/32][S][2 row tiles][lane]{4 words}   A fragments of MmaNvfp4
//   q_scale   [B·Hq][R/32][S][lane] word                    scales of row g + 8q of the 32
//   q_mean    [B·Hq][R/rows of a block][sets of 8 warps][D/16][lane]{2 words}   fp16 means as B
//             fragments of MmaHalf: column w of set s is the mean that serves rows 32 (8s + w)..,
//             times 2^q_exponent; 0 where a block has no such warp
//   lse_shift float [B·Hq][R]                               scale · q · mean(k); with want_lse
//   q_bad     uint8 [B·Hq][R]                               the row has a value that is not finite
//   tiles     [B·Hkv][T]{tile image of tile_bytes}          copied to shared memory as it is:
//     k codes  [4 groups of 32 keys][S][2 pairs of key tiles][lane]{tile 2p: b0, b1; 2p+1: b0, b1}
//     k scale  [S][lane]{4 words}                           of key tile q, column g: word u S + s
//     of
//              the 4 S, for the 32 keys u and step s
//     v        one after the other for each V = min(D, 128) channels: a tile of work takes one
//     v, fp4   [2 steps of 64 keys]{codes [V/16 pairs of channel tiles][lane]{b0, b1; b0, b1}},
//              scales [V/64][lane]{4 words}: word i V/32 + j of step i, channel tile 4j + q, column
//              g
//     v, e4m3  [4 groups of 32 keys][V/16][lane]{b0, b1; b0, b1}
//   k_half    [B·Hkv][T][8][D/16][lane]{4 words}            k' in fp16, times 2^k_exponent, as A
//             fragments of MmaHalf; row g / g + 8 of row tile m is the even / odd key of pair 8m +
//             g
//   v_mean    float [B·Hkv][T][D]
//   mean_rows [B·Hkv][ceil(T/4)][D/V][lane][V/8] float      v_mean in units of the codes of v,
//   tf32:
//             of tile 4i + q, channel 8t + g of V
//   v_scale   float [B·Hkv][D]                              what codes of v are worth
//   marks     uint8 [B·Hkv][T·128]                          bit 0: token of k, bit 1: of v, is not
//             finite
//
// Key order: column n of key tile j of 32 keys is key 8 (n / 2) + 2j + n % 2, so that after Q·K the
// four threads of a quad hold 8 consecutive keys each: an A fragment of P·V without any exchange.
// A pair of keys (2p, 2p + 1) is numbered as consumers read it: pair 16u + 4j + q of a tile is keys
// 32u + 8q + 2j and + 1.
#ifndef SAGE_CUDA_SM120_WORKSPACE_H_
#define SAGE_CUDA_SM120_WORKSPACE_H_

#include <cstdint>

#include "sage/problem.h"

namespace sage {
namespace sm120 {

constexpr int kTile = 128;     // tokens of k and v per tile: also the block of V's means
constexpr int kWarpRows = 32;  // of q per warp; recipes take means of q over 32 rows or 128
// Warps of a block that compute: as many as have registers for their sums.
constexpr int WarpsOf(int dim) { return dim == 64 ? 12 : 8; }
constexpr int RowsOf(int dim) { return WarpsOf(dim) * kWarpRows; }
// Products of 8 columns that hold the means of a block.
constexpr int MeanSetsOf(int dim) { return (WarpsOf(dim) + 7) / 8; }
constexpr int kMeanTiles = 4;  // tiles of v per product with their means: the depth of MmaTf32
constexpr int kQTile = 128;    // rows of q per block of the pre-pass

// Channels of v per tile of work: as many as a warp has registers for. Head_dim 256 takes two, and
// computes the scores for each.
constexpr int VChannelsOf(int dim) { return dim < 128 ? dim : 128; }

// Bytes of the parts of a tile image; `v` of one tile of work's channels, of which it has `stage`.
struct TileBytes {
  int k, v, stage, all;
};
constexpr TileBytes TileBytesOf(int dim, bool fp8) {
  TileBytes b = {};
  const int channels = VChannelsOf(dim);
  b.k = kTile * dim / 2 + kTile * dim / 16;
  b.v = fp8 ? kTile * channels : kTile * channels / 2 + kTile * channels / 16;
  b.stage = b.k + b.v;
  b.all = b.k + dim / channels * b.v;
  return b;
}

struct Workspace {
  // Zeroed before the pre-pass, in this order.
  uint32_t* arrived;          // [B·Hkv] tiles whose statistics are written
  uint32_t* not_finite;       // [B·Hkv] bits of `marks` over all tokens
  uint32_t* q_largest;        // [B·Hq] largest finite |q|, as bits
  uint32_t* k_largest;        // [B·Hkv]
  uint32_t* v_largest;        // [B·Hkv]
  uint32_t* channel_largest;  // [B·Hkv][D] largest |v'|, as bits
  int64_t zeroed_bytes;

  double* k_sum;        // [B·Hkv][T][D] sums of finite k
  int32_t* k_count;     // [B·Hkv][T][D] how many they are
  float* k_spread;      // [B·Hkv][T][D] width of k's channels (docs/numerics.md 4.5)
  float* q_spread;      // [B·Hq][R/128][D]
  float* balance;       // [B·Hkv][D] 2^e: what q's channels are multiplied by, and k's divided
  float* q_block_mean;  // [B·Hq][R/rows per mean][D]
  float* k_mean;        // [B·Hkv][D]
  float* v_mean;
  float* v_scale;
  float* v_inverse;  // [B·Hkv][D], of e4m3
  float* lse_shift;
  float* mean_rows;
  uint32_t* q_scale;
  uint32_t* q_mean;
  uint32_t* k_half;
  uint8_t* q_bad;
  uint8_t* marks;
  uint8_t* q_codes;
  uint8_t* tiles_image;
  int64_t bytes;

  int dim;          // D
  int tiles;        // T
  int mean_groups;  // ceil(T / 4)
  int q_rows;       // R
  int tile_bytes;
};

// Lays the workspace out at `base`; with null it only measures (`bytes`).
Workspace LayOut(const Problem& problem, void* base);

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_WORKSPACE_H_
