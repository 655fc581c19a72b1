// An instance of the attention kernel: its tiles, its products, its shared memory.
#ifndef SAGE_CUDA_INT8_FORM_CUH_
#define SAGE_CUDA_INT8_FORM_CUH_

#include "cuda/int8/attend_plan.h"
#include "cuda/int8/images.h"
#include "cuda/int8/mean_scores.cuh"
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
#ifndef SAGE_STEP
#define SAGE_STEP 16
#endif
  static constexpr int kStep = kBytes || kHalfAccumulator ? 64 : D == 64 ? 32 : SAGE_STEP;
  static constexpr int kTables = kStep < 32 ? 1 : kStep / 32;        // scales of k in a step
  static constexpr int kVImages = kBytes ? kStep / 32 : kStep / 16;  // k32 or k16 products in a step
  // m16 tiles of a warp: 16 rows where halves of sums stand beside O.
  static constexpr int kTiles = kFollowsMaximum ? 1 : 2;
#ifndef SAGE_WARPS
#define SAGE_WARPS 8
#endif
  static constexpr int kWarps = SAGE_WARPS;
  static constexpr int kThreads = kWarps * 32, kBlocks = 8 / kWarps;  // of a multiprocessor
  static constexpr int kBlockRows = kWarps * 16 * kTiles;

  static constexpr int kQSteps = D / (kInt4 ? 64 : 32);
  static constexpr int kPRegisters = kStep / (kBytes ? 8 : 4);
  // Steps of q kept in registers; the others lie in shared memory. Where 32 rows meet 128 dims, O
  // takes half of the registers.
#ifndef SAGE_RESIDENT
#define SAGE_RESIDENT 4
#endif
  static constexpr int kQResident = kTiles == 1 || D == 64 ? kQSteps : kStep == 64 ? 0 : kInt4 ? kQSteps : SAGE_RESIDENT;

  // P starts at 2^kStart. e4m3: at 56, which is one of its values, so that a lone key keeps its v;
  // and at most 8 P of a thread and 32 keys are summed, so that a row of equal scores stays within
  // 448 (2 more for rounding: cut to 448, that is less than half of a spacing).
  static constexpr float kStart = kIsE4m3 ? 5.80735492f : 0.0f;
  static constexpr float kMostSum = kIsE4m3 ? 450.0f : 16384.0f;
  static constexpr float kMostP = kFollowsMaximum ? 1.001f : 16384.0f;

  static constexpr int kQBytes = kQImageBytes<D, kInt4>;
  static constexpr int kKBytes = kKImageBytes<D, kInt4> * kStep / kStepTokens;
  static constexpr int kVBytes = kStep * D * (kBytes ? 1 : 2);
  static constexpr int kKTileBytes = kTileKeys / kStep * kKBytes;
  static constexpr int kVTileBytes = kTileKeys / kStep * kVBytes;
  using Copies = Ring<D, kKTileBytes, kVTileBytes, kThreads>;
  static constexpr int kQ = Copies::kBytes;
  static constexpr int kQSharedBytes = kTiles * kQBytes / kQSteps * (kQSteps - kQResident);  // a warp
  static constexpr int kSums = kQ + kWarps * kQSharedBytes;  // of P, [row of a thread][thread]
  static constexpr int kMeanScores = kSums + 2 * kTiles * kThreads * 4;
  static constexpr int kBlock = kMeanScores + 2 * kMeanScoreFloats<kBlockRows> * 4;
  static constexpr int kSharedBytes = kBlock + static_cast<int>(sizeof(Block));
  static_assert(kSharedBytes <= (kBlocks == 1 ? 99 : 113) * 1024, "fits in sm_86 and sm_89");

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
