// A block of the attention kernel: its warpgroups, its shared memory, its barriers.
#ifndef SAGE_CUDA_SM90_BLOCK_CUH_
#define SAGE_CUDA_SM90_BLOCK_CUH_

#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/work.cuh"
#include "cuda/sm90/workspace.h"

namespace sage {
namespace sm90 {

constexpr float kCeiling = 8.807f;  // log2 448
// A sum of P up to which none of them can pass 448.
constexpr float kMostSum = 448.0f;
// Where a row's largest P starts, or below: in warps that look for maxima at every tile log2 56, in
// others log2 10, so that what comes later may be 45 times as large before a tile is done again.
constexpr float kStart = 5.807f, kCalmStart = 3.307f;
// A warp looks for maxima at every tile if in the tile that offsets are fitted to the largest score
// of a thread's 32 keys is more than this many octaves above their mean, or above the offset: other
// keys' P would be too small for e4m3. Of normal scores of standard deviation 1 (2) hardly any warp
// has such a row (nearly all have).
constexpr float kSteep = 8.307f;
// Or if a tile is done again within this many tiles of the one that offsets were fitted to: that
// costs its block nearly a tile, and maxima a tenth of one each.
constexpr int kSoon = 32;
constexpr int kNeverCalm = -2;  // before all tiles, and not next to one
// A span ends at the next mark where the mean of some row's P is below this (where all tiles are
// looked at for maxima; elsewhere): of its first tile that mean was 1, or else its largest P was
// 56 (10) at least, so it is so far above the others that what the tensor core cuts of them shows.
// Of normal scores of standard deviation 1 one warp in twenty has such a row.
constexpr float kLeastMean = 0.375f, kLeastMeanOfCalm = 0.25f;
constexpr int kSumStride = 320;  // bytes of one tile's row sums of a warp, padded
// Where parts of l lie, after the sums less the padding of the last; and scales of q.
constexpr int kPartsOfL = kMeanTiles * kSumStride - 64;
constexpr int kSumBytes = kPartsOfL + 512;

// How many warpgroups compute, 64 rows of q each, and how registers are shared out. Three fit where
// no mask takes registers.
template <int D, bool kMasked>
struct Roles {
  static constexpr int kWarpgroups = kMasked ? 2 : 3;
  static constexpr int kRows = 64 * kWarpgroups;
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kCopyRegisters = kWarpgroups == 2 ? 40 : 32;
  static constexpr int kComputeRegisters = kWarpgroups == 2 ? 232 : 160;
  // Whether the sums of earlier spans fit in registers.
  static constexpr bool kHeld = D == 64 || kMasked;
  static_assert(kMaskedRows <= kRows && kRows <= kMostRows, "rows of the workspace");
};

constexpr int kRoundingWarps = 3;  // of the copying warpgroup
// Rows of q that one of them has in registers, and bytes of them as they come, in float32.
template <int D>
constexpr int kRowsAhead = 16 / (D / 32);
template <int D>
constexpr uint32_t kStagedBytes = kRowsAhead<D> * D * 4;

template <int D, bool kMasked>
struct SharedMap {
  static constexpr int kWarps = 4 * Roles<D, kMasked>::kWarpgroups;
  static constexpr int kStages = 4;
  static constexpr uint32_t kQBytes = Roles<D, kMasked>::kRows * D;
  static constexpr uint32_t kQScaleBytes = Roles<D, kMasked>::kRows * 4;
  static constexpr uint32_t kVScaleBytes = D * 4;
  static constexpr uint32_t kKBytes = kTile * D;
  static constexpr uint32_t kVBytes = kTile * D;
  static constexpr uint32_t kKScaleBytes = kTile / 32 * 4;
  static constexpr uint32_t kK = 2 * kQBytes;
  static constexpr uint32_t kV = kK + kStages * kKBytes;
  static constexpr uint32_t kSums = kV + kStages * kVBytes;
  static constexpr uint32_t kKScale = kSums + kWarps * kSumBytes;
  static constexpr uint32_t kQScale = kKScale + kStages * kKScaleBytes;
  static constexpr uint32_t kVScale = kQScale + 2 * kQScaleBytes;
  static constexpr uint32_t kBarriers = kVScale + 2 * kVScaleBytes;
  // Full and empty: k with v per stage, q twice; drawn: the tile of work of each q;
  // staged: two batches of rows of q of each rounding warp.
  static constexpr uint32_t kWork = kBarriers + 8 * (2 * kStages + 6 + 2 * kRoundingWarps);
  static constexpr uint32_t kRecords = kWork + 2 * kWorkBytes;  // per warp, of its tile of work
  static_assert(kWork % 16 == 0 && kRecords % 16 == 0 && kVScale % 16 == 0, "alignment");
  static constexpr uint32_t kStaged = kRecords + kWarps * kRecordBytes;
  static constexpr uint32_t kBytes = kStaged + kRoundingWarps * 2 * kStagedBytes<D>;
  static_assert(kStaged % 16 == 0 && kBytes <= 227 * 1024, "shared memory of a block");
};

template <int kStages>
struct Barriers {
  uint32_t base;
  SAGE_DEVICE uint32_t Full(int s) const { return base + 8 * s; }
  SAGE_DEVICE uint32_t Empty(int s) const { return base + 8 * (kStages + s); }
  SAGE_DEVICE uint32_t QFull(int s) const { return base + 8 * (2 * kStages + s); }
  SAGE_DEVICE uint32_t QEmpty(int s) const { return base + 8 * (2 * kStages + 2 + s); }
  SAGE_DEVICE uint32_t Drawn(int s) const { return base + 8 * (2 * kStages + 4 + s); }
  // The first of a rounding warp's two.
  SAGE_DEVICE uint32_t Staged(int warp) const { return base + 8 * (2 * kStages + 6 + 2 * warp); }
};

// One thread.
template <int D, bool kMasked>
SAGE_DEVICE void InitBarriers(const Barriers<SharedMap<D, kMasked>::kStages>& bar) {
  using Map = SharedMap<D, kMasked>;
  for (int s = 0; s < Map::kStages; ++s) {
    BarrierInit(bar.Full(s), 1);
    BarrierInit(bar.Empty(s), Map::kWarps * kWarpArrivals);
  }
  for (int s = 0; s < 2; ++s) {
    BarrierInit(bar.QFull(s), kRoundingWarps * kWarpArrivals);
    BarrierInit(bar.QEmpty(s), (Map::kWarps + 1) * kWarpArrivals);
    BarrierInit(bar.Drawn(s), kWarpArrivals);
  }
  for (int s = 0; s < 2 * kRoundingWarps; ++s) BarrierInit(bar.Staged(0) + 8 * s, 1);
  BarrierInitFence();
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_BLOCK_CUH_
