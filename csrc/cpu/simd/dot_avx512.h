// Integer dot products of AVX-512 VNNI. GCC 12 spills the accumulators of a register tile around
// the intrinsics (half the speed); an asm statement keeps them in registers.
#ifndef SAGE_CPU_SIMD_DOT_AVX512_H_
#define SAGE_CPU_SIMD_DOT_AVX512_H_

#include <immintrin.h>
#include <string.h>

#include <cstdint>

namespace sage {
namespace {

SAGE_INLINE __m512i DotBytes(__m512i acc, __m512i unsigned_bytes, __m512i signed_bytes) {
#if defined(__GNUC__) && !defined(__clang__)
  asm("vpdpbusd %2,%1,%0" : "+v"(acc) : "v"(unsigned_bytes), "v"(signed_bytes));
  return acc;
#else
  return _mm512_dpbusd_epi32(acc, unsigned_bytes, signed_bytes);
#endif
}

SAGE_INLINE __m512i DotWords(__m512i acc, __m512i a, __m512i b) {
#if defined(__GNUC__) && !defined(__clang__)
  asm("vpdpwssd %2,%1,%0" : "+v"(acc) : "v"(a), "v"(b));
  return acc;
#else
  return _mm512_dpwssd_epi32(acc, a, b);
#endif
}

SAGE_INLINE __m512i Broadcast4(const void* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_SIMD_DOT_AVX512_H_
