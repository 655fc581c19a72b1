// The scores of a tile in the registers of one warp: what a thread makes of those of its two rows,
// 32 each, and how a warp has them again once they are overwritten, without its warpgroup: by
// m16n8k32 products from the same tiles of q and k in shared memory. Scores 4j, 4j + 1 are of row
// g, 4j + 2 and 4j + 3 of row g + 8.
#ifndef SAGE_CUDA_SM90_WARP_SCORES_CUH_
#define SAGE_CUDA_SM90_WARP_SCORES_CUH_

#include <cfloat>

#include "cuda/sm90/hopper.cuh"

namespace sage {
namespace sm90 {

// Computes all anew. q: this warp's 16 rows; k: a tile of keys. Rows of D bytes, swizzled, 8 of
// them at a multiple of their size.
template <int D>
SAGE_DEVICE void WarpScores(int (&s)[64], uint32_t q, uint32_t k) {
  uint32_t thread;  // found anew: kept, it would take registers
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  const int lane = thread & 31, g = lane >> 2;
#pragma unroll
  for (int i = 0; i < 64; ++i) s[i] = 0;
#pragma unroll 1
  for (int step = 0; step < D / 32; ++step) {
    uint32_t a[4], keys[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Within 8 rows: those of q and of keys are swizzled alike.
      const uint32_t at = g * D + SwizzledChunk<D>(g, 2 * step + half) * 16 + 4 * (lane & 3);
      a[2 * half] = LoadSharedInt(q + at);
      a[2 * half + 1] = LoadSharedInt(q + at + 8 * D);
      keys[half] = k + at;
    }
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      MmaInt8(s + 4 * j, a, LoadSharedInt(keys[0] + j * 8 * D), LoadSharedInt(keys[1] + j * 8 * D));
    }
  }
}

// Of both rows.
SAGE_DEVICE int2 LargestScores(const int (&s)[64]) {
  int most0[4], most1[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    most0[j] = max(s[4 * j], s[4 * j + 1]);
    most1[j] = max(s[4 * j + 2], s[4 * j + 3]);
  }
#pragma unroll
  for (int j = 4; j < 16; ++j) {
    most0[j & 3] = __vimax3_s32(most0[j & 3], s[4 * j], s[4 * j + 1]);
    most1[j & 3] = __vimax3_s32(most1[j & 3], s[4 * j + 2], s[4 * j + 3]);
  }
  return make_int2(max(__vimax3_s32(most0[0], most0[1], most0[2]), most0[3]),
                   max(__vimax3_s32(most1[0], most1[1], most1[2]), most1[3]));
}

SAGE_DEVICE int2 SumScores(const int (&s)[64]) {
  int sum0 = 0, sum1 = 0;
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    sum0 += s[4 * j] + s[4 * j + 1];
    sum1 += s[4 * j + 2] + s[4 * j + 3];
  }
  return make_int2(sum0, sum1);
}

// Turns those of one row (0: g, 2: g + 8) into floats, -Infinity where `seen` has a 0 for the key.
// Returns by what they are to be multiplied: `scale`, or what keeps 0 x Infinity away; `most`: the
// largest, multiplied.
SAGE_DEVICE float HideScores(int (&s)[64], uint32_t seen, int row, float scale, float& most) {
  // A row of q that is not finite must not spoil what is hidden from it.
  if (seen == 0) scale = 1.0f;
  if (scale == 0.0f) scale = FLT_MIN;
  float largest = -INFINITY;
#pragma unroll
  for (int key = 0; key < 32; ++key) {
    const int i = key / 2 * 4 + row + key % 2;
    const float x = (seen & 1u << key) != 0 ? IntToFloat(s[i]) : -INFINITY;
    s[i] = __float_as_int(x);
    largest = fmaxf(largest, x);
  }
  most = largest * scale;
  return scale;
}

// `count` of them, in place.
SAGE_DEVICE void ToFloats(int (&s)[64], int first, int count) {
#pragma unroll
  for (int i = first; i < first + count; ++i) s[i] = __float_as_int(IntToFloat(s[i]));
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_WARP_SCORES_CUH_
