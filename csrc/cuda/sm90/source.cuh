// q, k and v as they are given, and the scales and codes of int8 rows (docs/numerics.md 4). Nothing
// here may be contracted: products are rounded one by one.
#ifndef SAGE_CUDA_SM90_SOURCE_CUH_
#define SAGE_CUDA_SM90_SOURCE_CUH_

#include <cstdint>

#include "cuda/elements.cuh"
#include "cuda/sm90/hopper.cuh"
#include "sage/problem.h"

namespace sage {
namespace sm90 {

constexpr uint32_t kInfBits = 0x7f800000;          // exponent all ones: not finite from here on
constexpr uint32_t kTinyBits = (127 - 110) << 23;  // 2^-110
constexpr float kInt8Top = 127.0f;
constexpr float kE4m3Top = 448.0f;

struct Source {
  const void* data;
  TokenStrides strides;
  int heads, tokens, dim;
  bool words;    // rows are aligned to words
  bool pieces;   // rows are whole pieces of D / 32 elements, aligned for the widest loads
  bool vectors;  // and have D of them
  bool chunks;   // rows are whole chunks of 16 bytes, as bulk copies take
  bool dense;    // rows have all padded channels, and the tokens of a head follow one another

  template <class E>
  __device__ const typename E::Storage* Row(int batch_head, int token) const {
    const int64_t batch = batch_head / heads, head = batch_head % heads;
    return static_cast<const typename E::Storage*>(data) + batch * strides.batch +
           head * strides.head + token * strides.token;
  }
};

// Of an operand whose head_dim is padded to `padded`.
inline Source SourceOf(const float* data, InputType input, const TokenStrides& strides,
                       int64_t heads, int64_t tokens, int64_t dim, int padded) {
  Source source = {};
  source.data = data;
  source.strides = strides;
  source.heads = static_cast<int>(heads);
  source.tokens = static_cast<int>(tokens);
  source.dim = static_cast<int>(dim);
  const int bytes = input == InputType::kFloat32 ? 4 : 2;
  const auto aligned = [&](int to) {
    const int elements = to / bytes;
    return reinterpret_cast<uintptr_t>(data) % to == 0 && strides.batch % elements == 0 &&
           strides.head % elements == 0 && strides.token % elements == 0;
  };
  source.words = aligned(4);
  source.pieces = dim % (padded / 32) == 0 && aligned(16);
  source.chunks = source.pieces && dim * bytes % 16 == 0;
  source.vectors = source.pieces && dim == padded;
  source.dense = source.vectors && strides.token == dim;
  return source;
}

SAGE_DEVICE uint32_t Magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }
SAGE_DEVICE bool Finite(float x) { return Magnitude(x) < kInfBits; }

// docs/numerics.md 4.2 and 4.6: largest magnitude to scale and inverse.
SAGE_DEVICE float2 ScaleOf(uint32_t largest, float top) {
  if (largest < kTinyBits) return make_float2(0.0f, 0.0f);
  const float amax = __uint_as_float(largest);
  return make_float2(__fdiv_rn(amax, top), __fdiv_rn(top, amax));
}

// ScaleOf(largest, kInt8Top) without a branch for what is far from 1. Both quotients and the scaled
// denominator are far from the ends of float32, so that residuals are exact and rounding once more
// gives the nearest float32: the steps of a division as the compiler expands it.
SAGE_DEVICE float2 Int8ScaleOf(uint32_t largest) {
  constexpr float kInverse = 1.0f / kInt8Top;
  const float amax = __uint_as_float(largest);
  float scale = __fmul_rn(amax, kInverse);
  scale = __fmaf_rn(__fmaf_rn(-scale, kInt8Top, amax), kInverse, scale);
  const float unit = largest < (127 + 64) << 23 ? 1.0f : 0x1p-64f, x = amax * unit;
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  y = __fmaf_rn(__fmaf_rn(-x, y, 1.0f), y, y);
  float inverse = __fmul_rn(kInt8Top, y);
  inverse = __fmaf_rn(__fmaf_rn(-x, inverse, kInt8Top), y, inverse);
  inverse = __fmaf_rn(__fmaf_rn(-x, inverse, kInt8Top), y, inverse);
  return largest < kTinyBits ? make_float2(0.0f, 0.0f) : make_float2(scale, inverse * unit);
}

// Largest magnitude of one row's channels.
template <int kChannels>
SAGE_DEVICE uint32_t Largest(uint32_t most, const float (&x)[kChannels]) {
#pragma unroll
  for (int c = 0; c < kChannels; c += 2) {
    most = __vimax3_u32(most, Magnitude(x[c]), Magnitude(x[c + 1]));
  }
  return most;
}

// One lane's codes of a row, to the lowest bytes of `words`. |x · (127 / max |x|)| rounds to at
// most 127, so that nothing needs clamping, and adding 1.5 · 2^23 leaves the rounded integer in the
// lowest bits.
template <int kChannels>
SAGE_DEVICE void RoundToCodes(const float (&x)[kChannels], float inverse,
                              uint32_t (&words)[(kChannels + 3) / 4]) {
  constexpr float kRound = 12582912.0f;
  uint32_t bits[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    bits[c] = __float_as_uint(__fadd_rn(__fmul_rn(x[c], inverse), kRound));
  }
  if constexpr (kChannels == 2) {
    words[0] = __byte_perm(bits[0], bits[1], 0x0040);
  } else {
#pragma unroll
    for (int w = 0; w < kChannels / 4; ++w) {
      words[w] = __byte_perm(__byte_perm(bits[4 * w], bits[4 * w + 1], 0x0040),
                             __byte_perm(bits[4 * w + 2], bits[4 * w + 3], 0x0040), 0x5410);
    }
  }
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_SOURCE_CUH_
