// The products of the int8 kernels, one function per instruction, and the roundings of P. Fragments
// are those of images.h.
#ifndef SAGE_CUDA_INT8_PRODUCTS_CUH_
#define SAGE_CUDA_INT8_PRODUCTS_CUH_

#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/tensor_core.cuh"
#include "formats/minifloat.h"

namespace sage::cuda::int8 {

// 1.5 · 2^23: an int32 sum that starts at these bits reads as the float kMagic + sum while
// |sum| < 2^22, and 256 · 127 · 127 is below that. No conversion of scores is ever needed.
constexpr float kMagic = 12582912.0f;
constexpr int kMagicBits = 0x4B400000;

// kMagicBits four times over, in registers that stay: the assembler would write the constant anew
// for every product that starts from it.
__device__ __forceinline__ void LoadMagic(int (&magic)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) asm volatile("mov.b32 %0, %1;" : "=r"(magic[e]) : "n"(kMagicBits));
}

// s = kMagic + a b, and s += a b; 16 x 8 by 32 dims of int8.
__device__ __forceinline__ void StartInt8(int (&s)[4], const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1, const int (&magic)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11,%12,%13};\n"
      : "=r"(s[0]), "=r"(s[1]), "=r"(s[2]), "=r"(s[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(magic[0]), "r"(magic[1]),
        "r"(magic[2]), "r"(magic[3]));
}
__device__ __forceinline__ void AddInt8(int (&s)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same by 64 dims of int4.
__device__ __forceinline__ void StartInt4(int (&s)[4], const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1, const int (&magic)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11,%12,%13};\n"
      : "=r"(s[0]), "=r"(s[1]), "=r"(s[2]), "=r"(s[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(magic[0]), "r"(magic[1]),
        "r"(magic[2]), "r"(magic[3]));
}
__device__ __forceinline__ void AddInt4(int (&s)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += a b; 16 x 8 by 16 keys of halves.
__device__ __forceinline__ void MultiplyHalves(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 2^x, kept where it stands among the products.
__device__ __forceinline__ float Exp2InOrder(float x) {
  float y;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// c += a b with sums in halves (two registers of c); 16 x 8 by 16 keys of halves.
__device__ __forceinline__ void MultiplyInHalves(uint32_t (&c)[2], const uint32_t (&a)[4],
                                                 uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, "
      "{%0,%1};\n"
      : "+r"(c[0]), "+r"(c[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Whether this pass of the compiler has e4m3 products, and those with sums in halves.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define SAGE_HAS_E4M3 1
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 8)
#define SAGE_HAS_E4M3_HALF_SUMS 1
#endif
#endif

// c += a b; 16 x 8 by 32 keys of e4m3.
__device__ __forceinline__ void MultiplyE4m3(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
#ifdef SAGE_HAS_E4M3
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
__device__ __forceinline__ void MultiplyE4m3InHalves(uint32_t (&c)[2], const uint32_t (&a)[4],
                                                     uint32_t b0, uint32_t b1) {
#ifdef SAGE_HAS_E4M3_HALF_SUMS
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e4m3.f16 {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, "
      "{%0,%1};\n"
      : "+r"(c[0]), "+r"(c[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Four e4m3 codes, to nearest even and saturating; a in the lowest byte.
__device__ __forceinline__ uint32_t PackE4m3(float a, float b, float c, float d) {
#ifdef SAGE_HAS_E4M3
  uint32_t bytes;
  asm("{\n.reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n}"
      : "=r"(bytes)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return bytes;
#else
  return static_cast<uint32_t>(EncodeE4m3(a)) | static_cast<uint32_t>(EncodeE4m3(b)) << 8 |
         static_cast<uint32_t>(EncodeE4m3(c)) << 16 | static_cast<uint32_t>(EncodeE4m3(d)) << 24;
#endif
}

__device__ __forceinline__ uint32_t PackHalves(float a, float b) {
  const __half2 h = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&h);
}
__device__ __forceinline__ float2 UnpackHalves(uint32_t bits) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}

// Four e4m3 codes as halves, which hold their values; the lowest byte first.
__device__ __forceinline__ uint2 HalvesOfE4m3(uint32_t codes) {
#ifdef SAGE_HAS_E4M3
  uint2 halves;
  asm("{\n.reg .b16 a, b;\n"
      "mov.b32 {a, b}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, a;\n"
      "cvt.rn.f16x2.e4m3x2 %1, b;\n}"
      : "=r"(halves.x), "=r"(halves.y)
      : "r"(codes));
  return halves;
#else
  const auto value = [&](int byte) { return DecodeE4m3(static_cast<uint8_t>(codes >> byte * 8)); };
  return make_uint2(PackHalves(value(0), value(1)), PackHalves(value(2), value(3)));
#endif
}

// Both halves times a float rounded to a half.
__device__ __forceinline__ uint32_t ScaleHalves(uint32_t bits, float by) {
  const __half2 x = __hmul2(*reinterpret_cast<const __half2*>(&bits), __float2half2_rn(by));
  return *reinterpret_cast<const uint32_t*>(&x);
}

// P in [0, 448] rounded to e4m3 and held in float32; NaN stays. Adding m rounds: RoundMagnitude of
// formats/float_bits.h without what P never needs.
__device__ __forceinline__ float RoundToE4m3(float p) {
  const float raised = fmaxf(p, 0x1p-6f);
  const float m = __uint_as_float((__float_as_uint(raised) & 0x7f800000u) + (20u << 23));
  return __fsub_rn(__fadd_rn(p, m), m);
}

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_PRODUCTS_CUH_
