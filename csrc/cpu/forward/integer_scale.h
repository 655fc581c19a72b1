// Scales and codes of the integer formats, docs/numerics.md 4 and 4.2.
#ifndef SAGE_CPU_FORWARD_INTEGER_SCALE_H_
#define SAGE_CPU_FORWARD_INTEGER_SCALE_H_

#include <cstdint>

#include "cpu/simd/simd_shuffle.h"
#include "formats/float_bits.h"

namespace sage {
namespace {

// 2^-110 (docs/numerics.md 4): below it the inverse of a scale would overflow.
constexpr int32_t kTinyBits = (127 - 110) << 23;
// The largest float below it.
constexpr float kBelowTiny = 0x1.fffffep-111f;

SAGE_INLINE int32_t MaxBits(const float* x, int count) {
  F32 most = Zero();
  int d = 0;
  for (; d + kLanes <= count; d += kLanes) most = MaxMagnitude(most, LoadU(x + d));
  if (d < count) most = MaxMagnitude(most, LoadFirst(x + d, count - d));
  return ReduceMaxBits(most);
}

struct ScalePair {
  float scale, inverse;
};

SAGE_INLINE ScalePair ScaleOf(int32_t max_bits, float top) {
  if (max_bits < kTinyBits) return {0.0f, 0.0f};
  const float amax = BitsToFloat(static_cast<uint32_t>(max_bits));
  return {amax / top, top / amax};
}

// ScaleOf of each lane.
SAGE_INLINE void ScalesOf(F32 most, float top, F32* scale, F32* inverse) {
  *scale = ZeroUnlessAbove(Div(most, Set1(top)), most, kBelowTiny);
  *inverse = ZeroUnlessAbove(Div(Set1(top), most), most, kBelowTiny);
}

// To the nearest integer, ties to even, for |x| < 2^22: adding 1.5 · 2^23 leaves no fraction bits.
// All codes are far smaller, and this is two additions where RoundHalfEven must mind every float.
SAGE_INLINE float RoundCode(float x) { return (x + 12582912.0f) - 12582912.0f; }
SAGE_INLINE F32 RoundCodes(F32 x) {
  const F32 magic = Set1(12582912.0f);
  return Sub(Add(x, magic), magic);
}

// x becomes the codes of x · factor.
SAGE_INLINE void RoundCodes(float* x, int dims, float factor) {
  const F32 by = Set1(factor);
  int d = 0;
  for (; d + kLanes <= dims; d += kLanes) StoreU(x + d, RoundCodes(Mul(LoadU(x + d), by)));
  for (; d < dims; ++d) x[d] = RoundCode(x[d] * factor);
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_FORWARD_INTEGER_SCALE_H_
