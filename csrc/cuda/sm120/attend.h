// Attention over NVFP4 codes: scores and outputs on block-scaled 4-bit products.
//
//   S[i,j] = q^[i] . k^[j] + mean[i] . k'[j]   MmaNvfp4; the accumulators start at the means'
//   top    = max of S over 16 keys             per row; c = |scale| log2(e) 2^-(eq + ek)
//   p'     = 2^(c S - c top + log2 6)          0 to 6: relative to the group's largest, no division
//   sf     = 2^(c top - m + kStart)            unrounded scale of the group; e4m3 in P
//   O     += e2m1(p') e4m3(sf) . v^            MmaNvfp4
//   r[b]  += sf sum p'                         unrounded, of 128 keys b
//   o      = (O + sum_b r[b] mean_v[b]) / sum_b r[b]   the means by MmaTf32, once per 512 keys
//   lse    = ln 2 (m + log2(sum_b r[b] / (6 2^kStart)))
//
// x / g of docs/numerics.md 5 is p' whatever m is, so the codes of P do not depend on the running
// maximum; only sf does. m therefore follows rarely: sf starts at most at 2^kStart and m moves when
// some sf would pass 448, so the usual step needs no maximum across the quad, only a vote.
// fp4_fp8: P = e4m3(2^(c S - m + kStart)), MmaE4m3; no group maxima.
//
// One warp, D = 128, a step of 64 keys:
//
//            32 keys (u = 0)      32 keys (u = 1)             S: 32 registers, used twice
//          +-------------------+-------------------+
//   row g  | q: 8 keys | 8 | 8 | 8 | ...           |  rows g, g+8 (row tile 0), g+16, g+24 (1)
//          +-------------------+-------------------+         thread (g, q) owns 8 keys in a row
//             group of 16 | group                     -> p' packed is the A fragment of P·V
//
// 32 rows share each fragment of k and v: 4 bytes of shared memory per score at D = 128. Registers:
// O 128, S 32, q 20, P 8, r and l and m 12.
//
// Block: kHelperWarps copy and score means (help.h), kWarps compute. Persistent: block b takes
// tiles of work b, b + blocks, ..; with windows the longest come first. Shared memory (block.h):
// stages of a tile of k and v | stages of means' scores | row sums of 4 tiles per warp | barriers.
#ifndef SAGE_CUDA_SM120_ATTEND_H_
#define SAGE_CUDA_SM120_ATTEND_H_

#include "cuda/core/products.h"
#include "cuda/sm120/block.h"
#include "cuda/sm120/finish.h"
#include "cuda/sm120/help.h"
#include "cuda/sm120/hide.h"
#include "cuda/sm120/softmax.h"

namespace sage {
namespace sm120 {

// Scores of 16 rows with 32 keys: one more step of 64 dims. The scales of both row tiles come from
// threads 0 and 1 of the quads: to take one tile's from threads 2 and 3 would spare a word for each
// pair, but the instruction names the threads by a uniform register, and the assembler sets four
// more of them anew before each run of products.
SAGE_TILE void ScoreStep(float (&s)[4][4], const float (&c)[4][4], const uint32_t (&q)[4],
                         uint32_t q_scale, const tile::Words4& k01, const tile::Words4& k23,
                         uint32_t k_scale) {
  tile::MmaNvfp4<0, 0>(s[0], c[0], q, k01.x, k01.y, q_scale, k_scale);
  tile::MmaNvfp4<0, 1>(s[1], c[1], q, k01.z, k01.w, q_scale, k_scale);
  tile::MmaNvfp4<0, 2>(s[2], c[2], q, k23.x, k23.y, q_scale, k_scale);
  tile::MmaNvfp4<0, 3>(s[3], c[3], q, k23.z, k23.w, q_scale, k_scale);
}

// A stage: its tile, and the scores of this warp's means.
struct Stage {
  const uint8_t *tile, *means;
};

// What a thread addresses of a stage: its 16 bytes of each fragment, its pairs of the means'
// scores. Both are computed from 16 · lane, the one address that a register holds.
struct Mine {
  const uint8_t *tile, *means;
};
template <int D, bool kFp8>
SAGE_TILE Mine MineOf(const Stage& stage, int lane_bytes) {
  return {stage.tile + lane_bytes,
          stage.means + (lane_bytes & 48) * SharedMap<D, kFp8>::kPairBytes / 16};
}

// Scores of 32 rows with the 32 keys u of a tile.
template <int D>
SAGE_TILE void Scores(const uint32_t (&q)[D / 64][2][4], const uint32_t (&q_scale)[D / 64][2],
                      const Mine& from, const uint32_t (&k_scale)[2 * (D / 64)], int u,
                      float (&s)[2][4][4]) {
  constexpr int kSteps = D / 64, kPairBytes = SharedMap<D, false>::kPairBytes;
  float start[4][4];
  SAGE_UNROLL
  for (int j = 0; j < 4; ++j) {
    const uint8_t* pair = from.means + (16 * u + 4 * j) * kPairBytes;
    if constexpr (kPairBytes == 16) {
      const tile::Floats4 x = *reinterpret_cast<const tile::Floats4*>(pair);
      start[j][0] = x.x;
      start[j][1] = x.y;
      start[j][2] = x.z;
      start[j][3] = x.w;
    } else {
      const tile::Floats2 x = *reinterpret_cast<const tile::Floats2*>(pair);
      start[j][0] = start[j][2] = x.x;
      start[j][1] = start[j][3] = x.y;
    }
  }
  const tile::Words4* k = reinterpret_cast<const tile::Words4*>(from.tile) + u * (kSteps * 64);
  SAGE_UNROLL
  for (int t = 0; t < kSteps; ++t) {
    const tile::Words4 k01 = k[2 * t * 32], k23 = k[(2 * t + 1) * 32];
    const uint32_t scale = k_scale[u % 2 * kSteps + t];
    ScoreStep(s[0], t == 0 ? start : s[0], q[t][0], q_scale[t][0], k01, k23, scale);
    ScoreStep(s[1], t == 0 ? start : s[1], q[t][1], q_scale[t][1], k01, k23, scale);
  }
}

// kCount words of scales from word `first` on of those that a thread finds 4 by 4 at `at`.
template <int kCount>
SAGE_TILE void LoadScales(const uint8_t* at, int first, uint32_t (&scales)[kCount]) {
  static_assert(kCount == 2 || kCount % 4 == 0);
  if constexpr (kCount >= 4) {
    SAGE_UNROLL
    for (int i = 0; i < kCount; i += 4) {
      const tile::Words4 x = *reinterpret_cast<const tile::Words4*>(at + (first + i) / 4 * 512);
      scales[i] = x.x;
      scales[i + 1] = x.y;
      scales[i + 2] = x.z;
      scales[i + 3] = x.w;
    }
  } else {
    const tile::Words2 x = *reinterpret_cast<const tile::Words2*>(at + first * 4);
    scales[0] = x.x;
    scales[1] = x.y;
  }
}

// P·V of the 64 keys `half` of a tile in NVFP4; `v` are this thread's 16 bytes of v.
template <int V>
SAGE_TILE void AddOutputs(RowState<V>& state, const uint32_t (&p)[2][4],
                          const uint32_t (&p_scale)[2], const uint8_t* v_mine, int half) {
  const tile::Words4* v = reinterpret_cast<const tile::Words4*>(v_mine) + half * (2 * V);
  uint32_t v_scale[V / 32];
  LoadScales(v_mine + kTile * V / 2, half * (V / 32), v_scale);
  SAGE_UNROLL
  for (int t = 0; t < V / 32; ++t) {
    const tile::Words4 v01 = v[2 * t * 32], v23 = v[(2 * t + 1) * 32];
    ScoreStep(state.o[0][t], state.o[0][t], p[0], p_scale[0], v01, v23, v_scale[t]);
    ScoreStep(state.o[1][t], state.o[1][t], p[1], p_scale[1], v01, v23, v_scale[t]);
  }
}

// P·V of 32 keys in E4M3.
template <int V>
SAGE_TILE void AddOutputsE4m3(RowState<V>& state, const uint32_t (&p)[2][4],
                              const uint8_t* v_mine) {
  const tile::Words4* v = reinterpret_cast<const tile::Words4*>(v_mine);
  SAGE_UNROLL
  for (int t = 0; t < V / 16; ++t) {
    const tile::Words4 b = v[t * 32];
    SAGE_UNROLL
    for (int r = 0; r < 2; ++r) {
      tile::MmaE4m3(state.o[r][t / 2][t % 2 * 2], p[r], b.x, b.y);
      tile::MmaE4m3(state.o[r][t / 2][t % 2 * 2 + 1], p[r], b.z, b.w);
    }
  }
}

template <int D>
SAGE_TILE void LoadQ(const AttendArguments& a, const WarpWork& mine, uint32_t (&q)[D / 64][2][4],
                     uint32_t (&q_scale)[D / 64][2]) {
  constexpr int kSteps = D / 64;
  const int lane = tile::Lane();
  const int64_t rows = (static_cast<int64_t>(mine.head) * a.q_rows + mine.row0) / kWarpRows;
  const tile::Words4* codes =
      reinterpret_cast<const tile::Words4*>(a.q_codes) + rows * (kSteps * 64) + lane;
  SAGE_UNROLL
  for (int s = 0; s < kSteps; ++s) {
    SAGE_UNROLL
    for (int row = 0; row < 2; ++row) {
      const tile::Words4 x = tile::LoadConstant(codes + (2 * s + row) * 32);
      q[s][row][0] = x.x;
      q[s][row][1] = x.y;
      q[s][row][2] = x.z;
      q[s][row][3] = x.w;
    }
    // Stored: row g + 8 (q % 2) of row tile q / 2.
    q_scale[s][0] = a.q_scale[(rows * kSteps + s) * 32 + lane];
    q_scale[s][1] = tile::ShuffleXor(q_scale[s][0], 2);
  }
}

// Everything of the 64 keys `half` of a tile, key0 the first of them. kOpen: all rows of the warp
// see all of them.
template <int D, bool kFp8, bool kMasked, bool kOpen>
SAGE_TILE void Step(const AttendArguments& a, const WarpWork& mine, RowState<VChannelsOf(D)>& state,
                    const uint32_t (&q)[D / 64][2][4], const uint32_t (&q_scale)[D / 64][2],
                    const Stage& stage, int key0, int half, uint8_t* my_sums,
                    uint32_t* mask_not_finite, int lane_bytes) {
  constexpr int kSteps = D / 64, V = VChannelsOf(D);
  const float c = kMasked ? 1.0f : mine.c;
  const uint8_t* mine_of_tile = stage.tile + lane_bytes;
  const uint8_t* v = mine_of_tile + SharedMap<D, kFp8>::kTileBytes.k;
  uint32_t k_scale[2 * kSteps];
  LoadScales(mine_of_tile + kTile * D / 2, half * 2 * kSteps, k_scale);
  uint32_t p[2][4];
  Groups groups;
  SAGE_UNROLL
  for (int u = 0; u < 2; ++u) {
    float s[2][4][4];
    // Registers do not hold the scores of 64 keys: the second 32 wait for the first.
    const bool wait = D >= 128 && !kFp8 && kOpen && u == 1;
    const Mine from = MineOf<D, kFp8>(
        stage, wait ? tile::After(lane_bytes, FloatToBits(groups.top[0][0]), a.zero) : lane_bytes);
    Scores<D>(q, q_scale, from, k_scale, 2 * half + u, s);
    if (kMasked) {
      *mask_not_finite |= ApplyMask(a, mine, key0 + 32 * u, s);
    } else if (!kOpen) {
      HideKeys(a, mine, key0 + 32 * u, s);
    }
    if constexpr (kFp8) {
      ExponentiateE4m3(state, s, c, my_sums, p);
      AddOutputsE4m3(state, p, v + (2 * half + u) * 32 * V);
    } else {
      Exponentiate<kMasked>(s, c, u, p, groups);
    }
  }
  if constexpr (!kFp8) {
    uint32_t p_scale[2];
    AddGroups(state, groups, c, my_sums, lane_bytes, p_scale);
    AddOutputs(state, p, p_scale, v, half);
  }
}

// Which stage comes next, and the parity of its barriers.
template <int kStages>
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  SAGE_TILE_MEMBER void Next() {
    const bool around = stage == kStages - 1;
    stage = around ? 0 : stage + 1;
    parity ^= around ? 1u : 0u;
  }
};

// kMasked: with a boolean or additive mask, every step is masked element by element.
template <int D, bool kFp8, bool kMasked>
SAGE_TILE void Compute(const AttendArguments& a, uint8_t* shared, int warp) {
  using Map = SharedMap<D, kFp8>;
  const int lane = tile::Lane();
  const Barriers<Map::kStages> bar = {reinterpret_cast<tile::Barrier*>(shared + Map::kBarriers)};
  const int lane_bytes = tile::Keep(lane * 16);
  uint8_t* const sums = shared + Map::kSums + warp * Map::kSumBytes;
  uint8_t* const my_sums = sums + lane_bytes;
  Turn<Map::kStages> turn;
  int key_tile = 0;
  const auto skip_until = [&](int end) {
    SAGE_NO_UNROLL
    for (; key_tile < end; ++key_tile, turn.Next()) {
      tile::BarrierWait(bar.Full(turn.stage), turn.parity);
      tile::BarrierArrive(bar.Empty(turn.stage));
    }
  };
  for (int index = tile::BlockIndex(); index < a.work; index += tile::GridSize()) {
    const Work work = WorkOf(a, RowsOf(D), index);
    const int kv_head = KvHead(a, work.head);
    const WarpWork mine = WarpWorkOf(a, work, kv_head, warp);
    RowState<VChannelsOf(D)> state;
    Clear(state);
    uint32_t mask_not_finite = 0;
    SAGE_NO_UNROLL
    for (int t = 0; t < kSumSlots; ++t) {
      *reinterpret_cast<tile::Floats4*>(my_sums + t * 512) = {0.0f, 0.0f, 0.0f, 0.0f};
    }
    uint32_t q[D / 64][2][4], q_scale[D / 64][2];
    LoadQ<D>(a, mine, q, q_scale);
    // What all rows of this warp see, and what any of them sees. Warps past the last row see none.
    const int last_row = tile::Least(mine.row0 + kWarpRows, a.see.q_len) - 1;
    const bool idle = mine.row0 >= a.see.q_len;
    const int open_tile = (FirstKey(a.see, last_row) + kTile - 1) / kTile;
    const int open_tiles = tile::Most(0, EndKey(a.see, mine.row0) / kTile - open_tile);
    const int seen_begin = FirstKey(a.see, mine.row0);
    const int seen_end = idle ? 0 : EndKey(a.see, last_row);
    const int end = work.first + work.count;
    const int end_tile = seen_end > seen_begin ? (seen_end + kTile - 1) / kTile : work.first;
    key_tile = work.first;
    if (end_tile > work.first) skip_until(seen_begin / kTile);
    SAGE_NO_UNROLL
    for (; key_tile < end_tile; ++key_tile, turn.Next()) {
      tile::BarrierWait(bar.Full(turn.stage), turn.parity);
      const Stage stage = {shared + turn.stage * Map::kTileBytes.stage,
                           shared + Map::kMeanScores + turn.stage * Map::kMeanScoreBytes +
                               warp * Map::kMeanScoreRow};
      const int key0 = key_tile * kTile;
      const unsigned open = static_cast<unsigned>(key_tile - open_tile);
      if (!kMasked && open < static_cast<unsigned>(open_tiles)) {
        SAGE_UNROLL
        for (int half = 0; half < 2; ++half) {
          Step<D, kFp8, false, true>(a, mine, state, q, q_scale, stage, key0 + half * 64, half,
                                     my_sums, &mask_not_finite, lane_bytes);
        }
      } else {
        SAGE_NO_UNROLL
        for (int half = 0; half < 2; ++half) {
          if (key0 + half * 64 + 64 <= seen_begin || key0 + half * 64 >= seen_end) continue;
          Step<D, kFp8, kMasked, false>(a, mine, state, q, q_scale, stage, key0 + half * 64, half,
                                        my_sums, &mask_not_finite, lane_bytes);
        }
      }
      tile::BarrierArrive(bar.Empty(turn.stage));
      *reinterpret_cast<tile::Floats4*>(my_sums + key_tile % kMeanTiles * 512) = {
          state.r[0], state.r[1], state.r[2], state.r[3]};
      SAGE_UNROLL
      for (int row = 0; row < 4; ++row) state.r[row] = 0.0f;
      if (key_tile % kMeanTiles == kMeanTiles - 1 || key_tile + 1 == end_tile) {
        tile::SyncWarp();
        AddMeans<D>(a, state, sums, kv_head, work.part, key_tile);
        tile::SyncWarp();  // the sums of this group may be overwritten
      }
    }
    skip_until(end);
    const tile::Floats4 l = *reinterpret_cast<tile::Floats4*>(my_sums + kMeanTiles * 512);
    FinishRows<D, kFp8, kMasked>(a, work, kv_head, mine.row0, mine.c * mine.hidden, mask_not_finite,
                                 kStart, kFp8 ? kStart : kStart + kLog2Six, state.o, state.m,
                                 {l.x, l.y, l.z, l.w});
  }
}

template <int D, bool kFp8, bool kMasked>
SAGE_TILE void Attend(const AttendArguments& a, uint8_t* shared) {
  using Map = SharedMap<D, kFp8>;
  const Barriers<Map::kStages> bar = {reinterpret_cast<tile::Barrier*>(shared + Map::kBarriers)};
  if (tile::ThreadIndex() == 0) {
    for (int s = 0; s < Map::kStages; ++s) {
      // The copy, and every thread that vouches for its own reads and writes.
      tile::BarrierInit(bar.Full(s), a.smooth_q ? 1 + 32 * kHelperWarps : 1);
      tile::BarrierInit(bar.Empty(s), 32 * Map::kWarps);
    }
    tile::BarrierInitFence();
  }
  if (!a.smooth_q) {
    // Scores start at 0 then.
    tile::Words4* const to = reinterpret_cast<tile::Words4*>(shared + Map::kMeanScores);
    for (int i = tile::ThreadIndex(); i < Map::kStages * Map::kMeanScoreBytes / 16;
         i += AttendThreads(D)) {
      to[i] = {0, 0, 0, 0};
    }
  }
  tile::SyncBlock();
  const int warp = tile::WarpIndex();
  if (warp < kHelperWarps) {
    tile::GiveRegisters<kHelperRegisters>();
    Help<D, kFp8>(a, shared, warp);
  } else {
    tile::TakeRegisters<ComputeRegisters(D)>();
    Compute<D, kFp8, kMasked>(a, shared, warp - kHelperWarps);
  }
}

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_ATTEND_H_
