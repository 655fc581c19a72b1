// A block of the attention kernel: its warps, its shared memory, its tiles of work.
#ifndef SAGE_CUDA_SM120_BLOCK_H_
#define SAGE_CUDA_SM120_BLOCK_H_

#include "cuda/core/pipeline.h"
#include "cuda/sm120/arguments.h"

namespace sage {
namespace sm120 {

// Four warps copy and compute the scores of q's means; eight or twelve compute 32 rows of q each.
constexpr int kHelperWarps = 4;
constexpr int AttendThreads(int dim) { return 32 * (kHelperWarps + WarpsOf(dim)); }
// 4 warps of 32 registers and 8 of 240, or 12 of 160, are all of the 65,536.
constexpr int kHelperRegisters = 32;
constexpr int ComputeRegisters(int dim) { return dim == 64 ? 160 : 240; }

// Row sums that a thread keeps in shared memory: of the tiles of a group, and of all groups.
constexpr int kSumSlots = kMeanTiles + 1;

// Bytes of shared memory; at most the 99 KiB of sm_86, sm_89 and sm_120.
template <int D, bool kFp8>
struct SharedMap {
  static constexpr TileBytes kTileBytes = TileBytesOf(D, kFp8);
  static constexpr int kWarps = WarpsOf(D);
  static constexpr int kStages = kFp8 || D == 256 ? 2 : 3;
  // Scores of the means: per warp 64 pairs of keys as {even, odd, even, odd}, the start of an
  // accumulator, or {even, odd} where there is no room; rows are padded so that two warps' rows
  // begin in other banks.
  static constexpr int kPairBytes = D == 256 ? 8 : 16;
  static constexpr int kMeanScoreRow = 64 * kPairBytes + 32;
  static constexpr int kMeanScoreBytes = kWarps * kMeanScoreRow;
  static constexpr int kSumBytes = kSumSlots * 32 * 16;  // of a warp
  static constexpr int kMeanScores = kStages * kTileBytes.stage;
  static constexpr int kSums = kMeanScores + kStages * kMeanScoreBytes;
  static constexpr int kBarriers = kSums + kWarps * kSumBytes;
  static constexpr int kBytes = kBarriers + 2 * kStages * 8;
  static_assert(kBytes <= 99 * 1024);
};

// One tile of work: a block's rows of a query head, and the tiles of keys that some row sees.
struct Work {
  int head, row0, first, count;
  int part;  // of v's channels
};

// `rows` are those of a block.
SAGE_TILE Work WorkOf(const AttendArguments& a, int rows, int index) {
  Work work;
  work.part = index % a.v_parts;
  index /= a.v_parts;
  const int per_wave = a.heads_per_wave * a.q_tiles;
  const int wave = index / per_wave, rest = index % per_wave;
  const int heads =
      tile::Least(a.heads_per_wave, a.work / a.v_parts / a.q_tiles - wave * a.heads_per_wave);
  int row_tile = rest / heads;
  if (a.longest_first) row_tile = a.q_tiles - 1 - row_tile;
  work.head = wave * a.heads_per_wave + rest % heads;
  work.row0 = row_tile * rows;
  const int begin = FirstKey(a.see, work.row0);
  const int end = EndKey(a.see, tile::Least(work.row0 + rows, a.see.q_len) - 1);
  work.first = begin / kTile;
  work.count = end > begin ? (end + kTile - 1) / kTile - work.first : 0;
  return work;
}

// Of the problem, whichever arguments tell of it.
template <class Arguments>
SAGE_TILE int KvHead(const Arguments& a, int head) {
  return head / a.q_heads * (a.q_heads / a.group) + head % a.q_heads / a.group;
}

// e of docs/numerics.md 4.5: brings a largest magnitude (as bits) into [16, 32); at most 100.
SAGE_TILE int ExponentOf(uint32_t largest) {
  if (largest == 0) return 0;
  if (largest < 0x00800000u) return 100;  // subnormal
  return tile::Least(100, 4 - (static_cast<int>(largest >> 23) - 127));
}

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_BLOCK_H_
