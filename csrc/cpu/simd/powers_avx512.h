// 2^(s c - m) of two vectors, as Exp2Coarse (degree 3) and Exp2Medium (degree 4) compute it, to the
// same bits, in 7 registers beside those of a register tile. With GCC an asm statement, for GCC 12
// would keep the constants in registers and the tile's accumulators in memory.
#ifndef SAGE_CPU_SIMD_POWERS_AVX512_H_
#define SAGE_CPU_SIMD_POWERS_AVX512_H_

#include "cpu/simd/simd.h"

namespace sage {
namespace {

struct TwoVectors {
  __m512 low, high;
};

#if defined(__GNUC__) && !defined(__clang__)
#define SAGE_POWERS_BEGIN                        \
  "vbroadcastss %[factor],%[c]\n\t"              \
  "vmovaps %[s0],%[x0]\n\t"                      \
  "vmovaps %[s1],%[x1]\n\t"                      \
  "vfmsub213ps %[shift]%{1to16%},%[c],%[x0]\n\t" \
  "vfmsub213ps %[shift]%{1to16%},%[c],%[x1]\n\t" \
  "vreduceps $9,%[x0],%[f0]\n\t"                 \
  "vreduceps $9,%[x1],%[f1]\n\t"                 \
  "vbroadcastss %[top],%[p0]\n\t"                \
  "vbroadcastss %[top],%[p1]\n\t"
#define SAGE_POWERS_TERM(c)    \
  "vfmadd213ps %[" c           \
  "]%{1to16%},%[f0],%[p0]\n\t" \
  "vfmadd213ps %[" c "]%{1to16%},%[f1],%[p1]\n\t"
#define SAGE_POWERS_END             \
  "vscalefps %[x0],%[p0],%[p0]\n\t" \
  "vscalefps %[x1],%[p1],%[p1]"
#define SAGE_POWERS_OUTPUTS                                                                     \
  [c] "=&v"(c), [x0] "=&v"(x0), [x1] "=&v"(x1), [f0] "=&v"(f0), [f1] "=&v"(f1), [p0] "=&v"(p0), \
      [p1] "=&v"(p1)
#define SAGE_POWERS_INPUTS                                                       \
  [s0] "m"(*reinterpret_cast<const __m512*>(s)),                                 \
      [s1] "m"(*reinterpret_cast<const __m512*>(s + 16)), [factor] "m"(*factor), \
      [shift] "m"(*shift)

template <int kDegree>
SAGE_INLINE TwoVectors PowersOfTwo(const float* s, const float* factor, const float* shift) {
  __m512 c, x0, x1, f0, f1, p0, p1;
  if constexpr (kDegree == 3) {
    const float(&k)[4] = kExp2CoarseFromZero;
    asm(SAGE_POWERS_BEGIN SAGE_POWERS_TERM("k2") SAGE_POWERS_TERM("k1") SAGE_POWERS_TERM("k0")
        SAGE_POWERS_END:SAGE_POWERS_OUTPUTS
        : SAGE_POWERS_INPUTS, [k0] "m"(k[0]), [k1] "m"(k[1]), [k2] "m"(k[2]), [top] "m"(k[3]));
  } else {
    static_assert(kDegree == 4, "one of the two");
    const float(&k)[5] = kExp2MediumFromZero;
    asm(SAGE_POWERS_BEGIN SAGE_POWERS_TERM("k3") SAGE_POWERS_TERM("k2") SAGE_POWERS_TERM("k1")
            SAGE_POWERS_TERM("k0") SAGE_POWERS_END:SAGE_POWERS_OUTPUTS
        : SAGE_POWERS_INPUTS, [k0] "m"(k[0]), [k1] "m"(k[1]), [k2] "m"(k[2]), [k3] "m"(k[3]),
          [top] "m"(k[4]));
  }
  return {p0, p1};
}

#undef SAGE_POWERS_BEGIN
#undef SAGE_POWERS_TERM
#undef SAGE_POWERS_END
#undef SAGE_POWERS_OUTPUTS
#undef SAGE_POWERS_INPUTS
#else
template <int kDegree>
SAGE_INLINE TwoVectors PowersOfTwo(const float* s, const float* factor, const float* shift) {
  static_assert(kDegree == 3 || kDegree == 4, "one of the two");
  const F32 c = Set1(*factor), m = Set1(*shift);
  const F32 x0 = Fms(Load(s), c, m), x1 = Fms(Load(s + 16), c, m);
  if (kDegree == 3) return {Exp2Coarse(x0).r, Exp2Coarse(x1).r};
  return {Exp2Medium(x0).r, Exp2Medium(x1).r};
}
#endif

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_SIMD_POWERS_AVX512_H_
