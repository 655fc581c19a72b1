// Products of float32 rows of q and p with rows of k and v that lie as the caller stored them.
//
//   DirectScores      up to 4 rows: vectors along head_dim, kLanes sums finished together
//   TransposeKeys,    more rows: keys of a step become [tile of keys][dim][keys of the tile] once,
//   TransposedScores  then 6 rows x a tile of keys in registers
//   FloatOutput       1 to 6 rows x 4 vectors of v: p is broadcast
#ifndef SAGE_CPU_CACHE_FLOAT_PRODUCTS_H_
#define SAGE_CPU_CACHE_FLOAT_PRODUCTS_H_

#include "cpu/cache/decode_plan.h"
#include "cpu/simd/simd_shuffle.h"

namespace sage {
namespace {

struct FloatRows {
  const float* base;
  int64_t stride;
};

constexpr int kDirectRows = 4;

// How far ahead of the products rows are brought into the cache.
constexpr int64_t kAheadKeys = 32;

// Keys of a register tile: 6 x 4 accumulators on AVX-512's 32 registers, 6 x 2 on 16.
#if defined(SAGE_ISA_AVX512)
constexpr int kKeyVectors = 4;
#elif defined(SAGE_ISA_AVX2) || defined(SAGE_ISA_NEON)
constexpr int kKeyVectors = 2;
#else
constexpr int kKeyVectors = 1;
#endif

// Products of R rows with kKeys keys at key[t], over all dims; sums of lanes wait in acc.
template <int R, int kKeys>
SAGE_INLINE void DotKeys(const float* q, int64_t q_stride, const float* const key[kKeys],
                         int64_t ahead, int dim, F32* acc) {
#pragma GCC unroll 16
  for (int n = 0; n < kKeys * R; ++n) acc[n] = Zero();
  int d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    F32 row[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) row[r] = Load(q + r * q_stride + d);
#pragma GCC unroll 4
    for (int t = 0; t < kKeys; ++t) {
      const F32 x = LoadU(key[t] + d);
      if (d % 16 == 0) Prefetch(key[t] + ahead + d);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[t * R + r] = Fma(x, row[r], acc[t * R + r]);
    }
  }
  if (d == dim) return;
#pragma GCC unroll 4
  for (int t = 0; t < kKeys; ++t) {
    const F32 x = LoadFirst(key[t] + d, dim - d);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) acc[t * R + r] = Fma(x, Load(q + r * q_stride + d), acc[t * R + r]);
  }
}

// R rows against kLanes / R keys at a time. Keys past `count` repeat the last one.
template <int R>
SAGE_NOINLINE void DirectScoresOf(const float* q, int64_t q_stride, const FloatRows& k, int count,
                                  int dim, float* s, int64_t s_stride) {
  constexpr int kKeys = kLanes / R;
  constexpr int kTogether = kKeys < 4 ? kKeys : 4;
  const int64_t stride = k.stride, ahead = kAheadKeys * stride;
  for (int j = 0; j < count; j += kKeys) {
    F32 acc[kLanes];
#pragma GCC unroll 4
    for (int t0 = 0; t0 < kKeys; t0 += kTogether) {
      const float* key[kTogether];
      const float* first = k.base + (j + t0) * stride;
#pragma GCC unroll 4
      for (int t = 0; t < kTogether; ++t) key[t] = first + t * stride;
      if (j + kKeys > count) {
        for (int t = 0; t < kTogether; ++t) {
          const int at = j + t0 + t;
          key[t] = k.base + (at < count ? at : count - 1) * stride;
        }
      }
      DotKeys<R, kTogether>(q, q_stride, key, ahead, dim, acc + t0 * R);
    }
    const F32 sums = SumEach(acc);
    if constexpr (R == 1) {
      Store(s + j, sums);
    } else {
      alignas(64) float sum[kLanes];
      Store(sum, sums);
      for (int r = 0; r < R; ++r) {
        for (int t = 0; t < kKeys; ++t) s[r * s_stride + j + t] = sum[t * R + r];
      }
    }
  }
}

// Scores of up to 4 rows; those of rows 3 of 3 are computed as 4, so q and s have room for 4.
SAGE_INLINE void DirectScores(const float* q, int64_t q_stride, int rows, const FloatRows& k,
                              int count, int dim, float* s, int64_t s_stride) {
  if (rows == 1) return DirectScoresOf<1>(q, q_stride, k, count, dim, s, s_stride);
  if (rows == 2) return DirectScoresOf<2>(q, q_stride, k, count, dim, s, s_stride);
  DirectScoresOf<4>(q, q_stride, k, count, dim, s, s_stride);
}

SAGE_NOINLINE void TransposeKeys(const FloatRows& k, int count, int dim, float* tiles) {
  constexpr int kTile = kKeyVectors * kLanes;
  for (int j = 0; j < count; j += kLanes) {
    float* tile = tiles + j / kTile * kTile * static_cast<int64_t>(dim) + j % kTile;
    for (int d = 0; d < dim; d += kLanes) {
      const int dims = dim - d < kLanes ? dim - d : kLanes;
      F32 x[kLanes];
      for (int t = 0; t < kLanes; ++t) {
        const float* row = k.base + (j + t < count ? j + t : count - 1) * k.stride + d;
        x[t] = dims == kLanes ? LoadU(row) : LoadFirst(row, dims);
      }
      Transpose(x);
      for (int e = 0; e < dims; ++e) Store(tile + (d + e) * kTile, x[e]);
    }
  }
}

template <int R>
SAGE_NOINLINE void TransposedScoresOf(const float* q, int64_t q_stride, const float* tiles,
                                      int count, int dim, float* s, int64_t s_stride) {
  constexpr int kTile = kKeyVectors * kLanes;
  for (int j = 0; j < count; j += kTile) {
    const float* tile = tiles + static_cast<int64_t>(j) * dim;
    F32 acc[R][kKeyVectors];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < kKeyVectors; ++t) acc[r][t] = Zero();
    }
    for (int d = 0; d < dim; ++d) {
      F32 key[kKeyVectors];
#pragma GCC unroll 4
      for (int t = 0; t < kKeyVectors; ++t) key[t] = Load(tile + d * kTile + t * kLanes);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const F32 a = Set1(q[r * q_stride + d]);
#pragma GCC unroll 4
        for (int t = 0; t < kKeyVectors; ++t) acc[r][t] = Fma(a, key[t], acc[r][t]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < kKeyVectors; ++t) Store(s + r * s_stride + j + t * kLanes, acc[r][t]);
    }
  }
}

// o[r] = alpha[r] o[r] + sum over keys of p[r][j] v[j], C vectors wide; kPart: the last of them
// holds only `last` dims.
template <int R, int C, bool kPart>
SAGE_NOINLINE void FloatOutputOf(const float* p, int64_t p_stride, const float* v, int64_t stride,
                                 int count, int last, const float* alpha, float* o,
                                 int64_t o_stride) {
  F32 acc[R][C];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    const F32 a = Set1(alpha[r]);
#pragma GCC unroll 4
    for (int t = 0; t < C; ++t) acc[r][t] = Mul(a, Load(o + r * o_stride + t * kLanes));
  }
  for (int j = 0; j < count; ++j) {
    const float* row = v + j * stride;
    F32 value[C];
#pragma GCC unroll 4
    for (int t = 0; t < C; ++t) {
      value[t] = kPart && t == C - 1 ? LoadFirst(row + t * kLanes, last) : LoadU(row + t * kLanes);
      if (t * kLanes % 16 == 0) Prefetch(row + kAheadKeys * stride + t * kLanes);
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const F32 a = Set1(p[r * p_stride + j]);
#pragma GCC unroll 4
      for (int t = 0; t < C; ++t) acc[r][t] = Fma(a, value[t], acc[r][t]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < C; ++t) Store(o + r * o_stride + t * kLanes, acc[r][t]);
  }
}

// Vectors of v in registers at once: with many rows as many as the accumulators leave room for.
template <int R>
constexpr int kOutputVectors = R <= 2 ? 4 : kKeyVectors;

template <int R>
SAGE_INLINE void FloatOutputRows(const float* p, int64_t p_stride, const FloatRows& v, int count,
                                 int dim, const float* alpha, float* o, int64_t o_stride) {
  constexpr int kMost = kOutputVectors<R>;
  for (int d = 0; d < dim; d += kMost * kLanes) {
    const int here = dim - d < kMost * kLanes ? dim - d : kMost * kLanes;
    const int vectors = (here + kLanes - 1) / kLanes, last = here - (vectors - 1) * kLanes;
    const float* base = v.base + d;
    float* out = o + d;
#define SAGE_PANEL(C)                                                                              \
  if constexpr (C <= kMost) {                                                                      \
    if (vectors == C) {                                                                            \
      if (last == kLanes) {                                                                        \
        FloatOutputOf<R, C, false>(p, p_stride, base, v.stride, count, last, alpha, out,           \
                                   o_stride);                                                      \
      } else {                                                                                     \
        FloatOutputOf<R, C, true>(p, p_stride, base, v.stride, count, last, alpha, out, o_stride); \
      }                                                                                            \
    }                                                                                              \
  }
    SAGE_PANEL(1) SAGE_PANEL(2) SAGE_PANEL(3) SAGE_PANEL(4)
#undef SAGE_PANEL
  }
}

SAGE_INLINE void FloatOutput(const float* p, int64_t p_stride, int rows, const FloatRows& v,
                             int count, int dim, const float* alpha, float* o, int64_t o_stride) {
  switch (rows) {
    case 1:
      return FloatOutputRows<1>(p, p_stride, v, count, dim, alpha, o, o_stride);
    case 2:
      return FloatOutputRows<2>(p, p_stride, v, count, dim, alpha, o, o_stride);
    case 3:
      return FloatOutputRows<3>(p, p_stride, v, count, dim, alpha, o, o_stride);
    case 4:
      return FloatOutputRows<4>(p, p_stride, v, count, dim, alpha, o, o_stride);
    case 5:
      return FloatOutputRows<5>(p, p_stride, v, count, dim, alpha, o, o_stride);
    default:
      return FloatOutputRows<6>(p, p_stride, v, count, dim, alpha, o, o_stride);
  }
}

SAGE_INLINE void TransposedScores(const float* q, int64_t q_stride, int rows, const float* tiles,
                                  int count, int dim, float* s, int64_t s_stride) {
  switch (rows) {
    case 1:
      return TransposedScoresOf<1>(q, q_stride, tiles, count, dim, s, s_stride);
    case 2:
      return TransposedScoresOf<2>(q, q_stride, tiles, count, dim, s, s_stride);
    case 3:
      return TransposedScoresOf<3>(q, q_stride, tiles, count, dim, s, s_stride);
    case 4:
      return TransposedScoresOf<4>(q, q_stride, tiles, count, dim, s, s_stride);
    case 5:
      return TransposedScoresOf<5>(q, q_stride, tiles, count, dim, s, s_stride);
    default:
      return TransposedScoresOf<6>(q, q_stride, tiles, count, dim, s, s_stride);
  }
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_FLOAT_PRODUCTS_H_
