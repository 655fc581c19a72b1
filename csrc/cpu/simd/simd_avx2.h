// The vector vocabulary (simd.h) on AVX2 and FMA: 8 lanes.
#ifndef SAGE_CPU_SIMD_SIMD_AVX2_H_
#define SAGE_CPU_SIMD_SIMD_AVX2_H_

#include <immintrin.h>

#include <cstdint>

namespace sage {
namespace {

constexpr int kLanes = 8;

struct F32 {
  __m256 r;
};

SAGE_INLINE F32 Set1(float x) { return {_mm256_set1_ps(x)}; }
SAGE_INLINE F32 Zero() { return {_mm256_setzero_ps()}; }
SAGE_INLINE F32 LoadU(const float* p) { return {_mm256_loadu_ps(p)}; }
SAGE_INLINE F32 Load(const float* p) { return {_mm256_load_ps(p)}; }
SAGE_INLINE void StoreU(float* p, F32 a) { _mm256_storeu_ps(p, a.r); }
SAGE_INLINE void Store(float* p, F32 a) { _mm256_store_ps(p, a.r); }
SAGE_INLINE F32 Add(F32 a, F32 b) { return {_mm256_add_ps(a.r, b.r)}; }
SAGE_INLINE F32 Sub(F32 a, F32 b) { return {_mm256_sub_ps(a.r, b.r)}; }
SAGE_INLINE F32 Mul(F32 a, F32 b) { return {_mm256_mul_ps(a.r, b.r)}; }
SAGE_INLINE F32 Div(F32 a, F32 b) { return {_mm256_div_ps(a.r, b.r)}; }
SAGE_INLINE F32 Sqrt(F32 a) { return {_mm256_sqrt_ps(a.r)}; }
// a * b + c, rounded once.
SAGE_INLINE F32 Fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.r, b.r, c.r)}; }
// a * b - c, rounded once.
SAGE_INLINE F32 Fms(F32 a, F32 b, F32 c) { return {_mm256_fmsub_ps(a.r, b.r, c.r)}; }
// The larger lane; b where either is NaN, so put the value that may be NaN second.
SAGE_INLINE F32 Max(F32 a, F32 b) { return {_mm256_max_ps(a.r, b.r)}; }
// The smaller lane; b where either is NaN, as Max.
SAGE_INLINE F32 Min(F32 a, F32 b) { return {_mm256_min_ps(a.r, b.r)}; }
SAGE_INLINE F32 Abs(F32 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.r)}; }
SAGE_INLINE float ReduceMax(F32 a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a.r), _mm256_extractf128_ps(a.r, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
SAGE_INLINE float ReduceAdd(F32 a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.r), _mm256_extractf128_ps(a.r, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
// Lanes [0, count) of a, the others from b.
SAGE_INLINE F32 FirstLanes(int count, F32 a, F32 b) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i keep = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
  return {_mm256_blendv_ps(b.r, a.r, _mm256_castsi256_ps(keep))};
}
// a where x > limit or x is NaN, else 0.
SAGE_INLINE F32 ZeroUnlessAbove(F32 a, F32 x, float limit) {
  return {_mm256_and_ps(a.r, _mm256_cmp_ps(x.r, _mm256_set1_ps(limit), _CMP_NLE_UQ))};
}
// Whether some lane of x is above the limit.
SAGE_INLINE bool AnyAbove(F32 x, float limit) {
  return _mm256_movemask_ps(_mm256_cmp_ps(x.r, _mm256_set1_ps(limit), _CMP_GT_OQ)) != 0;
}
// a, with 0 in the lanes where x == y.
SAGE_INLINE F32 ZeroWhereEqual(F32 x, F32 y, F32 a) {
  return {_mm256_andnot_ps(_mm256_cmp_ps(x.r, y.r, _CMP_EQ_OQ), a.r)};
}
// x = n + f with n integral and f in [-1/2, 1/2]; |x| < 2^21. TimesPowerOfTwo(a, n) is a · 2^n, n
// in [-126, 127]. Adding 1.5 · 2^23 rounds x to an integer and leaves that integer in the lowest
// mantissa bits: shifted to the exponent field they are what a · 2^n adds to the bits of a.
constexpr bool kFractionFromZero = false;
// TimesPowerOfTwo(a, n) is 0 for n far below the exponents of float32, -Infinity included, by
// itself.
constexpr bool kUnderflows = false;
using Exponent = __m256i;
SAGE_INLINE Exponent SplitExponent(F32 x, F32* f) {
  const __m256 magic = _mm256_set1_ps(12582912.0f);
  const __m256 shifted = _mm256_add_ps(x.r, magic);
  f->r = _mm256_sub_ps(x.r, _mm256_sub_ps(shifted, magic));
  return _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
}
SAGE_INLINE F32 TimesPowerOfTwo(F32 a, Exponent n) {
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.r), n))};
}
// The larger magnitude of `most` (bits of one) and x, compared as bits: NaN lies above Infinity.
SAGE_INLINE F32 MaxMagnitude(F32 most, F32 x) {
  const __m256i bits = _mm256_and_si256(_mm256_castps_si256(x.r), _mm256_set1_epi32(0x7fffffff));
  return {_mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(most.r), bits))};
}
// The largest of the lanes' bits, as MaxMagnitude leaves them.
SAGE_INLINE int32_t ReduceMaxBits(F32 a) {
  const __m256i bits = _mm256_castps_si256(a.r);
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return _mm_cvtsi128_si32(m);
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_SIMD_SIMD_AVX2_H_
