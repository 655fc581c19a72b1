// What one warp computes in a step of 32 or 64 keys: scores, offsets, softmax, outputs. attend.cuh
// has the picture and the loop.
#ifndef SAGE_CUDA_INT8_WARP_CUH_
#define SAGE_CUDA_INT8_WARP_CUH_

#include <cmath>

#include "cuda/int8/finish.cuh"
#include "cuda/int8/form.cuh"
#include "cuda/int8/products.cuh"

namespace sage::cuda::int8 {

// Rows whose f (below) reaches this take every step as a cut one. Integer scores that lie 2^f apart
// are theirs alone: m would have to be a multiple of 2 f or so, and P starts up to f octaves from
// where it should. int8 codes of normal q and k have f of 1e-4, int4 codes of .04.
constexpr float kOpenFactor = 0.25f;

__device__ __forceinline__ void Unpack(const uint4& from, uint32_t (&to)[4]) {
  to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
}

// Row r of a thread's kRows is 8 r + lane / 4 of the warp's rows; its columns of an n8 tile are
// 2 (lane % 4) and the next.
template <class Form>
struct Warp {
  static constexpr int kTiles = Form::kTiles, kRows = 2 * kTiles;
  static constexpr int kColumns = Form::kKeys / 8, kTables = Form::kKeys / kStepTokens;
  static constexpr int D = Form::kDim;

  // x = s f + c in log2 units over m. c is exact: f keeps 22 bits, and m is a multiple of a power
  // of two near f.
  struct Line {
    float f, c;
  };

  float o[kTiles][D / 8][4];
  uint32_t o_half[Form::kSumsInHalves ? kTiles : 1][D / 8][2];
  // In shared memory, since registers are few, [8 lanes of other rows][kRows]: scales of q times
  // the scale, log2 units; kLessM floats on, minus the offsets m: what the scores get.
  static constexpr int kLessM = 8 * kRows, kRowFloats = 2 * kLessM;
  float* rows;        // this lane's
  float part[kRows];  // sums of P over the current block of 128 keys; those before: shared memory

  // Scores of a step: int32 sums from kMagicBits on, or, after ToLog2, floats in log2 units (kLog2
  // of the functions below).
  int s[kTiles][kColumns][4];
  float table[kTables];        // scales of k by 32 keys for this lane
  Line lines[kTables][kRows];  // of integer scores
  int magic[4];                // what scores start from

  __device__ __forceinline__ float Score(int r, int column, int e) const {
    return __int_as_float(s[r / 2][column][r % 2 * 2 + e]);
  }

  // What 32 or 64 dims of the scores of 32 keys are products of.
  struct Operands {
    uint32_t a[kTiles][4], b[2][4];
  };
  static constexpr int kGroups = kColumns / 4, kUnits = Form::kQSteps * kGroups;

  // Unit n of kUnits: a step of dims, and in it a group of 32 keys. The first group's a serves all.
  __device__ __forceinline__ static void Load(Operands& to, int n, const uint8_t* k,
                                              const uint8_t* q) {
    const int lane = threadIdx.x % 32, step = n / kGroups, group = n % kGroups;
    const uint4* b_at = reinterpret_cast<const uint4*>(k) + lane;
    const uint4* a_at = reinterpret_cast<const uint4*>(q) + lane;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      Unpack(b_at[((group * 2 + i) * Form::kQSteps + step) * 32], to.b[i]);
    if (group > 0) return;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) Unpack(a_at[(t * Form::kQSteps + step) * 32], to.a[t]);
  }

  // s = q k^T of the keys whose images lie at `k`; `q`: images of this warp's rows. `first`: unit
  // 0. The operands of a unit are loaded under the products of the one before.
  __device__ __forceinline__ void Scores(const uint8_t* k, const uint8_t* q,
                                         const Operands& first) {
    Operands operands[2];
    operands[0] = first;
#pragma unroll
    for (int n = 0; n < kUnits; ++n) {
      Operands &now = operands[n % 2], &next = operands[(n + 1) % 2];
      if (n + 1 < kUnits) {
        if ((n + 1) % kGroups > 0) {
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
#pragma unroll
            for (int e = 0; e < 4; ++e) next.a[t][e] = now.a[t][e];
          }
        }
        Load(next, n + 1, k, q);
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          int(&to)[4] = s[t][n % kGroups * 4 + j];
          const uint32_t b0 = now.b[j / 2][j % 2 * 2], b1 = now.b[j / 2][j % 2 * 2 + 1];
          if (n < kGroups) {
            Form::StartScores(to, now.a[t], b0, b1, magic);
          } else {
            Form::AddScores(to, now.a[t], b0, b1);
          }
        }
      }
    }
  }
  __device__ __forceinline__ void Scores(const uint8_t* k, const uint8_t* q) {
    Operands first;
    Load(first, 0, k, q);
    Scores(k, q, first);
  }

  __device__ __forceinline__ static void LoadRows(const float* from, float (&to)[kRows]) {
    if constexpr (kRows == 4) {
      const float4 x = *reinterpret_cast<const float4*>(from);
      to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
    } else {
      const float2 x = *reinterpret_cast<const float2*>(from);
      to[0] = x.x, to[1] = x.y;
    }
  }
  __device__ __forceinline__ void LoadLessM(float (&less_m)[kRows]) const {
    LoadRows(rows + kLessM, less_m);
  }

  // Lines of the integer scores that `table` belongs to.
  __device__ __forceinline__ void SetLines() {
    float q_scale[kRows], less_m[kRows];
    LoadRows(rows, q_scale);
    LoadLessM(less_m);
#pragma unroll
    for (int h = 0; h < kTables; ++h) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float f = __uint_as_float(__float_as_uint(q_scale[r] * table[h]) & ~3u);
        lines[h][r] = {f, fmaf(-kMagic, f, less_m[r])};
      }
    }
  }
  // The same of scores in log2 units.
  __device__ __forceinline__ void SetLinesOfLog2() {
    float less_m[kRows];
    LoadLessM(less_m);
#pragma unroll
    for (int h = 0; h < kTables; ++h) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) lines[h][r] = {1.0f, less_m[r]};
    }
  }

  // Largest score of each row of this thread, as scores stand; one or two groups of 32 keys.
  // Integer scores are bits of positive floats: their order is that of the floats.
  __device__ __forceinline__ void Largest(float (&most)[kTables][kRows]) const {
#pragma unroll
    for (int h = 0; h < kTables; ++h) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int t = r / 2, e = r % 2 * 2;
        int x = max(s[t][4 * h][e], s[t][4 * h][e + 1]);
#pragma unroll
        for (int j = 4 * h + 1; j < 4 * h + 4; ++j) x = __vimax3_s32(x, s[t][j][e], s[t][j][e + 1]);
        most[h][r] = __int_as_float(x);
      }
    }
  }
  // The same of scores in log2 units.
  __device__ __forceinline__ void LargestOfLog2(float (&most)[kTables][kRows]) const {
#pragma unroll
    for (int h = 0; h < kTables; ++h) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float x = -INFINITY;
#pragma unroll
        for (int j = 4 * h; j < 4 * h + 4; ++j) x = fmaxf(x, fmaxf(Score(r, j, 0), Score(r, j, 1)));
        most[h][r] = x;
      }
    }
  }

  // Whether none of these takes P out of its range.
  __device__ __forceinline__ bool Fits(const float (&most)[kTables][kRows]) const {
    bool fits = true;
#pragma unroll
    for (int h = 0; h < kTables; ++h) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const Line line = lines[h][r];
        fits &= fmaf(most[h][r], line.f, line.c) <= Form::kRoom;
      }
    }
    return fits;
  }

  // Moves the offsets of the rows to their maxima, O and the sums with them. `sums`: this thread's
  // sums of P in shared memory. `largest_k`: bits of the largest scale of k.
  template <bool kLog2>
  __device__ __forceinline__ void Move(const float (&largest)[kTables][kRows],
                                       const uint32_t* largest_k, float* sums) {
    float alpha[kRows], q_scale[kRows], less_m[kRows];
    const float k_scale = __uint_as_float(__ldg(largest_k));
    LoadRows(rows, q_scale);
    LoadLessM(less_m);
    __syncwarp();  // the lanes of a row share its offset, and one of them writes it
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float most = -INFINITY;
#pragma unroll
      for (int h = 0; h < kTables; ++h)
        most = fmaxf(most, (largest[h][r] - (kLog2 ? 0.0f : kMagic)) * lines[h][r].f);
      most = QuadMax(most) - Form::kStart;
      // m stays a multiple of the power of two above every f of the row, unless all its steps are
      // cut (kOpenFactor): a multiple of a large one could lie far from the maximum.
      const float f = q_scale[r] * k_scale;
      const float unit = __uint_as_float(__float_as_uint(f) & kInfBits) * 2.0f;
      if (f < kOpenFactor && fabsf(most) < INFINITY)
        most = __fsub_rn(__fadd_rn(most, kMagic * unit), kMagic * unit);
      const float now = fminf(less_m[r], -most);
      alpha[r] = Exp2(now - less_m[r]);
      if (threadIdx.x % 4 == 0) rows[kLessM + r] = now;
#pragma unroll
      for (int h = 0; h < kTables; ++h)
        lines[h][r].c = kLog2 ? now : fmaf(-kMagic, lines[h][r].f, now);
      sums[r * Form::kThreads] *= alpha[r];
      part[r] *= alpha[r];
    }
    __syncwarp();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o[t][j][e] *= alpha[2 * t + e / 2];
        if constexpr (Form::kSumsInHalves) {
#pragma unroll
          for (int h = 0; h < 2; ++h)
            o_half[t][j][h] = ScaleHalves(o_half[t][j][h], alpha[2 * t + h]);
        }
      }
    }
  }

  // Integer scores to log2 units: scales of k by key, means of q, masks, edges.
  // `shift`: what the means of q add to the scores of this warp's rows, by key; null without.
  __device__ __forceinline__ void ToLog2(const AttendPlan& plan, const Block& block, int warp_row,
                                         int key0, const float* shift) {
    const int lane = threadIdx.x % 32;
    float q_scale[kRows];
    LoadRows(rows, q_scale);
    const float* k_scale =
        plan.space.k_scale + block.kv_head * plan.space.tiles * kTileTokens + key0 + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float2 scale = __ldg(reinterpret_cast<const float2*>(k_scale + j * 8));
      float2 add = make_float2(0.0f, 0.0f);
      if (shift != nullptr) add = *reinterpret_cast<const float2*>(shift + j * 8 + lane % 4 * 2);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float factor = q_scale[2 * t + e / 2] * (e % 2 == 0 ? scale.x : scale.y);
          s[t][j][e] = __float_as_int(
              fmaf(__int_as_float(s[t][j][e]) - kMagic, factor, e % 2 == 0 ? add.x : add.y));
        }
      }
    }
    const int first = block.query0 + warp_row, rows = min(8 * kRows, plan.see.q_len - first);
    if (plan.see.SeesAll(first, rows, key0, Form::kKeys)) return;
#pragma unroll 1
    for (int r = 0; r < kRows; ++r) {
      // One copy of the code for all rows: their registers pass through it.
      float x[kColumns][2];
#pragma unroll
      for (int n = 0; n < kRows; ++n) {
        if (n != r) continue;
#pragma unroll
        for (int j = 0; j < kColumns; ++j) x[j][0] = Score(n, j, 0), x[j][1] = Score(n, j, 1);
      }
      HideScores(plan, block, warp_row + 8 * r + lane / 4, key0, x);
#pragma unroll
      for (int n = 0; n < kRows; ++n) {
        if (n != r) continue;
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          s[n / 2][j][n % 2 * 2] = __float_as_int(x[j][0]);
          s[n / 2][j][n % 2 * 2 + 1] = __float_as_int(x[j][1]);
        }
      }
    }
  }

  // P of eight keys of row r, in place, and its sum.
  __device__ __forceinline__ void Softmax(int r, int column, const Line& line) {
    const int e = r % 2 * 2;
    int(&x)[4] = s[r / 2][column];
    const float p0 = Exp2InOrder(fmaf(__int_as_float(x[e]), line.f, line.c));
    const float p1 = Exp2InOrder(fmaf(__int_as_float(x[e + 1]), line.f, line.c));
    part[r] += p0 + p1;
    x[e] = __float_as_int(p0);
    x[e + 1] = __float_as_int(p1);
  }

  // Fragments of P: 16 keys of halves from column 2 i, or 32 of e4m3 from column 4 i.
  __device__ __forceinline__ void Pack(int t, int i, uint32_t (&p)[4]) const {
    const auto value = [&](int r, int column, int e) {
      const float x = Score(2 * t + r, column, e);
      return Form::kRoundsToE4m3 ? RoundToE4m3(x) : x;
    };
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      const int r = a % 2;
      if constexpr (Form::kBytes) {
        const int j = i * 4 + a / 2 * 2;
        p[a] = PackE4m3(value(r, j, 0), value(r, j, 1), value(r, j + 1, 0), value(r, j + 1, 1));
      } else {
        p[a] = PackHalves(value(r, i * 2 + a / 2, 0), value(r, i * 2 + a / 2, 1));
      }
    }
  }

  // Scores from here on wait for these P: what they start from depends on them, times `zero`, which
  // the assembler does not know. Else it computes some of P behind the scores, whose operands then
  // lack registers and come late.
  __device__ __forceinline__ void HoldScores(const uint32_t (&p)[kTiles][4], int zero) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) magic[e] += static_cast<int>(p[t][e]) * zero;
    }
  }

  // Fragments of P of 16 keys from column 2 i.
  __device__ __forceinline__ void PackHalves16(int i, uint32_t (&p)[kTiles][4]) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) Pack(t, i, p[t]);
  }

  // O += P v of 16 keys by halves, the images of v at `v`; under these products runs the softmax of
  // the 16 keys from column `next` on (< 0: none), spread over the channels.
  __device__ __forceinline__ void OutputsOf16(const uint8_t* v, const uint32_t (&p)[kTiles][4],
                                              int next) {
    const uint4* at = reinterpret_cast<const uint4*>(v) + threadIdx.x % 32;
    constexpr int kPieces = D / 16, kPairs = kRows * 2;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      uint32_t b[4];
      Unpack(at[piece * 32], b);
      // Neighbouring products share A, also over pieces: reading another one costs power.
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const int t = piece % 2 == 0 ? n : kTiles - 1 - n;
#pragma unroll
        for (int odd = 0; odd < 2; ++odd)
          MultiplyHalves(o[t][piece * 2 + odd], p[t], b[odd * 2], b[odd * 2 + 1]);
      }
      if (next < 0) continue;
#pragma unroll
      for (int n = piece * kPairs / kPieces; n < (piece + 1) * kPairs / kPieces; ++n)
        Softmax(n / 2, next + n % 2, lines[next / 4][n / 2]);
    }
  }

  // Softmax of the first 16 keys with nothing to run under.
  __device__ __forceinline__ void FirstSoftmax() { SoftmaxOf(0, 2); }

  // O += P v of the keys whose images lie at `v`.
  __device__ __forceinline__ void Outputs(const uint8_t* v) {
    if constexpr (!Form::kBytes && !Form::kHalfAccumulator) {
      FirstSoftmax();
#pragma unroll
      for (int i = 0; i < kColumns / 2; ++i) {
        uint32_t p[kTiles][4];
        PackHalves16(i, p);
        OutputsOf16(v + i * 16 * Form::kVRowBytes, p, i + 1 < kColumns / 2 ? 2 * i + 2 : -1);
      }
    } else {
      // Sums of 64 keys need all of P.
      const uint4* at = reinterpret_cast<const uint4*>(v) + threadIdx.x % 32;
      constexpr int kImages = Form::kBytes ? kTables : kColumns / 2, kPieces = D / 16;
      SoftmaxOf(0, kColumns);
      uint32_t p[kTiles][kImages][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int i = 0; i < kImages; ++i) Pack(t, i, p[t][i]);
      }
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        uint32_t b[kImages][4];
#pragma unroll
        for (int i = 0; i < kImages; ++i) Unpack(at[(i * kPieces + piece) * 32], b[i]);
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
#pragma unroll
          for (int t = 0; t < kTiles; ++t) AddColumn(t, piece * 2 + odd, p[t], b, odd * 2);
        }
      }
    }
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

  // All sums of P·V into O.
  __device__ __forceinline__ void EndSums() {
    if constexpr (Form::kSumsInHalves) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int j = 0; j < D / 8; ++j) AddUnpacked(o[t][j], o_half[t][j]);
      }
    }
  }

 private:
  __device__ __forceinline__ void SoftmaxOf(int from, int to) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int column = from; column < to; ++column) Softmax(r, column, lines[column / 4][r]);
    }
  }

  __device__ __forceinline__ static void AddUnpacked(float (&o1)[4], const uint32_t (&halves)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float2 x = UnpackHalves(halves[h]);
      o1[2 * h] += x.x;
      o1[2 * h + 1] += x.y;
    }
  }

  // O of channels 8 j.. and one m16 tile; b0, b1 of v stand at [.][at].
  template <int kImages>
  __device__ __forceinline__ void AddColumn(int t, int j, const uint32_t (&p)[kImages][4],
                                            const uint32_t (&b)[kImages][4], int at) {
    float(&o1)[4] = o[t][j];
    if constexpr (Form::kSumsInHalves) {
#pragma unroll
      for (int i = 0; i < kImages; ++i)
        MultiplyInHalves(o_half[t][j], p[i], b[i][at], b[i][at + 1]);
    } else if constexpr (Form::kHalfAccumulator) {
      uint32_t fresh[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < kImages; ++i) {
        if constexpr (Form::kBytes) {
          MultiplyE4m3InHalves(fresh, p[i], b[i][at], b[i][at + 1]);
        } else {
          MultiplyInHalves(fresh, p[i], b[i][at], b[i][at + 1]);
        }
      }
      AddUnpacked(o1, fresh);
    } else if constexpr (Form::kTwoLevel) {
      float fresh[4] = {};
#pragma unroll
      for (int i = 0; i < kImages; ++i) MultiplyE4m3(fresh, p[i], b[i][at], b[i][at + 1]);
#pragma unroll
      for (int e = 0; e < 4; ++e) o1[e] += fresh[e];
    } else {
#pragma unroll
      for (int i = 0; i < kImages; ++i) {
        MultiplyE4m3(o1, p[i], b[i][at], b[i][at + 1]);
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

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_WARP_CUH_
