// The copies of one block: steps of k and v arrive in rings of shared memory, v one step after k,
// because P·V of a step runs under the scores of the next.
//
//   group i of copies: k of step i, v of step i - 1, means of v if step i - 1 begins 128 tokens
//   before products of step i: wait for group i; barrier; start group i + kAhead
//
// After the barrier nobody reads k of step i - 1 nor v of step i - 2 any more, so rings of
// kAhead + 1 slots suffice.
#ifndef SAGE_CUDA_INT8_RING_CUH_
#define SAGE_CUDA_INT8_RING_CUH_

#include <cstdint>

#include "cuda/int8/attend_plan.h"
#include "cuda/tensor_core.cuh"

namespace sage::cuda::int8 {

template <int kBytes, int kThreads>
__device__ __forceinline__ void CopyBlock(uint32_t to, const uint8_t* from) {
  static_assert(kBytes % 16 == 0, "whole vectors");
#pragma unroll
  for (int at = 0; at < kBytes; at += kThreads * 16) {
    const int mine = at + static_cast<int>(threadIdx.x) * 16;
    if (at + kThreads * 16 <= kBytes || mine < kBytes) CopyAsync16(to + mine, from + mine, true);
  }
}

template <int D, int kStep, int kKBytes, int kVBytes, int kAhead, int kThreads>
struct Ring {
  static constexpr int kSlots = kAhead + 1;
  static constexpr int kMeanBytes = D * 4;
  static constexpr int kK = 0;
  static constexpr int kV = kK + kSlots * kKBytes;
  static constexpr int kMeans = kV + kSlots * kVBytes;  // two blocks of 128 tokens
  static constexpr int kBytes = kMeans + 2 * kMeanBytes;
  static constexpr int kStepsPerMean = kTileTokens / kStep;

  uint32_t base;
  const uint8_t *k, *v;  // of the kv head
  const float* means;    // null = v is not smoothed
  int first, end;        // steps

  __device__ __forceinline__ uint32_t K(int slot) const { return base + kK + slot * kKBytes; }
  __device__ __forceinline__ uint32_t V(int slot) const { return base + kV + slot * kVBytes; }
  __device__ __forceinline__ uint32_t Means(int step) const {
    return base + kMeans + step / kStepsPerMean % 2 * kMeanBytes;
  }

  // Starts group i; slots of k and v are those of steps i and i - 1.
  __device__ __forceinline__ void Start(int i, int k_slot, int v_slot) const {
    if (i < end) CopyBlock<kKBytes, kThreads>(K(k_slot), k + static_cast<int64_t>(i) * kKBytes);
    if (i > first && i <= end) {
      CopyBlock<kVBytes, kThreads>(V(v_slot), v + static_cast<int64_t>(i - 1) * kVBytes);
      if (means != nullptr && ((i - 1) % kStepsPerMean == 0 || i - 1 == first)) {
        const int block = (i - 1) / kStepsPerMean;
        CopyBlock<kMeanBytes, kThreads>(
            Means(i - 1),
            reinterpret_cast<const uint8_t*>(means + static_cast<int64_t>(block) * D));
      }
    }
    CommitCopies();
  }
};

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_RING_CUH_
