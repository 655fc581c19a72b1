// Elements of q, k and v in memory, as float32: every 16-bit value is a float32 value, so nothing
// that follows knows which they were.
#ifndef SAGE_CUDA_SM120_ELEMENTS_H_
#define SAGE_CUDA_SM120_ELEMENTS_H_

#include <cstdint>

#include "cuda/core/execution.h"
#include "sage/problem.h"

namespace sage {
namespace sm120 {

// Storage: an element in memory. kInWord: elements per word of 4 bytes; At: element i of one.
struct Float32 {
  using Storage = uint32_t;
  static constexpr int kInWord = 1;
  SAGE_TILE_MEMBER static float At(uint32_t word, int) { return BitsToFloat(word); }
};
struct Float16 {
  using Storage = uint16_t;
  static constexpr int kInWord = 2;
  SAGE_TILE_MEMBER static float At(uint32_t word, int i) {
    const uint16_t code = static_cast<uint16_t>(i == 0 ? word : word >> 16);
#ifdef __CUDA_ARCH__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(code));
    return x;
#else
    return DecodeFp16(code);
#endif
  }
};
struct BFloat16 {
  using Storage = uint16_t;
  static constexpr int kInWord = 2;
  SAGE_TILE_MEMBER static float At(uint32_t word, int i) {
    return BitsToFloat(i == 0 ? word << 16 : word & 0xffff0000u);
  }
};

// Whether element `at` of `data` is finite: for what is rare, so that its type may be known late.
SAGE_TILE bool IsFiniteElement(const void* data, InputType input, int64_t at) {
  if (input == InputType::kFloat32) {
    return (static_cast<const uint32_t*>(data)[at] & 0x7fffffffu) < 0x7f800000u;
  }
  const uint32_t magnitude = static_cast<const uint16_t*>(data)[at] & 0x7fffu;
  return magnitude < (input == InputType::kFloat16 ? 0x7c00u : 0x7f80u);
}

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_ELEMENTS_H_
