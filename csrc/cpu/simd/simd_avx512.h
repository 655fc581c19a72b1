// The vector vocabulary (simd.h) on AVX-512 F/BW/VL/DQ: 16 lanes.
#ifndef SAGE_CPU_SIMD_SIMD_AVX512_H_
#define SAGE_CPU_SIMD_SIMD_AVX512_H_

#include <immintrin.h>

#include <cstdint>

namespace sage {
namespace {

constexpr int kLanes = 16;

struct F32 {
  __m512 r;
};

SAGE_INLINE F32 Set1(float x) { return {_mm512_set1_ps(x)}; }
SAGE_INLINE F32 Zero() { return {_mm512_setzero_ps()}; }
SAGE_INLINE F32 LoadU(const float* p) { return {_mm512_loadu_ps(p)}; }
SAGE_INLINE F32 Load(const float* p) { return {_mm512_load_ps(p)}; }
SAGE_INLINE void StoreU(float* p, F32 a) { _mm512_storeu_ps(p, a.r); }
SAGE_INLINE void Store(float* p, F32 a) { _mm512_store_ps(p, a.r); }
SAGE_INLINE F32 Add(F32 a, F32 b) { return {_mm512_add_ps(a.r, b.r)}; }
SAGE_INLINE F32 Sub(F32 a, F32 b) { return {_mm512_sub_ps(a.r, b.r)}; }
SAGE_INLINE F32 Mul(F32 a, F32 b) { return {_mm512_mul_ps(a.r, b.r)}; }
SAGE_INLINE F32 Div(F32 a, F32 b) { return {_mm512_div_ps(a.r, b.r)}; }
SAGE_INLINE F32 Sqrt(F32 a) { return {_mm512_sqrt_ps(a.r)}; }
// a * b + c, rounded once.
SAGE_INLINE F32 Fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.r, b.r, c.r)}; }
// a * b - c, rounded once.
SAGE_INLINE F32 Fms(F32 a, F32 b, F32 c) { return {_mm512_fmsub_ps(a.r, b.r, c.r)}; }
// The larger lane; b where either is NaN, so put the value that may be NaN second.
SAGE_INLINE F32 Max(F32 a, F32 b) { return {_mm512_max_ps(a.r, b.r)}; }
// The smaller lane; b where either is NaN, as Max.
SAGE_INLINE F32 Min(F32 a, F32 b) { return {_mm512_min_ps(a.r, b.r)}; }
SAGE_INLINE F32 Abs(F32 a) { return {_mm512_abs_ps(a.r)}; }
SAGE_INLINE float ReduceMax(F32 a) { return _mm512_reduce_max_ps(a.r); }
SAGE_INLINE float ReduceAdd(F32 a) { return _mm512_reduce_add_ps(a.r); }
// Lanes [0, count) of a, the others from b.
SAGE_INLINE F32 FirstLanes(int count, F32 a, F32 b) {
  const __mmask16 mask = count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
  return {_mm512_mask_blend_ps(mask, b.r, a.r)};
}
// a where x > limit or x is NaN, else 0.
SAGE_INLINE F32 ZeroUnlessAbove(F32 a, F32 x, float limit) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.r, _mm512_set1_ps(limit), _CMP_NLE_UQ), a.r)};
}
// Whether some lane of x is above the limit.
SAGE_INLINE bool AnyAbove(F32 x, float limit) {
  return _mm512_cmp_ps_mask(x.r, _mm512_set1_ps(limit), _CMP_GT_OQ) != 0;
}
// a, with 0 in the lanes where x == y.
SAGE_INLINE F32 ZeroWhereEqual(F32 x, F32 y, F32 a) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.r, y.r, _CMP_NEQ_UQ), a.r)};
}
// x = n + f with n integral and f in [0, 1]. TimesPowerOfTwo(a, n) is a · 2^n. One instruction
// takes x - floor(x), and the scaling one takes the floor itself, so n is x as it stands.
constexpr bool kFractionFromZero = true;
// TimesPowerOfTwo(a, n) is 0 for n far below the exponents of float32, -Infinity included, by
// itself.
constexpr bool kUnderflows = true;
using Exponent = __m512;
SAGE_INLINE Exponent SplitExponent(F32 x, F32* f) {
  f->r = _mm512_reduce_ps(x.r, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  return x.r;
}
SAGE_INLINE F32 TimesPowerOfTwo(F32 a, Exponent n) { return {_mm512_scalef_ps(a.r, n)}; }
// The larger magnitude of `most` (bits of one) and x, compared as bits: NaN lies above Infinity.
SAGE_INLINE F32 MaxMagnitude(F32 most, F32 x) {
  const __m512i bits = _mm512_and_si512(_mm512_castps_si512(x.r), _mm512_set1_epi32(0x7fffffff));
  return {_mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(most.r), bits))};
}
// The largest of the lanes' bits, as MaxMagnitude leaves them.
SAGE_INLINE int32_t ReduceMaxBits(F32 a) {
  return _mm512_reduce_max_epi32(_mm512_castps_si512(a.r));
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_SIMD_SIMD_AVX512_H_
