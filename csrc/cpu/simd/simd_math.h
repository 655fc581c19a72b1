// Powers of two for the softmax, over the vector vocabulary of simd.h.
//
// 2^x = 2^n · 2^f, where f is what SplitExponent of the instruction set leaves: in [-1/2, 1/2] or
// in [0, 1]. 2^f by a minimax polynomial in relative error (own fits), 2^0 = 1 exactly where 1 is
// among the coefficients. Inputs at or below kExp2Floor give 0: no denormals reach the sums, and
// 9e-38 against a row maximum of 1 is nothing. NaN stays NaN.
#ifndef SAGE_CPU_SIMD_SIMD_MATH_H_
#define SAGE_CPU_SIMD_SIMD_MATH_H_

namespace sage {
namespace {

constexpr float kExp2Floor = -123.0f;

// c[0] + c[1] f + ..., the highest power first.
template <int kDegree>
SAGE_INLINE F32 Polynomial(const float (&c)[kDegree + 1], F32 f) {
  F32 p = Set1(c[kDegree]);
#pragma GCC unroll 5
  for (int i = kDegree - 1; i >= 0; --i) p = Fma(p, f, Set1(c[i]));
  return p;
}

template <int kDegree>
SAGE_INLINE F32 Exp2Unbounded(const float (&centred)[kDegree + 1],
                              const float (&from_zero)[kDegree + 1], F32 x) {
  F32 f;
  const Exponent n = SplitExponent(x, &f);
  return TimesPowerOfTwo(Polynomial<kDegree>(kFractionFromZero ? from_zero : centred, f), n);
}

// Far below the floor p · 2^n is garbage where the exponent is added as bits.
template <int kDegree>
SAGE_INLINE F32 Exp2By(const float (&centred)[kDegree + 1], const float (&from_zero)[kDegree + 1],
                       F32 x) {
  return ZeroUnlessAbove(Exp2Unbounded<kDegree>(centred, from_zero, x), x, kExp2Floor);
}

// For a P that is rounded: below the floor, 0 or what rounds to 0, so that no comparison is needed
// where the scaling instruction itself underflows to the 0 of hidden keys.
template <int kDegree>
SAGE_INLINE F32 Exp2ToRound(const float (&centred)[kDegree + 1],
                            const float (&from_zero)[kDegree + 1], F32 x) {
  return kUnderflows ? Exp2Unbounded<kDegree>(centred, from_zero, x)
                     : Exp2By<kDegree>(centred, from_zero, x);
}

constexpr float kExp2Centred[6] = {1.0f,          6.9314694e-1f, 2.4022120e-1f,
                                   5.5507131e-2f, 9.6755410e-3f, 1.3276472e-3f};
constexpr float kExp2FromZero[6] = {1.0f,          6.9315130e-1f, 2.4016444e-1f,
                                    5.5799913e-2f, 9.0170298e-3f, 1.8671302e-3f};

// Relative error 1.5e-7, about one unit in the last place: for float32 P.
SAGE_INLINE F32 Exp2(F32 x) { return Exp2By<5>(kExp2Centred, kExp2FromZero, x); }

// The same of several vectors, step by step. kWithin: all of x is known to lie in [-126, 127].
template <bool kWithin, int kCount>
SAGE_INLINE void Exp2Together(F32 (&x)[kCount]) {
  const float(&c)[6] = kFractionFromZero ? kExp2FromZero : kExp2Centred;
  F32 f[kCount], p[kCount];
  Exponent n[kCount];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    n[i] = SplitExponent(x[i], &f[i]);
    p[i] = Set1(c[5]);
  }
#pragma GCC unroll 5
  for (int k = 4; k >= 0; --k) {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) p[i] = Fma(p[i], f[i], Set1(c[k]));
  }
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    const F32 power = TimesPowerOfTwo(p[i], n[i]);
    x[i] = kWithin ? power : ZeroUnlessAbove(power, x[i], kExp2Floor);
  }
}

constexpr float kExp2MediumFromZero[5] = {1.0f, 6.9304484e-1f, 2.4128021e-1f, 5.2242473e-2f,
                                          1.3426686e-2f};
constexpr float kExp2CoarseFromZero[4] = {1.0f, 6.9511682e-1f, 2.2764498e-1f, 7.7067055e-2f};

// Relative error 3e-6: a twentieth of half a step of a 13-bit P.
SAGE_INLINE F32 Exp2Medium(F32 x) {
  constexpr float kCentred[5] = {9.9999928e-1f, 6.9312179e-1f, 2.4024744e-1f, 5.5917859e-2f,
                                 9.5701021e-3f};
  return Exp2ToRound<4>(kCentred, kExp2MediumFromZero, x);
}

// Relative error 8.6e-5: a fiftieth of bf16's and of half a step of an 8-bit P.
SAGE_INLINE F32 Exp2Coarse(F32 x) {
  constexpr float kCentred[4] = {9.9992806e-1f, 6.9326097e-1f, 2.4261113e-1f, 5.5171669e-2f};
  return Exp2ToRound<3>(kCentred, kExp2CoarseFromZero, x);
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_SIMD_SIMD_MATH_H_
