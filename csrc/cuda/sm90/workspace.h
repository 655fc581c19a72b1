// The workspace of one int8_fp8 call on Hopper: where the pre-pass leaves what attention reads.
//
// Everything is laid out as the attention kernel's shared memory wants it, so that a tile is one
// contiguous bulk copy. B = batch, Hq / Hkv = heads of q / of k and v, T = ceil(kv_len / 128)
// tiles, R = q_len rounded up to 192, then to 128, D = 64, 128 or 256 (both head_dims padded
// with zeros). "Swizzled": the 16-byte chunks of a row of W bytes are exchanged as wgmma's W-byte
// swizzle asks (hopper.cuh).
//
//   q_codes    int8   [B·Hq][R][D]            swizzled rows; D = 256: [R/64][2][64][128]; not
//                                             written where attention rounds q itself, as q_scale
//   q_scale    float  [B·Hq][R]               NaN for a row with a value that is not finite
//   lse_shift  float  [B·Hq][R]               scale · q · mean(k); only with want_lse
//   k_codes    int8   [B·Hkv][T][128][D]      swizzled rows; row 8j + 2c + e is token 32c + 2j + e;
//                                             D = 256: [2][128][128]
//   k_scale    float  [B·Hkv][T][4]           one per 32 tokens
//   v_codes    e4m3   [B·Hkv][T][D][128]      swizzled rows; byte 32s + 16h + 4c + i is token
//                                             32c + 8s + 4h + i
//   v_scale    float  [B·Hkv][D]              0 where a channel is all zero
//   v_mean     float  [B·Hkv][T][D]
//   mean_image float  [B·Hkv][ceil(T/8)][8·D] v_mean / v_scale less the mean of
//                                             the codes, as B fragments of m16n8k8 (tf32)
//   marks      uint8  [B·Hkv][T·128]          bit 0: token of k, bit 1: of v, is not finite
//   spans      float  [blocks][12][D/8][32][4] sums of earlier spans of a warp (spans.cuh), and
//   sums       uint32 [blocks][12][G][32][4]  row sums that wait for their means, G = ceil(T/8), 32
//                                             at most; only where they do not stay in registers
//   part_sums  float  [parts][B·Hq·Nq][D]     only where there are several parts: sums of a part's
//   part_ends  float  [parts][B·Hq·Nq][2]     keys; their offset and the sum of P
//
// With these orders of tokens the thread that holds columns 8j + 2c, 8j + 2c + 1 of the scores owns
// 32 consecutive tokens (one scale of k), and its scores, packed to bytes, are already the A
// fragment of P·V.
#ifndef SAGE_CUDA_SM90_WORKSPACE_H_
#define SAGE_CUDA_SM90_WORKSPACE_H_

#include <cstdint>

#include "sage/problem.h"

namespace sage {
namespace sm90 {

constexpr int kQueryBlock = 64;  // rows of q of a product
constexpr int kTile = 128;       // tokens of k and v per tile: also the block of V's means
constexpr int kMeanTiles = 8;    // tiles per fragment of V's means: the depth of m16n8k8
// Groups of 8 tiles that the tensor core sums at most: 32,768 keys. Every 8,192 a span ends where
// its rows ask for it, and always where keys are cut into parts: there row sums wait in shared
// memory.
constexpr int kSpanGroups = 32;
constexpr int kMarkGroups = 8;
// Rows of q of a tile of work: without a mask, with one.
constexpr int kMostRows = 192;
constexpr int kMaskedRows = 128;
constexpr int kMostBlocks = 144;  // of the attention kernel
// Words of one warp's row sums that wait (spans.cuh).
constexpr int KeptWords(int mean_groups) {
  return (mean_groups < kSpanGroups ? mean_groups : kSpanGroups) * 32 * 4;
}

// How attention is done by parts of the keys (attend_parts.cuh). parts = 0: it is not.
constexpr int kPartRows = 128;   // rows of q of a tile of work
constexpr int kSharedRows = 64;  // up to here two warpgroups have the same rows
struct PartsPlan {
  int parts;         // of a row's keys
  bool shared_rows;  // two warpgroups have the same rows and take tiles of keys in turn
};
PartsPlan PlanParts(const Problem& problem);  // the choice by measurement

struct Workspace {
  // Zeroed before the pre-pass, in this order.
  uint32_t* schedule;    // [2] next tile of work; blocks that are done
  uint32_t* ticket;      // [1] of the pre-pass, next to be drawn
  uint32_t* arrived;     // [B·Hkv] tiles whose statistics are written
  uint32_t* ready;       // [B·Hkv] whether the statistics of the head are complete
  uint32_t* not_finite;  // [B·Hkv] bits of `marks` over all tokens
  uint32_t* v_largest;   // [B·Hkv][D] largest |v'|, as bits
  uint8_t* marks;
  int64_t zeroed_bytes;

  double* k_sum;     // [B·Hkv][T][D] sums of finite k
  int32_t* k_count;  // [B·Hkv][T][D] how many they are
  float* k_mean;     // [B·Hkv][D]
  float* v_mean;
  float* v_scale;
  float* v_inverse;  // [B·Hkv][D]
  float* q_scale;
  float* lse_shift;
  float* k_scale;
  float* mean_image;
  uint8_t* q_codes;
  uint8_t* k_codes;
  uint8_t* v_codes;
  float* spans;
  uint32_t* sums;
  float* part_sums;
  float* part_ends;
  int64_t bytes;

  PartsPlan plan;
  // Attention rounds q itself, if its rows are aligned, and q_codes and q_scale stay as they are.
  // It does where rows are read once, and nothing else is needed of them.
  bool rounds_queries;
  int dim;          // D
  int tiles;        // T
  int mean_groups;  // ceil(T / 8)
  int q_rows;       // R
};

// Lays the workspace out at `base`; with null it only measures (`bytes`). A plan other than
// PlanParts' is for tests; head_dim above 128 needs parts.
Workspace LayOut(const Problem& problem, void* base, const PartsPlan& plan);
inline Workspace LayOut(const Problem& problem, void* base) {
  return LayOut(problem, base, PlanParts(problem));
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_WORKSPACE_H_
