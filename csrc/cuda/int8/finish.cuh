// Which rows a block owns, what they see, and their outputs.
#ifndef SAGE_CUDA_INT8_FINISH_CUH_
#define SAGE_CUDA_INT8_FINISH_CUH_

#include <cmath>
#include <cstdint>

#include "cuda/int8/attend_plan.h"
#include "cuda/tensor_core.cuh"

namespace sage::cuda::int8 {

constexpr uint32_t kInfBits = 0x7f800000;

struct Block {
  int64_t head, kv_head, v_part;  // of B·Hq, of B·Hkv, of B·Hkv·S
  int channel0;                   // of the part
  int query0;

  // Groups of heads one after the other, so that their k and v stay in the L2 cache; inside a group
  // the blocks that see the most keys first.
  __device__ __forceinline__ Block(const AttendPlan& plan, int rows) {
    const int64_t id = blockIdx.x;
    const int64_t group_blocks = static_cast<int64_t>(plan.heads_at_once) * plan.query_tiles;
    const int64_t group = id / group_blocks, first = group * plan.heads_at_once;
    const int count =
        static_cast<int>(min(static_cast<int64_t>(plan.heads_at_once), plan.heads - first));
    const int64_t in_group = id - group * group_blocks;
    const int rank = static_cast<int>(in_group / count);
    const int64_t id_of_head = first + in_group % count;
    head = id_of_head / plan.v_parts;
    const int part = static_cast<int>(id_of_head - head * plan.v_parts);
    channel0 = part * kPartDim;
    query0 = (plan.see.window_right >= 0 ? plan.query_tiles - 1 - rank : rank) * rows;
    kv_head = head / plan.group;  // Hq is a multiple of the group
    v_part = kv_head * plan.v_parts + part;
  }
};

// Hides what causality, window and mask hide from one query, and adds the mask. x: its scores in
// log2 units, of the keys key0 + 8 j + 2 (lane % 4) + {0, 1}.
template <int kColumns>
__device__ __forceinline__ void HideScores(const AttendPlan& plan, const Block& block, int row,
                                           int key0, float (&x)[kColumns][2]) {
  const Visibility& see = plan.see;
  // Rows past the end see what the last one sees: their results are dropped.
  const int query = min(block.query0 + row, see.q_len - 1);
  const int first = see.FirstKey(query), end = see.EndKey(query);
  const int lane_key = key0 + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int key = lane_key + j * 8 + n;
      if (key < first || key >= end) x[j][n] = -INFINITY;
    }
  }
  if (see.mask_kind == MaskKind::kNone) return;
  const int64_t mask_row = see.MaskRow(block.head / plan.q_heads, block.head % plan.q_heads, query);
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int key = lane_key + j * 8 + n;
      if (key < first || key >= end) continue;
      const float bias = see.Bias(mask_row, key);
      x[j][n] = bias == -INFINITY ? -INFINITY : fmaf(bias, kLog2E, x[j][n]);
    }
  }
}

// Rare: NaN over what the row's attended tokens spoil (docs/numerics.md 2). The four threads of the
// row share the keys; its results are already written. `channels`: of o, from the block's first.
inline __device__ __noinline__ void MarkRow(const AttendPlan& plan, const Block& block, int query,
                                            int channels, float* o, float* lse) {
  const Visibility& see = plan.see;
  const Workspace& space = plan.space;
  const float nan = __uint_as_float(0x7fc00000u);
  const int64_t tokens = static_cast<int64_t>(space.tiles) * kTileTokens;
  const uint8_t* k_marks = space.k_marks + block.kv_head * tokens;
  const uint8_t* v_marks = space.v_marks + block.v_part * tokens;
  const int64_t batch = block.head / plan.q_heads, head = block.head % plan.q_heads;
  const int64_t mask_row = see.MaskRow(batch, head, query);
  const TokenStrides& strides = plan.v.strides;
  const int64_t v = batch * strides.batch + head / plan.group * strides.head + block.channel0;
  const int end = see.EndKey(query);
  for (int j = see.FirstKey(query) + static_cast<int>(threadIdx.x) % 4; j < end; j += 4) {
    const bool bad_k = k_marks[j] != 0, bad_v = v_marks[j] != 0;
    if (!(bad_k || bad_v) || see.Bias(mask_row, j) == -INFINITY) continue;
    for (int d = 0; d < channels; ++d) {
      if (bad_k || !plan.v.Finite(v + j * strides.token + d)) o[d] = nan;
    }
    if (bad_k && lse != nullptr) *lse = nan;
  }
}

// o and lse of one query, rows `half` of each accumulator; the four lanes of the row together. The
// first part of v writes lse.
template <int D, int kQkDim>
__device__ __forceinline__ void WriteRow(const AttendPlan& plan, const Block& block, int query,
                                         const float (&o)[D / 8][4], int half, float m, float sum) {
  const Workspace& space = plan.space;
  const bool exists = query < plan.see.q_len;
  const int c = static_cast<int>(threadIdx.x) % 4;
  const int64_t row = block.head * space.q_rows + query;
  const float q_scale = exists ? space.q_scale[row] : 0.0f;
  float* out = plan.o + block.head / plan.q_heads * plan.o_strides.batch +
               block.head % plan.q_heads * plan.o_strides.head +
               static_cast<int64_t>(query) * plan.o_strides.token + block.channel0;
  float* lse = plan.lse == nullptr || block.channel0 > 0
                   ? nullptr
                   : plan.lse + block.head * plan.see.q_len + query;
  const int channels = plan.v_dim - block.channel0;
  const float* v_scale = space.v_scale + block.kv_head * kQkDim + block.channel0;
  // Nothing attended to: o = 0, lse = -Infinity. A query that is not finite: NaN.
  const bool empty = sum == 0.0f;
  float inverse = empty ? 0.0f : 1.0f / sum;
  if (!empty && q_scale != q_scale) inverse = q_scale;
  if (exists) {
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      const int d = j * 8 + c * 2;
      if (d >= channels) break;
      // Channels without a scale have codes 0, and means in units of 1.
      float2 unit = __ldg(reinterpret_cast<const float2*>(v_scale + d));
      unit.x = unit.x == 0.0f ? 1.0f : unit.x;
      unit.y = unit.y == 0.0f ? 1.0f : unit.y;
      const float x = empty ? 0.0f : o[j][half * 2] * inverse * unit.x;
      const float y = empty ? 0.0f : o[j][half * 2 + 1] * inverse * unit.y;
      if (plan.o_pairs) {
        *reinterpret_cast<float2*>(out + d) = make_float2(x, y);
      } else {
        out[d] = x;
        if (d + 1 < channels) out[d + 1] = y;
      }
    }
    if (lse != nullptr && c == 0) {
      const float value = static_cast<float>(
          0.69314718055994531 * (static_cast<double>(m) + static_cast<double>(log2f(sum))) +
          static_cast<double>(space.lse_shift[row]));
      *lse = empty ? -INFINITY : q_scale != q_scale ? q_scale : value;
    }
  }
  if (space.not_finite[block.kv_head] != 0) {
    __syncwarp();
    if (exists) MarkRow(plan, block, query, min(channels, D), out, lse);
  }
}

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_FINISH_CUH_
