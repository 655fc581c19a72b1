// Pointers that the compiler takes as they stand. In code unrolled by hand GCC 12 works out the
// address of every access in advance, keeps them all, and moves accumulators to memory to make
// room; from here on it uses these pointers and constant offsets.
#ifndef SAGE_CPU_SIMD_KEEP_ADDRESSES_H_
#define SAGE_CPU_SIMD_KEEP_ADDRESSES_H_

#include "cpu/simd/simd.h"

namespace sage {
namespace {

template <class A>
SAGE_INLINE void KeepAddress(A*& a) {
  asm("" : "+r"(a));
}

// One statement for all, which the compiler does not spread out.
template <class A, class B>
SAGE_INLINE void KeepAddresses(A*& a, B*& b) {
  asm("" : "+r"(a), "+r"(b));
}

template <class A, class B, class C, class D>
SAGE_INLINE void KeepAddresses(A*& a, B*& b, C*& c, D*& d) {
  asm("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d));
}

template <class A, class B, class C, class D, class E>
SAGE_INLINE void KeepAddresses(A*& a, B*& b, C*& c, D*& d, E*& e) {
  asm("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e));
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_SIMD_KEEP_ADDRESSES_H_
