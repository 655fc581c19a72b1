// What moves values between the lanes of simd.h: partial loads, sums of many vectors at once,
// transposition.
#ifndef SAGE_CPU_SIMD_SIMD_SHUFFLE_H_
#define SAGE_CPU_SIMD_SIMD_SHUFFLE_H_

#include "cpu/simd/simd.h"

namespace sage {
namespace {

// Brings a line into L2. Into L1 as well was slower where L1 has few line buffers: they are all
// that reads from memory then wait for.
SAGE_INLINE void Prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }

// Brings a line into L1 too, where HasManyLineBuffers() (cpu_features.h).
SAGE_INLINE void PrefetchNear(const void* address) { __builtin_prefetch(address, 0, 3); }

// Brings a line into L1 in order to write it: a store to a line that was read still has to ask for
// it.
SAGE_INLINE void PrefetchToWrite(const void* address) {
#if defined(__x86_64__)
  // Of __builtin_prefetch GCC makes this only where a flag allows it.
  asm volatile("prefetchw %0" ::"m"(*static_cast<const char*>(address)));
#else
  __builtin_prefetch(address, 1, 3);
#endif
}

// One or the other. Loops over lines in registers ask once for all of them instead.
SAGE_INLINE void PrefetchLine(const void* address, bool near) {
  if (near) {
    PrefetchNear(address);
  } else {
    Prefetch(address);
  }
}

#if defined(SAGE_ISA_AVX512)

// The first `count` floats at p, zeros in the other lanes; nothing beyond is read.
SAGE_INLINE F32 LoadFirst(const float* p, int count) {
  return {_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p)};
}

// LoadU of a line that may still be on its way from memory, by two loads: a Zen 5 goes on sooner
// after these than after one of 64 bytes.
SAGE_INLINE F32 LoadArriving(const float* p) {
  __m256 low = _mm256_loadu_ps(p);
  asm("" : "+v"(low));  // or the compiler makes one of them
  return {_mm512_insertf32x8(_mm512_castps256_ps512(low), _mm256_loadu_ps(p + 8), 1)};
}

// Four vectors on the way to their sums, per 128-bit lane: element i is a part of vector i's.
using Fours = __m512;
SAGE_INLINE Fours Sum4(const F32* x) {
  const __m512 a =
      _mm512_add_ps(_mm512_unpacklo_ps(x[0].r, x[1].r), _mm512_unpackhi_ps(x[0].r, x[1].r));
  const __m512 b =
      _mm512_add_ps(_mm512_unpacklo_ps(x[2].r, x[3].r), _mm512_unpackhi_ps(x[2].r, x[3].r));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
  return _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
}

// Lane 4 i + j of the result is the sum that element j of x[i] is a part of.
SAGE_INLINE F32 JoinFours(const Fours x[kLanes / 4]) {
  const __m512 ab =
      _mm512_add_ps(_mm512_shuffle_f32x4(x[0], x[1], 0x88), _mm512_shuffle_f32x4(x[0], x[1], 0xdd));
  const __m512 cd =
      _mm512_add_ps(_mm512_shuffle_f32x4(x[2], x[3], 0x88), _mm512_shuffle_f32x4(x[2], x[3], 0xdd));
  return {_mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd))};
}

// Per 128-bit lane: element i of the result is the largest of vector i's, i < 4.
SAGE_INLINE __m512 Max4(F32 x0, F32 x1, F32 x2, F32 x3) {
  const __m512 a = _mm512_max_ps(_mm512_unpacklo_ps(x0.r, x1.r), _mm512_unpackhi_ps(x0.r, x1.r));
  const __m512 b = _mm512_max_ps(_mm512_unpacklo_ps(x2.r, x3.r), _mm512_unpackhi_ps(x2.r, x3.r));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
  return _mm512_max_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
}

// Lane 4 i + j of the result is the largest that element j of x[i] (by Max4) is one of.
SAGE_INLINE F32 JoinMaxima(const F32 x[kLanes / 4]) {
  const __m512 ab = _mm512_max_ps(_mm512_shuffle_f32x4(x[0].r, x[1].r, 0x88),
                                  _mm512_shuffle_f32x4(x[0].r, x[1].r, 0xdd));
  const __m512 cd = _mm512_max_ps(_mm512_shuffle_f32x4(x[2].r, x[3].r, 0x88),
                                  _mm512_shuffle_f32x4(x[2].r, x[3].r, 0xdd));
  return {_mm512_max_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd))};
}

// Lane i of the result is the largest lane of x[i].
SAGE_INLINE F32 MaxEach(const F32 x[kLanes]) {
  const F32 fours[4] = {{Max4(x[0], x[1], x[2], x[3])},
                        {Max4(x[4], x[5], x[6], x[7])},
                        {Max4(x[8], x[9], x[10], x[11])},
                        {Max4(x[12], x[13], x[14], x[15])}};
  return JoinMaxima(fours);
}

// Lane i < 6 of the result is the sum of all lanes of x[i]; the others are 0.
SAGE_INLINE F32 SumOfSix(const F32 x[6]) {
  const F32 rest[4] = {x[4], x[5], Zero(), Zero()};
  const __m512 a = Sum4(x), b = Sum4(rest);
  const __m512 ab =
      _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  const __m512 all =
      _mm512_add_ps(_mm512_shuffle_f32x4(ab, ab, 0x08), _mm512_shuffle_f32x4(ab, ab, 0x0d));
  return {_mm512_maskz_mov_ps(0x3f, all)};
}

// Lane i < 6 of the result is the largest lane of x[i]; the others are 0.
SAGE_INLINE F32 MaxOfSix(const F32 x[6]) {
  const __m512 a = Max4(x[0], x[1], x[2], x[3]), b = Max4(x[4], x[5], x[4], x[5]);
  const __m512 ab =
      _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  const __m512 all =
      _mm512_max_ps(_mm512_shuffle_f32x4(ab, ab, 0x08), _mm512_shuffle_f32x4(ab, ab, 0x0d));
  return {_mm512_maskz_mov_ps(0x3f, all)};
}

// x[i] lane j becomes x[j] lane i.
SAGE_INLINE void Transpose(F32 x[kLanes]) {
  __m512 t[16], u[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(x[i].r, x[i + 1].r);
    t[i + 1] = _mm512_unpackhi_ps(x[i].r, x[i + 1].r);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
    const __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
    u[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    u[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    u[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    u[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 a = _mm512_shuffle_f32x4(u[i], u[4 + i], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(u[8 + i], u[12 + i], 0x88);
    const __m512 c = _mm512_shuffle_f32x4(u[i], u[4 + i], 0xdd);
    const __m512 d = _mm512_shuffle_f32x4(u[8 + i], u[12 + i], 0xdd);
    x[i].r = _mm512_shuffle_f32x4(a, b, 0x88);
    x[8 + i].r = _mm512_shuffle_f32x4(a, b, 0xdd);
    x[4 + i].r = _mm512_shuffle_f32x4(c, d, 0x88);
    x[12 + i].r = _mm512_shuffle_f32x4(c, d, 0xdd);
  }
}

#elif defined(SAGE_ISA_AVX2)

// The first `count` floats at p, zeros in the other lanes; nothing beyond is read.
SAGE_INLINE F32 LoadFirst(const float* p, int count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return {_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane))};
}

// Four vectors on the way to their sums, per 128-bit lane: element i is a part of vector i's.
using Fours = __m256;
SAGE_INLINE Fours Sum4(const F32* x) {
  return _mm256_hadd_ps(_mm256_hadd_ps(x[0].r, x[1].r), _mm256_hadd_ps(x[2].r, x[3].r));
}

// Lane 4 i + j of the result is the sum that element j of x[i] is a part of.
SAGE_INLINE F32 JoinFours(const Fours x[kLanes / 4]) {
  return {_mm256_add_ps(_mm256_permute2f128_ps(x[0], x[1], 0x20),
                        _mm256_permute2f128_ps(x[0], x[1], 0x31))};
}

// Per 128-bit lane: element i of the result is the largest of vector i's, i < 4.
SAGE_INLINE __m256 Max4(F32 x0, F32 x1, F32 x2, F32 x3) {
  const __m256 a = _mm256_max_ps(_mm256_unpacklo_ps(x0.r, x1.r), _mm256_unpackhi_ps(x0.r, x1.r));
  const __m256 b = _mm256_max_ps(_mm256_unpacklo_ps(x2.r, x3.r), _mm256_unpackhi_ps(x2.r, x3.r));
  return _mm256_max_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
}

// Lane 4 i + j of the result is the largest that element j of x[i] (by Max4) is one of.
SAGE_INLINE F32 JoinMaxima(const F32 x[kLanes / 4]) {
  return {_mm256_max_ps(_mm256_permute2f128_ps(x[0].r, x[1].r, 0x20),
                        _mm256_permute2f128_ps(x[0].r, x[1].r, 0x31))};
}

// Lane i of the result is the largest lane of x[i].
SAGE_INLINE F32 MaxEach(const F32 x[kLanes]) {
  const F32 fours[2] = {{Max4(x[0], x[1], x[2], x[3])}, {Max4(x[4], x[5], x[6], x[7])}};
  return JoinMaxima(fours);
}

// Lane i < 6 of the result is the sum of all lanes of x[i]; the others are 0.
SAGE_INLINE F32 SumOfSix(const F32 x[6]) {
  const F32 rest[4] = {x[4], x[5], Zero(), Zero()};
  const __m256 a = Sum4(x), b = Sum4(rest);
  return {_mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31))};
}

// Lane i < 6 of the result is the largest lane of x[i]; the others are 0.
SAGE_INLINE F32 MaxOfSix(const F32 x[6]) {
  const __m256 a = Max4(x[0], x[1], x[2], x[3]), b = Max4(x[4], x[5], x[4], x[5]);
  const __m256 all =
      _mm256_max_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  return {_mm256_blend_ps(all, _mm256_setzero_ps(), 0xc0)};
}

// x[i] lane j becomes x[j] lane i.
SAGE_INLINE void Transpose(F32 x[kLanes]) {
  __m256 t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(x[i].r, x[i + 1].r);
    t[i + 1] = _mm256_unpackhi_ps(x[i].r, x[i + 1].r);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    x[i].r = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
    x[4 + i].r = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
  }
}

#elif defined(SAGE_ISA_NEON)

// The first `count` floats at p, zeros in the other lanes; nothing beyond is read.
SAGE_INLINE F32 LoadFirst(const float* p, int count) {
  float lane[kLanes] = {};
  for (int i = 0; i < count; ++i) lane[i] = p[i];
  return LoadU(lane);
}

// The sums of four vectors.
using Fours = float32x4_t;
SAGE_INLINE Fours Sum4(const F32* x) {
  const float32x4_t a = vaddq_f32(x[0].low, x[0].high), b = vaddq_f32(x[1].low, x[1].high);
  const float32x4_t c = vaddq_f32(x[2].low, x[2].high), d = vaddq_f32(x[3].low, x[3].high);
  return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
}
SAGE_INLINE F32 JoinFours(const Fours x[kLanes / 4]) { return {x[0], x[1]}; }

// Lane i < 6 of the result is the sum of all lanes of x[i]; the others are 0.
SAGE_INLINE F32 SumOfSix(const F32 x[6]) {
  const F32 rest[4] = {x[4], x[5], Zero(), Zero()};
  return {Sum4(x), Sum4(rest)};
}

// The larger lane; NaN where either is.
SAGE_INLINE float32x4_t MaxHalves(F32 x) { return vmaxq_f32(x.low, x.high); }

// Lane i of the result is the largest lane of x[i].
SAGE_INLINE F32 MaxEach(const F32 x[kLanes]) {
  F32 out;
  for (int half = 0; half < 2; ++half) {
    const F32* y = x + 4 * half;
    const float32x4_t ab = vpmaxq_f32(MaxHalves(y[0]), MaxHalves(y[1]));
    const float32x4_t cd = vpmaxq_f32(MaxHalves(y[2]), MaxHalves(y[3]));
    (half == 0 ? out.low : out.high) = vpmaxq_f32(ab, cd);
  }
  return out;
}

// Lane i < 6 of the result is the largest lane of x[i]; the others are 0.
SAGE_INLINE F32 MaxOfSix(const F32 x[6]) {
  const float32x4_t ab = vpmaxq_f32(MaxHalves(x[0]), MaxHalves(x[1]));
  const float32x4_t cd = vpmaxq_f32(MaxHalves(x[2]), MaxHalves(x[3]));
  const float32x4_t ef = vpmaxq_f32(MaxHalves(x[4]), MaxHalves(x[5]));
  const float32x4_t last = vpmaxq_f32(ef, ef);
  return {vpmaxq_f32(ab, cd), vcombine_f32(vget_low_f32(last), vdup_n_f32(0.0f))};
}

SAGE_INLINE void Transpose4(float32x4_t* a, float32x4_t* b, float32x4_t* c, float32x4_t* d) {
  const float64x2_t t0 = vreinterpretq_f64_f32(vtrn1q_f32(*a, *b));
  const float64x2_t t1 = vreinterpretq_f64_f32(vtrn2q_f32(*a, *b));
  const float64x2_t t2 = vreinterpretq_f64_f32(vtrn1q_f32(*c, *d));
  const float64x2_t t3 = vreinterpretq_f64_f32(vtrn2q_f32(*c, *d));
  *a = vreinterpretq_f32_f64(vtrn1q_f64(t0, t2));
  *b = vreinterpretq_f32_f64(vtrn1q_f64(t1, t3));
  *c = vreinterpretq_f32_f64(vtrn2q_f64(t0, t2));
  *d = vreinterpretq_f32_f64(vtrn2q_f64(t1, t3));
}

// x[i] lane j becomes x[j] lane i.
SAGE_INLINE void Transpose(F32 x[kLanes]) {
  Transpose4(&x[0].low, &x[1].low, &x[2].low, &x[3].low);
  Transpose4(&x[0].high, &x[1].high, &x[2].high, &x[3].high);
  Transpose4(&x[4].low, &x[5].low, &x[6].low, &x[7].low);
  Transpose4(&x[4].high, &x[5].high, &x[6].high, &x[7].high);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const float32x4_t other = x[i].high;
    x[i].high = x[4 + i].low;
    x[4 + i].low = other;
  }
}

#else

// The first `count` floats at p, zeros in the other lanes; nothing beyond is read.
SAGE_INLINE F32 LoadFirst(const float* p, int count) {
  F32 out = Zero();
  for (int i = 0; i < count; ++i) out.r[i] = p[i];
  return out;
}

// The sums of four vectors.
struct Fours {
  float r[4];
};
SAGE_INLINE Fours Sum4(const F32* x) {
  return {{ReduceAdd(x[0]), ReduceAdd(x[1]), ReduceAdd(x[2]), ReduceAdd(x[3])}};
}
SAGE_INLINE F32 JoinFours(const Fours x[kLanes / 4]) {
  F32 out;
  for (int i = 0; i < kLanes; ++i) out.r[i] = x[i / 4].r[i % 4];
  return out;
}

// Lane i < 6 of the result is the sum of all lanes of x[i]; the others are 0.
SAGE_INLINE F32 SumOfSix(const F32 x[6]) {
  F32 out = Zero();
  for (int i = 0; i < 6; ++i) out.r[i] = ReduceAdd(x[i]);
  return out;
}

// Lane i of the result is the largest lane of x[i].
SAGE_INLINE F32 MaxEach(const F32 x[kLanes]) {
  F32 out;
  for (int i = 0; i < kLanes; ++i) out.r[i] = ReduceMax(x[i]);
  return out;
}

// Lane i < 6 of the result is the largest lane of x[i]; the others are 0.
SAGE_INLINE F32 MaxOfSix(const F32 x[6]) {
  F32 out = Zero();
  for (int i = 0; i < 6; ++i) out.r[i] = ReduceMax(x[i]);
  return out;
}

// x[i] lane j becomes x[j] lane i.
SAGE_INLINE void Transpose(F32 x[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const float a = x[i].r[j];
      x[i].r[j] = x[j].r[i];
      x[j].r[i] = a;
    }
  }
}

#endif

#if !defined(SAGE_ISA_AVX512)
SAGE_INLINE F32 LoadArriving(const float* p) { return LoadU(p); }
#endif

// Lane i of the result is the sum of all lanes of x[i].
SAGE_INLINE F32 SumEach(const F32 x[kLanes]) {
  constexpr int kFours = kLanes / 4;
  Fours sums[kFours];
#pragma GCC unroll 4
  for (int i = 0; i < kFours; ++i) sums[i] = Sum4(x + 4 * i);
  return JoinFours(sums);
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_SIMD_SIMD_SHUFFLE_H_
