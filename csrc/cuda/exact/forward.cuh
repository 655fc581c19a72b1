// `exact` forward on the tensor cores: FlashAttention with every float32 product taken as three
// products of halves (split_tensor.cuh), accumulated in float32.
//
// One block of 4 warps owns 128 queries of one head and runs over the keys in tiles of 32:
//   S = Q K^T          x = S * scale * scale_q[i] * scale_k[j]  (log2 units), mask, causality
//   p = 2^(x - top)    P' = p * 2^14 * scale_v[j] / scale, scale = the largest scale_v of the tile
//   T = P' V           O = O * 2^(top before - top) + T * scale / 2^14
// A warp owns 32 queries, so each fragment of K and V that it reads serves two m16 products. The
// small terms (high * low) have accumulators of their own: adding them to the large one would cut
// it twice more. Tensor cores cut sums instead of rounding them, so T lasts for one tile only and
// is added to O by ordinary, rounded additions.
//
// Shared memory, for kPitch dims a row (halves, high and low planes):
//   Q 128 rows | K 32 rows | V 32 rows | scale_k 32 floats | scale_v 32 floats
//   kPitch 128: 98,560 bytes, two blocks per multiprocessor of sm_90; kPitch 64: 49,408 bytes.
// K of the next tile loads while P V runs, V while Q K^T runs.
//
// head_dim of q and k above kPitch: S is summed over chunks of kPitch dims, Q and K reloaded for
// each. head_dim of v above kPitch: each chunk of v is computed by a block of its own.
#ifndef SAGE_CUDA_EXACT_FORWARD_CUH_
#define SAGE_CUDA_EXACT_FORWARD_CUH_

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "cuda/exact/forward_rows.cuh"
#include "cuda/exact/plan.h"
#include "cuda/exact/split_tensor.cuh"
#include "cuda/tensor_core.cuh"

namespace sage::cuda {

constexpr int kForwardThreads = 128;

template <int kPitch>
struct ForwardMemory {
  static constexpr int kQ = 0;
  static constexpr int kK = kQ + kTileBytes<kForwardQueries, kPitch>;
  static constexpr int kV = kK + kTileBytes<kForwardKeys, kPitch>;
  static constexpr int kScaleK = kV + kTileBytes<kForwardKeys, kPitch>;
  static constexpr int kScaleV = kScaleK + kForwardKeys * 4;
  static constexpr int kBytes = kScaleV + kForwardKeys * 4;
};

// A warp's 32 queries. Row r of a lane's four is query 16 * (r / 2) + 8 * (r % 2) + lane / 4; its
// columns in an n8 tile are 2 * (lane % 4) and the next.
template <int kPitch, bool kWhole>
struct ForwardWarp {
  static constexpr int kKeyTiles = kForwardKeys / 8;
  static constexpr int kDimTiles = kPitch / 8;

  float o[2][kDimTiles][4];
  float top[4], sum[4];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < kDimTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o[m][n][e] = 0.0f;
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      top[r] = -INFINITY;
      sum[r] = 0.0f;
    }
  }
};

// S of 32 queries and 32 keys over `steps` k16 steps, added to `big` and `small`.
template <int kPitch, bool kWhole>
__device__ __forceinline__ void MultiplyQueries(uint32_t q_tile, uint32_t k_tile, int warp,
                                                int lane, int steps, float (&big)[2][4][4],
                                                float (&small)[2][4][4]) {
  constexpr int kQPlane = kPlaneBytes<kForwardQueries, kPitch>;
  constexpr int kKPlane = kPlaneBytes<kForwardKeys, kPitch>;
  const LaneAddress a0 = RowsBySixteen<kPitch>(q_tile, warp * 32, lane);
  const LaneAddress b0 = ColumnsBySixteen<kPitch>(k_tile, 0, lane);
  const auto step = [&](int ks) {
    uint32_t a_high[2][4], a_low[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      LoadMatrices(a0.At(ks) + m * 16 * kPitch * 2, a_high[m]);
      LoadMatrices(a0.At(ks) + m * 16 * kPitch * 2 + kQPlane, a_low[m]);
    }
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      uint32_t b_high[4], b_low[4];
      LoadMatrices(b0.At(ks) + pair * 16 * kPitch * 2, b_high);
      LoadMatrices(b0.At(ks) + pair * 16 * kPitch * 2 + kKPlane, b_low);
      // Eight products lie between two into the same accumulator: as long as one takes.
#pragma unroll
      for (int i = 0; i < 4; ++i)
        Multiply(small[i / 2][pair * 2 + i % 2], a_low[i / 2], b_high[i % 2 * 2],
                 b_high[i % 2 * 2 + 1]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        Multiply(big[i / 2][pair * 2 + i % 2], a_high[i / 2], b_high[i % 2 * 2],
                 b_high[i % 2 * 2 + 1]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        Multiply(small[i / 2][pair * 2 + i % 2], a_high[i / 2], b_low[i % 2 * 2],
                 b_low[i % 2 * 2 + 1]);
    }
  };
  if (kWhole) {
#pragma unroll 4
    for (int ks = 0; ks < kPitch / 16; ++ks) step(ks);
  } else {
#pragma unroll 1
    for (int ks = 0; ks < steps; ++ks) step(ks);
  }
}

template <int kPitch, bool kWhole, bool kMasked>
__global__ void __launch_bounds__(kForwardThreads, 2)
    ForwardKernel(const __grid_constant__ ForwardPlan plan) {
  using Memory = ForwardMemory<kPitch>;
  using Warp = ForwardWarp<kPitch, kWhole>;
  extern __shared__ __align__(128) uint8_t memory[];
  const uint32_t base = SharedAddress(memory);
  const uint32_t q_tile = base + Memory::kQ, k_tile = base + Memory::kK, v_tile = base + Memory::kV;
  const float* scale_k = reinterpret_cast<const float*>(memory + Memory::kScaleK);
  const float* scale_v = reinterpret_cast<const float*>(memory + Memory::kScaleV);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group_row = lane / 4;

  const ForwardBlock block(plan);
  const Visibility& see = plan.visibility;
  const int query0 = block.tile * kForwardQueries;
  const int queries = min(kForwardQueries, see.q_len - query0);
  const int64_t kv_row0 = block.head / plan.group * see.kv_len;  // (batch, kv head) counted as one
  const int64_t q_row0 = block.head * see.q_len + query0;
  const int v_dim0 = block.v_chunk * kPitch;
  const int v_pairs = min(kPitch, plan.v.padded - v_dim0) / 16;

  // Key tiles that any query of the block sees, of them this part.
  const int first_key = see.FirstKey(query0), end_key = see.EndKey(query0 + queries - 1);
  int tile = first_key / kForwardKeys, end_tile = (end_key + kForwardKeys - 1) / kForwardKeys;
  if (plan.parts > 1) {
    tile = max(tile, block.part * plan.tiles_a_part);
    end_tile = min(end_tile, (block.part + 1) * plan.tiles_a_part);
  }

  const auto load_q = [&](int chunk) {
    LoadTile<kForwardQueries, kPitch, kForwardThreads>(q_tile, plan.q, q_row0, queries,
                                                       chunk * kPitch);
  };
  const auto load_k = [&](int key0, int chunk) {
    const int keys = see.kv_len - key0;
    LoadTile<kForwardKeys, kPitch, kForwardThreads>(k_tile, plan.k, kv_row0 + key0, keys,
                                                    chunk * kPitch);
    if (chunk == 0)
      LoadFloats<kForwardKeys>(base + Memory::kScaleK, plan.k.scale + kv_row0 + key0, keys);
  };

  Warp w;
  w.Clear();
  float scale_q[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int row = warp * 32 + r * 8 + group_row;
    scale_q[r] = row < queries ? plan.q.scale[q_row0 + row] * plan.scale : 0.0f;
  }

  if (tile < end_tile) {
    load_q(0);
    load_k(tile * kForwardKeys, 0);
    CommitCopies();
  }
#pragma unroll 1
  for (; tile < end_tile; ++tile) {
    const int key0 = tile * kForwardKeys;
    WaitForCopies<0>();
    __syncthreads();  // Q and K have come; nobody reads V any more
    LoadTile<kForwardKeys, kPitch, kForwardThreads>(v_tile, plan.v, kv_row0 + key0,
                                                    see.kv_len - key0, v_dim0);
    LoadFloats<kForwardKeys>(base + Memory::kScaleV, plan.v.scale + kv_row0 + key0,
                             see.kv_len - key0);
    CommitCopies();

    float s[2][4][4] = {}, small[2][4][4] = {};
    if (kWhole) {
      MultiplyQueries<kPitch, true>(q_tile, k_tile, warp, lane, 0, s, small);
    } else {
#pragma unroll 1
      for (int chunk = 0; chunk < plan.qk_chunks; ++chunk) {
        if (chunk > 0) {
          __syncthreads();
          load_q(chunk);
          load_k(key0, chunk);
          CommitCopies();
          WaitForCopies<0>();
          __syncthreads();
        }
        MultiplyQueries<kPitch, false>(q_tile, k_tile, warp, lane,
                                       min(kPitch, plan.q.padded - chunk * kPitch) / 16, s, small);
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float2 factor = *reinterpret_cast<const float2*>(scale_k + n * 8 + lane % 4 * 2);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          s[m][n][e] = (s[m][n][e] + small[m][n][e]) *
                       (scale_q[m * 2 + e / 2] * (e % 2 == 0 ? factor.x : factor.y));
        }
      }
    }
    if (!see.SeesAll(query0, queries, key0, kForwardKeys)) {
      const ForwardBlock again(plan);  // rather than registers kept through the loop
      const int64_t batch = again.head / plan.q_heads, head = again.head % plan.q_heads;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const int query = query0 + warp * 32 + m * 16 + group_row, key = key0 + lane % 4 * 2;
        HideScores<0, kMasked>(s[m], see, batch, head, query, key);
        HideScores<1, kMasked>(s[m], see, batch, head, query + 8, key);
      }
    }

    WaitForCopies<0>();
    __syncthreads();  // V has come; nobody reads K any more
    if (tile + 1 < end_tile) {
      if (!kWhole && plan.qk_chunks > 1) load_q(0);
      load_k(key0 + kForwardKeys, 0);
      CommitCopies();
    }

    // Scales of V: the tile's, and which tokens have elements that are not finite.
    const float lane_scale = scale_v[lane];
    const float tile_scale =
        __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(lane_scale) & 0x7fffffffu));
    const unsigned not_finite = __ballot_sync(~0u, lane_scale < 0.0f);
    const float inverse = 1.0f / tile_scale;  // kPTop / tile_scale may be beyond float32

    // Where P of a query is not 0 in exact arithmetic: eight columns of four rows, one bit each.
    unsigned attends = 0;
    if (not_finite != 0) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          const bool seen = s[r / 2][c / 2][r % 2 * 2 + c % 2] != -INFINITY;
          attends |= static_cast<unsigned>(seen) << (r * 8 + c);
        }
      }
    }

    float alpha[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int m = r / 2, e = r % 2 * 2;
      float most = fmaxf(s[m][0][e], s[m][0][e + 1]);
#pragma unroll
      for (int n = 1; n < 4; ++n) most = fmaxf(most, fmaxf(s[m][n][e], s[m][n][e + 1]));
      const float now = fmaxf(w.top[r], QuadMax(most));
      const float origin = now == -INFINITY ? 0.0f : now;
      alpha[r] = Exp2(w.top[r] - origin);
      w.top[r] = now;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        s[m][n][e] = Exp2(s[m][n][e] - origin);
        s[m][n][e + 1] = Exp2(s[m][n][e + 1] - origin);
        sum += s[m][n][e] + s[m][n][e + 1];
      }
      w.sum[r] = fmaf(w.sum[r], alpha[r], sum);
    }

    // P as A fragments of two k16 steps.
    uint32_t p_high[2][2][4], p_low[2][2][4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float2 v2 = *reinterpret_cast<const float2*>(scale_v + n * 8 + lane % 4 * 2);
      const float f0 = fabsf(v2.x) * inverse * kPTop, f1 = fabsf(v2.y) * inverse * kPTop;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int a = n % 2 * 2 + half;
          Split(s[m][n][half * 2] * f0, s[m][n][half * 2 + 1] * f1, &p_high[m][n / 2][a],
                &p_low[m][n / 2][a]);
        }
      }
    }

    // O = O alpha + P V, 16 dims at a time.
    const float o_factor = tile_scale / kPTop;
    const LaneAddress v_lane = RowsBySixteen<kPitch>(v_tile, 0, lane);
#pragma unroll
    for (int pair = 0; pair < Warp::kDimTiles / 2; ++pair) {
      if (!kWhole && pair >= v_pairs) break;
      float t_big[2][2][4] = {}, t_small[2][2][4] = {};
#pragma unroll
      for (int ks = 0; ks < 2; ++ks) {
        uint32_t high[4], low[4];
        LoadMatricesTransposed(v_lane.At(pair) + ks * 16 * kPitch * 2, high);
        LoadMatricesTransposed(
            v_lane.At(pair) + ks * 16 * kPitch * 2 + kPlaneBytes<kForwardKeys, kPitch>, low);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          Multiply(t_small[i / 2][i % 2], p_low[i / 2][ks], high[i % 2 * 2], high[i % 2 * 2 + 1]);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          Multiply(t_big[i / 2][i % 2], p_high[i / 2][ks], high[i % 2 * 2], high[i % 2 * 2 + 1]);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          Multiply(t_small[i / 2][i % 2], p_high[i / 2][ks], low[i % 2 * 2], low[i % 2 * 2 + 1]);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int t = 0; t < 2; ++t) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float& o = w.o[m][pair * 2 + t][e];
            o = fmaf(t_big[m][t][e] + t_small[m][t][e], o_factor, o * alpha[m * 2 + e / 2]);
          }
        }
      }
    }

    // Channels of V that are not finite: NaN for every query that attends to the token.
    for (unsigned left = not_finite; left != 0; left &= left - 1) {
      const int token = __ffs(left) - 1;
      const unsigned bits =
          __shfl_sync(~0u, attends, (lane & ~3) | (token % 8 / 2)) >> (token / 8 * 2 + token % 2);
      const ForwardBlock again(plan);
      const int64_t batch = again.head / plan.q_heads, head = again.head % plan.q_heads;
      const float* row = plan.v_source + batch * plan.v_strides.batch +
                         head / plan.group * plan.v_strides.head +
                         static_cast<int64_t>(key0 + token) * plan.v_strides.token;
#pragma unroll
      for (int n = 0; n < Warp::kDimTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int dim = v_dim0 + n * 8 + lane % 4 * 2 + e;
          if (dim >= plan.v_dim || isfinite(row[dim])) continue;
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            if ((bits >> (r * 8)) & 1) w.o[r / 2][n][r % 2 * 2 + e] = __int_as_float(0x7fffffff);
          }
        }
      }
    }
  }

#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int row = warp * 32 + r * 8 + group_row;
    const float sum = QuadSum(w.sum[r]);
    if (row >= queries) continue;
    WriteRow(plan, ForwardBlock(plan), query0 + row, v_dim0, w.o[r / 2], r % 2, w.top[r], sum);
  }
}

template <int kPitch, bool kWhole>
void LaunchForwardInstance(const ForwardPlan& plan, void* stream) {
  constexpr int kBytes = ForwardMemory<kPitch>::kBytes;
  const bool masked = plan.visibility.mask_kind != MaskKind::kNone;
  const auto kernel =
      masked ? ForwardKernel<kPitch, kWhole, true> : ForwardKernel<kPitch, kWhole, false>;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes) !=
      cudaSuccess)
    return;
  const int64_t blocks = plan.heads * plan.query_tiles * plan.v_chunks * plan.parts;
  kernel<<<static_cast<unsigned>(blocks), kForwardThreads, kBytes,
           static_cast<cudaStream_t>(stream)>>>(plan);
}

template <int kPitch>
void LaunchForwardKernel(const ForwardPlan& plan, void* stream) {
  // Without the tests for the end of a row the compiler runs the products of 16 dims into each
  // other, which pays as long as the registers last.
  if constexpr (kPitch == 64) {
    if (plan.q.padded == kPitch && plan.v.padded == kPitch)
      return LaunchForwardInstance<kPitch, true>(plan, stream);
  }
  LaunchForwardInstance<kPitch, false>(plan, stream);
}

}  // namespace sage::cuda

#endif  // SAGE_CUDA_EXACT_FORWARD_CUH_
