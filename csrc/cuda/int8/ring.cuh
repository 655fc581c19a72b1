// The copies of one block: 64 keys of k and v at a time, into two slots in turns.
//
//   step i: wait for its copies; barrier; start the copies of step i + 1; compute
#ifndef SAGE_CUDA_INT8_RING_CUH_
#define SAGE_CUDA_INT8_RING_CUH_

#include <cstdint>

#include "cuda/int8/attend_plan.h"
#include "cuda/tensor_core.cuh"

namespace sage::cuda::int8 {

constexpr int kTileKeys = 64;  // of a step

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

template <int D, int kKBytes, int kVBytes, int kThreads>
struct Ring {
  static constexpr int kMeanBytes = D * 4;
  static constexpr int kMeans = 2 * (kKBytes + kVBytes);  // two blocks of 128 tokens
  static constexpr int kBytes = kMeans + 2 * kMeanBytes;
  static constexpr int kStepsPerMean = kTileTokens / kTileKeys;

  uint32_t base;
  const uint8_t *k, *v;  // of the kv head
  const float* means;    // null = v is not smoothed
  int first, end;        // steps

  __device__ __forceinline__ static int K(int slot) { return slot * kKBytes; }
  __device__ __forceinline__ static int V(int slot) { return 2 * kKBytes + slot * kVBytes; }
  __device__ __forceinline__ static int Means(int step) {
    return kMeans + step / kStepsPerMean % 2 * kMeanBytes;
  }

  // Starts the copies of a step; past the end there are none.
  __device__ __forceinline__ void Start(int step, int slot) const {
    if (step < end) {
      CopyBlock<kKBytes, kThreads>(base + K(slot), k + static_cast<int64_t>(step) * kKBytes);
      CopyBlock<kVBytes, kThreads>(base + V(slot), v + static_cast<int64_t>(step) * kVBytes);
      if (means != nullptr && (step % kStepsPerMean == 0 || step == first)) {
        CopyBlock<kMeanBytes, kThreads>(
            base + Means(step), reinterpret_cast<const uint8_t*>(
                                    means + static_cast<int64_t>(step / kStepsPerMean) * D));
      }
    }
    CommitCopies();
  }
};

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_RING_CUH_
