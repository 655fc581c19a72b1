// Attention over quantised operands on Hopper: int8 scores, e4m3 outputs, two-level accumulation.
//
//   x[i,j] = c[i] kscale[j] (q^[i] . k^[j])   log2 domain, c = |scale| log2(e) qscale; wgmma s8
//   P[i,j] = 2^(x - m[i])                     m: offset of row i, chosen so that P <= 448
//   t      = sum_j e4m3(P[i,j]) v^[j]         wgmma e4m3, spans of at most 512 keys
//   o      = (sum of spans + sum_b r[i,b] mean[b] / vscale) vscale / sum_b r[i,b]
//   r[i,b] = sum of the unrounded P of tile b (128 keys); float32, in registers
//
// The FP8 tensor core keeps about 14 bits of a sum, so t is added to float32 registers every 4
// tiles (kSpan). V's means are put back by tf32 products of r with the means, once per 8 tiles.
// m moves rarely: P starts at most at 2^5.8 and the offset follows only when P would pass 448, so
// the usual tile needs no maximum across threads, only a vote.
//
// Block: one warpgroup copies (produce.cuh); two, or three where head_dim is 64, compute 64 rows of
// q each and take turns issuing products, so that one's products run under another's exponentials.
// Blocks are persistent and draw tiles of work from a counter. Keys are walked from the last tile
// to the first. Inside a warpgroup:
//
//   tensor core   | scores i ......| outputs i + 1 ..|            | scores i - 1 ..
//   the others    |                | softmax i ...................| pack P of i
//
// Shared memory (D = 128): 2 x q 16 KiB | 4 x k 16 KiB | 4 x v 16 KiB | 2 x means of 8 tiles 4 KiB
// | row sums 20 KiB | barriers. Registers of a computing thread: scores 64, span 64, sum 64, P 16;
// what is equal across a warp is kept in uniform registers, or nothing would be left.
//
// Three habits of the compiler shape the loop: it moves a wait for products above arithmetic of
// the same basic block (so the wait opens the next round); it gives the registers of an A operand
// in flight to later values (so the new P depends on the old, through a mask that is always 0);
// and it serialises products when P is packed between them (so P is packed after the wait).
#ifndef SAGE_CUDA_SM90_ATTEND_CUH_
#define SAGE_CUDA_SM90_ATTEND_CUH_

#include <cfloat>

#include "cuda/sm90/block.cuh"
#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/produce.cuh"
#include "cuda/sm90/visibility.cuh"
#include "cuda/sm90/work.cuh"
#include "cuda/sm90/workspace.h"

namespace sage {
namespace sm90 {

// kMasked: with a boolean or additive mask, every tile is masked element by element.
template <int D, bool kMasked>
__global__ void __launch_bounds__(Roles<D, kMasked>::kThreads, 1)
    AttendKernel(const __grid_constant__ AttendArguments a) {
  using Map = SharedMap<D, kMasked>;
  using Role = Roles<D, kMasked>;
  constexpr int kStages = Map::kStages, kSums = D / 2, kWarpgroups = Role::kWarpgroups;
  constexpr int kRows = Role::kRows;
  extern __shared__ uint8_t shared_memory[];
  const uint32_t shared = (SharedAddress(shared_memory) + 1023) & ~1023u;
  const Barriers<kStages> bar = {shared + Map::kBarriers};
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      BarrierInit(bar.Full(s), 1);
      BarrierInit(bar.Empty(s), Map::kWarps);
    }
    for (int s = 0; s < 2; ++s) {
      BarrierInit(bar.MeanFull(s), 1);
      BarrierInit(bar.MeanEmpty(s), 32 * Map::kWarps);
      BarrierInit(bar.QFull(s), 1);
      BarrierInit(bar.QEmpty(s), Map::kWarps);
    }
    BarrierInitFence();
  }
  __syncthreads();
  // From one lane, so that the compiler knows them equal across the warp and keeps what follows
  // from them in uniform registers.
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x >> 5), 0);
  const int warpgroup = warp >> 2;
  if (warpgroup == 0) {
    GiveRegisters<Role::kCopyRegisters>();
    if (warp == 0) Produce<D, kMasked>(a, shared, bar);
    return;
  }
  TakeRegisters<Role::kComputeRegisters>();
  const int mine = warpgroup - 1, lane = threadIdx.x & 31;
  const uint32_t my_warp = warp - 4;
  const auto arrive = [&](uint32_t barrier) {
    if (lane == 0) BarrierArrive(barrier);
  };
  // The right to issue products goes round the warpgroups.
  const auto wait_turn = [&] { NamedSync(1 + mine, 256); };
  const auto pass_turn = [&] { NamedArrive(1 + (mine + 1) % kWarpgroups, 256); };
  if (mine == kWarpgroups - 1) NamedArrive(1, 256);

  // Row sums of this warp: [tile % 8][row g][thread c]{row g, row g + 8}; this thread's own.
  const uint32_t my_sums = shared + Map::kSums + my_warp * kSumBytes + lane * 8;
  const uint32_t my_record = shared + Map::kRecords + my_warp * 4;
  uint32_t it = 0, groups = 0, round = 0;
  while (true) {
    const int slot = round & 1;
    BarrierWait(bar.QFull(slot), round >> 1 & 1);
    const int index = __shfl_sync(~0u, LoadSharedInt(shared + Map::kWork + 4 * slot), 0);
    if (index < 0) break;
    ++round;
    float O[kSums];
#pragma unroll
    for (int i = 0; i < kSums; ++i) O[i] = 0.0f;
    float m0 = -FLT_MAX, m1 = -FLT_MAX, l0 = 0.0f, l1 = 0.0f;
    bool mask_is_nan0 = false, mask_is_nan1 = false;
    int first, last, open_begin, open_end;
    const float* k_scale;
    float c0, c1;
    {
      const Work work = WorkOf<kRows>(a, index);
      first = work.first;
      last = work.first + work.count - 1;
      k_scale = a.k_scale + (static_cast<int64_t>(KvHead(a, work.head)) * a.tiles + last) * 4 +
                (lane & 3);
      const int warp_row = work.row0 + 16 * static_cast<int>(my_warp);
      const float* q_scale =
          a.q_scale + static_cast<int64_t>(work.head) * a.q_rows + warp_row + (lane >> 2);
      c0 = a.factor * __ldg(q_scale);
      c1 = a.factor * __ldg(q_scale + 8);
      // Tiles in [open_begin, open_end) are seen in full by all rows of this warp.
      open_begin = (a.see.FirstKey(min(warp_row + 15, a.see.q_len - 1)) + kTile - 1) / kTile;
      open_end = a.see.EndKey(min(warp_row, a.see.q_len - 1)) / kTile;
      __syncwarp();
      if (lane == 0) StoreSharedInt(my_record, index);
      __syncwarp();
    }
    if (last < first) {
      arrive(bar.QEmpty(slot));
    } else {
      float T[kSums];
      int S[64];
      uint32_t P[16], next_P[16];
      float a0 = 1.0f, a1 = 1.0f;
      bool moved = false;
      int summed = 0;
#pragma unroll
      for (int i = 0; i < kSums; ++i) T[i] = 0.0f;
#pragma unroll
      for (int i = 0; i < 16; ++i) P[i] = 0;
        // Tiles above the last one have no row sums.
#pragma unroll 1
      for (int i = 0; i < kMeanTiles; ++i) StoreShared2(my_sums + i * kSumStride, 0.0f, 0.0f);

      const auto issue_scores = [&](int s) {
        WgmmaFence();
#pragma unroll
        for (int k = 0; k < D / 32; ++k) {
          WgmmaScores(S, OperandDescriptor<D>(shared + slot * Map::kQBytes + mine * 64 * D) + 2 * k,
                      OperandDescriptor<D>(shared + Map::kK + s * Map::kKBytes) + 2 * k, k != 0);
        }
        WgmmaCommit();
      };
      const auto issue_outputs = [&](int s) {
        const int accumulate = summed != 0;
        ++summed;
        WgmmaFence();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          WgmmaOutputs(T, P + 4 * k,
                       OperandDescriptor<128>(shared + Map::kV + s * Map::kVBytes) + 2 * k,
                       k != 0 ? 1 : accumulate);
        }
        WgmmaCommit();
      };

      // Given this thread's largest scores of the two rows: moves the offsets if any P would pass
      // 448, and what was summed under the old ones.
      const auto move_offsets = [&](float x0, float x1) {
        moved = __any_sync(~0u, x0 > m0 + kCeiling || x1 > m1 + kCeiling);
        if (__builtin_expect(moved, 0)) {
          x0 = fmaxf(x0, __shfl_xor_sync(~0u, x0, 1));
          x1 = fmaxf(x1, __shfl_xor_sync(~0u, x1, 1));
          x0 = fmaxf(x0, __shfl_xor_sync(~0u, x0, 2));
          x1 = fmaxf(x1, __shfl_xor_sync(~0u, x1, 2));
          const float n0 = fmaxf(m0, x0 - kStart), n1 = fmaxf(m1, x1 - kStart);
          a0 = Exp2(m0 - n0);
          a1 = Exp2(m1 - n1);
          m0 = n0;
          m1 = n1;
          l0 *= a0;
          l1 *= a1;
#pragma unroll 1
          for (int i = 0; i < kMeanTiles; ++i) {
            const uint32_t at = my_sums + i * kSumStride;
            const float2 r = LoadShared2(at);
            StoreShared2(at, r.x * a0, r.y * a1);
          }
        }
      };
      // P of a tile from scores that `log2_p` turns into x - m, and its row sums.
      const auto exponentiate = [&](int tile, auto log2_p) {
        float r0 = 0.0f, r1 = 0.0f, u0 = 0.0f, u1 = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          float e[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) e[i] = Exp2(log2_p(8 * j + i));
          next_P[4 * (j >> 1) + 2 * (j & 1)] = PackE4m3(e[0], e[1], e[4], e[5]);
          next_P[4 * (j >> 1) + 2 * (j & 1) + 1] = PackE4m3(e[2], e[3], e[6], e[7]);
          r0 += e[0] + e[1];
          r1 += e[2] + e[3];
          u0 += e[4] + e[5];
          u1 += e[6] + e[7];
        }
        r0 += u0;
        r1 += u1;
        l0 += r0;
        l1 += r1;
        StoreShared2(my_sums + (tile & (kMeanTiles - 1)) * kSumStride, r0, r1);
      };
      // A tile that all rows see: maxima on integers, since the scales are constant per thread.
      const auto softmax_open = [&](int tile, float scale) {
        const float s0 = c0 * scale, s1 = c1 * scale;
        int most0[4], most1[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          most0[i] = max(S[4 * i], S[4 * i + 1]);
          most1[i] = max(S[4 * i + 2], S[4 * i + 3]);
        }
#pragma unroll
        for (int j = 4; j < 16; ++j) {
          most0[j & 3] = __vimax3_s32(most0[j & 3], S[4 * j], S[4 * j + 1]);
          most1[j & 3] = __vimax3_s32(most1[j & 3], S[4 * j + 2], S[4 * j + 3]);
        }
        const int i0 = max(__vimax3_s32(most0[0], most0[1], most0[2]), most0[3]);
        const int i1 = max(__vimax3_s32(most1[0], most1[1], most1[2]), most1[3]);
        move_offsets(static_cast<float>(i0) * s0, static_cast<float>(i1) * s1);
        exponentiate(tile, [&](int i) {
          return fmaf(static_cast<float>(S[i]), i & 2 ? s1 : s0, i & 2 ? -m1 : -m0);
        });
      };
      // A tile that causality, the window, the end of the keys or a mask hides in part: scores
      // become floats, -Infinity where hidden.
      const auto softmax_hidden = [&](int tile, float scale) {
        const float s0 = c0 * scale, s1 = c1 * scale;
        const int key = tile * kTile + 32 * (lane & 3);
        float x0 = -INFINITY, x1 = -INFINITY;
        const Work work = WorkOf<kRows>(a, LoadSharedInt(my_record));
        const int row = work.row0 + 16 * static_cast<int>(my_warp) + (lane >> 2);
        const RowView view0 = a.see.Row(work.head, row), view1 = a.see.Row(work.head, row + 8);
#pragma unroll
        for (int i = 0; i < 64; ++i) {
          const int j = key + 2 * (i >> 2) + (i & 1);
          const RowView& view = i & 2 ? view1 : view0;
          float x = static_cast<float>(S[i]) * (i & 2 ? s1 : s0);
          const bool inside = static_cast<unsigned>(j - view.first) < view.count;
          if constexpr (kMasked) {
            const float bias = inside ? a.see.Bias(view, j) : -INFINITY;
            if (i & 2) {
              mask_is_nan1 |= !(bias < INFINITY);
            } else {
              mask_is_nan0 |= !(bias < INFINITY);
            }
            // A row of q that is not finite must not spoil what is hidden from it.
            x = bias == -INFINITY ? -INFINITY : x + bias;
          } else {
            if (!inside) x = -INFINITY;
          }
          S[i] = __float_as_int(x);
          if (i & 2) {
            x1 = fmaxf(x1, x);
          } else {
            x0 = fmaxf(x0, x);
          }
        }
        move_offsets(x0, x1);
        exponentiate(tile, [&](int i) { return __int_as_float(S[i]) - (i & 2 ? m1 : m0); });
      };
      const auto softmax = [&](int tile, float scale) {
        if (!kMasked && open_begin <= tile && tile < open_end) {
          softmax_open(tile, scale);
        } else {
          softmax_hidden(tile, scale);
        }
      };
      const auto pack = [&] {
#pragma unroll
        for (int i = 0; i < 16; ++i) P[i] = next_P[i] ^ (P[i] & a.zero);
      };
      // O += row sums of the group that ends (downwards) with `tile`, times the means of v.
      const auto add_means = [&](int tile) {
        uint32_t r[4];
        __syncwarp();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int slot = (lane & 3) + 4 * half;
          const uint32_t at = my_sums - lane * 8 + slot * kSumStride + (lane >> 2) * 32;
          const float4 x = LoadSharedFloat4(at), y = LoadSharedFloat4(at + 16);
          // Below `tile` lie the sums of the group before.
          const bool in = slot >= (tile & (kMeanTiles - 1));
          r[2 * half] = in ? RoundTf32((x.x + x.z) + (y.x + y.z)) : 0u;
          r[2 * half + 1] = in ? RoundTf32((x.y + x.w) + (y.y + y.w)) : 0u;
        }
        const int s = groups & 1;
        BarrierWait(bar.MeanFull(s), groups >> 1 & 1);
        ++groups;
        const uint32_t image = shared + Map::kMean + s * Map::kMeanBytes + lane * 16;
#pragma unroll
        for (int j = 0; j < D / 16; ++j) {
          const float4 b = LoadSharedFloat4(image + j * 512);
          MmaTf32(O + 8 * j, r, b.x, b.y);
          MmaTf32(O + 8 * j + 4, r, b.z, b.w);
        }
        __syncwarp();  // the sums of this group may be overwritten
        BarrierArrive(bar.MeanEmpty(s));
      };
      // What was summed so far comes under the offsets that the last softmax moved to.
      const auto follow_offsets = [&] {
        if (__builtin_expect(!moved, 1)) return;
#pragma unroll
        for (int i = 0; i < kSums; ++i) {
          T[i] *= i & 2 ? a1 : a0;
          O[i] *= i & 2 ? a1 : a0;
        }
      };
      // Adds a full span to the sums; runs under the next scores.
      const auto end_span = [&] {
        if (summed == kSpan) {
          summed = 0;
#pragma unroll
          for (int i = 0; i < kSums; ++i) O[i] += T[i];
        }
      };

      const auto stage = [&](uint32_t at) { return static_cast<int>(at % kStages); };
      const auto parity = [&](uint32_t at) { return at / kStages & 1; };
      float scale = __ldg(k_scale);
      // One tile ahead: its latency would show where the scores are ready.
      if (last > first) k_scale -= 4;
      float next_scale = __ldg(k_scale);
      wait_turn();
      BarrierWait(bar.Full(stage(it)), parity(it));
      issue_scores(stage(it));
      pass_turn();
      WgmmaWait<0>();
      softmax(last, scale);
      ++it;
      int i = last - 1;
      for (; i >= first; --i, ++it) {
        WgmmaWait<0>();
        if (i != last - 1) arrive(bar.Empty(stage(it - 2)));
        pack();
        follow_offsets();
        // Here, where no scores are in registers, the loads of the means overlap.
        if (a.smooth_v && ((i + 1) & (kMeanTiles - 1)) == 0) add_means(i + 1);
        scale = next_scale;
        if (i > first) k_scale -= 4;
        next_scale = __ldg(k_scale);
        BarrierWait(bar.Full(stage(it)), parity(it));
        wait_turn();
        issue_scores(stage(it));
        end_span();
        issue_outputs(stage(it - 1));
        pass_turn();
        WgmmaWait<1>();
        softmax(i, scale);
      }
      WgmmaWait<0>();
      if (i != last - 1) arrive(bar.Empty(stage(it - 2)));
      arrive(bar.QEmpty(slot));
      pack();
      follow_offsets();
      if (a.smooth_v) add_means(first);
      end_span();
      wait_turn();
      issue_outputs(stage(it - 1));
      pass_turn();
      WgmmaWait<0>();
      arrive(bar.Empty(stage(it - 1)));
#pragma unroll
      for (int j = 0; j < kSums; ++j) O[j] += T[j];
    }

    const Work work = WorkOf<kRows>(a, LoadSharedInt(my_record));
    const int kv_head = KvHead(a, work.head), c = lane & 3;
    const int row = work.row0 + 16 * static_cast<int>(my_warp) + (lane >> 2);
    l0 += __shfl_xor_sync(~0u, l0, 1);
    l1 += __shfl_xor_sync(~0u, l1, 1);
    l0 += __shfl_xor_sync(~0u, l0, 2);
    l1 += __shfl_xor_sync(~0u, l1, 2);
    if constexpr (kMasked) {
      const unsigned quad = 0xfu << (lane & ~3);
      if (__ballot_sync(~0u, mask_is_nan0) & quad) l0 = NAN;
      if (__ballot_sync(~0u, mask_is_nan1) & quad) l1 = NAN;
    }
    // Nothing attended to: l = 0 and o = 0.
    const float inverse0 = l0 == 0.0f ? 0.0f : 1.0f / l0, inverse1 = l1 == 0.0f ? 0.0f : 1.0f / l1;
    const int batch = work.head / a.q_heads, q_head = work.head % a.q_heads;
    float* o = a.o + batch * a.o_strides.batch + q_head * a.o_strides.head;
    const float* v_scale = a.v_scale + static_cast<int64_t>(kv_head) * D + 2 * c;
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      const int d = 8 * j + 2 * c;
      float2 unit = __ldg(reinterpret_cast<const float2*>(v_scale + 8 * j));
      // Channels without a scale have codes 0, and means in units of 1.
      unit.x = unit.x == 0.0f ? 1.0f : unit.x;
      unit.y = unit.y == 0.0f ? 1.0f : unit.y;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (row + 8 * r >= a.see.q_len || d >= a.v_dim) continue;
        const float inverse = r ? inverse1 : inverse0;
        const float x = O[4 * j + 2 * r] * inverse * unit.x;
        const float y = O[4 * j + 2 * r + 1] * inverse * unit.y;
        float* at = o + static_cast<int64_t>(row + 8 * r) * a.o_strides.token + d;
        if (a.o_pairs) {
          *reinterpret_cast<float2*>(at) = make_float2(x, y);
        } else {
          at[0] = x;
          if (d + 1 < a.v_dim) at[1] = y;
        }
      }
    }
    if (a.lse != nullptr && c == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (row + 8 * r >= a.see.q_len) continue;
        const float l = r ? l1 : l0, m = r ? m1 : m0;
        const float shift = a.lse_shift[static_cast<int64_t>(work.head) * a.q_rows + row + 8 * r];
        a.lse[static_cast<int64_t>(work.head) * a.see.q_len + row + 8 * r] =
            l == 0.0f ? -INFINITY
                      : static_cast<float>(
                            0.69314718055994531 * (static_cast<double>(m) + log2f(l)) + shift);
      }
    }
    if (a.see.AnyNotFinite(kv_head)) {
      __syncwarp();
      for (int r = 0; r < 2; ++r) {
        if (row + 8 * r >= a.see.q_len) continue;
        MarkRow(
            a.see, kv_head, work.head, row + 8 * r, c,
            a.v + kv_head / (a.q_heads / a.group) * a.v_strides.batch +
                kv_head % (a.q_heads / a.group) * a.v_strides.head,
            a.v_strides.token, a.v_dim, o + static_cast<int64_t>(row + 8 * r) * a.o_strides.token,
            a.lse == nullptr ? nullptr
                             : a.lse + static_cast<int64_t>(work.head) * a.see.q_len + row + 8 * r);
      }
    }
  }
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_ATTEND_CUH_
