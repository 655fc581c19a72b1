// Sixteen rows of sixteen lanes at once: transposition of dwords, and one sum or maximum per row
// (a third of the instructions of sixteen single reductions).
#ifndef SAGE_CPU_AMX_TRANSPOSE_H_
#define SAGE_CPU_AMX_TRANSPOSE_H_

#include <immintrin.h>

#include "cpu/simd/simd.h"

namespace sage {
namespace {

// r[i] lane j becomes r[j] lane i.
SAGE_INLINE void Transpose(__m512i r[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

struct AddLanes {
  SAGE_INLINE __m512 Of(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
};
// A NaN among the lanes may be lost, as in ReduceMax.
struct MaxLanes {
  SAGE_INLINE __m512 Of(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
};

// The larger of two magnitudes held as bits (MaxMagnitude); loses no NaN.
struct MaxBitsLanes {
  SAGE_INLINE __m512 Of(__m512 a, __m512 b) {
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  }
};

// Lane i of the result is the sum (maximum) over the lanes of rows[i].
template <class Op>
SAGE_INLINE F32 ReduceRows(const F32 rows[16]) {
  __m512 quad[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    __m512 pair[2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512 a = rows[4 * i + 2 * j].r, b = rows[4 * i + 2 * j + 1].r;
      pair[j] = Op::Of(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    quad[i] = Op::Of(_mm512_shuffle_f32x4(pair[0], pair[1], 0x88),
                     _mm512_shuffle_f32x4(pair[0], pair[1], 0xdd));
  }
  // 128-bit lane i of quad[u] now belongs to row 4 u + i.
  __m512 half[2];
#pragma GCC unroll 2
  for (int u = 0; u < 2; ++u) {
    half[u] = Op::Of(_mm512_shuffle_ps(quad[2 * u], quad[2 * u + 1], 0x88),
                     _mm512_shuffle_ps(quad[2 * u], quad[2 * u + 1], 0xdd));
  }
  const __m512 mixed =
      Op::Of(_mm512_shuffle_ps(half[0], half[1], 0x88), _mm512_shuffle_ps(half[0], half[1], 0xdd));
  // Element 4 i + u is row 4 u + i.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return {_mm512_permutexvar_ps(order, mixed)};
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_AMX_TRANSPOSE_H_
