// Attention over quantised operands on Hopper where head_dim is above 128, or where there are too
// few rows to fill the device: the recipe and the maths of attend.cuh, with keys in parts.
//
//   x, P, m, t, r as in attend.cuh; a part s of a row's keys ends with
//   T[s] = sum of spans of t + sum_b r[b] mean[b] / vscale,  l[s] = sum_b r[b],  both under m[s]
//   o    = sum_s 2^(m[s] - m) T[s] vscale / sum_s 2^(m[s] - m) l[s],  m = max_s m[s]; s in order
//
// Block: one warpgroup copies; two compute, 64 rows of q each, taking turns at the tensor cores as
// in attend.cuh. head_dim 256 has the scores of a tile (64 registers) and all its outputs (128) at
// once, so each tile of keys is multiplied once. Or both warpgroups have the same 64 rows, take
// tiles of keys alternately and add their sums through shared memory (shared_rows.cuh).
//
// Row sums of a span wait in shared memory, as A fragments of the products with v's means; sums of
// earlier spans (more than 8,192 keys in a part) in the workspace (spans.cuh). A row of one part is
// written at once; of several, by MergeParts.
#ifndef SAGE_CUDA_SM90_ATTEND_PARTS_CUH_
#define SAGE_CUDA_SM90_ATTEND_PARTS_CUH_

#include <cfloat>

#include "cuda/sm90/block.cuh"
#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/parts.cuh"
#include "cuda/sm90/shared_rows.cuh"
#include "cuda/sm90/spans.cuh"
#include "cuda/sm90/visibility.cuh"
#include "cuda/sm90/work.cuh"
#include "cuda/sm90/workspace.h"

namespace sage {
namespace sm90 {

// lse of a row from its offset m and sum l, natural log.
SAGE_DEVICE float LseOf(const AttendArguments& a, int head, int row, float m, float l) {
  if (l == 0.0f) return -INFINITY;
  const float shift = a.lse_shift[static_cast<int64_t>(head) * a.q_rows + row];
  return static_cast<float>(0.69314718055994531 * (static_cast<double>(m) + log2f(l)) + shift);
}

// What v's codes are multiples of. Channels without a scale have codes 0, and means in units of 1.
SAGE_DEVICE float UnitOf(float v_scale) { return v_scale == 0.0f ? 1.0f : v_scale; }

// kMasked: with a boolean or additive mask, every tile is masked element by element.
template <int D, bool kMasked>
__global__ void __launch_bounds__(PartsMap<D>::kThreads, 1)
    AttendPartsKernel(const __grid_constant__ PartsArguments p) {
  using Map = PartsMap<D>;
  constexpr int kStages = Map::kStages, kSums = D / 2;
  const AttendArguments& a = p.attend;
  extern __shared__ uint8_t shared_memory[];
  const uint32_t shared = (SharedAddress(shared_memory) + 1023) & ~1023u;
  const PartsBarriers<kStages> bar = {shared + Map::kBarriers};
  if (threadIdx.x == 0) {
    // A tile is read by both warpgroups, or by one of them where they share rows.
    const int warps = p.shared_rows ? Map::kWarps / 2 : Map::kWarps;
    const int readers = warps * kWarpArrivals;
    for (int s = 0; s < kStages; ++s) {
      BarrierInit(bar.KFull(s), 1);
      BarrierInit(bar.KEmpty(s), readers);
      BarrierInit(bar.VFull(s), 1);
      BarrierInit(bar.VEmpty(s), readers);
    }
    BarrierInit(bar.QFull(), 1);
    BarrierInit(bar.QEmpty(), Map::kWarps * kWarpArrivals);
    BarrierInitFence();
  }
  __syncthreads();
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x >> 5), 0);
  if (warp < 4) {
    GiveRegisters<24>();
    if (warp == 0) ProduceParts<D>(p, shared, bar);
    return;
  }
  TakeRegisters<240>();
  const int mine = (warp >> 2) - 1, lane = threadIdx.x & 31;
  // Of the 64 or 128 rows, where this warp's 16 begin.
  const int warp_rows = 16 * (p.shared_rows ? warp & 3 : warp - 4);
  const auto arrive = [&](uint32_t barrier) { WarpArrive(barrier, lane); };
  const auto wait_turn = [&] {
    if (!p.shared_rows) NamedSync(1 + mine, 256);
  };
  const auto pass_turn = [&] {
    if (!p.shared_rows) NamedArrive(2 - mine, 256);
  };
  if (mine == 1) pass_turn();

  const uint32_t my_sums = shared + Map::kSums + (warp - 4) * kWarpSumBytes + lane * 8;
  const uint32_t fragments =
      shared + Map::kSums + (warp - 4) * kWarpSumBytes + kFragments + lane * 16;
  // With a mask these are found anew each time: kept, they would take registers.
  const auto my_fragments = [&] {
    return kMasked ? my_sums + kFragments + 8 * (ThreadAnew() % 32) : fragments;
  };
  const auto my_spans = [&] {
    const int of_warp = kMasked ? ThreadAnew() / 32 : warp,
              of_lane = kMasked ? ThreadAnew() % 32 : lane;
    return a.spans + (static_cast<int64_t>(blockIdx.x) * Map::kWarps + of_warp - 4) * (32 * kSums) +
           4 * of_lane;
  };
  const auto stage = [&](uint32_t at) { return static_cast<int>(at % kStages); };
  const auto parity = [&](uint32_t at) { return at / kStages & 1; };
  uint32_t piece_it = 0, round = 0;
  while (true) {
    BarrierWait(bar.QFull(), round & 1);
    const Part part = LoadPart(shared + Map::kPart + (round & 1) * kPartBytes);
    const int head = __shfl_sync(~0u, part.head, 0);
    if (head < 0) break;
    ++round;
    const int last = part.first + part.count - 1;
    // This warpgroup's tiles of keys, downwards: every one, or every second, whichever pieces this
    // block had before.
    const int step = p.shared_rows ? 2 : 1, skipped = p.shared_rows ? mine : 0;
    uint32_t it = piece_it + skipped;
    int current = last - skipped;
    piece_it += part.count;
    float T[kSums];
#pragma unroll
    for (int i = 0; i < kSums; ++i) T[i] = 0.0f;
    float m0 = -FLT_MAX, m1 = -FLT_MAX, l0 = 0.0f, l1 = 0.0f;
    if (current < part.first) {
      arrive(bar.QEmpty());
    } else {
      int S[64];
      uint32_t P[16];
      const int row = part.row0 + warp_rows + (lane >> 2), kv_head = KvHead(a, head);
      const uint32_t q_scale = shared + Map::kQScale + 4 * (warp_rows + (lane >> 2));
      const float c0 = a.factor * LoadSharedFloat(q_scale);
      const float c1 = a.factor * LoadSharedFloat(q_scale + 32);
      float s0 = 0.0f, s1 = 0.0f;  // scores to log2, by row
      bool kept = false;           // earlier spans are in memory
      int span_last = current;     // the span's first tile on the way down
                                   // Tiles that are not this warp's have no row sums.
#pragma unroll 1
      for (int i = 0; i < kMeanTiles; ++i) StoreShared2(my_sums + i * kTileSumBytes, 0.0f, 0.0f);
      // Tiles in [open_begin, open_end) are seen in full by all rows of this warp.
      const int end_row = a.see.q_len - 1, warp_row = part.row0 + warp_rows;
      const int open_begin = (a.see.FirstKey(min(warp_row + 15, end_row)) + kTile - 1) / kTile;
      const int open_end = a.see.EndKey(min(warp_row, end_row)) / kTile;

      // The same twice: with either form alone one of the kernels keeps a register in memory.
      const uint32_t q_tile =
          kMasked && D == 256 ? OperandLow(shared + mine * (p.shared_rows ? 0 : kQueryBlock * D))
                              : OperandLow(shared + (p.shared_rows ? 0 : mine) * kQueryBlock * D);
      const auto issue_scores = [&](int s) {
        const uint32_t k_tile = OperandLow(shared + Map::kK + s * Map::kTileBytes);
        // Rows of 256 bytes are two operands, 64 rows of q and 128 of k each.
        constexpr int kRowBytes = D < 128 ? D : 128, kHalf = kRowBytes / 32;
        WgmmaFence();
#pragma unroll
        for (int k = 0; k < D / 32; ++k) {
          const int half = k / kHalf, at = 2 * (k % kHalf);
          WgmmaScores<kRowBytes>(S, q_tile + half * (kQueryBlock * kRowBytes >> 4) + at,
                                 k_tile + half * (kTile * kRowBytes >> 4) + at, k != 0);
        }
        WgmmaCommit();
      };
      const auto issue_outputs = [&](int s) {
        const uint32_t v_tile = OperandLow(shared + Map::kV + s * Map::kTileBytes);
        WgmmaFence();
#pragma unroll
        for (int k = 0; k < 4; ++k) WgmmaOutputs(T, P + 4 * k, v_tile + 2 * k);
        WgmmaCommit();
      };
      const auto load_scales = [&](int s) {
        const float scale =
            LoadSharedFloat(shared + Map::kScale + Map::kScaleBytes * s + 4 * (lane & 3));
        s0 = c0 * scale;
        s1 = c1 * scale;
      };
      // Given this thread's largest scores of the two rows: moves the offsets if any P would pass
      // 448, and what was summed under the old ones.
      const auto move_offsets = [&](float x0, float x1) {
        if (!__any_sync(~0u, x0 > m0 + kCeiling || x1 > m1 + kCeiling)) return;
        x0 = fmaxf(x0, __shfl_xor_sync(~0u, x0, 1));
        x1 = fmaxf(x1, __shfl_xor_sync(~0u, x1, 1));
        x0 = fmaxf(x0, __shfl_xor_sync(~0u, x0, 2));
        x1 = fmaxf(x1, __shfl_xor_sync(~0u, x1, 2));
        const float n0 = fmaxf(m0, x0 - kStart), n1 = fmaxf(m1, x1 - kStart);
        const float a0 = Exp2(m0 - n0), a1 = Exp2(m1 - n1);
        m0 = n0;
        m1 = n1;
        l0 *= a0;
        l1 *= a1;
#pragma unroll 1
        for (int i = 0; i < kMeanTiles; ++i) {
          const float2 r = LoadShared2(my_sums + i * kTileSumBytes);
          StoreShared2(my_sums + i * kTileSumBytes, r.x * a0, r.y * a1);
        }
        // Those of groups that are not there yet are not read before they are written.
#pragma unroll 1
        for (int i = 0; i < kMarkGroups; ++i) {
          const uint32_t at = my_fragments() + i * 512;
          const float4 r = LoadSharedFloat4(at);
          StoreShared2(at, r.x * a0, r.y * a1);
          StoreShared2(at + 8, r.z * a0, r.w * a1);
        }
#pragma unroll
        for (int i = 0; i < kSums; ++i) T[i] *= i & 2 ? a1 : a0;
        if (kept) ScaleSpans<kSums>(my_spans(), a0, a1);
      };
      // P of a tile from scores that `log2_p` turns into x - m, and its row sums.
      const auto exponentiate = [&](int tile, auto log2_p) {
        float r0 = 0.0f, r1 = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          float e[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) e[i] = Exp2(log2_p(8 * j + i));
          P[4 * (j >> 1) + 2 * (j & 1)] = PackE4m3(e[0], e[1], e[4], e[5]);
          P[4 * (j >> 1) + 2 * (j & 1) + 1] = PackE4m3(e[2], e[3], e[6], e[7]);
          r0 += (e[0] + e[1]) + (e[4] + e[5]);
          r1 += (e[2] + e[3]) + (e[6] + e[7]);
        }
        StoreShared2(my_sums + (tile & (kMeanTiles - 1)) * kTileSumBytes, r0, r1);
        l0 += r0;
        l1 += r1;
      };
      // A tile that all rows see: maxima on integers, since the scales are constant per thread.
      const auto softmax_open = [&](int tile) {
        int most0 = max(S[0], S[1]), most1 = max(S[2], S[3]);
#pragma unroll
        for (int j = 1; j < 16; ++j) {
          most0 = __vimax3_s32(most0, S[4 * j], S[4 * j + 1]);
          most1 = __vimax3_s32(most1, S[4 * j + 2], S[4 * j + 3]);
        }
        move_offsets(static_cast<float>(most0) * s0, static_cast<float>(most1) * s1);
        exponentiate(tile, [&](int i) {
          return fmaf(static_cast<float>(S[i]), i & 2 ? s1 : s0, i & 2 ? -m1 : -m0);
        });
      };
      // A tile that causality, the window, the end of the keys or a mask hides in part: scores
      // become floats, -Infinity where hidden.
      const auto softmax_hidden = [&](int tile) {
        const int key = tile * kTile + 32 * (lane & 3);
        float x0 = -INFINITY, x1 = -INFINITY;
        if constexpr (kMasked) {
          MaskScores(a.see, head, row, key, s0, s1, S, x0, x1);
        } else {
          const RowView view0 = a.see.Row(head, row), view1 = a.see.Row(head, row + 8);
#pragma unroll
          for (int i = 0; i < 64; ++i) {
            const int j = key + 2 * (i >> 2) + (i & 1);
            const RowView& view = i & 2 ? view1 : view0;
            float x = static_cast<float>(S[i]) * (i & 2 ? s1 : s0);
            if (static_cast<unsigned>(j - view.first) >= view.count) x = -INFINITY;
            S[i] = __float_as_int(x);
            (i & 2 ? x1 : x0) = fmaxf(i & 2 ? x1 : x0, x);
          }
        }
        move_offsets(x0, x1);
        exponentiate(tile, [&](int i) { return __int_as_float(S[i]) - (i & 2 ? m1 : m0); });
      };
      const auto softmax = [&](int tile) {
        if (!kMasked && open_begin <= tile && tile < open_end) {
          softmax_open(tile);
        } else {
          softmax_hidden(tile);
        }
      };
      // Row sums of the group of tiles that ends (downwards) with `tile`, as an A fragment.
      const auto end_group = [&](int tile) {
        float4 r;
        __syncwarp();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int slot = (lane & 3) + 4 * half;
          const uint32_t at = my_sums - lane * 8 + slot * kTileSumBytes + (lane >> 2) * 32;
          const float4 x = LoadSharedFloat4(at), y = LoadSharedFloat4(at + 16);
          // Below `tile` lie the sums of the group before.
          const bool in = slot >= (tile & (kMeanTiles - 1));
          (half ? r.z : r.x) = in ? (x.x + x.z) + (y.x + y.z) : 0.0f;
          (half ? r.w : r.y) = in ? (x.y + x.w) + (y.y + y.w) : 0.0f;
        }
        __syncwarp();  // the sums of this group may be overwritten
        const uint32_t at = my_fragments() + tile / kMeanTiles % kMarkGroups * 512;
        StoreShared2(at, r.x, r.y);
        StoreShared2(at + 8, r.z, r.w);
      };
      // T += row sums of the groups of the span that ends (downwards) with `tile`, times v's means.
      const auto add_means = [&](int tile) {
        if (!a.smooth_v) return;
#pragma unroll 1
        for (int group = tile / kMeanTiles; group <= span_last / kMeanTiles; ++group) {
          const float* image =
              a.mean_image +
              (static_cast<int64_t>(kv_head) * a.mean_groups + group) * (kMeanTiles * D) + lane * 4;
          const float4 r = LoadSharedFloat4(my_fragments() + group % kMarkGroups * 512);
          const uint32_t fragment[4] = {RoundTf32(r.x), RoundTf32(r.y), RoundTf32(r.z),
                                        RoundTf32(r.w)};
#pragma unroll
          for (int j = 0; j < D / 16; ++j) {
            const float4 b = __ldg(reinterpret_cast<const float4*>(image) + 32 * j);
            MmaTf32(T + 8 * j, fragment, b.x, b.y);
            MmaTf32(T + 8 * j + 4, fragment, b.z, b.w);
          }
        }
      };

      wait_turn();
      BarrierWait(bar.KFull(stage(it)), parity(it));
      issue_scores(stage(it));
      load_scales(stage(it));
      WgmmaWait<0>();
      pass_turn();
      arrive(bar.KEmpty(stage(it)));
      softmax(current);
#pragma unroll 1
      while (current - step >= part.first) {
        const int next = current - step;
        const bool span_ends =
            next / (kMeanTiles * kMarkGroups) != current / (kMeanTiles * kMarkGroups);
        if (next / kMeanTiles != current / kMeanTiles) end_group(current);
        wait_turn();
        BarrierWait(bar.VFull(stage(it)), parity(it));
        issue_outputs(stage(it));
        WgmmaWait<0>();  // P leaves its registers to the scores
        arrive(bar.VEmpty(stage(it)));
        it += step;
        if (span_ends) {
          add_means(current);
          if (kept) {
            AddSpan<kSums>(my_spans(), T);
          } else {
            KeepSpan<kSums>(my_spans(), T);
          }
          kept = true;
          span_last = next;
#pragma unroll
          for (int i = 0; i < kSums; ++i) T[i] = 0.0f;
        }
        BarrierWait(bar.KFull(stage(it)), parity(it));
        issue_scores(stage(it));
        load_scales(stage(it));
        WgmmaWait<0>();
        pass_turn();
        arrive(bar.KEmpty(stage(it)));
        current = next;
        softmax(current);
      }
      arrive(bar.QEmpty());
      wait_turn();
      BarrierWait(bar.VFull(stage(it)), parity(it));
      issue_outputs(stage(it));
      pass_turn();
      end_group(current);
      WgmmaWait<0>();
      arrive(bar.VEmpty(stage(it)));
      add_means(current);
      if (kept) TakeSpans<kSums>(my_spans(), T);
    }

    // What was known before the loop over keys is found anew: kept, it would take registers.
    const uint32_t thread = ThreadAnew();
    const int c = thread & 3, g = thread % 32 / 4, my_warp = thread / 32 - 4;
    l0 += __shfl_xor_sync(~0u, l0, 1);
    l1 += __shfl_xor_sync(~0u, l1, 1);
    l0 += __shfl_xor_sync(~0u, l0, 2);
    l1 += __shfl_xor_sync(~0u, l1, 2);
    // Where rows are shared each warpgroup ends with half of the channels, in the first half of T.
    int channels = D / 8, channel0 = 0;
    if (p.shared_rows) {
      const uint32_t place = shared + Map::kSums + thread % 32 * 16;
      AddSharedRows(place + my_warp * kWarpSumBytes, place + (my_warp ^ 4) * kWarpSumBytes,
                    my_warp / 4, kPairs + my_warp % 4, T, m0, m1, l0, l1);
      channel0 = my_warp / 4 * (D / 2);
      channels /= 2;
    }
    const Part done = LoadPart(shared + Map::kPart + (~round & 1) * kPartBytes);
    const int row = done.row0 + 16 * (p.shared_rows ? my_warp % 4 : my_warp) + g;
    const int kv_head = KvHead(a, done.head);
    if (p.parts > 1) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int i = row + 8 * r;
        if (i >= a.see.q_len) continue;
        const int64_t at = done.part * p.rows + static_cast<int64_t>(done.head) * a.see.q_len + i;
        if (c == 0 && channel0 == 0) p.ends[at] = make_float2(r ? m1 : m0, r ? l1 : l0);
        float* sums = p.sums + at * D + channel0 + 2 * c;
#pragma unroll
        for (int j = 0; j < D / 8; ++j) {
          if (j >= channels) break;
          *reinterpret_cast<float2*>(sums + 8 * j) =
              make_float2(T[4 * j + 2 * r], T[4 * j + 2 * r + 1]);
        }
      }
      continue;
    }
    const uint32_t v_scale =
        shared + Map::kVScale + (~round & 1) * Map::kVScaleBytes + 4 * channel0 + 8 * c;
    const uint32_t not_finite = LoadGlobalWord(a.see.not_finite + kv_head);
    const int batch = done.head / a.q_heads, q_head = done.head % a.q_heads;
    float* o = a.o + batch * a.o_strides.batch + q_head * a.o_strides.head;
    float* o0 = o + static_cast<int64_t>(row) * a.o_strides.token + channel0 + 2 * c;
    float* o1 = o0 + 8 * a.o_strides.token;
    // Nothing attended to: l = 0 and o = 0.
    const float inverse0 = l0 == 0.0f ? 0.0f : 1.0f / l0, inverse1 = l1 == 0.0f ? 0.0f : 1.0f / l1;
    const bool whole = a.o_pairs && a.v_dim == D && __all_sync(~0u, row + 8 < a.see.q_len);
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      if (j >= channels) break;
      const float2 scale = LoadShared2(v_scale + 32 * j);
      const float x = UnitOf(scale.x), y = UnitOf(scale.y);
      const float2 of0 = make_float2(T[4 * j] * inverse0 * x, T[4 * j + 1] * inverse0 * y);
      const float2 of1 = make_float2(T[4 * j + 2] * inverse1 * x, T[4 * j + 3] * inverse1 * y);
      if (whole) {
        *reinterpret_cast<float2*>(o0 + 8 * j) = of0;
        *reinterpret_cast<float2*>(o1 + 8 * j) = of1;
      } else {
        const int d = channel0 + 8 * j + 2 * c;
        const auto store = [&](float* at, int i, const float2& value) {
          if (i >= a.see.q_len || d >= a.v_dim) return;
          at[0] = value.x;
          if (d + 1 < a.v_dim) at[1] = value.y;
        };
        store(o0 + 8 * j, row, of0);
        store(o1 + 8 * j, row + 8, of1);
      }
    }
    if (a.lse != nullptr && c == 0 && channel0 == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int i = row + 8 * r;
        if (i >= a.see.q_len) continue;
        a.lse[static_cast<int64_t>(done.head) * a.see.q_len + i] =
            LseOf(a, done.head, i, r ? m1 : m0, r ? l1 : l0);
      }
    }
    if (not_finite == 0) continue;
    __syncwarp();
    if (p.shared_rows) {
      NamedSync(kPairs + my_warp % 4, 64);  // both halves of the row are written
      if (channel0 != 0) continue;
    }
    for (int i = row; i < min(row + 16, a.see.q_len); i += 8) {
      MarkRow(
          a.see, kv_head, done.head, i, c, a.v, a.q_heads / a.group, a.v_dim,
          o + static_cast<int64_t>(i) * a.o_strides.token,
          a.lse == nullptr ? nullptr : a.lse + static_cast<int64_t>(done.head) * a.see.q_len + i);
    }
  }
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_ATTEND_PARTS_CUH_
