// Attention over NVFP4 codes: scores and outputs on block-scaled 4-bit products.
//
//   S[i,j]  = q^[i] . k^[j] + mean[i] . k'[j]          MmaNvfp4; the accumulators start at the
//   means' top     = max of S over 16 keys                    per row; c = |scale| log2(e) 2^-(eq +
//   ek) p'      = 2^(c S - c top + log2 6), 0 to 6         relative to the group's largest: no
//   division sf      = 2^(c top - m + kStart)                   unrounded scale of the group; e4m3
//   in P O      += e2m1(p') e4m3(sf) . v^                   MmaNvfp4 r[b]   += sf sum p' unrounded,
//   of 128 keys b o       = (O + sum_b r[b] mean_v[b]) / sum_b r[b]  the means by MmaTf32, once per
//   512 keys lse     = ln 2 (m + log2 (sum_b r[b] / (6 2^kStart)))
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
// O 128, S 32, q 18, P 8, r and l and m 12.
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

// Scores of 16 rows with 32 keys: one more step of 64 dims.
template <int TA>
SAGE_TILE void ScoreStep(float (&s)[4][4], const float (&c)[4][4], const uint32_t (&q)[4],
                         uint32_t q_scale, const tile::Words4& k01, const tile::Words4& k23,
                         uint32_t k_scale) {
  tile::MmaNvfp4<TA, 0>(s[0], c[0], q, k01.x, k01.y, q_scale, k_scale);
  tile::MmaNvfp4<TA, 1>(s[1], c[1], q, k01.z, k01.w, q_scale, k_scale);
  tile::MmaNvfp4<TA, 2>(s[2], c[2], q, k23.x, k23.y, q_scale, k_scale);
  tile::MmaNvfp4<TA, 3>(s[3], c[3], q, k23.z, k23.w, q_scale, k_scale);
}

// Scores of 32 rows with 32 keys; `mean_scores` are those of their means.
template <int D>
SAGE_TILE void Scores(const uint32_t (&q)[D / 64][2][4], const uint32_t (&q_scale)[D / 64],
                      const uint8_t* image, const uint8_t* mean_scores, int u,
                      float (&s)[2][4][4]) {
  constexpr int kSteps = D / 64;
  const int lane = tile::Lane();
  float start[4][4];
  SAGE_UNROLL
  for (int j = 0; j < 4; ++j) {
    const tile::Floats4 x =
        *reinterpret_cast<const tile::Floats4*>(mean_scores + (16 * u + 4 * j) * 16);
    start[j][0] = x.x;
    start[j][1] = x.y;
    start[j][2] = x.z;
    start[j][3] = x.w;
  }
  const tile::Words4* k = reinterpret_cast<const tile::Words4*>(image) + u * (kSteps * 64) + lane;
  const uint32_t* k_scale =
      reinterpret_cast<const uint32_t*>(image + kTile * D / 2) + (u * 32 + lane) * kSteps;
  SAGE_UNROLL
  for (int t = 0; t < kSteps; ++t) {
    const tile::Words4 k01 = k[2 * t * 32], k23 = k[(2 * t + 1) * 32];
    ScoreStep<0>(s[0], t == 0 ? start : s[0], q[t][0], q_scale[t], k01, k23, k_scale[t]);
    ScoreStep<1>(s[1], t == 0 ? start : s[1], q[t][1], q_scale[t], k01, k23, k_scale[t]);
  }
}

// P·V of 64 keys in NVFP4; their scales lie behind the codes of v.
template <int D>
SAGE_TILE void AddOutputs(RowState<D>& state, const uint32_t (&p)[2][4], uint32_t p_scale,
                          const uint8_t* v_codes) {
  const int lane = tile::Lane();
  const tile::Words4* v = reinterpret_cast<const tile::Words4*>(v_codes) + lane;
  const uint32_t* v_scale = reinterpret_cast<const uint32_t*>(v_codes + 32 * D) + lane * (D / 32);
  SAGE_UNROLL
  for (int t = 0; t < D / 32; ++t) {
    const tile::Words4 v01 = v[2 * t * 32], v23 = v[(2 * t + 1) * 32];
    ScoreStep<0>(state.o[0][t], state.o[0][t], p[0], p_scale, v01, v23, v_scale[t]);
    ScoreStep<1>(state.o[1][t], state.o[1][t], p[1], p_scale, v01, v23, v_scale[t]);
  }
}

// P·V of 32 keys in E4M3.
template <int D>
SAGE_TILE void AddOutputsE4m3(RowState<D>& state, const uint32_t (&p)[2][4],
                              const uint8_t* v_codes) {
  const tile::Words4* v = reinterpret_cast<const tile::Words4*>(v_codes) + tile::Lane();
  SAGE_UNROLL
  for (int t = 0; t < D / 16; ++t) {
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
                     uint32_t (&q_scale)[D / 64]) {
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
    q_scale[s] = a.q_scale[(rows * kSteps + s) * 32 + lane];
  }
}

// Everything of kHalves times 64 keys from `key0` on, where `first` is 1 the second half of a tile.
// kOpen: all rows of the warp see all of them. kGroups: 32s of keys whose scores the registers
// hold.
template <int D, bool kFp8, bool kMasked, bool kOpen, int kHalves, int kGroups>
SAGE_TILE void Step(const AttendArguments& a, const WarpWork& mine, RowState<D>& state,
                    const uint32_t (&q)[D / 64][2][4], const uint32_t (&q_scale)[D / 64],
                    const uint8_t* image, const uint8_t* mean_scores, int key0, int first,
                    uint8_t* my_sums, uint32_t* mask_not_finite) {
  const float c = kMasked ? 1.0f : mine.c;
  const uint8_t* v = image + kTile * D / 2 + kTile * D / 16;
  uint32_t p[2][4];
  float sf[2][4] = {{0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}};
  SAGE_UNROLL
  for (int from = 0; from < 2 * kHalves; from += kGroups) {
    float s[kGroups][2][4][4];
    Tops tops[kGroups];
    SAGE_UNROLL
    for (int u = 0; u < kGroups; ++u) {
      Scores<D>(q, q_scale, image, mean_scores, 2 * first + from + u, s[u]);
      if (kMasked) {
        *mask_not_finite |= ApplyMask(a, mine, key0 + 32 * (from + u), s[u]);
      } else if (!kOpen) {
        HideKeys(a, mine, key0 + 32 * (from + u), s[u]);
      }
    }
    FindTops<D, kFp8, kGroups>(state, s, c, my_sums, sf[0], tops);
    SAGE_UNROLL
    for (int u = 0; u < kGroups; ++u) {
      const int at = from + u;  // which 32 keys of this step
      Exponentiate<D, kFp8, kMasked>(state, s[u], tops[u], c, at % 2, p, sf[at % 2]);
      if constexpr (kFp8) {
        AddOutputsE4m3<D>(state, p, v + (2 * first + at) * 32 * D);
      } else if (at % 2 == 1) {
        AddOutputs<D>(state, p, ScalesOfP(sf), v + (first + at / 2) * kVHalfBytes<D>);
      }
    }
  }
}

// kMasked: with a boolean or additive mask, every step is masked element by element.
template <int D, bool kFp8, bool kMasked>
SAGE_TILE void Compute(const AttendArguments& a, uint8_t* shared, int warp) {
  using Map = SharedMap<D, kFp8>;
  constexpr int kOpenGroups = D == 64 && !kFp8 ? 2 : 1;
  const int lane = tile::Lane();
  const Barriers<Map::kStages> bar = {reinterpret_cast<tile::Barrier*>(shared + Map::kBarriers)};
  uint8_t* const sums = shared + Map::kSums + warp * Map::kSumBytes;
  uint8_t* const my_sums = sums + lane * 16;
  uint32_t it = 0;
  int key_tile = 0;
  const auto wait_full = [&] {
    const int stage = static_cast<int>(it % Map::kStages);
    const uint32_t parity = it / Map::kStages & 1;
    tile::BarrierWait(bar.Full(stage), parity);
    if (a.smooth_q) tile::BarrierWait(bar.MeansFull(stage), parity);
  };
  const auto release = [&] { tile::BarrierArrive(bar.Empty(static_cast<int>(it % Map::kStages))); };
  const auto skip_until = [&](int end) {
    SAGE_NO_UNROLL
    for (; key_tile < end; ++key_tile, ++it) {
      wait_full();
      release();
    }
  };
  for (int index = tile::BlockIndex(); index < a.work; index += tile::GridSize()) {
    const Work work = WorkOf(a, index);
    const int kv_head = KvHead(a, work.head);
    const WarpWork mine = WarpWorkOf<D>(a, work, kv_head, warp);
    RowState<D> state;
    Clear(state);
    uint32_t mask_not_finite = 0;
    SAGE_NO_UNROLL
    for (int t = 0; t < kMeanTiles; ++t) {
      *reinterpret_cast<tile::Floats4*>(my_sums + t * 512) = {0.0f, 0.0f, 0.0f, 0.0f};
    }
    uint32_t q[D / 64][2][4], q_scale[D / 64];
    LoadQ<D>(a, mine, q, q_scale);
    // What all rows of this warp see, and what any of them sees. Warps past the last row see none.
    const int last_row = tile::Least(mine.row0 + kWarpRows, a.see.q_len) - 1;
    const bool idle = mine.row0 >= a.see.q_len;
    const int open_begin = FirstKey(a.see, last_row), open_end = EndKey(a.see, mine.row0);
    const int seen_begin = FirstKey(a.see, mine.row0);
    const int seen_end = idle ? 0 : EndKey(a.see, last_row);
    const int end = work.first + work.count;
    const int end_tile = seen_end > seen_begin ? (seen_end + kTile - 1) / kTile : work.first;
    key_tile = work.first;
    if (end_tile > work.first) skip_until(seen_begin / kTile);
    SAGE_NO_UNROLL
    for (; key_tile < end_tile; ++key_tile, ++it) {
      const int stage = static_cast<int>(it % Map::kStages);
      wait_full();
      const uint8_t* image = shared + stage * Map::kTileBytes.all;
      const uint8_t* mean_scores = shared + Map::kMeanScores + stage * Map::kMeanScoreBytes +
                                   warp * Map::kMeanScoreRow + (lane & 3) * 16;
      const int key0 = key_tile * kTile;
      if (!kMasked && key0 >= open_begin && key0 + kTile <= open_end) {
        Step<D, kFp8, false, true, 2, kOpenGroups>(a, mine, state, q, q_scale, image, mean_scores,
                                                   key0, 0, my_sums, &mask_not_finite);
      } else {
        SAGE_NO_UNROLL
        for (int half = 0; half < 2; ++half) {
          if (key0 + half * 64 + 64 <= seen_begin || key0 + half * 64 >= seen_end) continue;
          Step<D, kFp8, kMasked, false, 1, 1>(a, mine, state, q, q_scale, image, mean_scores,
                                              key0 + half * 64, half, my_sums, &mask_not_finite);
        }
      }
      release();
      if (a.smooth_v) {
        *reinterpret_cast<tile::Floats4*>(my_sums + key_tile % kMeanTiles * 512) = {
            state.r[0], state.r[1], state.r[2], state.r[3]};
        if (key_tile % kMeanTiles == kMeanTiles - 1 || key_tile + 1 == end_tile) {
          tile::SyncWarp();
          AddMeans<D>(a, state, sums, kv_head, key_tile);
          tile::SyncWarp();  // the sums of this group may be overwritten
        }
      }
      SAGE_UNROLL
      for (int row = 0; row < 4; ++row) {
        state.l[row] += state.r[row];
        state.r[row] = 0.0f;
      }
    }
    skip_until(end);
    FinishRows<D, kFp8, kMasked>(a, mine.head, kv_head, mine.row0, mine.c * mine.hidden,
                                 mask_not_finite, kStart, kFp8 ? kStart : kStart + kLog2Six,
                                 state.o, state.m, state.l);
  }
}

template <int D, bool kFp8, bool kMasked>
SAGE_TILE void Attend(const AttendArguments& a, uint8_t* shared) {
  using Map = SharedMap<D, kFp8>;
  const Barriers<Map::kStages> bar = {reinterpret_cast<tile::Barrier*>(shared + Map::kBarriers)};
  if (tile::ThreadIndex() == 0) {
    for (int s = 0; s < Map::kStages; ++s) {
      tile::BarrierInit(bar.Full(s), 1);
      // Every thread vouches for its own reads and writes.
      tile::BarrierInit(bar.MeansFull(s), 32 * kHelperWarps);
      tile::BarrierInit(bar.Empty(s), 32 * kWarps);
    }
    tile::BarrierInitFence();
  }
  if (!a.smooth_q) {
    // Scores start at 0 then.
    tile::Words4* const to = reinterpret_cast<tile::Words4*>(shared + Map::kMeanScores);
    for (int i = tile::ThreadIndex(); i < Map::kStages * Map::kMeanScoreBytes / 16;
         i += kAttendThreads) {
      to[i] = {0, 0, 0, 0};
    }
  }
  tile::SyncBlock();
  const int warp = tile::WarpIndex();
  if (warp < kHelperWarps) {
    tile::GiveRegisters<kHelperRegisters>();
    Help<D, kFp8>(a, shared, warp);
  } else {
    tile::TakeRegisters<kComputeRegisters>();
    Compute<D, kFp8, kMasked>(a, shared, warp - kHelperWarps);
  }
}

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_ATTEND_H_
