// Lanes in groups of kGroup: a vector holds kLanes / kGroup rows, each of them kGroup neighbouring
// dims, lane = row · kGroup + dim.
//
//   BroadcastGroup  the same kGroup floats for every row
//   SumGroups       kGroup such vectors, one for each key, become sums over dims:
//                   lane = key · (kLanes / kGroup) + row
//   OverKeys        lane = key · rows + row: what is there of a row's keys, in each lane of the row
#ifndef SAGE_CPU_SIMD_SIMD_GROUPS_H_
#define SAGE_CPU_SIMD_SIMD_GROUPS_H_

#include <string.h>

#include "cpu/simd/simd_shuffle.h"

namespace sage {
namespace {

#if defined(SAGE_ISA_AVX512)

template <int kGroup>
SAGE_INLINE F32 BroadcastGroup(const float* p) {
  if constexpr (kGroup == 1) return Set1(*p);
  if constexpr (kGroup == 2) {
    double pair;
    memcpy(&pair, p, sizeof(pair));
    return {_mm512_castpd_ps(_mm512_set1_pd(pair))};
  }
  if constexpr (kGroup == 4) return {_mm512_broadcast_f32x4(_mm_loadu_ps(p))};
  if constexpr (kGroup == 8) return {_mm512_broadcast_f32x8(_mm256_loadu_ps(p))};
  return LoadU(p);
}

template <int kGroup>
SAGE_INLINE F32 SumGroups(const F32* x) {
  if constexpr (kGroup == 1) return x[0];
  if constexpr (kGroup == 2) {
    // Per 128-bit lane: rows 2i and 2i + 1 of the first key, then of the second.
    const __m512 sum = _mm512_add_ps(_mm512_shuffle_ps(x[0].r, x[1].r, 0x88),
                                     _mm512_shuffle_ps(x[0].r, x[1].r, 0xdd));
    const __m512i order = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    return {_mm512_permutexvar_ps(order, sum)};
  }
  if constexpr (kGroup == 4) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return {_mm512_permutexvar_ps(order, Sum4(x))};
  }
  if constexpr (kGroup == 8) {
    // Per 128-bit lane: keys 0 to 3 of row 0, of row 1, keys 4 to 7 of row 0, of row 1.
    const __m512 a = Sum4(x), b = Sum4(x + 4);
    const __m512 sum =
        _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    return {_mm512_permutexvar_ps(order, sum)};
  }
  if constexpr (kGroup == kLanes) return SumEach(x);
}

// Lane i becomes lane i xor kDistance.
template <int kDistance>
SAGE_INLINE F32 SwapLanes(F32 x) {
  if constexpr (kDistance == 8) return {_mm512_shuffle_f32x4(x.r, x.r, 0x4e)};
  if constexpr (kDistance == 4) return {_mm512_shuffle_f32x4(x.r, x.r, 0xb1)};
  if constexpr (kDistance == 2) return {_mm512_permute_ps(x.r, 0x4e)};
  if constexpr (kDistance == 1) return {_mm512_permute_ps(x.r, 0xb1)};
}

#elif defined(SAGE_ISA_AVX2)

template <int kGroup>
SAGE_INLINE F32 BroadcastGroup(const float* p) {
  if constexpr (kGroup == 1) return Set1(*p);
  if constexpr (kGroup == 2) {
    double pair;
    memcpy(&pair, p, sizeof(pair));
    return {_mm256_castpd_ps(_mm256_set1_pd(pair))};
  }
  if constexpr (kGroup == 4) {
    const __m128 four = _mm_loadu_ps(p);
    return {_mm256_set_m128(four, four)};
  }
  return LoadU(p);
}

template <int kGroup>
SAGE_INLINE F32 SumGroups(const F32* x) {
  if constexpr (kGroup == 1) return x[0];
  if constexpr (kGroup == 2) {
    // Per 128-bit lane: rows 2i and 2i + 1 of the first key, then of the second.
    const __m256 sum = _mm256_hadd_ps(x[0].r, x[1].r);
    return {_mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(sum), 0xd8))};
  }
  if constexpr (kGroup == 4) {
    return {_mm256_permutevar8x32_ps(Sum4(x), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))};
  }
  if constexpr (kGroup == kLanes) return SumEach(x);
}

template <int kDistance>
SAGE_INLINE F32 SwapLanes(F32 x) {
  if constexpr (kDistance == 4) return {_mm256_permute2f128_ps(x.r, x.r, 1)};
  if constexpr (kDistance == 2) return {_mm256_permute_ps(x.r, 0x4e)};
  if constexpr (kDistance == 1) return {_mm256_permute_ps(x.r, 0xb1)};
}

#elif defined(SAGE_ISA_NEON)

template <int kGroup>
SAGE_INLINE F32 BroadcastGroup(const float* p) {
  if constexpr (kGroup == 1) return Set1(*p);
  if constexpr (kGroup == 2) {
    const float32x2_t pair = vld1_f32(p);
    const float32x4_t both = vcombine_f32(pair, pair);
    return {both, both};
  }
  if constexpr (kGroup == 4) {
    const float32x4_t four = vld1q_f32(p);
    return {four, four};
  }
  return LoadU(p);
}

template <int kGroup>
SAGE_INLINE F32 SumGroups(const F32* x) {
  if constexpr (kGroup == 1) return x[0];
  if constexpr (kGroup == 2) {
    return {vpaddq_f32(x[0].low, x[0].high), vpaddq_f32(x[1].low, x[1].high)};
  }
  if constexpr (kGroup == 4) {
    const float32x4_t first =
        vpaddq_f32(vpaddq_f32(x[0].low, x[1].low), vpaddq_f32(x[2].low, x[3].low));
    const float32x4_t second =
        vpaddq_f32(vpaddq_f32(x[0].high, x[1].high), vpaddq_f32(x[2].high, x[3].high));
    return {vzip1q_f32(first, second), vzip2q_f32(first, second)};
  }
  if constexpr (kGroup == kLanes) return SumEach(x);
}

template <int kDistance>
SAGE_INLINE F32 SwapLanes(F32 x) {
  if constexpr (kDistance == 4) return {x.high, x.low};
  if constexpr (kDistance == 2) return {vextq_f32(x.low, x.low, 2), vextq_f32(x.high, x.high, 2)};
  if constexpr (kDistance == 1) return {vrev64q_f32(x.low), vrev64q_f32(x.high)};
}

#else

template <int kGroup>
SAGE_INLINE F32 BroadcastGroup(const float* p) {
  F32 out;
  for (int i = 0; i < kLanes; ++i) out.r[i] = p[i % kGroup];
  return out;
}

template <int kGroup>
SAGE_INLINE F32 SumGroups(const F32* x) {
  constexpr int kRows = kLanes / kGroup;
  F32 out;
  for (int key = 0; key < kGroup; ++key) {
    for (int row = 0; row < kRows; ++row) {
      float sum = 0.0f;
      for (int d = 0; d < kGroup; ++d) sum += x[key].r[row * kGroup + d];
      out.r[key * kRows + row] = sum;
    }
  }
  return out;
}

template <int kDistance>
SAGE_INLINE F32 SwapLanes(F32 x) {
  F32 out;
  for (int i = 0; i < kLanes; ++i) out.r[i] = x.r[i ^ kDistance];
  return out;
}

#endif

// What fn, a maximum or a sum, makes of the keys of each row of x: in all its lanes.
template <class Fn>
SAGE_INLINE F32 OverKeys(F32 x, int rows, const Fn& fn) {
  if constexpr (kLanes == 16) {
    if (rows <= 8) x = fn(x, SwapLanes<8>(x));
  }
  if (rows <= 4) x = fn(x, SwapLanes<4>(x));
  if (rows <= 2) x = fn(x, SwapLanes<2>(x));
  if (rows <= 1) x = fn(x, SwapLanes<1>(x));
  return x;
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_SIMD_SIMD_GROUPS_H_
