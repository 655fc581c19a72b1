// The copies of one block: 64 keys of k and v at a time (or 32), into two slots in turns.
//
//   step i: wait for its copies; barrier; start the copies of step i + 1; compute
//
// A slot is k, v, scales of k: one register addresses all.
#ifndef SAGE_CUDA_INT8_RING_CUH_
#define SAGE_CUDA_INT8_RING_CUH_

#include <cstdint>

#include "cuda/int8/attend_plan.h"
#include "cuda/int8/images.h"
#include "cuda/tensor_core.cuh"

namespace sage::cuda::int8 {

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

// What a block copies from; kept in shared memory, since registers are few.
struct CopySources {
  const uint8_t *k, *v;        // of the kv head
  const float *table, *means;  // scales of k by 32 keys; means of v, null = v is not smoothed
};

// D: channels of v.
template <int D, int kKeys, int kKRowBytes, int kVRowBytes, int kThreads>
struct Ring {
  static constexpr int kKBytes = kKeys * kKRowBytes, kVBytes = kKeys * kVRowBytes;
  static constexpr int kTable = kKBytes + kVBytes;  // of a slot
  static constexpr int kTableBytes = kKeys / kStepTokens * 16;
  static constexpr int kSlotBytes = kTable + 128;  // rows of banks stay whole
  static constexpr int kMeanBytes = D * 4;
  static constexpr int kMeans = 2 * kSlotBytes;  // two blocks of 128 tokens
  static constexpr int kBytes = kMeans + 2 * kMeanBytes;
  static constexpr int kStepsPerMean = kTileTokens / kKeys;

  __device__ __forceinline__ static int Means(int step) {
    return kMeans + step / kStepsPerMean % 2 * kMeanBytes;
  }

  // Starts the copies of a step into a slot; `whole`: also the means of a block of which it is not
  // the first step.
  __device__ __forceinline__ static void Start(uint32_t base, const CopySources& from, int step,
                                               int slot, bool whole) {
    const uint32_t to = base + slot * kSlotBytes;
    CopyBlock<kKBytes, kThreads>(to, from.k + static_cast<int64_t>(step) * kKBytes);
    CopyBlock<kVBytes, kThreads>(to + kKBytes, from.v + static_cast<int64_t>(step) * kVBytes);
    CopyBlock<kTableBytes, kThreads>(to + kTable, reinterpret_cast<const uint8_t*>(from.table) +
                                                      static_cast<int64_t>(step) * kTableBytes);
    if (step % kStepsPerMean == 0 || whole) {
      const float* means = from.means;
      if (means != nullptr) {
        CopyBlock<kMeanBytes, kThreads>(
            base + Means(step), reinterpret_cast<const uint8_t*>(
                                    means + static_cast<int64_t>(step / kStepsPerMean) * D));
      }
    }
  }
};

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_RING_CUH_
