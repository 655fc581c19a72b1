// Powers of two for the softmax, over the vector vocabulary of simd.h.
//
// 2^x = 2^n · 2^f with n = round(x), f in [-1/2, 1/2]; 2^f by a minimax polynomial in relative
// error (own Remez fit, weight 2^-f). Inputs below kExp2Floor give 2^kExp2Floor, a normal number:
// no denormals reach the sums, and 8e-38 against a row maximum of 1 is nothing. NaN stays NaN (the
// clamp takes its second operand when either is NaN).
#ifndef SAGE_CPU_SIMD_SIMD_MATH_H_
#define SAGE_CPU_SIMD_SIMD_MATH_H_

namespace sage {
namespace {

constexpr float kExp2Floor = -123.0f;

// Relative error 1.2e-7, about one unit in the last place: for float32 P.
SAGE_INLINE F32 Exp2(F32 x) {
  x = Max(Set1(kExp2Floor), x);
  F32 f;
  const Exponent n = SplitExponent(x, &f);
  F32 p = Set1(1.3276472e-3f);
  p = Fma(p, f, Set1(9.6755410e-3f));
  p = Fma(p, f, Set1(5.5507131e-2f));
  p = Fma(p, f, Set1(2.4022120e-1f));
  p = Fma(p, f, Set1(6.9314694e-1f));
  p = Fma(p, f, Set1(1.0f));
  return TimesPowerOfTwo(p, n);
}

// Relative error 2.6e-6: a twentieth of half a step of a 13-bit P.
SAGE_INLINE F32 Exp2Medium(F32 x) {
  x = Max(Set1(kExp2Floor), x);
  F32 f;
  const Exponent n = SplitExponent(x, &f);
  F32 p = Set1(9.5701021e-3f);
  p = Fma(p, f, Set1(5.5917859e-2f));
  p = Fma(p, f, Set1(2.4024744e-1f));
  p = Fma(p, f, Set1(6.9312179e-1f));
  p = Fma(p, f, Set1(9.9999928e-1f));
  return TimesPowerOfTwo(p, n);
}

// Relative error 7.5e-5: a fiftieth of bf16's and of half a step of an 8-bit P.
SAGE_INLINE F32 Exp2Coarse(F32 x) {
  x = Max(Set1(kExp2Floor), x);
  F32 f;
  const Exponent n = SplitExponent(x, &f);
  F32 p = Set1(5.5171669e-2f);
  p = Fma(p, f, Set1(2.4261113e-1f));
  p = Fma(p, f, Set1(6.9326097e-1f));
  p = Fma(p, f, Set1(9.9992806e-1f));
  return TimesPowerOfTwo(p, n);
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_SIMD_SIMD_MATH_H_
