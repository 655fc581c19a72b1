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
    // All of these count blocks or parts of them, which fit 32 bits (ShapeReason of forward.cu).
    const uint32_t id = blockIdx.x, at_once = plan.heads_at_once, parts = plan.v_parts;
    const uint32_t group_blocks = at_once * plan.query_tiles;
    const uint32_t group = id / group_blocks, first = group * at_once;
    const uint32_t count = min(at_once, static_cast<uint32_t>(plan.heads) - first);
    const uint32_t in_group = id - group * group_blocks, rank = in_group / count;
    const uint32_t id_of_head = first + in_group % count;
    const uint32_t head_id = id_of_head / parts, part = id_of_head - head_id * parts;
    const uint32_t kv_id = head_id / plan.group;  // Hq is a multiple of the group
    head = head_id;
    channel0 = static_cast<int>(part) * kPartDim;
    query0 = (plan.see.window_right >= 0 ? plan.query_tiles - 1 - static_cast<int>(rank)
                                         : static_cast<int>(rank)) *
             rows;
    kv_head = kv_id;
    v_part = static_cast<int64_t>(kv_id) * parts + part;
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
  if (see.mask_kind != MaskKind::kNone) {
    const int64_t mask_row =
        see.MaskRow(block.head / plan.q_heads, block.head % plan.q_heads, query);
    return see.AddBiases(mask_row, lane_key, first, end, x);
  }
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int key = lane_key + j * 8 + n;
      if (key < first || key >= end) x[j][n] = -INFINITY;
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

// lse of one query that attends to something, finite.
__device__ __forceinline__ float LseOf(const Workspace& space, int64_t row, float m, float sum) {
  return static_cast<float>(0.69314718055994531 *
                                (static_cast<double>(m) + static_cast<double>(log2f(sum))) +
                            static_cast<double>(space.lse_shift[row]));
}

// What scales o of a channel. Channels without a scale have codes 0, and means in units of 1.
__device__ __forceinline__ float2 UnitOf(const float* v_scale) {
  float2 unit = __ldg(reinterpret_cast<const float2*>(v_scale));
  unit.x = unit.x == 0.0f ? 1.0f : unit.x;
  unit.y = unit.y == 0.0f ? 1.0f : unit.y;
  return unit;
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
      const float2 unit = UnitOf(v_scale + d);
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
      const float value = LseOf(space, row, m, sum);
      *lse = empty ? -INFINITY : q_scale != q_scale ? q_scale : value;
    }
  }
  if (space.not_finite[block.kv_head] != 0) {
    __syncwarp();
    if (exists) MarkRow(plan, block, query, min(channels, D), out, lse);
  }
}

// o and lse of the 16 kTiles queries from `first` on, o as products left it: nearly always all
// exist and are plain. What they need is then loaded at once, and the code is short: the main loop
// has driven it from the caches of instructions.
template <int D, int kQkDim, int kTiles>
__device__ __forceinline__ void WriteRows(const AttendPlan& plan, const Block& block, int first,
                                          const float (&o)[kTiles][D / 8][4],
                                          const float (&less_m)[2 * kTiles],
                                          const float (&sum)[2 * kTiles]) {
  constexpr int kRows = 2 * kTiles;
  const Workspace& space = plan.space;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int query = first + lane / 4;  // of row 0 of the thread; then every eighth
  const int64_t row = block.head * space.q_rows + query;
  bool plain =
      plan.o_pairs && plan.v_dim - block.channel0 >= D && first + 8 * kRows <= plan.see.q_len;
  if (plain) {  // uniform: nothing of it depends on the lane
    bool finite = space.not_finite[block.kv_head] == 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float q_scale = space.q_scale[row + 8 * r];
      finite &= q_scale == q_scale && sum[r] != 0.0f;
    }
    plain = __all_sync(~0u, finite);
  }
  if (!plain) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      WriteRow<D, kQkDim>(plan, block, query + 8 * r, o[r / 2], r % 2, -less_m[r], sum[r]);
    }
    return;
  }
  const int channel = block.channel0 + lane % 4 * 2;
  const float* v_scale = space.v_scale + block.kv_head * kQkDim + channel;
  float* out = plan.o + block.head / plan.q_heads * plan.o_strides.batch +
               block.head % plan.q_heads * plan.o_strides.head +
               static_cast<int64_t>(query) * plan.o_strides.token + channel;
  float2 unit[D / 8];
#pragma unroll
  for (int j = 0; j < D / 8; ++j) unit[j] = UnitOf(v_scale + j * 8);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float inverse = 1.0f / sum[r];
    float* to = out + 8 * r * plan.o_strides.token;
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      const float(&x)[4] = o[r / 2][j];
      *reinterpret_cast<float2*>(to + j * 8) =
          make_float2(x[r % 2 * 2] * inverse * unit[j].x, x[r % 2 * 2 + 1] * inverse * unit[j].y);
    }
    if (plan.lse != nullptr && block.channel0 == 0 && lane % 4 == 0) {
      plan.lse[block.head * plan.see.q_len + query + 8 * r] =
          LseOf(space, row + 8 * r, -less_m[r], sum[r]);
    }
  }
}

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_FINISH_CUH_
