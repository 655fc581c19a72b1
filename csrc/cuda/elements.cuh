// Elements of q, k and v in memory, read as float32: every 16-bit value is a float32 value, so what
// follows does not know which they were.
#ifndef SAGE_CUDA_ELEMENTS_CUH_
#define SAGE_CUDA_ELEMENTS_CUH_

#include <cuda_fp16.h>

#include <cstdint>

#include "sage/problem.h"

namespace sage {

// How words of 4 bytes hold elements. At: element i of a word. kInfinities: a word of them.
struct Float32 {
  using Storage = uint32_t;
  static constexpr int kInWord = 1;
  static constexpr uint32_t kInfinities = 0x7f800000;
  __device__ __forceinline__ static float At(uint32_t word, int) { return __uint_as_float(word); }
};
struct Float16 {
  using Storage = uint16_t;
  static constexpr int kInWord = 2;
  static constexpr uint32_t kInfinities = 0x7c007c00;
  __device__ __forceinline__ static float At(uint32_t word, int i) {
    return __half2float(__ushort_as_half(static_cast<uint16_t>(i == 0 ? word : word >> 16)));
  }
};
struct BFloat16 {
  using Storage = uint16_t;
  static constexpr int kInWord = 2;
  static constexpr uint32_t kInfinities = 0x7f807f80;
  __device__ __forceinline__ static float At(uint32_t word, int i) {
    return __uint_as_float(i == 0 ? word << 16 : word & 0xffff0000u);
  }
};

// One element, read for the last time.
template <class E>
__device__ __forceinline__ float LoadElement(const typename E::Storage* at) {
  return E::At(__ldcs(at), 0);
}

// The word at `at`. If it is not `whole` (aligned, both elements inside the row), its elements are
// read one by one; a second one that does not exist (`second` false) is Infinity.
template <class E>
__device__ __forceinline__ uint32_t LoadWord(const typename E::Storage* at, bool whole,
                                             bool second) {
  if constexpr (E::kInWord == 1) {
    return __ldg(at);
  } else {
    if (whole) return __ldg(reinterpret_cast<const uint32_t*>(at));
    const uint32_t high = second ? __ldg(at + 1) : E::kInfinities & 0xffffu;
    return __ldg(at) | high << 16;
  }
}

// `kCount` elements, aligned to all their bytes or to 16, read for the last time.
template <class E, int kCount>
__device__ __forceinline__ void LoadElements(const typename E::Storage* at, float (&x)[kCount]) {
  constexpr int kWords = kCount / E::kInWord;
  uint32_t words[kWords];
  if constexpr (kWords == 1) {
    words[0] = __ldcs(reinterpret_cast<const uint32_t*>(at));
  } else if constexpr (kWords == 2) {
    const uint2 y = __ldcs(reinterpret_cast<const uint2*>(at));
    words[0] = y.x, words[1] = y.y;
  } else {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const uint4 y = __ldcs(reinterpret_cast<const uint4*>(at) + i / 4);
      words[i] = y.x, words[i + 1] = y.y, words[i + 2] = y.z, words[i + 3] = y.w;
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] = E::At(words[i / E::kInWord], i % E::kInWord);
}

// Values in memory whose type is known at run time only: for what is rare.
struct Values {
  const void* data;
  TokenStrides strides;
  InputType input;

  // Whether the element at `at` (in elements) is a number.
  __device__ __forceinline__ bool Finite(int64_t at) const {
    if (input == InputType::kFloat32) {
      return (static_cast<const uint32_t*>(data)[at] & 0x7fffffffu) < 0x7f800000u;
    }
    const uint32_t magnitude = static_cast<const uint16_t*>(data)[at] & 0x7fffu;
    return magnitude < (input == InputType::kFloat16 ? 0x7c00u : 0x7f80u);
  }
};

}  // namespace sage

#endif  // SAGE_CUDA_ELEMENTS_CUH_
