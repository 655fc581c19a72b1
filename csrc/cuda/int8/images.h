// Where a code lies in the images that the pre-pass writes and the attention kernels read: in the
// order of the fragments of mma.sync, so that 16 bytes of a lane are registers of its next products
// and a warp reads 512 contiguous bytes. No swizzle, no ldmatrix, no transposition on the way.
//
// Lanes: g = lane / 4, c = lane % 4. Fragments of m16n8k32 on bytes (nibbles: twice the k):
//   A 16x32: a0 (row g, k 4c..4c+3) a1 (row g+8) a2 (row g, k 16+4c..) a3 (row g+8, k 16+4c..)
//   B 32x8:  b0 (k 4c.., n g)  b1 (k 16+4c.., n g)
//   C 16x8:  c0 (g, 2c) c1 (g, 2c+1) c2 (g+8, 2c) c3 (g+8, 2c+1)
// Scores, packed as they stand, are A fragments of P·V: with halves in order (m16n8k16), with bytes
// when position 16h + 4c + 2u + e of 32 tokens holds token 16h + 8u + 2c + e.
//
// An image of q or k is 16 rows or tokens (kRowImage), an image of v 32 tokens (kStepTokens);
// D = 64, 128 or 256 dims (v: 64 or 128).
#ifndef SAGE_CUDA_INT8_IMAGES_H_
#define SAGE_CUDA_INT8_IMAGES_H_

#include <cstdint>

#include "formats/float_bits.h"

namespace sage::cuda::int8 {

constexpr int kRowImage = 16;    // rows of q, tokens of k
constexpr int kStepTokens = 32;  // tokens of v, and of k whose scales share an entry of k_table

// Bytes of an image of q or k: [k32 or k64 step][lane][16]. Of q the 16 bytes are a0 to a3; of k
// they are b0, b1 of tokens 0 to 7, then of 8 to 15, since a product takes b0 and b1 from
// neighbouring registers.
template <int D, bool kInt4>
constexpr int kCodeImageBytes = kRowImage * D / (kInt4 ? 2 : 1);

// Byte of the code (row, d): int8 a byte, int4 a nibble, the low one where d is even.
template <int D, bool kInt4>
SAGE_HOST_DEVICE constexpr int QOffset(int row, int d) {
  constexpr int kWord = kInt4 ? 8 : 4;  // codes of a register
  const int step = d / (8 * kWord), half = d / (4 * kWord) % 2, c = d / kWord % 4;
  return (step * 32 + row % 8 * 4 + c) * 16 + (half * 2 + row / 8) * 4 + d % kWord / (kWord / 4);
}
template <int D, bool kInt4>
SAGE_HOST_DEVICE constexpr int KOffset(int token, int d) {
  constexpr int kWord = kInt4 ? 8 : 4;
  const int step = d / (8 * kWord), half = d / (4 * kWord) % 2, c = d / kWord % 4;
  return (step * 32 + token % 8 * 4 + c) * 16 + (token / 8 * 2 + half) * 4 +
         d % kWord / (kWord / 4);
}

// v as halves: [token / 16][d / 16][lane][b0, b1 of d / 8 even, of d / 8 odd] of m16n8k16.
template <int D>
constexpr int kVHalfImageBytes = kStepTokens * D * 2;
template <int D>
SAGE_HOST_DEVICE constexpr int VHalfOffset(int token, int d) {
  const int lane = d % 8 * 4 + token % 8 / 2;
  return ((token / 16 * (D / 16) + d / 16) * 32 + lane) * 16 + d / 8 % 2 * 8 + token / 8 % 2 * 4 +
         token % 2 * 2;
}

// v as bytes: [d / 16][lane][b0, b1 of d / 8 even, of d / 8 odd] of m16n8k32.
template <int D>
constexpr int kVByteImageBytes = kStepTokens * D;
template <int D>
SAGE_HOST_DEVICE constexpr int VByteOffset(int token, int d) {
  const int lane = d % 8 * 4 + token % 8 / 2;
  return (d / 16 * 32 + lane) * 16 + d / 8 % 2 * 8 + token / 16 * 4 + token / 8 % 2 * 2 + token % 2;
}

// k' of a smoothed q as two halves, high and low: [token / 8][k16 step][lane][b0, b1, b0', b1'].
template <int D>
constexpr int kKHalvesImageBytes = kStepTokens * D * 4;
template <int D>
SAGE_HOST_DEVICE constexpr int KHalvesOffset(int token, int d, int low) {
  const int lane = token % 8 * 4 + d % 8 / 2;
  return ((token / 8 * (D / 16) + d / 16) * 32 + lane) * 16 + low * 8 + d / 8 % 2 * 4 + d % 2 * 2;
}

// Means of 128 rows of q as an A fragment whose row n < 4 is mean n, its high half, row 4 + n the
// low half, the others zero: [k16 step][lane][a0, a2].
template <int D>
constexpr int kMeanImageBytes = D / 16 * 32 * 8;
template <int D>
SAGE_HOST_DEVICE constexpr int MeanOffset(int row, int d) {
  const int lane = row * 4 + d % 8 / 2;
  return (d / 16 * 32 + lane) * 8 + d / 8 % 2 * 4 + d % 2 * 2;
}

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_IMAGES_H_
