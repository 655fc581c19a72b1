// Attention over quantised operands on Hopper: int8 scores, e4m3 outputs, two-level accumulation.
//
//   x[i,j] = c[i] kscale[j] (q^[i] . k^[j])   log2 domain, c = |scale| log2(e) qscale; wgmma s8
//   P[i,j] = 2^(x - m[i])                     m: offset of row i, chosen so that P <= 448
//   t      = sum_j e4m3(P[i,j]) v^[j]         wgmma e4m3, spans of at most 256 tiles
//   o      = (sum of spans + sum_b r[i,b] mean[b] / vscale) vscale / sum_b r[i,b]
//   r[i,b] = sum of the unrounded P of tile b (128 keys); float32, in registers
//
// The FP8 tensor core keeps 14 bits of a sum: every product loses what is below 2^-13 of the
// largest of the sum and the products of its step. Values without the mean of their block need few
// of these bits, so spans may be long, and end every 64 tiles only where few keys outweigh the
// others (bounds: docs/kernels_hopper.md); sums of spans are float32. V's means stay out of t: they
// come back by tf32 products of r with the means, 8 tiles deep.
//
// m moves rarely, and the usual tile needs no maxima at all. m is fitted to the first tile that all
// rows of a warp see: the largest P is 2^3.3 at most, the mean 1. From then on a thread looks at
// the sum of its 32 P of a row, which it needs anyway: while that is at most 448 no P is above.
// Where it is not, the scores, whose registers P has taken, are computed again (warp_scores.cuh),
// and m is fitted to them. Warps with a row whose largest score is far above the mean, or that did
// so not long ago, look for maxima at every tile; their largest P starts at 2^5.8.
//
// Block: one warpgroup copies k and v (produce.cuh) and rounds q (round_queries.cuh); three, or two
// where there is a mask, compute 64 rows of q each. Blocks are persistent and draw tiles of work
// from a counter. Keys are walked from the last tile to the first. Warpgroups take turns at the
// tensor cores, a turn being the outputs of a tile and the scores of the next, waited for;
// meanwhile the others are at their exponentials:
//
//   warpgroup 0 | outputs 3, scores 2 | softmax 2 .............................| outputs 2, ...
//   warpgroup 1 |                     | outputs 3, scores 2 | softmax 2 ...........
//   warpgroup 2 | ... softmax 3 ............................| outputs 3, scores 2 | softmax 2 ...
//
// Nothing of a warpgroup is in flight during its softmax, so P takes registers of scores and three
// warpgroups fit. Spans of head_dim 128 without a mask wait in memory (spans.cuh).
//
// Shared memory (D = 128): 2 x q 24 KiB | 4 x k 16 KiB | 4 x v 16 KiB | row sums 35 KiB | scales |
// barriers | rows of q on their way 12 KiB. Registers of a computing thread: scores 64 or P 16,
// span 64; 32 for all else, so what is not needed at every tile lies in shared memory.
#ifndef SAGE_CUDA_SM90_ATTEND_CUH_
#define SAGE_CUDA_SM90_ATTEND_CUH_

#include <cfloat>

#include "cuda/sm90/block.cuh"
#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/means.cuh"
#include "cuda/sm90/produce.cuh"
#include "cuda/sm90/round_queries.cuh"
#include "cuda/sm90/spans.cuh"
#include "cuda/sm90/visibility.cuh"
#include "cuda/sm90/warp_scores.cuh"
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
  constexpr bool kHeld = Role::kHeld;
  constexpr int kAhead = D == 64 ? 8 : 2;  // measured: 2 costs head_dim 64 2 %, 8 the other 1 %
  extern __shared__ __align__(1024) uint8_t shared_memory[];
  const uint32_t shared = SharedAddress(shared_memory);
  const Barriers<kStages> bar = {shared + Map::kBarriers};
  if (threadIdx.x == 0) InitBarriers<D, kMasked>(bar);
  RoundFirst<D, kMasked>(a, shared);
  AwaitEarlierLaunch();  // what comes from the pre-pass is read from here on
  __syncthreads();
  // From one lane, so that the compiler knows them equal across the warp and keeps what follows
  // from them in uniform registers.
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x >> 5), 0);
  const int warpgroup = warp >> 2;
  if (warpgroup == 0) {
    GiveRegisters<Role::kCopyRegisters>();
    if (warp == 0) {
      Produce<D, kMasked>(a, shared, bar);
    } else {
      RoundQueries<D, kMasked>(a, shared, bar, warp);
    }
    return;
  }
  TakeRegisters<Role::kComputeRegisters>();
  const int mine = warpgroup - 1, lane = threadIdx.x & 31;
  const uint32_t my_warp = warp - 4;
  const auto arrive = [&](uint32_t barrier) { WarpArrive(barrier, lane); };
  // The right to the tensor cores goes round the warpgroups.
  const auto wait_turn = [&] { NamedSync(1 + mine, 256); };
  const auto pass_turn = [&] { NamedArrive(1 + (mine + 1) % kWarpgroups, 256); };
  if (mine == kWarpgroups - 1) NamedArrive(1, 256);

  // Row sums of this warp: [tile % 8][row g][thread c]{row g, row g + 8}; this thread's own. Then
  // [row g][thread c]: this thread's part of l.
  const uint32_t my_sums = shared + Map::kSums + my_warp * kSumBytes + lane * 8;
  const uint32_t my_l = my_sums + kPartsOfL;
  const uint32_t my_record = shared + Map::kRecords + my_warp * kRecordBytes;
  // Found anew each time: kept, the pointers would take registers.
  const auto my_place = [&](int words) {
    uint32_t thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return (static_cast<int64_t>(blockIdx.x) * Map::kWarps + (thread - 128) / 32) * words +
           4 * (thread % 32);
  };
  const auto my_spans = [&] { return a.spans + my_place(32 * kSums); };
  const auto my_kept = [&] { return a.sums + my_place(a.kept_words); };
  uint32_t it = 0, round = 0;
  const auto stage = [&](uint32_t at) { return static_cast<int>(at % kStages); };
  const auto parity = [&](uint32_t at) { return at / kStages & 1; };
  while (true) {
    const int slot = round & 1;
    BarrierWait(bar.QFull(slot), round >> 1 & 1);
    const Work work = LoadWork(shared + Map::kWork + slot * kWorkBytes);
    // From one lane: equal across the warp, which keeps the loop's state in uniform registers.
    if (__shfl_sync(~0u, work.head, 0) < 0) break;
    ++round;
    float T[kSums];
    [[maybe_unused]] float O[kSums];
    [[maybe_unused]] bool kept = false;  // earlier spans are in memory
    float m0 = -FLT_MAX, m1 = -FLT_MAX;
    int i = work.first + work.count - 1;  // the tile of keys at hand
    StoreRecord(a, my_record, work, LoadSharedInt(shared + Map::kWork + slot * kWorkBytes + 16),
                64 * mine, 16 * static_cast<int>(my_warp));
    StoreShared2(my_l, 0.0f, 0.0f);
    {
      const uint32_t q_scale =
          shared + Map::kQScale + slot * Map::kQScaleBytes + 64 * my_warp + (lane & ~3);
      StoreShared2(my_l + 256, a.factor * LoadSharedFloat(q_scale),
                   a.factor * LoadSharedFloat(q_scale + 32));
    }
    if (work.count == 0) {
#pragma unroll
      for (int j = 0; j < kSums; ++j) T[j] = 0.0f;
    } else {
      int S[64];
      uint32_t P[16];
      bool more = false;           // tiles follow
      bool quick = false;          // all rows of this warp see all of this tile, without maxima
      int calm = i - 1;            // open tiles up to this one need none; the next is fitted to
      float s0 = 0.0f, s1 = 0.0f;  // scores to log2, by row
                                   // Tiles above the last one have no row sums.
#pragma unroll
      for (int j = 0; j < kMeanTiles; ++j) StoreShared2(my_sums + j * kSumStride, 0.0f, 0.0f);
      const uint32_t q_tile = OperandLow(shared + slot * Map::kQBytes + mine * 64 * D);
      const auto issue_scores = [&](int s) {
        IssueScores<D>(S, q_tile, OperandLow(shared + Map::kK + s * Map::kKBytes));
      };
      const auto issue_outputs = [&](int s) {
        IssueOutputs(T, P, OperandLow(shared + Map::kV + s * Map::kVBytes));
      };
      // What the softmax of tile i needs, while products are computed.
      const auto prepare = [&](int s) {
        more = __any_sync(~0u, i > LoadSharedInt(my_record + kFirst));
        const int2 open = LoadSharedInt2(my_record + kOpenTiles);
        quick = __any_sync(~0u, !kMasked && open.x <= i && i < min(open.y, calm + 1));
        const float scale = LoadSharedFloat(shared + Map::kKScale + 16 * s + 4 * (lane & 3));
        const float2 q_scale = LoadShared2(my_l + 256);
        s0 = q_scale.x * scale;
        s1 = q_scale.y * scale;
      };

      // Given the offsets that this thread wants: raises those of its rows to what their threads
      // want, and scales what was summed under the old ones.
      const auto move_offsets = [&](int tile, float n0, float n1) {
        n0 = fmaxf(n0, __shfl_xor_sync(~0u, n0, 1));
        n1 = fmaxf(n1, __shfl_xor_sync(~0u, n1, 1));
        n0 = fmaxf(m0, fmaxf(n0, __shfl_xor_sync(~0u, n0, 2)));
        n1 = fmaxf(m1, fmaxf(n1, __shfl_xor_sync(~0u, n1, 2)));
        const float a0 = Exp2(m0 - n0), a1 = Exp2(m1 - n1);
        m0 = n0;
        m1 = n1;
        const float2 l = LoadShared2(my_l);
        StoreShared2(my_l, l.x * a0, l.y * a1);
#pragma unroll 1
        for (int j = (tile & (kMeanTiles - 1)) + 1; j < kMeanTiles; ++j) {
          const uint32_t at = my_sums + j * kSumStride;
          const float2 r = LoadShared2(at);
          StoreShared2(at, r.x * a0, r.y * a1);
        }
#pragma unroll
        for (int j = 0; j < kSums; ++j) {
          T[j] *= j & 2 ? a1 : a0;
          if constexpr (kHeld) O[j] *= j & 2 ? a1 : a0;
        }
        if (kept) ScaleSpans<kSums>(my_spans(), a0, a1);
      };
      // P of a tile from scores that `log2_p` turns into x - m, and its row sums, the larger of
      // which it returns. `meanwhile(j)` runs before the exponentials of eighth j.
      const auto exponentiate = [&](int tile, auto log2_p, auto meanwhile) {
        float r0 = 0.0f, r1 = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          float e[8];
          meanwhile(j);
#pragma unroll
          for (int n = 0; n < 8; ++n) e[n] = Exp2(log2_p(8 * j + n));
          P[4 * (j >> 1) + 2 * (j & 1)] = PackE4m3(e[0], e[1], e[4], e[5]);
          P[4 * (j >> 1) + 2 * (j & 1) + 1] = PackE4m3(e[2], e[3], e[6], e[7]);
          r0 += (e[0] + e[1]) + (e[4] + e[5]);
          r1 += (e[2] + e[3]) + (e[6] + e[7]);
        }
        StoreShared2(my_sums + (tile & (kMeanTiles - 1)) * kSumStride, r0, r1);
        return fmaxf(r0, r1);
      };
      // A tile that all rows see, with its maxima. `again`: it was a quick one whose P were too
      // large.
      const auto softmax_open = [&](int tile, bool again) {
        const int2 tops = LargestScores(S);  // integers, since scales are constant per thread
        const float top0 = static_cast<float>(tops.x) * s0;
        const float top1 = static_cast<float>(tops.y) * s1;
        float x0 = top0 - kStart, x1 = top1 - kStart;
        const bool fits = !again && tile != calm + 1;
        if (!fits) {
          const int2 sums = SumScores(S);
          const float mean0 = static_cast<float>(sums.x) * (s0 / 32);
          const float mean1 = static_cast<float>(sums.y) * (s1 / 32);
          const bool steep = fmaxf(top0 - fmaxf(m0, mean0), top1 - fmaxf(m1, mean1)) > kSteep;
          const bool wary = __any_sync(~0u, steep || (again && calm - tile < kSoon));
          calm = wary ? kNeverCalm : tile - 1;
          const float start = wary ? kStart : kCalmStart;
          x0 = fmaxf(top0 - start, mean0);
          x1 = fmaxf(top1 - start, mean1);
        }
        ToFloats(S, 0, 8 * kAhead);
        if (!fits || __any_sync(~0u, fmaxf(x0 - m0, x1 - m1) > kCeiling - kStart)) {
          move_offsets(tile, x0, x1);
        }
        exponentiate(
            tile,
            [&](int n) { return fmaf(__int_as_float(S[n]), n & 2 ? s1 : s0, n & 2 ? -m1 : -m0); },
            [&](int j) {
              if (j + kAhead < 8) ToFloats(S, 8 * (j + kAhead), 8);
            });
      };
      // A tile that causality, the window, the end of the keys or a mask hides in part.
      const auto softmax_hidden = [&](int tile) {
        const int key = tile * kTile + 32 * (lane & 3);
        const int2 place = LoadSharedInt2(my_record + kPlace);  // head, first row
        const int row = place.y + 16 * static_cast<int>(my_warp) + (lane >> 2);
        float x0 = -INFINITY, x1 = -INFINITY;
        [[maybe_unused]] float f0 = s0, f1 = s1;
        if constexpr (kMasked) {
          MaskScores(a.see, place.x, row, key, s0, s1, S, x0, x1);
        } else {
          f0 = HideScores(S, a.see.SeenOf32(row, key), 0, s0, x0);
          f1 = HideScores(S, a.see.SeenOf32(row + 8, key), 2, s1, x1);
        }
        if (__any_sync(~0u, x0 > m0 + kCeiling || x1 > m1 + kCeiling)) {
          move_offsets(tile, x0 - kStart, x1 - kStart);
        }
        calm = min(calm, tile - 2);
        exponentiate(
            tile,
            [&](int n) {
              const float x = __int_as_float(S[n]), m = n & 2 ? m1 : m0;
              return kMasked ? x - m : fmaf(x, n & 2 ? f1 : f0, -m);
            },
            [](int) {});
      };
      // `first`: of this tile of work.
      const auto softmax = [&](int tile, int s, auto first) {
        bool again = false;
        if (!kMasked && !first() && __builtin_expect(quick, 1)) {
          const float most = exponentiate(
              tile,
              [&](int n) { return fmaf(IntToFloat(S[n]), n & 2 ? s1 : s0, n & 2 ? -m1 : -m0); },
              [](int) {});
          if (__builtin_expect(!__any_sync(~0u, most > kMostSum), 1)) return;
          WarpScores<D>(S, shared + slot * Map::kQBytes + 16 * D * my_warp,
                        shared + Map::kK + s * Map::kKBytes);
          again = true;
        }
        const int2 open = LoadSharedInt2(my_record + kOpenTiles);
        if (__any_sync(~0u, !kMasked && open.x <= tile && tile < open.y)) {
          softmax_open(tile, again);
        } else {
          softmax_hidden(tile);
        }
      };
      const auto load_means = [&](int group, float4(&means)[D / 16]) {
        const int64_t kv_head = LoadSharedInt(my_record + kKvHead);
        LoadMeans<D>(a.mean_image + (kv_head * a.mean_groups + group) * (kMeanTiles * D), means);
      };
      // Row sums of the group of tiles that ends (downwards) with `tile`; they go to l.
      const auto end_group = [&](int tile) {
        float r[4];
        float2 l = LoadShared2(my_l);
        __syncwarp();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int of = (lane & 3) + 4 * half;
          const uint32_t at = my_sums - lane * 8 + of * kSumStride + (lane >> 2) * 32;
          const float4 x = LoadSharedFloat4(at), y = LoadSharedFloat4(at + 16);
          // Below `tile` lie the sums of the group before.
          const bool in = of >= (tile & (kMeanTiles - 1));
          r[2 * half] = in ? (x.x + x.z) + (y.x + y.z) : 0.0f;
          r[2 * half + 1] = in ? (x.y + x.w) + (y.y + y.w) : 0.0f;
        }
        __syncwarp();  // the sums of this group may be overwritten
        StoreShared2(my_l, l.x + (r[0] + r[2]), l.y + (r[1] + r[3]));
        return make_float4(r[0], r[1], r[2], r[3]);
      };
      // Whether in some row of this warp few keys outweigh the others, down to `tile`: P is on
      // average less than kLeastMean.
      [[maybe_unused]] const auto few_outweigh = [&](int tile) {
        const float2 l = SumOfQuad(LoadShared2(my_l));
        const float least = (calm == kNeverCalm ? kLeastMean : kLeastMeanOfCalm) * kTile *
                            static_cast<float>(LoadSharedInt(my_record + kLast) + 1 - tile);
        return __any_sync(~0u, l.x < least || l.y < least);
      };
      // T += means of the groups from `begin` on of 256 tiles, whose row sums wait in
      // memory.
      const auto add_kept_means = [&](int begin, int group) {
        const int end =
            min(group | (kSpanGroups - 1), LoadSharedInt(my_record + kLast) / kMeanTiles);
        if (begin > end) return;
        uint4 sums = LoadSums(my_kept(), begin);
#pragma unroll 1
        for (int g = begin; g <= end; ++g) {
          float4 means[D / 16];
          load_means(g, means);
          const uint4 of_g = sums;
          sums = LoadSums(my_kept(), min(g + 1, end));
          AddMeans<D>(T, SumsUnder(of_g, m0, m1), means);
        }
      };

      // Tiles that none of these rows sees pass by.
      const auto skip = [&](int down_to) {
#pragma unroll 1
        for (; __any_sync(~0u, i > down_to); --i, ++it) {
          BarrierWait(bar.Full(stage(it)), parity(it));
          wait_turn();
          pass_turn();
          arrive(bar.Empty(stage(it)));
        }
      };

      skip(LoadSharedInt(my_record + kLast));
      BarrierWait(bar.Full(stage(it)), parity(it));
      wait_turn();
      issue_scores(stage(it));
      prepare(stage(it));
      WgmmaWait<0>();
      pass_turn();
#pragma unroll
      for (int j = 0; j < kSums; ++j) T[j] = O[j] = 0.0f;
      softmax(i, stage(it), [] { return true; });
#pragma unroll 1
      while (more) {
        if ((i & (kMeanTiles - 1)) == 0) {
          const int group = i / kMeanTiles;
          const float4 r = end_group(i);
          if constexpr (kHeld) {
            if (a.smooth_v) {
              float4 means[D / 16];
              load_means(group, means);
              AddMeans<D>(O, r, means);
            }
#pragma unroll
            for (int j = 0; j < kSums; ++j) {
              O[j] += T[j];
              T[j] = 0.0f;
            }
          } else {
            if (a.smooth_v) KeepSums(my_kept(), group, r, m0, m1);
            if ((group & (kMarkGroups - 1)) == 0) {
              const bool full = (group & (kSpanGroups - 1)) == 0;
              if (full && a.smooth_v) add_kept_means(group, group);
              if (full || few_outweigh(i)) {
                if (kept) {
                  AddSpan<kSums>(my_spans(), T);
                } else {
                  KeepSpan<kSums>(my_spans(), T);
                }
                kept = true;
#pragma unroll
                for (int j = 0; j < kSums; ++j) T[j] = 0.0f;
              }
            }
          }
        }
        --i;
        ++it;
        wait_turn();
        issue_outputs(stage(it - 1));
        BarrierWait(bar.Full(stage(it)), parity(it));
        prepare(stage(it));
        WgmmaWait<0>();  // P leaves its registers to the scores
        issue_scores(stage(it));
        WgmmaWait<0>();
        pass_turn();
        arrive(bar.Empty(stage(it - 1)));
        softmax(i, stage(it), [] { return false; });
      }
      const int group = i / kMeanTiles;
      float4 means[D / 16];
      if constexpr (kHeld) load_means(group, means);  // the last products come meanwhile
      wait_turn();
      issue_outputs(stage(it));
      pass_turn();
      const float4 r = end_group(i);
      WgmmaWait<0>();
      arrive(bar.Empty(stage(it)));
      if constexpr (kHeld) {
#pragma unroll
        for (int j = 0; j < kSums; ++j) T[j] += O[j];
      }
      if (a.smooth_v) {
        if constexpr (!kHeld) load_means(group, means);
        AddMeans<D>(T, r, means);
        if constexpr (!kHeld) add_kept_means(group + 1, group);
      }
      ++it;
      --i;
      skip(LoadSharedInt(my_record + kWorkFirst) - 1);
      if (kept) TakeSpans<kSums>(my_spans(), T);
    }

    const int2 place = LoadSharedInt2(my_record + kPlace);  // head, first row
    const int head = place.x, kv_head = LoadSharedInt(my_record + kKvHead), c = lane & 3;
    const int row = place.y + 16 * static_cast<int>(my_warp) + (lane >> 2);
    // Read early, since memory takes long to answer.
    const uint32_t not_finite = LoadGlobalWord(a.see.not_finite + kv_head);
    const float2 l_of_rows = SumOfQuad(LoadShared2(my_l));
    const float l0 = l_of_rows.x, l1 = l_of_rows.y;
    // Nothing attended to: l = 0 and o = 0.
    const float inverse0 = l0 == 0.0f ? 0.0f : 1.0f / l0, inverse1 = l1 == 0.0f ? 0.0f : 1.0f / l1;
    const int batch = head / a.q_heads, q_head = head % a.q_heads;
    float* o = a.o + batch * a.o_strides.batch + q_head * a.o_strides.head;
    const uint32_t v_scale = shared + Map::kVScale + slot * Map::kVScaleBytes + 8 * c;
    const auto unit_of = [&](int j) {
      float2 unit = LoadShared2(v_scale + 32 * j);
      // Channels without a scale have codes 0, and means in units of 1.
      unit.x = unit.x == 0.0f ? 1.0f : unit.x;
      unit.y = unit.y == 0.0f ? 1.0f : unit.y;
      return unit;
    };
    float* o0 = o + static_cast<int64_t>(row) * a.o_strides.token + 2 * c;
    float* o1 = o0 + 8 * a.o_strides.token;
    if (a.o_pairs && a.v_dim == D && __all_sync(~0u, row + 8 < a.see.q_len)) {
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
        const float2 unit = unit_of(j);
        *reinterpret_cast<float2*>(o0 + 8 * j) =
            make_float2(T[4 * j] * inverse0 * unit.x, T[4 * j + 1] * inverse0 * unit.y);
        *reinterpret_cast<float2*>(o1 + 8 * j) =
            make_float2(T[4 * j + 2] * inverse1 * unit.x, T[4 * j + 3] * inverse1 * unit.y);
      }
    } else {
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
        const int d = 8 * j + 2 * c;
        const float2 unit = unit_of(j);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          if (row + 8 * r >= a.see.q_len || d >= a.v_dim) continue;
          const float inverse = r ? inverse1 : inverse0;
          float* at = (r ? o1 : o0) + 8 * j;
          at[0] = T[4 * j + 2 * r] * inverse * unit.x;
          if (d + 1 < a.v_dim) at[1] = T[4 * j + 2 * r + 1] * inverse * unit.y;
        }
      }
    }
    arrive(bar.QEmpty(slot));
    if (a.lse != nullptr && c == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (row + 8 * r >= a.see.q_len) continue;
        const float l = r ? l1 : l0, m = r ? m1 : m0;
        const float shift = a.lse_shift[static_cast<int64_t>(head) * a.q_rows + row + 8 * r];
        a.lse[static_cast<int64_t>(head) * a.see.q_len + row + 8 * r] =
            l == 0.0f ? -INFINITY
                      : static_cast<float>(
                            0.69314718055994531 * (static_cast<double>(m) + log2f(l)) + shift);
      }
    }
    if (not_finite != 0) {
      __syncwarp();
      for (int r = 0; r < 2; ++r) {
        if (row + 8 * r >= a.see.q_len) continue;
        MarkRow(a.see, kv_head, head, row + 8 * r, c, a.v, a.q_heads / a.group, a.v_dim,
                o + static_cast<int64_t>(row + 8 * r) * a.o_strides.token,
                a.lse == nullptr ? nullptr
                                 : a.lse + static_cast<int64_t>(head) * a.see.q_len + row + 8 * r);
      }
    }
  }
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_ATTEND_CUH_
