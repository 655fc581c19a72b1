// The vector vocabulary (simd.h) on NEON: 8 lanes in two registers of four, so that layouts are
// those of AVX2.
#ifndef SAGE_CPU_SIMD_SIMD_NEON_H_
#define SAGE_CPU_SIMD_SIMD_NEON_H_

#include <arm_neon.h>

#include <cstdint>

namespace sage {
namespace {

constexpr int kLanes = 8;

struct F32 {
  float32x4_t low, high;
};

SAGE_INLINE F32 Set1(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
SAGE_INLINE F32 Zero() { return Set1(0.0f); }
SAGE_INLINE F32 LoadU(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
SAGE_INLINE F32 Load(const float* p) { return LoadU(p); }
SAGE_INLINE void StoreU(float* p, F32 a) {
  vst1q_f32(p, a.low);
  vst1q_f32(p + 4, a.high);
}
SAGE_INLINE void Store(float* p, F32 a) { StoreU(p, a); }
SAGE_INLINE F32 Add(F32 a, F32 b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
SAGE_INLINE F32 Sub(F32 a, F32 b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
SAGE_INLINE F32 Mul(F32 a, F32 b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
SAGE_INLINE F32 Div(F32 a, F32 b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
SAGE_INLINE F32 Sqrt(F32 a) { return {vsqrtq_f32(a.low), vsqrtq_f32(a.high)}; }
// a * b + c, rounded once.
SAGE_INLINE F32 Fma(F32 a, F32 b, F32 c) {
  return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
// a * b - c, rounded once.
SAGE_INLINE F32 Fms(F32 a, F32 b, F32 c) {
  return Fma(a, b, {vnegq_f32(c.low), vnegq_f32(c.high)});
}
// The larger lane; b where either is NaN, so put the value that may be NaN second. (vmaxq_f32 gives
// NaN where either is.)
SAGE_INLINE F32 Max(F32 a, F32 b) {
  return {vbslq_f32(vcgtq_f32(a.low, b.low), a.low, b.low),
          vbslq_f32(vcgtq_f32(a.high, b.high), a.high, b.high)};
}
// The smaller lane; b where either is NaN, as Max.
SAGE_INLINE F32 Min(F32 a, F32 b) {
  return {vbslq_f32(vcltq_f32(a.low, b.low), a.low, b.low),
          vbslq_f32(vcltq_f32(a.high, b.high), a.high, b.high)};
}
SAGE_INLINE F32 Abs(F32 a) { return {vabsq_f32(a.low), vabsq_f32(a.high)}; }
SAGE_INLINE float ReduceMax(F32 a) {
  const float32x4_t m = vbslq_f32(vcgtq_f32(a.low, a.high), a.low, a.high);
  float lane[4];
  vst1q_f32(lane, m);
  const float x = lane[0] > lane[2] ? lane[0] : lane[2];
  const float y = lane[1] > lane[3] ? lane[1] : lane[3];
  return x > y ? x : y;
}
SAGE_INLINE float ReduceAdd(F32 a) { return vaddvq_f32(vaddq_f32(a.low, a.high)); }
// Lanes [0, count) of a, the others from b.
SAGE_INLINE F32 FirstLanes(int count, F32 a, F32 b) {
  const int32_t index[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  const int32x4_t limit = vdupq_n_s32(count);
  return {vbslq_f32(vcgtq_s32(limit, vld1q_s32(index)), a.low, b.low),
          vbslq_f32(vcgtq_s32(limit, vld1q_s32(index + 4)), a.high, b.high)};
}

SAGE_INLINE float32x4_t ClearWhere(uint32x4_t mask, float32x4_t a) {
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a), mask));
}
// a where x > limit or x is NaN, else 0.
SAGE_INLINE F32 ZeroUnlessAbove(F32 a, F32 x, float limit) {
  const float32x4_t top = vdupq_n_f32(limit);
  return {ClearWhere(vcleq_f32(x.low, top), a.low), ClearWhere(vcleq_f32(x.high, top), a.high)};
}
// Whether some lane of x is above the limit.
SAGE_INLINE bool AnyAbove(F32 x, float limit) {
  const float32x4_t top = vdupq_n_f32(limit);
  return vmaxvq_u32(vorrq_u32(vcgtq_f32(x.low, top), vcgtq_f32(x.high, top))) != 0;
}
// a, with 0 in the lanes where x == y.
SAGE_INLINE F32 ZeroWhereEqual(F32 x, F32 y, F32 a) {
  return {ClearWhere(vceqq_f32(x.low, y.low), a.low),
          ClearWhere(vceqq_f32(x.high, y.high), a.high)};
}
// x = n + f with n integral and f in [-1/2, 1/2]; |x| < 2^21. TimesPowerOfTwo(a, n) is a · 2^n, n
// in [-126, 127]. Adding 1.5 · 2^23 rounds x to an integer and leaves that integer in the lowest
// mantissa bits: shifted to the exponent field they are what a · 2^n adds to the bits of a.
constexpr bool kFractionFromZero = false;
// TimesPowerOfTwo(a, n) is 0 for n far below the exponents of float32, -Infinity included, by
// itself.
constexpr bool kUnderflows = false;
struct Exponent {
  int32x4_t low, high;
};
SAGE_INLINE Exponent SplitExponent(F32 x, F32* f) {
  const F32 magic = Set1(12582912.0f);
  const F32 shifted = Add(x, magic);
  *f = Sub(x, Sub(shifted, magic));
  return {vshlq_n_s32(vreinterpretq_s32_f32(shifted.low), 23),
          vshlq_n_s32(vreinterpretq_s32_f32(shifted.high), 23)};
}
SAGE_INLINE F32 TimesPowerOfTwo(F32 a, Exponent n) {
  return {vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a.low), n.low)),
          vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a.high), n.high))};
}
SAGE_INLINE float32x4_t MaxBits(float32x4_t a, float32x4_t b) {
  return vreinterpretq_f32_s32(vmaxq_s32(vreinterpretq_s32_f32(a), vreinterpretq_s32_f32(b)));
}
// The larger magnitude of `most` (bits of one) and x, compared as bits: NaN lies above Infinity.
SAGE_INLINE F32 MaxMagnitude(F32 most, F32 x) {
  return {MaxBits(most.low, vabsq_f32(x.low)), MaxBits(most.high, vabsq_f32(x.high))};
}
// The largest of the lanes' bits, as MaxMagnitude leaves them.
SAGE_INLINE int32_t ReduceMaxBits(F32 a) {
  return vmaxvq_s32(vreinterpretq_s32_f32(MaxBits(a.low, a.high)));
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_SIMD_SIMD_NEON_H_
