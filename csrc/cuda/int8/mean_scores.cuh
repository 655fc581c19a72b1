// What a mean of q adds to the scores: mean · k', k' not quantised (docs/numerics.md 3), both as
// sums of two halves up to 2^-22 of their largest. One A fragment holds the four means of 128 rows
// twice, high halves in rows 0 to 3, low ones in rows 4 to 7, so that two products of halves give
// all terms; the warps share the keys of the tile.
#ifndef SAGE_CUDA_INT8_MEAN_SCORES_CUH_
#define SAGE_CUDA_INT8_MEAN_SCORES_CUH_

#include "cuda/int8/finish.cuh"
#include "cuda/int8/images.h"
#include "cuda/int8/ring.cuh"
#include "cuda/tensor_core.cuh"

namespace sage::cuda::int8 {

// Floats of one step of kKeys keys: [128 rows][mean][key].
template <int kRows, int kKeys>
constexpr int kMeanScoreFloats = (kRows + kTileTokens - 1) / kTileTokens * kMostMeans * kKeys;

// Writes the scores of one step, log2 units, for a block of kRows rows.
template <int D, int kRows, int kKeys, int kWarps>
__device__ __noinline__ void MeanScores(const AttendPlan& plan, const Block& block, int step,
                                        float* out) {
  const Workspace& space = plan.space;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
  const int64_t token0 =
      block.kv_head * space.tiles * kTileTokens + static_cast<int64_t>(step) * kKeys;
  const uint4* b_at = reinterpret_cast<const uint4*>(space.k_halves +
                                                     token0 / kStepTokens * kKHalvesImageBytes<D>) +
                      lane;
#pragma unroll 1
  for (int rows = 0; rows < kRows; rows += kTileTokens, out += kMostMeans * kKeys) {
    const int first = block.query0 + rows;
    if (first >= space.q_rows) return;
    const int64_t means = block.head * (space.q_rows / kTileTokens) + first / kTileTokens;
    const uint2* a_at =
        reinterpret_cast<const uint2*>(space.mean_image + means * kMeanImageBytes<D>) + lane;
    const float scale =
        g < kMostMeans ? space.mean_scale[means * kMostMeans + g] * plan.scale : 0.0f;
#pragma unroll 1
    for (int column = warp; column < kKeys / 8; column += kWarps) {
      float big[4] = {}, small[4] = {};
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
        const uint2 mean = __ldg(a_at + d * 32);
        const uint4 b = __ldg(b_at + (column * (D / 16) + d) * 32);
        const uint32_t a[4] = {mean.x, 0, mean.y, 0};
        Multiply(big, a, b.x, b.y);
        Multiply(small, a, b.z, b.w);
      }
      float2 x = make_float2(big[0] + small[0], big[1] + small[1]);
      x.x += __shfl_down_sync(~0u, x.x, kMostMeans * 4);
      x.y += __shfl_down_sync(~0u, x.y, kMostMeans * 4);
      if (g < kMostMeans) {
        const float2 unit =
            __ldg(reinterpret_cast<const float2*>(space.k_halves_scale + token0 + column * 8) + c);
        *reinterpret_cast<float2*>(out + g * kKeys + column * 8 + 2 * c) =
            make_float2(x.x * unit.x * scale, x.y * unit.y * scale);
      }
    }
  }
}

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_MEAN_SCORES_CUH_
