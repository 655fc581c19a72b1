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
  uint32_t q[kTiles][Form::kQInRegisters ? Form::kQSteps : 1][4];
  float q_scale[kRows];  // times the scale, log2 units
  float m[kRows];
  float sum[kRows], part[kRows];  // of P: whole blocks of 128 keys; the current one

  // Scores of the step whose k lies at `k`; `q_image`: q in shared memory.
  __device__ __forceinline__ void Scores(const uint8_t* k, const uint8_t* q_image,
                                         int (&s)[kTiles][kColumns][4]) const {
    const int lane = threadIdx.x % 32;
    const uint4* b_at = reinterpret_cast<const uint4*>(k) + lane;
    constexpr int kQSteps = Form::kQSteps;
    // 16 bytes of k: two steps of one n8 tile, or one step of two.
    constexpr int kStepsAtOnce = kQSteps >= 2 ? 2 : 1;
#pragma unroll
    for (int pair = 0; pair < kQSteps / kStepsAtOnce; ++pair) {
      uint32_t a[kStepsAtOnce][kTiles][4];
#pragma unroll
      for (int n = 0; n < kStepsAtOnce; ++n) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const int step = pair * kStepsAtOnce + n;
          if constexpr (Form::kQInRegisters) {
#pragma unroll
            for (int e = 0; e < 4; ++e) a[n][t][e] = q[t][step][e];
          } else {
            const uint2* at = reinterpret_cast<const uint2*>(q_image) +
                              (t * kQSteps + step) * 64 + lane;
            const uint2 low = at[0], high = at[32];
            a[n][t][0] = low.x, a[n][t][1] = high.x, a[n][t][2] = low.y, a[n][t][3] = high.y;
          }
        }
      }
#pragma unroll
      for (int column = 0; column < kColumns; column += 4) {
        uint32_t b[4][4];  // [column][b0, b1, b0', b1'], or two columns in each
        if constexpr (kStepsAtOnce == 2) {
#pragma unroll
          for (int j = 0; j < 4; ++j) Unpack(b_at[((column + j) * (kQSteps / 2) + pair) * 32], b[j]);
        } else {
#pragma unroll
          for (int j = 0; j < 2; ++j) Unpack(b_at[(column / 2 + j) * 32], b[j]);
        }
#pragma unroll
        for (int n = 0; n < kStepsAtOnce; ++n) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
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

  // O += P v of the step whose v lies at `v`.
  __device__ __forceinline__ void Outputs(const uint8_t* v) {
    const uint4* at = reinterpret_cast<const uint4*>(v) + threadIdx.x % 32;
    if constexpr (Form::kBytes) {
#pragma unroll
      for (int piece = 0; piece < D / 16; ++piece) {
        uint32_t b[Form::kImages][4];
#pragma unroll
        for (int i = 0; i < Form::kImages; ++i) Unpack(at[(i * (D / 16) + piece) * 32], b[i]);
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            AddBytes(o[t][piece * 2 + odd], p[t], b, odd);
          }
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
        uint32_t b[Form::kImages][4];
#pragma unroll
        for (int i = 0; i < Form::kImages; ++i) Unpack(at[(i * (D / 8) + j) * 32], b[i]);
        if constexpr (Form::kHalfAccumulator) {
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            uint32_t fresh[2] = {0, 0};
            uint32_t(&c)[2] = Form::kSumsInHalves ? o_half[t][j] : fresh;
#pragma unroll
            for (int i = 0; i < 2 * Form::kImages; ++i)
              MultiplyInHalves(c, p[t][i], b[i / 2][i % 2 * 2], b[i / 2][i % 2 * 2 + 1]);
            if constexpr (!Form::kSumsInHalves) AddUnpacked(o[t][j], fresh);
          }
        } else {
#pragma unroll
          for (int i = 0; i < 2 * Form::kImages; ++i) {
#pragma unroll
            for (int t = 0; t < kTiles; ++t)
              Multiply(o[t][j], p[t][i], b[i / 2][i % 2 * 2], b[i / 2][i % 2 * 2 + 1]);
          }
        }
      }
    }
  }

  // P of a step from its scores with the offsets as they are. Returns whether some P may have left
  // the range; then nothing counts. `table`: scales of k by 32 keys for this lane.
  __device__ __forceinline__ bool Softmax(int (&s)[kTiles][kColumns][4],
                                          const float (&table)[Form::kImages],
                                          float (&step_sum)[kRows],
                                          uint32_t (&next)[kTiles][Form::kPRegisters / 4][4]) const {
    bool fits = true;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int t = r / 2, e = r % 2 * 2;
      step_sum[r] = 0.0f;
#pragma unroll
      for (int image = 0; image < Form::kImages; ++image) {
        const float f = __uint_as_float(__float_as_uint(q_scale[r] * table[image]) & ~3u);
        const float c = fmaf(-kMagic, f, -m[r]);
        float sums = 0.0f, most = 0.0f;
#pragma unroll
        for (int j = image * 4; j < image * 4 + 4; ++j) {
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            const float p1 = Exp2(fmaf(__int_as_float(s[t][j][e + n]), f, c));
            sums += p1;
            if (Form::kFollowsMaximum) most = fmaxf(most, p1);
            s[t][j][e + n] = __float_as_int(p1);
          }
        }
        fits &= sums <= Form::kMostSum && most <= Form::kMostP;
        step_sum[r] += sums;
      }
    }
    Pack(s, next);
    return !fits;
  }

  // P, as floats in s, to fragments.
  __device__ __forceinline__ static void Pack(const int (&s)[kTiles][kColumns][4],
                                              uint32_t (&out)[kTiles][Form::kPRegisters / 4][4]) {
    const auto value = [&](int t, int j, int e) {
      const float x = __int_as_float(s[t][j][e]);
      return Form::kRoundsToE4m3 ? RoundToE4m3(x) : x;
    };
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < Form::kPRegisters / 4; ++i) {
#pragma unroll
        for (int a = 0; a < 4; ++a) {
          const int e = a % 2 * 2;
          if constexpr (Form::kBytes) {
            const int j = i * 4 + a / 2 * 2;
            out[t][i][a] = PackE4m3(value(t, j, e), value(t, j, e + 1), value(t, j + 1, e),
                                    value(t, j + 1, e + 1));
          } else {
            const int j = i * 2 + a / 2;
            out[t][i][a] = PackHalves(value(t, j, e), value(t, j, e + 1));
          }
        }
      }
    }
  }

  // O and the sums under new offsets.
  __device__ __forceinline__ void Rescale(const float (&alpha)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sum[r] *= alpha[r];
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
  __device__ __forceinline__ void Slow(const AttendPlan& plan, const uint8_t* k,
                                       const uint8_t* q_image, const Block& block, int warp_row,
                                       int key0, bool clipped, const float* shift) {
    int s[kTiles][kColumns][4];
    Scores(k, q_image, s);
    const int lane = threadIdx.x % 32;
    const float* k_scale = plan.space.k_scale +
                           block.kv_head * plan.space.tiles * kTileTokens + key0 + lane % 4 * 2;
    const float largest_k = __uint_as_float(plan.space.k_scale_most[block.kv_head]);
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
    if (__any_sync(~0u, moves)) Rescale(alpha);
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
  __device__ __forceinline__ void EndBlock(const float* means) {
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
      sum[r] += part[r];
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
                                                  const uint32_t (&b)[Form::kImages][4], int odd) {
    if constexpr (Form::kHalfAccumulator) {
      uint32_t c[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < Form::kImages; ++i)
        MultiplyE4m3InHalves(c, a[i], b[i][odd * 2], b[i][odd * 2 + 1]);
      AddUnpacked(o1, c);
    } else if constexpr (Form::kTwoLevel) {
      float c[4] = {};
#pragma unroll
      for (int i = 0; i < Form::kImages; ++i)
        MultiplyE4m3(c, a[i], b[i][odd * 2], b[i][odd * 2 + 1]);
#pragma unroll
      for (int e = 0; e < 4; ++e) o1[e] += c[e];
    } else {
#pragma unroll
      for (int i = 0; i < Form::kImages; ++i) {
        MultiplyE4m3(o1, a[i], b[i][odd * 2], b[i][odd * 2 + 1]);
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
__global__ void __launch_bounds__(Form::kThreads, 2)
    AttendKernel(const __grid_constant__ AttendPlan plan) {
  using W = Warp<Form>;
  using Copies = typename Form::Copies;
  constexpr int D = Form::kDim, kStep = Form::kStep, kRows = W::kRows;
  extern __shared__ __align__(128) uint8_t memory[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Visibility& see = plan.see;
  const Workspace& space = plan.space;
  const Block block(plan, Form::kBlockRows);
  const int rows = min(Form::kBlockRows, see.q_len - block.query0);
  const int warp_row = warp * 16 * Form::kTiles;  // of the block

  // Steps that any row sees, and among them those where every row sees every key.
  const int last_query = block.query0 + rows - 1;
  const int end_key = see.EndKey(last_query), first_key = min(see.FirstKey(block.query0), end_key);
  const int first = first_key / kStep;
  const int end = end_key > first_key ? (end_key + kStep - 1) / kStep : first;
  const bool plain = see.mask_kind == MaskKind::kNone;
  const int open_from = plain ? (see.FirstKey(last_query) + kStep - 1) / kStep : end;
  const int open_to = plain ? see.EndKey(block.query0) / kStep : 0;
  const bool needs_slow = plan.key_scales || plan.smooth_q > 0;

  const int64_t steps = static_cast<int64_t>(space.tiles) * (kTileTokens / kStep);
  Copies copies;
  copies.base = SharedAddress(memory);
  copies.k = space.k_codes + block.kv_head * steps * Form::kKBytes;
  copies.v = space.v_codes + block.kv_head * steps * Form::kVBytes;
  copies.means = plan.smooth_v
                     ? space.v_mean_units + block.kv_head * space.tiles * static_cast<int64_t>(D)
                     : nullptr;
  copies.first = first;
  copies.end = end;

  const int64_t row0 = block.head * space.q_rows + block.query0 + warp_row;
  const uint8_t* q_codes = space.q_codes + row0 / kRowImage * Form::kQBytes;
  uint8_t* q_image = memory + Form::kQ + warp * Form::kTiles * Form::kQBytes;
  float* mean_scores = reinterpret_cast<float*>(memory + Form::kMeanScores);

  W w;
#pragma unroll
  for (int t = 0; t < Form::kTiles; ++t) {
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) w.o[t][j][e] = 0.0f;
      if constexpr (Form::kSumsInHalves) w.o_half[t][j][0] = w.o_half[t][j][1] = 0;
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float scale = space.q_scale[row0 + 8 * r + lane / 4];
    // A row that is not finite counts as zero until its outputs are written.
    w.q_scale[r] = scale == scale ? scale * plan.scale : 0.0f;
    w.m[r] = -INFINITY;
    w.sum[r] = w.part[r] = 0.0f;
  }
  if (first < end) {
    if constexpr (Form::kQInRegisters) {
      const uint2* at = reinterpret_cast<const uint2*>(q_codes) + lane;
#pragma unroll
      for (int t = 0; t < Form::kTiles; ++t) {
#pragma unroll
        for (int step = 0; step < Form::kQSteps; ++step) {
          const uint2 low = __ldg(at + (t * Form::kQSteps + step) * 64);
          const uint2 high = __ldg(at + (t * Form::kQSteps + step) * 64 + 32);
          w.q[t][step][0] = low.x, w.q[t][step][1] = high.x;
          w.q[t][step][2] = low.y, w.q[t][step][3] = high.y;
        }
      }
    } else {
      const uint4* from = reinterpret_cast<const uint4*>(q_codes);
#pragma unroll
      for (int n = lane; n < Form::kTiles * Form::kQBytes / 16; n += 32)
        reinterpret_cast<uint4*>(q_image)[n] = __ldg(from + n);
    }
#pragma unroll
    for (int n = 0; n < Form::kAhead; ++n) copies.Start(first + n, n, (n + Copies::kSlots - 1) % Copies::kSlots);
    if (plan.smooth_q > 0)
      MeanScores<D, kStep>(plan, block, first, mean_scores + first % 2 * kMostMeans * kStep);
  }

  // Scales of k by 32 keys, one step ahead.
  const float* table_at = space.k_table + block.kv_head * space.tiles * 16 + lane % 4;
  float table[Form::kImages];
#pragma unroll
  for (int n = 0; n < Form::kImages; ++n) {
    table[n] = first < end ? __ldg(table_at + (first * Form::kImages + n) * 4) : 0.0f;
  }

  int slot = 0, before = Copies::kSlots - 1;  // of k of this step, of v of the one before
#pragma unroll 1
  for (int i = first; i <= end && first < end; ++i) {
    WaitForCopies<Form::kAhead - 1>();
    __syncthreads();
    copies.Start(i + Form::kAhead, before, before == 0 ? Copies::kSlots - 1 : before - 1);
    if (i > first && (i == end || i % Copies::kStepsPerMean == 0)) {
      w.EndBlock(plan.smooth_v
                     ? reinterpret_cast<const float*>(memory + (copies.Means(i - 1) - copies.base))
                     : nullptr);
    }
    const uint8_t* v = memory + Copies::kV + before * Form::kVBytes;
    const uint8_t* k = memory + Copies::kK + slot * Form::kKBytes;
    if (i == end) {
      w.Outputs(v);
      break;
    }
    const bool open = i >= open_from && i < open_to;
    bool repeat = true;
    if (i != first) {
      if (open && !needs_slow) {
        int s[W::kTiles][W::kColumns][4];
        uint32_t next[W::kTiles][Form::kPRegisters / 4][4];
        float step_sum[kRows];
        w.Scores(k, q_image, s);
        w.Outputs(v);
        repeat = __any_sync(~0u, w.Softmax(s, table, step_sum, next));
#pragma unroll
        for (int t = 0; t < W::kTiles; ++t) {
#pragma unroll
          for (int n = 0; n < Form::kPRegisters; ++n) w.p[t][n / 4][n % 4] = next[t][n / 4][n % 4];
        }
        if (!repeat) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) w.part[r] += step_sum[r];
        }
      } else {
        w.Outputs(v);
      }
    }
    if (repeat) {
      const float* shift = nullptr;
      if (plan.smooth_q > 0) {
        if (i + 1 < end)
          MeanScores<D, kStep>(plan, block, i + 1, mean_scores + (i + 1) % 2 * kMostMeans * kStep);
        const int mean = (block.query0 % kTileTokens + warp_row) / plan.smooth_q;
        shift = mean_scores + (i % 2 * kMostMeans + mean) * kStep;
      }
      w.Slow(plan, k, q_image, block, warp_row, i * kStep, !open, shift);
    }
#pragma unroll
    for (int n = 0; n < Form::kImages; ++n) {
      if (i + 1 < end) table[n] = __ldg(table_at + ((i + 1) * Form::kImages + n) * 4);
    }
    before = slot;
    slot = slot + 1 == Copies::kSlots ? 0 : slot + 1;
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
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float sum = QuadSum(w.sum[r]);
    WriteRow<D>(plan, block, block.query0 + warp_row + 8 * r + lane / 4, w.o[r / 2], r % 2, w.m[r],
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
