// An instance of the attention kernel: its tiles, its products, its shared memory.
#ifndef SAGE_CUDA_INT8_FORM_CUH_
#define SAGE_CUDA_INT8_FORM_CUH_

#include "cuda/int8/attend_plan.h"
#include "cuda/int8/images.h"
#include "cuda/int8/products.cuh"
#include "cuda/int8/ring.cuh"

namespace sage::cuda::int8 {

template <int D, bool kInt4, Values kValues>
struct Instance {
  static constexpr int kDim = D;
  static constexpr bool kBytes = ValuesAreBytes(kValues);
  // Sums of P·V in halves: over 64 keys, or over all.
  static constexpr bool kSumsInHalves = kValues == Values::kHalfSums;
  static constexpr bool kHalfAccumulator =
      kSumsInHalves || kValues == Values::kHalfBy64 || kValues == Values::kE4m3HalfSums;
  static constexpr bool kTwoLevel = kValues == Values::kE4m3TwoLevel;
  static constexpr bool kRoundsToE4m3 = kValues == Values::kE4m3InHalf;
  static constexpr bool kIsE4m3 = kBytes || kRoundsToE4m3;
  // With sums in halves P must stay at most 1, as in the published form, so that they become
  // Infinity where its sums do.
  static constexpr bool kFollowsMaximum = kHalfAccumulator && !kBytes;

  // Sums of 64 keys need steps of 64.
  static constexpr int kStep = kBytes || kHalfAccumulator ? 64 : 32;
  static constexpr int kImages = kStep / kStepTokens;
  // m16 tiles of a warp: 16 rows where halves of sums stand beside O.
  static constexpr int kTiles = kFollowsMaximum ? 1 : 2;
  static constexpr int kThreads = 128;
  static constexpr int kBlockRows = kThreads / 32 * 16 * kTiles;
  static_assert(kBlockRows == RowsOf(kValues), "the grid counts these rows");

  static constexpr int kQSteps = D / (kInt4 ? 64 : 32);
  static constexpr int kPRegisters = kStep / (kBytes ? 8 : 4);
  // Registers: O and S take 192 of 255 where 32 rows meet 64 keys at 128 dims.
  static constexpr bool kQInRegisters = !(kStep == 64 && kTiles == 2 && D == 128);

  // P starts at 2^kStart. e4m3: at most 8 P of a thread and 32 keys are summed, so that a row of
  // equal scores stays below 448; from 448 on a P might have been cut off.
  static constexpr float kStart = kIsE4m3 ? 5.8f : 0.0f;
  static constexpr float kMostSum = kIsE4m3 ? 448.0f : 16384.0f;
  static constexpr float kMostP = kFollowsMaximum ? 1.001f : 16384.0f;

  static constexpr int kQBytes = kQImageBytes<D, kInt4>;
  static constexpr int kKBytes = kImages * kKImageBytes<D, kInt4>;
  static constexpr int kVBytes = kImages * (kBytes ? kVByteImageBytes<D> : kVHalfImageBytes<D>);
  // Steps in flight: two blocks of a multiprocessor must fit in the 100 KiB of sm_86 and sm_89.
  static constexpr int kAhead = kStep == 32 ? 2 : 1;
  using Copies = Ring<D, kStep, kKBytes, kVBytes, kAhead, kThreads>;
  static constexpr int kQ = Copies::kBytes;
  static constexpr int kMeanScores = kQ + (kQInRegisters ? 0 : kBlockRows / kRowImage * kQBytes);
  static constexpr int kSharedBytes = kMeanScores + 2 * kMostMeans * kStep * 4;

  __device__ __forceinline__ static void StartScores(int (&s)[4], const uint32_t (&a)[4],
                                                     uint32_t b0, uint32_t b1) {
    if constexpr (kInt4) {
      StartInt4(s, a, b0, b1);
    } else {
      StartInt8(s, a, b0, b1);
    }
  }
  __device__ __forceinline__ static void AddScores(int (&s)[4], const uint32_t (&a)[4], uint32_t b0,
                                                   uint32_t b1) {
    if constexpr (kInt4) {
      AddInt4(s, a, b0, b1);
    } else {
      AddInt8(s, a, b0, b1);
    }
  }
};

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_FORM_CUH_
