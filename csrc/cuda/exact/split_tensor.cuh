// A float32 tensor as the tensor cores take it: each row (one token of one head) scaled by a power
// of two so that its largest magnitude lies in [2^14, 2^15), each element then the sum of two
// halves, x = (high + low) * scale up to 2^-22 of |x| (2^-39 of the row's largest for elements far
// below it). Three products of halves give a float32 product:
//   a b = a_high b_high + (a_high b_low + a_low b_high), what is left out is 2^-22 of it.
//
// Elements that are not finite become 0, and the scale tells of them (docs/numerics.md section 2):
// rows of Q and K get the scale NaN, which makes every score NaN that the row takes part in; rows
// of V and dO get a negative scale, and the kernels mark the channels of those who attend.
#ifndef SAGE_CUDA_EXACT_SPLIT_TENSOR_CUH_
#define SAGE_CUDA_EXACT_SPLIT_TENSOR_CUH_

#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/tensor_core.cuh"
#include "sage/problem.h"

namespace sage::cuda {

struct SplitTensor {
  __half* halves;  // [rows][high, low][padded]; rows = [batch][heads][tokens]
  float* scale;    // [rows]
  int padded;      // dim rounded up to 16, zeros beyond dim
};

// What one launch of SplitRows reads.
struct SplitSource {
  const float* values;
  TokenStrides strides;
  int64_t rows;
  int heads, tokens, dim;
  bool poisons_row;  // Q and K
  SplitTensor out;
};

constexpr int kMaxSplitSources = 4;

struct SplitJob {
  SplitSource sources[kMaxSplitSources];
  int count;
  // For the gradient, null otherwise: delta = rowsum(o * dO) - dLse of the rows of source 3.
  const float* o;
  const float* d_lse;
  float* delta;
};

void LaunchSplitRows(const SplitJob& job, void* stream);

// ---- Tiles in shared memory ------------------------------------------------------------
//
// kRows x kPitch halves of the high parts, then as many of the low parts. The 16-byte chunk c of
// row r lies at c ^ (r % 8), so that eight rows of one chunk, an 8x8 matrix, touch all banks once.

template <int kRows, int kPitch>
constexpr int kTileBytes = 2 * kRows * kPitch * 2;

template <int kRows, int kPitch>
constexpr int kPlaneBytes = kRows * kPitch * 2;

// Rows [0, valid) of `tensor` from row `first`, dims [dim0, dim0 + kPitch) as far as there are any;
// rows from `valid` on are zeros. `valid` >= 1.
template <int kRows, int kPitch, int kThreads>
__device__ __forceinline__ void LoadTile(uint32_t tile, const SplitTensor& tensor, int64_t first,
                                         int valid, int dim0) {
  constexpr int kChunks = kPitch / 8, kLines = kThreads / kChunks;
  static_assert(kThreads % (2 * kChunks) == 0, "a thread stays in one plane");
  const int thread = static_cast<int>(threadIdx.x), chunk = thread % kChunks;
  if (chunk >= (tensor.padded - dim0) / 8) return;
  const int line = thread / kChunks, plane = line % 2;
  int row = line / 2;
  const __half* from = tensor.halves + (first * 2 + line) * tensor.padded + dim0 + chunk * 8;
  const uint32_t to = tile + plane * kPlaneBytes<kRows, kPitch> + row * kPitch * 2;
#pragma unroll
  for (int n = 0; n < 2 * kRows / kLines; ++n) {
    // A row that does not exist is not read: its address does not matter.
    CopyAsync16(to + n * kLines / 2 * kPitch * 2 + ((chunk ^ (row & 7)) << 4), from, row < valid);
    row += kLines / 2;
    from += kLines * tensor.padded;
  }
}

// The scales of the same rows, 0 from `valid` on.
template <int kRows>
__device__ __forceinline__ void LoadFloats(uint32_t to, const float* from, int valid) {
  const int row = static_cast<int>(threadIdx.x);
  if (row < kRows) CopyAsync4(to + row * 4, from + (row < valid ? row : 0), row < valid);
}

// Where this lane's row of a fragment starts, and the part of the swizzle that depends on the lane.
struct LaneAddress {
  uint32_t row, swizzle;
  __device__ __forceinline__ uint32_t At(int chunk_pair) const {
    return row + ((static_cast<uint32_t>(chunk_pair) << 5) ^ swizzle);
  }
};

// A fragments (rows x k), and with LoadMatricesTransposed B fragments of k x n tiles: two chunks
// side by side for 16 rows.
template <int kPitch>
__device__ __forceinline__ LaneAddress RowsBySixteen(uint32_t tile, int row0, int lane) {
  const int row = row0 + lane % 16;
  return {tile + row * kPitch * 2, static_cast<uint32_t>(((lane / 16) ^ (row & 7)) << 4)};
}

// B fragments of n x k tiles: two n8 tiles of one k16 step.
template <int kPitch>
__device__ __forceinline__ LaneAddress ColumnsBySixteen(uint32_t tile, int row0, int lane) {
  const int row = row0 + lane % 8 + lane / 16 * 8;
  return {tile + row * kPitch * 2, static_cast<uint32_t>(((lane / 8 % 2) ^ (row & 7)) << 4)};
}

}  // namespace sage::cuda

#endif  // SAGE_CUDA_EXACT_SPLIT_TENSOR_CUH_
