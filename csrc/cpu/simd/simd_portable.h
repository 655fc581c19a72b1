// The vector vocabulary (simd.h) in plain C++: 8 lanes that the compiler maps to whatever the
// target has (SSE2, NEON, none).
#ifndef SAGE_CPU_SIMD_SIMD_PORTABLE_H_
#define SAGE_CPU_SIMD_SIMD_PORTABLE_H_

#include <cmath>
#include <cstdint>
#include <cstring>

namespace sage {
namespace {

constexpr int kLanes = 8;

struct F32 {
  float r[kLanes];
};

#define SAGE_EACH_LANE for (int i = 0; i < kLanes; ++i)

SAGE_INLINE F32 Set1(float x) {
  F32 out;
  SAGE_EACH_LANE out.r[i] = x;
  return out;
}
SAGE_INLINE F32 Zero() { return Set1(0.0f); }
SAGE_INLINE F32 LoadU(const float* p) {
  F32 out;
  std::memcpy(out.r, p, sizeof(out.r));
  return out;
}
SAGE_INLINE F32 Load(const float* p) { return LoadU(p); }
SAGE_INLINE void StoreU(float* p, F32 a) { std::memcpy(p, a.r, sizeof(a.r)); }
SAGE_INLINE void Store(float* p, F32 a) { StoreU(p, a); }
SAGE_INLINE F32 Add(F32 a, F32 b) {
  SAGE_EACH_LANE a.r[i] += b.r[i];
  return a;
}
SAGE_INLINE F32 Sub(F32 a, F32 b) {
  SAGE_EACH_LANE a.r[i] -= b.r[i];
  return a;
}
SAGE_INLINE F32 Mul(F32 a, F32 b) {
  SAGE_EACH_LANE a.r[i] *= b.r[i];
  return a;
}
SAGE_INLINE F32 Div(F32 a, F32 b) {
  SAGE_EACH_LANE a.r[i] /= b.r[i];
  return a;
}
SAGE_INLINE F32 Sqrt(F32 a) {
  SAGE_EACH_LANE a.r[i] = std::sqrt(a.r[i]);
  return a;
}
// a * b + c; rounded twice, since a plain target has no fused instruction.
SAGE_INLINE F32 Fma(F32 a, F32 b, F32 c) { return Add(Mul(a, b), c); }
// a * b - c; rounded twice.
SAGE_INLINE F32 Fms(F32 a, F32 b, F32 c) { return Sub(Mul(a, b), c); }
// The larger lane; b where either is NaN, so put the value that may be NaN second.
SAGE_INLINE F32 Max(F32 a, F32 b) {
  SAGE_EACH_LANE a.r[i] = a.r[i] > b.r[i] ? a.r[i] : b.r[i];
  return a;
}
// The smaller lane; b where either is NaN, as Max.
SAGE_INLINE F32 Min(F32 a, F32 b) {
  SAGE_EACH_LANE a.r[i] = a.r[i] < b.r[i] ? a.r[i] : b.r[i];
  return a;
}
SAGE_INLINE F32 Abs(F32 a) {
  SAGE_EACH_LANE a.r[i] = std::fabs(a.r[i]);
  return a;
}
SAGE_INLINE float ReduceMax(F32 a) {
  float m = a.r[0];
  for (int i = 1; i < kLanes; ++i) m = m > a.r[i] ? m : a.r[i];
  return m;
}
SAGE_INLINE float ReduceAdd(F32 a) {
  return ((a.r[0] + a.r[4]) + (a.r[2] + a.r[6])) + ((a.r[1] + a.r[5]) + (a.r[3] + a.r[7]));
}
// Lanes [0, count) of a, the others from b.
SAGE_INLINE F32 FirstLanes(int count, F32 a, F32 b) {
  SAGE_EACH_LANE a.r[i] = i < count ? a.r[i] : b.r[i];
  return a;
}
// a where x > limit or x is NaN, else 0.
SAGE_INLINE F32 ZeroUnlessAbove(F32 a, F32 x, float limit) {
  SAGE_EACH_LANE a.r[i] = !(x.r[i] <= limit) ? a.r[i] : 0.0f;
  return a;
}
// Whether some lane of x is above the limit.
SAGE_INLINE bool AnyAbove(F32 x, float limit) {
  bool any = false;
  SAGE_EACH_LANE any |= x.r[i] > limit;
  return any;
}
// a, with 0 in the lanes where x == y.
SAGE_INLINE F32 ZeroWhereEqual(F32 x, F32 y, F32 a) {
  SAGE_EACH_LANE a.r[i] = x.r[i] == y.r[i] ? 0.0f : a.r[i];
  return a;
}
// x = n + f with n integral and f in [-1/2, 1/2]; |x| < 2^21. TimesPowerOfTwo(a, n) is a · 2^n, n
// in [-126, 127]. Adding 1.5 · 2^23 rounds x to an integer and leaves that integer in the lowest
// mantissa bits: shifted to the exponent field they are what a · 2^n adds to the bits of a.
// Unsigned, so that a NaN overflows nothing.
constexpr bool kFractionFromZero = false;
// TimesPowerOfTwo(a, n) is 0 for n far below the exponents of float32, -Infinity included, by
// itself.
constexpr bool kUnderflows = false;
struct Exponent {
  uint32_t bits[kLanes];
};
SAGE_INLINE Exponent SplitExponent(F32 x, F32* f) {
  Exponent n;
  SAGE_EACH_LANE {
    const float shifted = x.r[i] + 12582912.0f;
    f->r[i] = x.r[i] - (shifted - 12582912.0f);
    std::memcpy(&n.bits[i], &shifted, 4);
    n.bits[i] <<= 23;
  }
  return n;
}
SAGE_INLINE F32 TimesPowerOfTwo(F32 a, Exponent n) {
  SAGE_EACH_LANE {
    uint32_t bits;
    std::memcpy(&bits, &a.r[i], 4);
    bits += n.bits[i];
    std::memcpy(&a.r[i], &bits, 4);
  }
  return a;
}
// The larger magnitude of `most` (bits of one) and x, compared as bits: NaN lies above Infinity.
SAGE_INLINE F32 MaxMagnitude(F32 most, F32 x) {
  SAGE_EACH_LANE {
    uint32_t a, b;
    std::memcpy(&a, &most.r[i], 4);
    std::memcpy(&b, &x.r[i], 4);
    b &= 0x7fffffffu;
    a = a > b ? a : b;
    std::memcpy(&most.r[i], &a, 4);
  }
  return most;
}
// The largest of the lanes' bits, as MaxMagnitude leaves them.
SAGE_INLINE int32_t ReduceMaxBits(F32 a) {
  int32_t most = 0;
  SAGE_EACH_LANE {
    int32_t bits;
    std::memcpy(&bits, &a.r[i], 4);
    most = bits > most ? bits : most;
  }
  return most;
}

#undef SAGE_EACH_LANE

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_SIMD_SIMD_PORTABLE_H_
