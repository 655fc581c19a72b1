// What the forward kernels of all architectures share: which block does what, what a query sees,
// and where its outputs go.
#ifndef SAGE_CUDA_EXACT_FORWARD_ROWS_CUH_
#define SAGE_CUDA_EXACT_FORWARD_ROWS_CUH_

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "cuda/exact/plan.h"

namespace sage::cuda {

constexpr float kPTop = 16384.0f;  // of p = 1 among the halves

// Which queries, head, dims of v and keys a block has.
struct ForwardBlock {
  int64_t head;
  int tile, v_chunk, part;

  __device__ explicit ForwardBlock(const ForwardPlan& plan) {
    int64_t id = blockIdx.x;
    if (plan.visibility.window_right >= 0) {
      // Later queries see more keys: the longest blocks of all heads go first.
      head = id % plan.heads;
      id /= plan.heads;
      tile = plan.query_tiles - 1 - static_cast<int>(id % plan.query_tiles);
      id /= plan.query_tiles;
    } else {
      tile = static_cast<int>(id % plan.query_tiles);
      id /= plan.query_tiles;
      head = id % plan.heads;
      id /= plan.heads;
    }
    v_chunk = static_cast<int>(id % plan.v_chunks);
    part = static_cast<int>(id / plan.v_chunks);
  }
};

// Hides what causality, window and mask hide from one query, and adds the mask. The query's scores
// are half kHalf of each accumulator, of the keys key0 + 8 n + {0, 1}. Kernels have an instance for
// masks (kMasked), whose values are asked for many at once: the registers for these make loops
// without a mask 1 to 3 % slower. The other instance could do without masks, but its loop is the
// faster for knowing them: without, ptxas 13.0 makes it 2 % (head_dim 64) and 6 % (128) slower.
template <int kHalf, bool kMasked, int kTiles>
__device__ __forceinline__ void HideScores(float (&x)[kTiles][4], const Visibility& see,
                                           int64_t batch, int64_t head, int query, int key0) {
  const bool exists = query < see.q_len;
  const int first = exists ? see.FirstKey(query) : 0, end = exists ? see.EndKey(query) : 0;
  const int64_t row = see.MaskRow(batch, head, query);
  if constexpr (kMasked) {
    constexpr int kPairs = 4;  // more would take registers
    static_assert(kTiles % kPairs == 0);
#pragma unroll
    for (int n0 = 0; n0 < kTiles; n0 += kPairs) {
      float part[kPairs][2];
#pragma unroll
      for (int n = 0; n < kPairs; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) part[n][e] = x[n0 + n][kHalf * 2 + e];
      }
      see.AddBiases(row, key0 + n0 * 8, first, end, part);
#pragma unroll
      for (int n = 0; n < kPairs; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) x[n0 + n][kHalf * 2 + e] = part[n][e];
      }
    }
  } else {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int key = key0 + n * 8 + e;
        if (key < first || key >= end) x[n][kHalf * 2 + e] = -INFINITY;
      }
    }
    if (see.mask_kind == MaskKind::kNone) return;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int key = key0 + n * 8 + e;
        if (key < first || key >= end) continue;
        const float bias = see.Bias(row, key);
        float& score = x[n][kHalf * 2 + e];
        score = bias == -INFINITY ? -INFINITY : AddBias(score, bias);
      }
    }
  }
}

// Writes a query's outputs, half `half` of each accumulator (the four lanes of the query together),
// to their place or as a part of them.
template <int kTiles>
__device__ __forceinline__ void WriteRow(const ForwardPlan& plan, const ForwardBlock& block,
                                         int query, int v_dim0, const float (&o)[kTiles][4],
                                         int half, float top, float sum) {
  const int lane = threadIdx.x % 32;
  const int64_t index = block.head * plan.visibility.q_len + query;
  const bool writes_sums = lane % 4 == 0 && block.v_chunk == 0;
  float factor = 1.0f;
  float* out;
  bool paired = plan.out.paired;
  if (plan.parts > 1) {
    const int64_t at = block.part * plan.heads * plan.visibility.q_len + index;
    out = plan.partial.o + at * plan.v_dim;
    paired = plan.v_dim % 2 == 0;
    if (writes_sums) {
      plan.partial.top[at] = top;
      plan.partial.sum[at] = sum;
    }
  } else {
    factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    out = plan.out.o + block.head / plan.q_heads * plan.out.strides.batch +
          block.head % plan.q_heads * plan.out.strides.head +
          static_cast<int64_t>(query) * plan.out.strides.token;
    if (plan.out.lse != nullptr && writes_sums)
      plan.out.lse[index] = sum == 0.0f ? -INFINITY : (top + log2f(sum)) * kLn2;
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const int dim = v_dim0 + n * 8 + lane % 4 * 2;
    const float x = o[n][half * 2] * factor, y = o[n][half * 2 + 1] * factor;
    if (paired) {
      if (dim < plan.v_dim) *reinterpret_cast<float2*>(out + dim) = make_float2(x, y);
    } else {
      if (dim < plan.v_dim) out[dim] = x;
      if (dim + 1 < plan.v_dim) out[dim + 1] = y;
    }
  }
}

}  // namespace sage::cuda

#endif  // SAGE_CUDA_EXACT_FORWARD_ROWS_CUH_
