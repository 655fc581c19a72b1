// How a kernel written over the tile vocabulary of this folder is executed. One source, three ways:
//
//   native     compiled for sm_120f or sm_121: the block-scaled instructions of Blackwell
//   emulated   compiled for any other device from sm_80: the same fragments, exact arithmetic
//   simulated  compiled by the host's compiler: every thread is a fiber (csrc/simulate)
//
// Emulated and simulated give identical bits: every floating-point operation is written out in one
// order, and no compiler may contract them (-ffp-contract=off, -fmad=false). Native differs in what
// the device does inside one instruction: the order of adds of a product, and ex2.approx.
#ifndef SAGE_CUDA_CORE_EXECUTION_H_
#define SAGE_CUDA_CORE_EXECUTION_H_

#include <cmath>
#include <cstdint>

#include "formats/formats.h"

#ifdef __CUDACC__
#define SAGE_TILE static __device__ __forceinline__
#define SAGE_TILE_MEMBER __device__ __forceinline__
// Long and rarely called, or emulated: kept out of line so that kernels stay small.
#define SAGE_TILE_CALL static __device__ __noinline__
#define SAGE_UNROLL _Pragma("unroll")
#define SAGE_NO_UNROLL _Pragma("unroll 1")
#else
#define SAGE_TILE static inline
#define SAGE_TILE_MEMBER inline
#define SAGE_TILE_CALL static inline
#define SAGE_UNROLL
#define SAGE_NO_UNROLL
#include "simulate/block.h"
#endif

#if defined(__CUDA_ARCH_FEAT_SM120_ALL) || defined(__CUDA_ARCH_FEAT_SM121_ALL) || \
    (defined(__CUDA_ARCH_FAMILY_SPECIFIC__) && __CUDA_ARCH_FAMILY_SPECIFIC__ == 1200)
#define SAGE_NATIVE_FP4 1
#else
#define SAGE_NATIVE_FP4 0
#endif

namespace sage::tile {

constexpr float kInfinity = __builtin_inff();

// Sixteen bytes, loaded and stored as one.
struct alignas(16) Words4 {
  uint32_t x, y, z, w;
};
struct alignas(8) Words2 {
  uint32_t x, y;
};
struct alignas(8) Floats2 {
  float x, y;
};
struct alignas(16) Floats4 {
  float x, y, z, w;
};

// x y + z, rounded once.
SAGE_TILE float Fma(float x, float y, float z) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(x, y, z);
#else
  return std::fma(x, y, z);
#endif
}
SAGE_TILE float Max(float x, float y) { return fmaxf(x, y); }
SAGE_TILE int Least(int x, int y) { return x < y ? x : y; }
SAGE_TILE int Most(int x, int y) { return x > y ? x : y; }

// `value`, but not before `first` is known. `zero` is 0, which the compiler does not know.
SAGE_TILE int After(int value, uint32_t first, uint32_t zero) {
  return value | static_cast<int>(first & zero);
}

// 2^e for e from -126 to 127.
SAGE_TILE float PowerOfTwo(int e) { return BitsToFloat(static_cast<uint32_t>(e + 127) << 23); }

// Loads from global memory that no thread of the kernel writes.
SAGE_TILE Words2 LoadConstant(const Words2* at) {
#ifdef __CUDA_ARCH__
  const uint2 v = __ldg(reinterpret_cast<const uint2*>(at));
  return {v.x, v.y};
#else
  return *at;
#endif
}
SAGE_TILE Words4 LoadConstant(const Words4* at) {
#ifdef __CUDA_ARCH__
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(at));
  return {v.x, v.y, v.z, v.w};
#else
  return *at;
#endif
}

}  // namespace sage::tile

#endif  // SAGE_CUDA_CORE_EXECUTION_H_
