// Attention over quantised operands by mma.sync: int8 or int4 products for the scores, halves or
// e4m3 for P·V. One block owns 128 (or 64) rows of one head, 4 warps of 32 (16) each, and runs over
// the keys in steps of 32 or 64:
//
//   S = q_codes k_codes^T           int32, from kMagic on, so that its bits read as a float
//   x = S f + c                     f = scale q_scale k_scale, c = -(kMagic f + m): log2 units
//   P = 2^x, l += sum P             unrounded
//   O += P v_codes                  P rounded to halves or e4m3 in registers
//   o = (O + sums of P · means of v) v_scale / l
//
// c is exact (f keeps 22 bits, m is a multiple of a power of two near f), so x is rounded once.
//
// The offset m of a row follows its maximum rarely. A step first computes P with the m it has; only
// where a thread's sum of P says that P leaves the range of its format does the warp repeat the
// step with the maximum (`Slow`), rescaling O and l. Nearly every step takes no maximum, no
// reduction and no rescaling. Masks, edges, k scales by key and means of q take the slow step too.
//
// P·V of a step is issued between the scores of the next step and their softmax, in one basic
// block, so that the tensor cores work on it while the softmax runs:
//   step i:  scores(i) | P·V(i - 1) and softmax(i)
//
//          keys 32 or 64 a step             registers of a thread at D = 128, 32 rows, 32 keys:
//        +-----------------+                  O 128, S 32, P 16, q 32
//   128  | warp 0: 32 rows |                shared memory (ring.cuh): slots of k and v, means of v,
//  rows  | ...             |                  scores of q's means, and q where registers do not last
//        +-----------------+
#ifndef SAGE_CUDA_INT8_ATTEND_CUH_
#define SAGE_CUDA_INT8_ATTEND_CUH_

#include <cmath>

#include "cuda/int8/attend_plan.h"
#include "cuda/int8/finish.cuh"
#include "cuda/int8/form.cuh"
#include "cuda/int8/mean_scores.cuh"
#include "cuda/int8/products.cuh"
#include "cuda/int8/ring.cuh"

namespace sage::cuda::int8 {

// The state of a warp. Row r of a thread's kRows is 8 r + lane / 4 of the warp's rows; its columns
// of an n8 tile are 2 (lane % 4) and the next.
template <class Form>
struct Warp {
  static constexpr int kTiles = Form::kTiles, kRows = 2 * kTiles, kColumns = Form::kStep / 8;
  static constexpr int D = Form::kDim;

  float o[kTiles][D / 8][4];
  uint32_t o_half[Form::kSumsInHalves ? kTiles : 1][D / 8][2];
  uint32_t p[kTiles][Form::kPRegisters / 4][4];
  uint32_t q[kTiles][Form::kQResident > 0 ? Form::kQResident : 1][4];
  float q_scale[kRows];  // times the scale, log2 units
  float m[kRows];
  float part[kRows];  // sums of P over the current block of 128 keys; those before: shared memory

  // Scores of the step whose k lies at `k`; `q_image`: q in shared memory.
  __device__ __forceinline__ void Scores(const uint8_t* k, const uint8_t* q_image,
                                         int (&s)[kTiles][kColumns][4]) const {
    const int lane = threadIdx.x % 32;
    const uint4* b_at = reinterpret_cast<const uint4*>(k) + lane;
    constexpr int kQSteps = Form::kQSteps;
    // 16 bytes of k: two steps of one n8 tile, or one step of two.
    constexpr int kStepsAtOnce = kQSteps >= 2 ? 2 : 1;
    constexpr int kGroup = kColumns < 4 ? kColumns : 4;
#pragma unroll
    for (int pair = 0; pair < kQSteps / kStepsAtOnce; ++pair) {
      uint32_t a[kStepsAtOnce][kTiles][4];
#pragma unroll
      for (int n = 0; n < kStepsAtOnce; ++n) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const int step = pair * kStepsAtOnce + n;
          if (step < Form::kQResident) {
#pragma unroll
            for (int e = 0; e < 4; ++e) a[n][t][e] = q[t][step][e];
          } else {
            const uint2* at = reinterpret_cast<const uint2*>(q_image) +
                              (t * (kQSteps - Form::kQResident) + step - Form::kQResident) * 64 +
                              lane;
            const uint2 low = at[0], high = at[32];
            a[n][t][0] = low.x, a[n][t][1] = high.x, a[n][t][2] = low.y, a[n][t][3] = high.y;
          }
        }
      }
#pragma unroll
      for (int column = 0; column < kColumns; column += kGroup) {
        uint32_t b[kGroup][4];  // [column][b0, b1, b0', b1'], or two columns in each
        if constexpr (kStepsAtOnce == 2) {
#pragma unroll
          for (int j = 0; j < kGroup; ++j) Unpack(b_at[((column + j) * (kQSteps / 2) + pair) * 32], b[j]);
        } else {
#pragma unroll
          for (int j = 0; j < kGroup / 2; ++j) Unpack(b_at[(column / 2 + j) * 32], b[j]);
        }
#pragma unroll
        for (int n = 0; n < kStepsAtOnce; ++n) {
#pragma unroll
          for (int j = 0; j < kGroup; ++j) {
            const uint32_t b0 = kStepsAtOnce == 2 ? b[j][2 * n] : b[j / 2][j % 2 * 2];
            const uint32_t b1 = kStepsAtOnce == 2 ? b[j][2 * n + 1] : b[j / 2][j % 2 * 2 + 1];
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
              if (pair == 0 && n == 0) {
                Form::StartScores(s[t][column + j], a[n][t], b0, b1);
              } else {
                Form::AddScores(s[t][column + j], a[n][t], b0, b1);
              }
            }
          }
        }
      }
    }
  }

  // O += P v in the eight channels 8 j..; `b`: v of the 16 channels that these are half of.
  __device__ __forceinline__ void OutputColumn(int j, const uint4* v,
                                               uint32_t (&b)[Form::kVImages][4]) {
    if (j % 2 == 0) {
#pragma unroll
      for (int i = 0; i < Form::kVImages; ++i) Unpack(v[(i * (D / 16) + j / 2) * 32], b[i]);
    }
    const int odd = j % 2 * 2;
    if constexpr (Form::kBytes) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) AddBytes(o[t][j], p[t], b, odd);
    } else if constexpr (Form::kHalfAccumulator) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        uint32_t fresh[2] = {0, 0};
        uint32_t(&c)[2] = Form::kSumsInHalves ? o_half[t][j] : fresh;
#pragma unroll
        for (int i = 0; i < Form::kVImages; ++i)
          MultiplyInHalves(c, p[t][i], b[i][odd], b[i][odd + 1]);
        if constexpr (!Form::kSumsInHalves) AddUnpacked(o[t][j], fresh);
      }
    } else {
#pragma unroll
      for (int i = 0; i < Form::kVImages; ++i) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
          MultiplyHalves(o[t][j], p[t][i], b[i][odd], b[i][odd + 1]);
      }
    }
  }

  // O += P v of the step whose v lies at `v`.
  __device__ __forceinline__ void Outputs(const uint8_t* v) {
    const uint4* at = reinterpret_cast<const uint4*>(v) + threadIdx.x % 32;
    uint32_t b[Form::kVImages][4];
#pragma unroll
    for (int j = 0; j < D / 8; ++j) OutputColumn(j, at, b);
  }

  // O += P v, and the next P from its scores with the offsets as they are: the products of eight
  // channels, then as much of the softmax as they take, in this order. Returns whether some P may
  // have left the range; then the new P does not count. `table`: scales of k by 32 keys for this
  // lane.
  __device__ __forceinline__ bool OutputsAndSoftmax(
      const uint8_t* v, int (&s)[kTiles][kColumns][4], const float (&table)[Form::kTables],
      float (&step_sum)[kRows], uint32_t (&next)[kTiles][Form::kPRegisters / 4][4]) {
    // Pairs of scores to a column of outputs, or columns of outputs to a pair.
    constexpr int kPairs = kRows * kColumns, kOutputs = D / 8;
    constexpr int kAtOnce = kPairs > kOutputs ? kPairs / kOutputs : 1;
    constexpr int kEvery = kOutputs > kPairs ? kOutputs / kPairs : 1;
    static_assert(kPairs * kEvery == kOutputs * kAtOnce, "the pairs spread evenly");
    constexpr int kGroup = kColumns < 4 ? kColumns : 4;  // columns of 32 keys
    const uint4* at = reinterpret_cast<const uint4*>(v) + threadIdx.x % 32;
    uint32_t b[Form::kVImages][4];
    bool fits = true;
    float f = 0.0f, c = 0.0f, sums = 0.0f, most = 0.0f;
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) {
      OutputColumn(j, at, b);
      if (j % kEvery != kEvery - 1) continue;
#pragma unroll
      for (int pair = 0; pair < kAtOnce; ++pair) {
        const int n = j / kEvery * kAtOnce + pair;
        const int r = n / kColumns, column = n % kColumns, image = column / kGroup;
        if (column % kGroup == 0) {
          f = __uint_as_float(__float_as_uint(q_scale[r] * table[image]) & ~3u);
          c = fmaf(-kMagic, f, -m[r]);
          sums = most = 0.0f;
        }
        int(&x)[4] = s[r / 2][column];
        const int e = r % 2 * 2;
#pragma unroll
        for (int i = e; i < e + 2; ++i) {
          const float p1 = Exp2InOrder(fmaf(__int_as_float(x[i]), f, c));
          sums += p1;
          if (Form::kFollowsMaximum) most = fmaxf(most, p1);
          x[i] = __float_as_int(p1);
        }
        if (column % kGroup == kGroup - 1) {
          fits &= sums <= Form::kMostSum && most <= Form::kMostP;
          step_sum[r] = image == 0 ? sums : step_sum[r] + sums;
        }
        if constexpr (Form::kBytes) {
          if (column % 2 == 1)
            next[r / 2][column / 4][column % 4 / 2 * 2 + r % 2] = PackPair(s, r, column - 1);
        } else {
          next[r / 2][column / 2][column % 2 * 2 + r % 2] = PackPair(s, r, column);
        }
      }
    }
    return !fits;
  }

  // One register of P: row r, columns of one n8 tile of halves, of two of e4m3.
  __device__ __forceinline__ static uint32_t PackPair(const int (&s)[kTiles][kColumns][4], int r,
                                                      int column) {
    const auto value = [&](int j, int e) {
      const float x = __int_as_float(s[r / 2][j][r % 2 * 2 + e]);
      return Form::kRoundsToE4m3 ? RoundToE4m3(x) : x;
    };
    if constexpr (Form::kBytes) {
      return PackE4m3(value(column, 0), value(column, 1), value(column + 1, 0),
                      value(column + 1, 1));
    } else {
      return PackHalves(value(column, 0), value(column, 1));
    }
  }

  // P, as floats in s, to fragments.
  __device__ __forceinline__ static void Pack(const int (&s)[kTiles][kColumns][4],
                                              uint32_t (&out)[kTiles][Form::kPRegisters / 4][4]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if constexpr (Form::kBytes) {
          if (j % 2 == 0) out[r / 2][j / 4][j % 4 + r % 2] = PackPair(s, r, j);
        } else {
          out[r / 2][j / 2][j % 2 * 2 + r % 2] = PackPair(s, r, j);
        }
      }
    }
  }

  // O and the sums under new offsets.
  __device__ __forceinline__ void Rescale(const float (&alpha)[kRows], float* sums) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sums[r * Form::kThreads] *= alpha[r];
      part[r] *= alpha[r];
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o[t][j][e] *= alpha[2 * t + e / 2];
        if constexpr (Form::kSumsInHalves) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const __half2 a = __float2half2_rn(alpha[2 * t + h]);
            const __half2 x = __hmul2(*reinterpret_cast<const __half2*>(&o_half[t][j][h]), a);
            o_half[t][j][h] = *reinterpret_cast<const uint32_t*>(&x);
          }
        }
      }
    }
  }

  // A step with everything: scales of k by key, means of q, masks, edges, the maximum.
  // `shift`: what the means of q add to the scores of this warp's rows, by key; null without.
  // `row_sums`: this thread's sums of P in shared memory.
  __device__ __forceinline__ void Slow(const AttendPlan& plan, const uint8_t* k,
                                       const uint8_t* q_image, const Block& block, int warp_row,
                                       int key0, const float* shift, float* row_sums) {
    int s[kTiles][kColumns][4];
    Scores(k, q_image, s);
    const int lane = threadIdx.x % 32;
    const float* k_scale = plan.space.k_scale +
                           block.kv_head * plan.space.tiles * kTileTokens + key0 + lane % 4 * 2;
    const float largest_k = __uint_as_float(plan.space.k_scale_most[block.kv_head]);
    const int last = min(block.query0 + warp_row + 8 * kRows, plan.see.q_len) - 1;
    const bool clipped = !plan.see.SeesAll(block.query0 + warp_row, last + 1 - block.query0 - warp_row, key0, Form::kStep);
    float alpha[kRows];
    bool moves = false;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float2 scale = __ldg(reinterpret_cast<const float2*>(k_scale + j * 8));
      float2 add = make_float2(0.0f, 0.0f);
      if (shift != nullptr)
        add = *reinterpret_cast<const float2*>(shift + j * 8 + lane % 4 * 2);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float f = q_scale[2 * t + e / 2] * (e % 2 == 0 ? scale.x : scale.y);
          const float x = fmaf(__int_as_float(s[t][j][e]) - kMagic, f, e % 2 == 0 ? add.x : add.y);
          s[t][j][e] = __float_as_int(x);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int t = r / 2, e = r % 2 * 2;
      if (clipped) HideScores(plan, block, warp_row + 8 * r + lane / 4, key0, e, s[t]);
      float most = -INFINITY;
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        most = fmaxf(most, fmaxf(__int_as_float(s[t][j][e]), __int_as_float(s[t][j][e + 1])));
      most = QuadMax(most) - Form::kStart;
      // m stays a multiple of the power of two above every f of the row, where that is finite.
      const float unit = __uint_as_float(__float_as_uint(q_scale[r] * largest_k) & kInfBits) * 2.0f;
      if (unit < 0x1p90f && fabsf(most) < INFINITY)
        most = __fsub_rn(__fadd_rn(most, kMagic * unit), kMagic * unit);
      const float now = fmaxf(m[r], most);
      alpha[r] = now == m[r] ? 1.0f : Exp2(m[r] - now);
      moves |= now != m[r];
      m[r] = now;
    }
    if (__any_sync(~0u, moves)) Rescale(alpha, row_sums);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int t = r / 2, e = r % 2 * 2;
      const float origin = m[r] == -INFINITY ? 0.0f : m[r];
      float sums = 0.0f;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float p1 = Exp2(__int_as_float(s[t][j][e + n]) - origin);
          sums += p1;
          s[t][j][e + n] = __float_as_int(p1);
        }
      }
      part[r] += sums;
    }
    Pack(s, p);
  }

  // Closes a block of 128 keys: its sums of P, times the means of v when there are any.
  __device__ __forceinline__ void EndBlock(const float* means, float* sums) {
    if (means != nullptr) {
      float weight[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) weight[r] = QuadSum(part[r]);
      const float2* at = reinterpret_cast<const float2*>(means) + threadIdx.x % 4;
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
        const float2 mean = at[j * 4];
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
#pragma unroll
          for (int e = 0; e < 4; ++e)
            o[t][j][e] = fmaf(weight[2 * t + e / 2], e % 2 == 0 ? mean.x : mean.y, o[t][j][e]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sums[r * Form::kThreads] += part[r];
      part[r] = 0.0f;
    }
  }

 private:
  __device__ __forceinline__ static void Unpack(const uint4& from, uint32_t (&to)[4]) {
    to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
  }
  __device__ __forceinline__ static void AddUnpacked(float (&o1)[4], const uint32_t (&c)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float2 x = UnpackHalves(c[h]);
      o1[2 * h] += x.x;
      o1[2 * h + 1] += x.y;
    }
  }
  __device__ __forceinline__ static void AddBytes(float (&o1)[4],
                                                  const uint32_t (&a)[Form::kPRegisters / 4][4],
                                                  const uint32_t (&b)[Form::kVImages][4], int odd) {
    if constexpr (Form::kHalfAccumulator) {
      uint32_t c[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < Form::kVImages; ++i)
        MultiplyE4m3InHalves(c, a[i], b[i][odd], b[i][odd + 1]);
      AddUnpacked(o1, c);
    } else if constexpr (Form::kTwoLevel) {
      float c[4] = {};
#pragma unroll
      for (int i = 0; i < Form::kVImages; ++i)
        MultiplyE4m3(c, a[i], b[i][odd], b[i][odd + 1]);
#pragma unroll
      for (int e = 0; e < 4; ++e) o1[e] += c[e];
    } else {
#pragma unroll
      for (int i = 0; i < Form::kVImages; ++i) {
        MultiplyE4m3(o1, a[i], b[i][odd], b[i][odd + 1]);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
        // Hopper computes this instruction by halves and exact sums: cut them as the 13 bits of
        // mantissa do that the instruction has where it is one.
#pragma unroll
        for (int e = 0; e < 4; ++e) o1[e] = __uint_as_float(__float_as_uint(o1[e]) & ~0x3ffu);
#endif
      }
    }
  }
};

template <class Form>
__global__ void __launch_bounds__(Form::kThreads, Form::kBlocks)
    AttendKernel(const __grid_constant__ AttendPlan plan) {
  using W = Warp<Form>;
  using Copies = typename Form::Copies;
  constexpr int D = Form::kDim, kStep = Form::kStep, kRows = W::kRows;
  constexpr int kTileSteps = kTileKeys / kStep;
  extern __shared__ __align__(128) uint8_t memory[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Visibility& see = plan.see;
  const Workspace& space = plan.space;
  const int warp_row = warp * 16 * Form::kTiles;  // of the block
  float* sums = reinterpret_cast<float*>(memory + Form::kSums) + threadIdx.x;
  float* mean_scores = reinterpret_cast<float*>(memory + Form::kMeanScores);
  uint8_t* q_image = memory + Form::kQ + warp * Form::kQSharedBytes;
  // Kept there rather than in registers: only slow steps and the end need it.
  const Block& kept = *reinterpret_cast<const Block*>(memory + Form::kBlock);

  W w;
  Copies copies;
  const float* table_at;  // scales of k by 32 keys
  // Steps of the block, and of this warp: those that it sees, those that all its rows see whole.
  int first = 0, end = 0, warp_first = 0, warp_count = 0, fast_first = 0, fast_count = 0;
  {
    const Block block(plan, Form::kBlockRows);
    if (threadIdx.x == 0) *reinterpret_cast<Block*>(memory + Form::kBlock) = block;
    const int query0 = block.query0, warp_query0 = query0 + warp_row;
    const int last = min(query0 + Form::kBlockRows, see.q_len) - 1;
    const int end_key = see.EndKey(last), first_key = min(see.FirstKey(query0), end_key);
    if (end_key > first_key) {
      // Whole tiles in front: copies and steps begin together.
      first = first_key / kTileKeys * kTileSteps;
      end = (end_key + kStep - 1) / kStep;
    }
    const int warp_last = min(warp_query0 + 8 * kRows, see.q_len) - 1;
    if (warp_last >= warp_query0) {
      const int warp_end_key = see.EndKey(warp_last), from = see.FirstKey(warp_query0);
      warp_first = from / kStep;
      warp_count = warp_end_key > from ? (warp_end_key + kStep - 1) / kStep - warp_first : 0;
      if (see.mask_kind == MaskKind::kNone && !plan.key_scales && plan.smooth_q == 0) {
        // The first step has no offset yet.
        fast_first = max((see.FirstKey(warp_last) + kStep - 1) / kStep, warp_first + 1);
        fast_count = max(see.EndKey(warp_query0) / kStep - fast_first, 0);
      }
    }
    const int64_t tiles = static_cast<int64_t>(space.tiles) * (kTileTokens / kTileKeys);
    copies.base = SharedAddress(memory);
    copies.k = space.k_codes + block.kv_head * tiles * Form::kKTileBytes;
    copies.v = space.v_codes + block.kv_head * tiles * Form::kVTileBytes;
    copies.means = plan.smooth_v
                       ? space.v_mean_units + block.kv_head * space.tiles * static_cast<int64_t>(D)
                       : nullptr;
    copies.first = first / kTileSteps;
    copies.end = (end + kTileSteps - 1) / kTileSteps;
    copies.Start(copies.first, 0, 0);
    table_at = space.k_table + block.kv_head * space.tiles * 16 + lane % 4;

    const int64_t row0 = block.head * space.q_rows + warp_query0;
    const uint2* from =
        reinterpret_cast<const uint2*>(space.q_codes + row0 / kRowImage * Form::kQBytes) + lane;
    uint2* to = reinterpret_cast<uint2*>(q_image) + lane;
    const bool exists = warp_last >= warp_query0;
#pragma unroll
    for (int t = 0; t < Form::kTiles; ++t) {
#pragma unroll
      for (int step = 0; step < Form::kQSteps; ++step) {
        const int at = (t * Form::kQSteps + step) * 64;
        const uint2 low = exists ? __ldg(from + at) : make_uint2(0, 0);
        const uint2 high = exists ? __ldg(from + at + 32) : make_uint2(0, 0);
        if (step < Form::kQResident) {
          w.q[t][step][0] = low.x, w.q[t][step][1] = high.x;
          w.q[t][step][2] = low.y, w.q[t][step][3] = high.y;
        } else {
          to[0] = low;
          to[32] = high;
          to += 64;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float scale = exists ? space.q_scale[row0 + 8 * r + lane / 4] : 0.0f;
      // A row that is not finite counts as zero until its outputs are written.
      w.q_scale[r] = scale == scale ? scale * plan.scale : 0.0f;
      w.m[r] = -INFINITY;
      w.part[r] = 0.0f;
      sums[r * Form::kThreads] = 0.0f;
    }
    if (plan.smooth_q > 0 && first < end) {
      MeanScores<D, Form::kBlockRows, Form::kWarps>(
          plan, block, copies.first,
          mean_scores + copies.first % 2 * kMeanScoreFloats<Form::kBlockRows>);
    }
  }
#pragma unroll
  for (int t = 0; t < Form::kTiles; ++t) {
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) w.o[t][j][e] = 0.0f;
      if constexpr (Form::kSumsInHalves) w.o_half[t][j][0] = w.o_half[t][j][1] = 0;
    }
  }

  int k_slot = 0, v_slot = 0;         // of the tile
  const uint8_t* v_before = memory;   // v of the step before
  // Lets a tile begin: its k and v are there, the next copies are under way.
  const auto enter = [&](int tile) {
    WaitForCopies<0>();
    __syncthreads();
    copies.Start(tile + 1, k_slot ^ 1, v_slot == Copies::kVSlots - 1 ? 0 : v_slot + 1);
  };
  if (first < end) {
    enter(copies.first);
    // Scales of k one step ahead: their latency would show where the scores are ready.
    float table[Form::kTables];
#pragma unroll
    for (int n = 0; n < Form::kTables; ++n)
      table[n] = __ldg(table_at + (first * kStep / kStepTokens + n) * 4);
    // The edge of this loop lies between a step's scores and the rest of it: within one basic block
    // the assembler would put the products of the step before in front of the scores, and nothing
    // would be left to run under the softmax.
    int s[W::kTiles][W::kColumns][4];
    bool scored = false;  // s holds the scores of step i, a fast one
#pragma unroll 1
    for (int i = first;;) {
      const int part_of_tile = kTileSteps == 1 ? 0 : i % kTileSteps;
      bool repeat = true;
      if (scored) {
        uint32_t next[W::kTiles][Form::kPRegisters / 4][4];
        float step_sum[kRows];
        repeat = __any_sync(~0u, w.OutputsAndSoftmax(v_before, s, table, step_sum, next));
#pragma unroll
        for (int t = 0; t < W::kTiles; ++t) {
#pragma unroll
          for (int n = 0; n < Form::kPRegisters; ++n) w.p[t][n / 4][n % 4] = next[t][n / 4][n % 4];
        }
        if (!repeat) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) w.part[r] += step_sum[r];
        }
      } else if (static_cast<unsigned>(i - 1 - warp_first) < static_cast<unsigned>(warp_count)) {
        w.Outputs(v_before);
      }
      if (plan.smooth_q > 0 && part_of_tile == 0 && i + kTileSteps < end) {
        const int tile = i / kTileSteps + 1;
        MeanScores<D, Form::kBlockRows, Form::kWarps>(
            plan, kept, tile, mean_scores + tile % 2 * kMeanScoreFloats<Form::kBlockRows>);
      }
      if (repeat &&
          static_cast<unsigned>(i - warp_first) < static_cast<unsigned>(warp_count)) {
        const float* shift = nullptr;
        if (plan.smooth_q > 0) {
          const int row = kept.query0 % kTileTokens + warp_row;
          shift = mean_scores + i / kTileSteps % 2 * kMeanScoreFloats<Form::kBlockRows> +
                  (row / kTileTokens * kMostMeans + row % kTileTokens / plan.smooth_q) * kTileKeys +
                  part_of_tile * kStep;
        }
        w.Slow(plan, memory + Copies::kK + k_slot * Form::kKTileBytes + part_of_tile * Form::kKBytes,
               q_image, kept, warp_row, i * kStep, shift, sums);
      }
      v_before = memory + Copies::kV + v_slot * Form::kVTileBytes + part_of_tile * Form::kVBytes;
      ++i;
      if (i == end) break;
#pragma unroll
      for (int n = 0; n < Form::kTables; ++n)
        table[n] = __ldg(table_at + (i * kStep / kStepTokens + n) * 4);
      if (i % (kTileTokens / kStep) == 0) {
        w.EndBlock(plan.smooth_v ? reinterpret_cast<const float*>(
                                       memory + Copies::Means(i / kTileSteps - 1))
                                 : nullptr,
                   sums);
      }
      if (kTileSteps == 1 || i % kTileSteps == 0) {
        k_slot ^= 1;
        v_slot = v_slot == Copies::kVSlots - 1 ? 0 : v_slot + 1;
        enter(i / kTileSteps);
      }
      scored = static_cast<unsigned>(i - fast_first) < static_cast<unsigned>(fast_count);
      if (scored) {
        w.Scores(memory + Copies::kK + k_slot * Form::kKTileBytes +
                     (kTileSteps == 1 ? 0 : i % kTileSteps * Form::kKBytes),
                 q_image, s);
      }
    }
    if (static_cast<unsigned>(end - 1 - warp_first) < static_cast<unsigned>(warp_count))
      w.Outputs(v_before);
    w.EndBlock(plan.smooth_v ? reinterpret_cast<const float*>(
                                   memory + Copies::Means((end - 1) / kTileSteps))
                             : nullptr,
               sums);
  }

  if constexpr (Form::kSumsInHalves) {
#pragma unroll
    for (int t = 0; t < Form::kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float2 x = UnpackHalves(w.o_half[t][j][h]);
          w.o[t][j][2 * h] += x.x;
          w.o[t][j][2 * h + 1] += x.y;
        }
      }
    }
  }
  if (first >= end) __syncthreads();  // the block is kept
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float sum = QuadSum(sums[r * Form::kThreads]);
    WriteRow<D>(plan, kept, kept.query0 + warp_row + 8 * r + lane / 4, w.o[r / 2], r % 2, w.m[r],
                sum);
  }
}

template <class Form>
void LaunchInstance(AttendPlan plan, cudaStream_t stream) {
  const auto kernel = AttendKernel<Form>;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           Form::kSharedBytes) != cudaSuccess)
    return;
  plan.query_tiles = (plan.see.q_len + Form::kBlockRows - 1) / Form::kBlockRows;
  const int64_t blocks = plan.heads * plan.query_tiles;
  kernel<<<static_cast<unsigned>(blocks), Form::kThreads, Form::kSharedBytes, stream>>>(plan);
}

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_ATTEND_CUH_
