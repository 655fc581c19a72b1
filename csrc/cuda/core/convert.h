// Exponentials, logarithms, and floats packed to 4 and 8 bits.
#ifndef SAGE_CUDA_CORE_CONVERT_H_
#define SAGE_CUDA_CORE_CONVERT_H_

#include "cuda/core/execution.h"

namespace sage::tile {

// 2^x; 0 below 2^-126. Native: ex2.approx (2 units in the last place). Otherwise the Taylor series
// of degree 7 around the nearest integer, 5e-9 from 2^f for |f| <= 1/2, in fused operations.
SAGE_TILE float Exp2(float x) {
#if SAGE_NATIVE_FP4
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  if (!(x >= -126.0f)) return x < -126.0f ? 0.0f : x;  // NaN stays
  if (x >= 128.0f) return kInfinity;
  const float rounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = x + rounder, f = x - (shifted - rounder);
  float p = 1.52527338e-5f;
  p = Fma(p, f, 1.54035304e-4f);
  p = Fma(p, f, 1.33335581e-3f);
  p = Fma(p, f, 9.61812911e-3f);
  p = Fma(p, f, 5.55041087e-2f);
  p = Fma(p, f, 2.40226507e-1f);
  p = Fma(p, f, 6.93147181e-1f);
  p = Fma(p, f, 1.0f);
  return BitsToFloat(FloatToBits(p) + (FloatToBits(shifted) << 23));
#endif
}

// log2 x of a positive finite x, the same in every execution: 2 atanh((m - 1) / (m + 1)) / ln 2 in
// float64, m in [sqrt(1/2), sqrt(2)).
SAGE_TILE double Log2(float x) {
  uint32_t bits = FloatToBits(x);
  int e = 0;
  if (bits < 0x00800000u) {  // subnormal
    bits = FloatToBits(x * 8388608.0f);
    e = -23;
  }
  e += static_cast<int>(bits >> 23) - 127;
  double m = static_cast<double>(BitsToFloat((bits & 0x7fffffu) | 0x3f800000u));
  if (m > 1.4142135623730951) {
    m = m * 0.5;
    ++e;
  }
  const double z = (m - 1.0) / (m + 1.0), z2 = z * z;
  double sum = 0.0;
  for (int k = 17; k >= 1; k -= 2) sum = sum * z2 + 1.0 / static_cast<double>(k);
  return static_cast<double>(e) + 2.8853900817779268 * (sum * z);
}

#ifdef __CUDACC__
// Two fp16 as floats, the lower half first.
SAGE_TILE void UnpackHalves(uint32_t pair, float& low, float& high) {
  asm("{.reg .f16 h0, h1; mov.b32 {h0, h1}, %2; cvt.f32.f16 %0, h0; cvt.f32.f16 %1, h1;}"
      : "=f"(low), "=f"(high)
      : "r"(pair));
}
#endif

// Eight floats as e2m1, the first in the lowest nibble: to nearest even, at most 6.
SAGE_TILE uint32_t PackE2m1(const float (&x)[8]) {
#if SAGE_NATIVE_FP4
  uint32_t packed;
  asm("{.reg .b8 b0, b1, b2, b3;\n"
      "cvt.rn.satfinite.e2m1x2.f32 b0, %2, %1; cvt.rn.satfinite.e2m1x2.f32 b1, %4, %3;\n"
      "cvt.rn.satfinite.e2m1x2.f32 b2, %6, %5; cvt.rn.satfinite.e2m1x2.f32 b3, %8, %7;\n"
      "mov.b32 %0, {b0, b1, b2, b3};}"
      : "=r"(packed)
      : "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]), "f"(x[4]), "f"(x[5]), "f"(x[6]), "f"(x[7]));
  return packed;
#else
  uint32_t packed = 0;
  SAGE_UNROLL
  for (int i = 0; i < 8; ++i) packed |= static_cast<uint32_t>(EncodeE2m1(x[i])) << 4 * i;
  return packed;
#endif
}

// Four floats as e4m3, the first in the lowest byte: to nearest even, at most 448.
SAGE_TILE uint32_t PackE4m3(float a, float b, float c, float d) {
#if SAGE_NATIVE_FP4
  uint32_t packed;
  asm("{.reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1; cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};}"
      : "=r"(packed)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return packed;
#else
  return static_cast<uint32_t>(EncodeE4m3(a)) | static_cast<uint32_t>(EncodeE4m3(b)) << 8 |
         static_cast<uint32_t>(EncodeE4m3(c)) << 16 | static_cast<uint32_t>(EncodeE4m3(d)) << 24;
#endif
}

#if SAGE_NATIVE_FP4
// The inverse of PackE2m1, exactly.
SAGE_TILE void UnpackE2m1(uint32_t codes, float (&x)[8]) {
  uint32_t pairs[4];  // of fp16, which holds every e2m1 value
  asm("{.reg .b8 b0, b1, b2, b3;\n"
      "mov.b32 {b0, b1, b2, b3}, %4;\n"
      "cvt.rn.f16x2.e2m1x2 %0, b0; cvt.rn.f16x2.e2m1x2 %1, b1;\n"
      "cvt.rn.f16x2.e2m1x2 %2, b2; cvt.rn.f16x2.e2m1x2 %3, b3;}"
      : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
      : "r"(codes));
  SAGE_UNROLL
  for (int i = 0; i < 4; ++i) UnpackHalves(pairs[i], x[2 * i], x[2 * i + 1]);
}
#endif

// The sum of the eight e2m1 values of a word, exactly.
SAGE_TILE float SumE2m1(uint32_t codes) {
#ifdef __CUDA_ARCH__
  int twice = 0;
  SAGE_UNROLL
  for (int half = 0; half < 2; ++half) {
    // Four codes to bytes: twice the magnitudes, and the signs as 1 and -1.
    const uint32_t four = codes >> 16 * half;
    const uint32_t magnitudes = __byte_perm(0x03020100u, 0x0c080604u, four & 0x7777u);
    const uint32_t signs = __byte_perm(0x0000ff01u, 0u, four >> 3 & 0x1111u);
    twice = __dp4a(static_cast<int>(magnitudes), static_cast<int>(signs), twice);
  }
  return 0.5f * static_cast<float>(twice);
#else
  float sum = 0.0f;
  for (int i = 0; i < 8; ++i) sum += DecodeE2m1(static_cast<uint8_t>(codes >> 4 * i & 15));
  return sum;
#endif
}

// The sum of the four e4m3 values of a word. None is NaN.
SAGE_TILE float SumE4m3(uint32_t codes) {
  float x[4];
#if SAGE_NATIVE_FP4
  uint32_t low, high;  // pairs of fp16, which holds every e4m3 value
  asm("{.reg .b16 c0, c1;\n"
      "mov.b32 {c0, c1}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, c0; cvt.rn.f16x2.e4m3x2 %1, c1;}"
      : "=r"(low), "=r"(high)
      : "r"(codes));
  UnpackHalves(low, x[0], x[1]);
  UnpackHalves(high, x[2], x[3]);
#else
  SAGE_UNROLL
  for (int i = 0; i < 4; ++i) x[i] = DecodeE4m3(static_cast<uint8_t>(codes >> 8 * i));
#endif
  return (x[0] + x[1]) + (x[2] + x[3]);
}

// Two floats as fp16, the first in the lower half: to nearest even, at most 65,504. Not for NaN.
SAGE_TILE uint32_t PackHalves(float low, float high) {
#ifdef __CUDA_ARCH__
  constexpr float kLargest = 65504.0f;
  const float x = fminf(fmaxf(low, -kLargest), kLargest);
  const float y = fminf(fmaxf(high, -kLargest), kLargest);
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(y), "f"(x));
  return packed;
#else
  return static_cast<uint32_t>(EncodeFp16Saturating(low)) |
         static_cast<uint32_t>(EncodeFp16Saturating(high)) << 16;
#endif
}

// To 10 mantissa bits, half away from zero, as cvt.rna.tf32 does.
SAGE_TILE float RoundTf32(float x) {
  const uint32_t bits = FloatToBits(x);
  return (bits & 0x7f800000u) == 0x7f800000u ? x : BitsToFloat((bits + 0x1000u) & 0xffffe000u);
}

// Byte i of the result is byte (selector >> 4 i) & 7 of low (0 to 3) and high (4 to 7).
SAGE_TILE uint32_t SelectBytes(uint32_t low, uint32_t high, uint32_t selector) {
#ifdef __CUDA_ARCH__
  return __byte_perm(low, high, selector);
#else
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<uint32_t>(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  }
  return result;
#endif
}

}  // namespace sage::tile

#endif  // SAGE_CUDA_CORE_CONVERT_H_
