// Attention by parts of the keys: what its kernel is given, how work is cut, and a block's shared
// memory and barriers.
#ifndef SAGE_CUDA_SM90_PARTS_CUH_
#define SAGE_CUDA_SM90_PARTS_CUH_

#include <cstdint>

#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/work.cuh"
#include "cuda/sm90/workspace.h"

namespace sage {
namespace sm90 {

// `attend.work` counts tiles of work of 128 rows (64 where they are shared); each is done in
// `parts` pieces.
struct PartsArguments {
  AttendArguments attend;
  int parts;
  bool shared_rows;  // both warpgroups have the same 64 rows and take tiles of keys in turn
  // Of several parts: sums [part][row of all heads][D] under the offset m, and m with the sum of P
  // [part][row]{m, l}.
  float* sums;
  float2* ends;
  int64_t rows;  // of all heads
};

// A piece of work: rows of a query head and tiles [first, first + count) of keys; `part` of parts.
struct Part {
  int head, row0, first, count, part;
};

SAGE_DEVICE Part PartOf(const PartsArguments& p, int index) {
  // Where rows are shared there is one tile of work a head.
  const Work work = WorkOf<kPartRows>(p.attend, index / p.parts);
  const int part = index % p.parts;
  const int begin = static_cast<int>(static_cast<int64_t>(work.count) * part / p.parts);
  const int end = static_cast<int>(static_cast<int64_t>(work.count) * (part + 1) / p.parts);
  return {work.head, work.row0, work.first + begin, end - begin, part};
}

// A piece as the copying warp hands it on: 5 ints.
constexpr int kPartBytes = 32;
SAGE_DEVICE void StorePart(uint32_t at, const Part& part) {
  StoreSharedInt4(at, part.head, part.row0, part.first, part.count);
  StoreSharedInt(at + 16, part.part);
}
SAGE_DEVICE Part LoadPart(uint32_t at) {
  const int2 x = LoadSharedInt2(at), y = LoadSharedInt2(at + 8);
  return {x.x, x.y, y.x, y.y, LoadSharedInt(at + 16)};
}

// Of one warp: row sums of 8 tiles [tile % 8][row g][thread c]{row g, row g + 8}, padded; then
// those of the groups of a span as A fragments of m16n8k8, [group][lane] float4.
constexpr int kTileSumBytes = 320;
constexpr int kFragments = kMeanTiles * kTileSumBytes;
constexpr int kWarpSumBytes = kFragments + kMarkGroups * 512;

// Shared memory of a block: q | k stages | v stages | row sums | scales of k, q and v | barriers |
// the piece of work. D = 256: 32 + 64 + 64 + 55 KiB.
template <int D>
struct PartsMap {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = 128 * 3;
  static constexpr int kStages = D == 256 ? 2 : 4;
  static constexpr uint32_t kQBytes = kPartRows * D;
  static constexpr uint32_t kQScaleBytes = kPartRows * 4;
  static constexpr uint32_t kVScaleBytes = D * 4;
  static constexpr uint32_t kTileBytes = kTile * D;
  static constexpr uint32_t kScaleBytes = kTile / 32 * 4;
  static constexpr uint32_t kK = kQBytes;
  static constexpr uint32_t kV = kK + kStages * kTileBytes;
  static constexpr uint32_t kSums = kV + kStages * kTileBytes;
  static constexpr uint32_t kScale = kSums + kWarps * kWarpSumBytes;
  static constexpr uint32_t kQScale = kScale + kStages * kScaleBytes;
  // Twice, as the piece of work: read until a piece's end.
  static constexpr uint32_t kVScale = kQScale + kQScaleBytes;
  static constexpr uint32_t kBarriers = kVScale + 2 * kVScaleBytes;
  static constexpr uint32_t kPart = kBarriers + 8 * (4 * kStages + 2);
  static constexpr uint32_t kBytes = kPart + 2 * kPartBytes + 1024;  // and the alignment
  static_assert(kPart % 16 == 0, "alignment");
};

// k and v have rings of their own: with two stages, k of a tile must not wait for v of the last.
template <int kStages>
struct PartsBarriers {
  uint32_t base;
  SAGE_DEVICE uint32_t KFull(int s) const { return base + 8 * s; }
  SAGE_DEVICE uint32_t KEmpty(int s) const { return base + 8 * (kStages + s); }
  SAGE_DEVICE uint32_t VFull(int s) const { return base + 8 * (2 * kStages + s); }
  SAGE_DEVICE uint32_t VEmpty(int s) const { return base + 8 * (3 * kStages + s); }
  SAGE_DEVICE uint32_t QFull() const { return base + 8 * (4 * kStages); }
  SAGE_DEVICE uint32_t QEmpty() const { return base + 8 * (4 * kStages + 1); }
};

// The copying warp: draws pieces of work and keeps the rings full. One lane acts; all follow.
template <int D>
SAGE_DEVICE void ProduceParts(const PartsArguments& p, uint32_t shared,
                              const PartsBarriers<PartsMap<D>::kStages>& bar) {
  using Map = PartsMap<D>;
  const AttendArguments& a = p.attend;
  const bool acts = (threadIdx.x & 31) == 0;
  const int pieces = a.work * p.parts;
  uint32_t it = 0, round = 0;
  int index = blockIdx.x;
  while (true) {
    BarrierWait(bar.QEmpty(), (round & 1) ^ 1);
    if (index >= pieces) break;
    const Part part = PartOf(p, index);
    const int kv_head = KvHead(a, part.head);
    if (acts) {
      StorePart(shared + Map::kPart + (round & 1) * kPartBytes, part);
      const int64_t row = static_cast<int64_t>(part.head) * a.q_rows + part.row0;
      BarrierExpect(bar.QFull(), Map::kQBytes + Map::kQScaleBytes + Map::kVScaleBytes);
      BulkCopy(shared, a.q_codes + row * D, Map::kQBytes, bar.QFull());
      BulkCopy(shared + Map::kQScale, a.q_scale + row, Map::kQScaleBytes, bar.QFull());
      BulkCopy(shared + Map::kVScale + (round & 1) * Map::kVScaleBytes,
               a.v_scale + static_cast<int64_t>(kv_head) * D, Map::kVScaleBytes, bar.QFull());
    }
    int drawn = 0;
    if (acts) drawn = static_cast<int>(atomicAdd(a.schedule, 1u));
    ++round;
    const int tile0 = kv_head * a.tiles;
    for (int i = part.first + part.count - 1; i >= part.first; --i, ++it) {
      const int s = it % Map::kStages;
      const uint32_t parity = (it / Map::kStages & 1) ^ 1;
      BarrierWait(bar.KEmpty(s), parity);
      if (acts) {
        BarrierExpect(bar.KFull(s), Map::kTileBytes + Map::kScaleBytes);
        BulkCopy(shared + Map::kK + s * Map::kTileBytes,
                 a.k_codes + static_cast<int64_t>(tile0 + i) * Map::kTileBytes, Map::kTileBytes,
                 bar.KFull(s));
        BulkCopy(shared + Map::kScale + s * Map::kScaleBytes,
                 a.k_scale + static_cast<int64_t>(tile0 + i) * 4, Map::kScaleBytes, bar.KFull(s));
      }
      BarrierWait(bar.VEmpty(s), parity);
      if (acts) {
        BarrierExpect(bar.VFull(s), Map::kTileBytes);
        BulkCopy(shared + Map::kV + s * Map::kTileBytes,
                 a.v_codes + static_cast<int64_t>(tile0 + i) * Map::kTileBytes, Map::kTileBytes,
                 bar.VFull(s));
      }
    }
    index = gridDim.x + __shfl_sync(~0u, drawn, 0);
  }
  if (!acts) return;
  StorePart(shared + Map::kPart + (round & 1) * kPartBytes, {-1, 0, 0, 0, 0});
  BarrierArrive(bar.QFull());
  // The last block to finish leaves the counter ready for another pass.
  if (atomicAdd(a.schedule + 1, 1u) == gridDim.x - 1) {
    a.schedule[0] = 0;
    a.schedule[1] = 0;
  }
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_PARTS_CUH_
