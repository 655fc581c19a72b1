// The helping warps of the attention kernel: copies of tiles, and the scores of q's means.
//
// Scores of smoothed queries lack mean . k'. A mean serves 32 rows of q (or 128), so a block of 8
// warps has 8 of them: mean . k' is one m16n8k16 product of fp16 per 16 keys and 16 dims, 1/32 of
// the multiplications of q . k; the means of 12 warps take two. k' comes from device memory as
// fragments, which all products of a block share; the results go to shared memory as the first
// accumulators of the scores. Writing them to device memory instead would take kv_len * q_len / 8
// bytes per head.
#ifndef SAGE_CUDA_SM120_HELP_H_
#define SAGE_CUDA_SM120_HELP_H_

#include "cuda/core/products.h"
#include "cuda/sm120/block.h"

namespace sage {
namespace sm120 {

// The two barriers of a stage. It is full once its tile has come and, with means of q, the helping
// threads have written their scores.
template <int kStages>
struct Barriers {
  tile::Barrier* base;
  SAGE_TILE_MEMBER tile::Barrier* Full(int s) const { return base + s; }
  SAGE_TILE_MEMBER tile::Barrier* Empty(int s) const { return base + kStages + s; }
};

// Scores of 8 means, those of warps `warp0` on, with tile `m` of 8 of the pairs of neighbouring
// keys, by one warp.
template <int D, bool kFp8>
SAGE_TILE void ScoreMeans(const AttendArguments& a, int64_t block, const uint32_t* means, int m,
                          int warp0, float factor, uint8_t* to) {
  using Map = SharedMap<D, kFp8>;
  constexpr int kSteps = D / 16;
  const int lane = tile::Lane(), g = lane >> 2, q = lane & 3;
  const tile::Words4* halves =
      reinterpret_cast<const tile::Words4*>(a.k_half) + ((block * 8 + m) * kSteps) * 32 + lane;
  const tile::Words2* columns = reinterpret_cast<const tile::Words2*>(means) + lane;
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  SAGE_UNROLL
  for (int half = 0; half < kSteps; half += 4) {
    // Four loads in flight: as many as the registers of these warps hold.
    tile::Words4 k[4];
    SAGE_UNROLL
    for (int s = 0; s < 4; ++s) k[s] = tile::LoadConstant(halves + (half + s) * 32);
    SAGE_UNROLL
    for (int s = 0; s < 4; ++s) {
      const tile::Words2 mean = tile::LoadConstant(columns + (half + s) * 32);
      tile::MmaHalf(d, k[s], mean.x, mean.y);
    }
  }
  SAGE_UNROLL
  for (int i = 0; i < 4; ++i) d[i] *= factor;
  // Row g is the even key of pair 8m + g, row g + 8 the odd one; columns are warps.
  const int column = warp0 + 2 * q;
  if (column >= WarpsOf(D)) return;
  uint8_t* at = to + column * Map::kMeanScoreRow + (8 * m + g) * Map::kPairBytes;
  if constexpr (Map::kPairBytes == 16) {
    *reinterpret_cast<tile::Floats4*>(at) = {d[0], d[2], d[0], d[2]};
    *reinterpret_cast<tile::Floats4*>(at + Map::kMeanScoreRow) = {d[1], d[3], d[1], d[3]};
  } else {
    *reinterpret_cast<tile::Floats2*>(at) = {d[0], d[2]};
    *reinterpret_cast<tile::Floats2*>(at + Map::kMeanScoreRow) = {d[1], d[3]};
  }
}

template <int D, bool kFp8>
SAGE_TILE void Help(const AttendArguments& a, uint8_t* shared, int warp) {
  using Map = SharedMap<D, kFp8>;
  const Barriers<Map::kStages> bar = {reinterpret_cast<tile::Barrier*>(shared + Map::kBarriers)};
  uint32_t it = 0;
  for (int index = tile::BlockIndex(); index < a.work; index += tile::GridSize()) {
    const Work work = WorkOf(a, RowsOf(D), index);
    const int kv_head = KvHead(a, work.head);
    // Means and k' carry powers of two of their own; the scores have those of the recipe.
    const int exponent = ExponentOf(a.q_largest[work.head]) + ExponentOf(a.k_largest[kv_head]);
    const float factor =
        a.head_exponent ? 1.0f : tile::PowerOfTwo(tile::Most(-126, tile::Least(127, -exponent)));
    const uint32_t* means =
        a.q_mean + (static_cast<int64_t>(work.head) * a.q_tiles + work.row0 / RowsOf(D)) *
                       (MeanSetsOf(D) * (D / 16) * 64);
    for (int i = 0; i < work.count; ++i, ++it) {
      const int stage = static_cast<int>(it % Map::kStages);
      const int64_t block = static_cast<int64_t>(kv_head) * a.tiles + work.first + i;
      tile::BarrierWait(bar.Empty(stage), (it / Map::kStages & 1) ^ 1);
      if (warp == 0) {
        const uint8_t* image = a.tiles_image + block * Map::kTileBytes.all;
        tile::CopyStage(shared + stage * Map::kTileBytes.stage, image, Map::kTileBytes.k,
                        image + Map::kTileBytes.k + work.part * Map::kTileBytes.v,
                        Map::kTileBytes.v, bar.Full(stage));
      }
      if (!a.smooth_q) continue;
      uint8_t* to = shared + Map::kMeanScores + stage * Map::kMeanScoreBytes;
      SAGE_NO_UNROLL
      for (int n = warp; n < 8 * MeanSetsOf(D); n += kHelperWarps) {
        ScoreMeans<D, kFp8>(a, block, means + n / 8 * (D / 16 * 64), n % 8, n / 8 * 8, factor, to);
      }
      tile::BarrierArrive(bar.Full(stage));
    }
  }
}

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_HELP_H_
