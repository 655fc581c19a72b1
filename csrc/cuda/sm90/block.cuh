// A block of the attention kernel: its warpgroups, its shared memory, its barriers.
#ifndef SAGE_CUDA_SM90_BLOCK_CUH_
#define SAGE_CUDA_SM90_BLOCK_CUH_

#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/work.cuh"
#include "cuda/sm90/workspace.h"

namespace sage {
namespace sm90 {

constexpr float kCeiling = 8.807f;  // log2 448
constexpr float kStart = 5.807f;    // log2 56: where a row's largest P starts
// A span ends at the next mark where the mean of some row's P is below this: its largest, at least
// 56, is then so far above the others that what the tensor core cuts of them shows. Of normal
// scores of standard deviation 1 one warp in a hundred has such a row.
constexpr float kLeastMean = 0.375f;
constexpr int kSumStride = 320;  // bytes of one tile's row sums of a warp, padded
constexpr int kSumBytes = kMeanTiles * kSumStride + 512;  // and parts of l, scales of q

// How many warpgroups compute, 64 rows of q each, and how registers are shared out. Three fit where
// no mask takes registers.
template <int D, bool kMasked>
struct Roles {
  static constexpr int kWarpgroups = kMasked ? 2 : 3;
  static constexpr int kRows = 64 * kWarpgroups;
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kCopyRegisters = kWarpgroups == 2 ? 24 : 32;
  static constexpr int kComputeRegisters = kWarpgroups == 2 ? 240 : 160;
  // Whether the sums of earlier spans fit in registers.
  static constexpr bool kHeld = D == 64 || kMasked;
  static_assert(kMaskedRows <= kRows && kRows <= kMostRows, "rows of the workspace");
};

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
  // Full and empty: k with v per stage, q twice; then the tile of work of each q.
  static constexpr uint32_t kWork = kBarriers + 8 * (2 * kStages + 4);
  static constexpr uint32_t kRecords = kWork + 2 * kWorkBytes;  // per warp, of its tile of work
  static constexpr uint32_t kBytes = kRecords + kWarps * kRecordBytes + 1024;  // and the alignment
};

template <int kStages>
struct Barriers {
  uint32_t base;
  SAGE_DEVICE uint32_t Full(int s) const { return base + 8 * s; }
  SAGE_DEVICE uint32_t Empty(int s) const { return base + 8 * (kStages + s); }
  SAGE_DEVICE uint32_t QFull(int s) const { return base + 8 * (2 * kStages + s); }
  SAGE_DEVICE uint32_t QEmpty(int s) const { return base + 8 * (2 * kStages + 2 + s); }
};

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_BLOCK_CUH_
