// An instance of the attention kernel: its tiles, its products, its shared memory.
#ifndef SAGE_CUDA_INT8_FORM_CUH_
#define SAGE_CUDA_INT8_FORM_CUH_

#include "cuda/int8/attend_plan.h"
#include "cuda/int8/images.h"
#include "cuda/int8/mean_scores.cuh"
#include "cuda/int8/products.cuh"
#include "cuda/int8/ring.cuh"

namespace sage::cuda::int8 {

// What a block keeps in shared memory rather than in registers.
struct Kept {
  CopySources from;
  Block block;
};

// kWarps_: 8 fit a multiprocessor by their registers, as one block or as two. At 256 dims shared
// memory holds q of 4. kSlots, kBulk: of the copies (ring.cuh); three slots where 99 KiB hold them.
template <int D, bool kInt4, Values kValues, int kWarps_ = D == 256 ? 4 : 8,
          int kSlots = ValuesAreBytes(kValues) && D != 256 ? 3 : 2, bool kBulk = true>
struct Instance {
  static constexpr int kQkDim = D;
  static constexpr int kDim = D < kPartDim ? D : kPartDim;  // channels of o
  static constexpr bool kBytes = ValuesAreBytes(kValues);
  // Sums of P·V in halves: over 64 keys, or over all.
  static constexpr bool kSumsInHalves = kValues == Values::kHalfSums;
  static constexpr bool kHalfAccumulator =
      kSumsInHalves || kValues == Values::kHalfBy64 || kValues == Values::kE4m3HalfSums;
  static constexpr bool kTwoLevel = kValues == Values::kE4m3TwoLevel;
  static constexpr bool kRoundsToE4m3 = kValues == Values::kE4m3InHalf;
  static constexpr bool kIsE4m3 = kBytes || kRoundsToE4m3;

  // Keys whose scores are held at once: sums of 64 need all of their P.
  static constexpr int kKeys = kBytes || kHalfAccumulator ? 64 : 32;
  // Keys of a step of copies. Halves of v leave room for 32 beside q of 256 dims (sm_86).
  static constexpr int kStepKeys = D == 256 && kKeys == 32 ? 32 : 64;
  // m16 tiles of a warp: one where sums in halves stand beside those of v's means, and where q of
  // 256 dims stands beside halves of v for sums of 64.
  static constexpr int kTiles = kSumsInHalves || (D == 256 && kValues == Values::kHalfBy64) ? 1 : 2;
  static constexpr int kWarps = kWarps_;
  static constexpr int kThreads = kWarps * 32, kBlocks = 8 / kWarps;  // of a multiprocessor
  static constexpr int kBlockRows = kWarps * 16 * kTiles;

  // The scores of the second 32 keys of an open step wait for P of the first (HoldScores). At 64
  // channels registers suffice, and waiting costs 3 %.
  static constexpr bool kHoldsScores = kDim > 64;

  // P starts at 2^kStart and may grow by 2^kRoom over the offset. e4m3: it starts at 56, one of its
  // values, so that a lone key keeps its v, and ends at 448. Sums in halves: P stays at most 1, as
  // in the published form, so that they become Infinity where its sums do.
  static constexpr float kStart = kIsE4m3 ? 5.80735492f : 0.0f;
  static constexpr float kRoom = kIsE4m3 ? 8.80735492f : kHalfAccumulator ? 1e-3f : 14.0f;

  static constexpr int kQSteps = D / (kInt4 ? 64 : 32);
  static constexpr int kQBytes = kCodeImageBytes<D, kInt4>;
  static constexpr int kKRowBytes = D / (kInt4 ? 2 : 1), kVRowBytes = kDim * (kBytes ? 1 : 2);
  using Copies = Ring<kDim, kStepKeys, kKRowBytes, kVRowBytes, kWarps, kSlots, kBulk>;
  static constexpr int kQ = Copies::kBytes;
  static constexpr int kSums = kQ + kWarps * kTiles * kQBytes;  // of P, [row of a thread][thread]
  static constexpr int kMeanScores = kSums + 2 * kTiles * kThreads * 4;
  static constexpr int kRows = kMeanScores + 2 * kMeanScoreFloats<kBlockRows, kStepKeys> * 4;
  static constexpr int kBlock = kRows + 2 * kBlockRows * 4;  // after scales and offsets of rows
  static constexpr int kSharedBytes = kBlock + static_cast<int>(sizeof(Kept));
  static_assert(kSharedBytes <= 99 * 1024, "fits in every device from sm_80 on");

  __device__ __forceinline__ static void StartScores(int (&s)[4], const uint32_t (&a)[4],
                                                     uint32_t b0, uint32_t b1,
                                                     const int (&magic)[4]) {
    if constexpr (kInt4) {
      StartInt4(s, a, b0, b1, magic);
    } else {
      StartInt8(s, a, b0, b1, magic);
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
