// The vector vocabulary of one translation unit: `F32`, a register of kLanes floats, and a few
// operations on it.
//
// A translation unit is compiled for one instruction set; its flags define SAGE_ISA_AVX512,
// SAGE_ISA_AVX2, SAGE_ISA_NEON or none. Everything here has internal linkage (static, or in an
// unnamed namespace): two translation units compiled with different flags must never share an
// inline function, or the linker may put AVX-512 code on a path that an older processor runs.
#ifndef SAGE_CPU_SIMD_SIMD_H_
#define SAGE_CPU_SIMD_SIMD_H_

#define SAGE_INLINE static inline __attribute__((always_inline))
#define SAGE_NOINLINE static __attribute__((noinline))

#if defined(SAGE_ISA_AVX512)
#include "cpu/simd/simd_avx512.h"
#elif defined(SAGE_ISA_AVX2)
#include "cpu/simd/simd_avx2.h"
#elif defined(SAGE_ISA_NEON)
#include "cpu/simd/simd_neon.h"
#else
#include "cpu/simd/simd_portable.h"
#endif

#include "cpu/simd/simd_math.h"

#endif  // SAGE_CPU_SIMD_SIMD_H_
