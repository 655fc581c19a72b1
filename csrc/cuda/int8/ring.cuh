// The copies of one block: 64 keys of k and v at a time arrive in rings of shared memory.
//
//   before the products of tile n: wait for its copies; barrier; start the copies of tile n + 1
//
// P·V of a step runs under the scores of the next one, so after the barrier nobody reads k of tile
// n - 1 nor v of tile n - 2 any more, but v of tile n - 1: two slots for k, three for v.
#ifndef SAGE_CUDA_INT8_RING_CUH_
#define SAGE_CUDA_INT8_RING_CUH_

#include <cstdint>

#include "cuda/int8/attend_plan.h"
#include "cuda/tensor_core.cuh"

namespace sage::cuda::int8 {

constexpr int kTileKeys = 64;

template <int kBytes, int kThreads>
__device__ __forceinline__ void CopyBlock(uint32_t to, const uint8_t* from) {
  static_assert(kBytes % 16 == 0, "whole vectors");
  const int mine = static_cast<int>(threadIdx.x) * 16;
#pragma unroll
  for (int at = 0; at < kBytes; at += kThreads * 16) {
    if (at + kThreads * 16 <= kBytes || at + mine < kBytes)
      CopyAsync16(to + at + mine, from + at + mine, true);
  }
}

// kKBytes, kVBytes: of a tile.
template <int D, int kKBytes, int kVBytes, int kThreads>
struct Ring {
  static constexpr int kKSlots = 2, kVSlots = 3;
  static constexpr int kMeanBytes = D * 4;
  static constexpr int kK = 0;
  static constexpr int kV = kK + kKSlots * kKBytes;
  static constexpr int kMeans = kV + kVSlots * kVBytes;  // two blocks of 128 tokens
  static constexpr int kBytes = kMeans + 2 * kMeanBytes;
  static constexpr int kTilesPerMean = kTileTokens / kTileKeys;

  uint32_t base;
  const uint8_t *k, *v;  // of the kv head
  const float* means;    // null = v is not smoothed
  int first, end;        // tiles

  static constexpr int Means(int tile) { return kMeans + tile / kTilesPerMean % 2 * kMeanBytes; }

  // Starts the copies of a tile; past the end there are none.
  __device__ __forceinline__ void Start(int tile, int k_slot, int v_slot) const {
    if (tile < end) {
      CopyBlock<kKBytes, kThreads>(base + kK + k_slot * kKBytes,
                                   k + static_cast<int64_t>(tile) * kKBytes);
      CopyBlock<kVBytes, kThreads>(base + kV + v_slot * kVBytes,
                                   v + static_cast<int64_t>(tile) * kVBytes);
      if (means != nullptr && (tile % kTilesPerMean == 0 || tile == first)) {
        CopyBlock<kMeanBytes, kThreads>(
            base + Means(tile),
            reinterpret_cast<const uint8_t*>(means +
                                             static_cast<int64_t>(tile / kTilesPerMean) * D));
      }
    }
    CommitCopies();
  }
};

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_RING_CUH_
