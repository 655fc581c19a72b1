// What both launches of the pre-pass read: rows in any strides, their magnitudes, and the scales of
// integer codes.
#ifndef SAGE_CUDA_INT8_ROWS_CUH_
#define SAGE_CUDA_INT8_ROWS_CUH_

#include <cstdint>

#include "cuda/elements.cuh"
#include "cuda/int8/finish.cuh"
#include "cuda/int8/plan.h"

namespace sage::cuda::int8 {

constexpr uint32_t kTinyBits = (127 - 110) << 23;  // 2^-110 (docs/numerics.md 4)

struct Source {
  const void* data;
  TokenStrides strides;
  int heads, tokens, dim;
  bool words;    // rows begin with whole words of 4 bytes
  bool vectors;  // rows are whole vectors of 4 elements, aligned to their bytes

  template <class E>
  __device__ __forceinline__ const typename E::Storage* Row(int64_t batch_head,
                                                            int64_t token) const {
    return static_cast<const typename E::Storage*>(data) + batch_head / heads * strides.batch +
           batch_head % heads * strides.head + token * strides.token;
  }
};

struct PrepassPlan {
  Source q, k, v;
  Workspace space;
  int q_heads, group;  // query heads; query heads per kv head
  int kv_count;        // B·Hkv
  int q_blocks;        // of 128 rows in a query head
  int v_parts;
  InputType input;
  TokenGroup q_group, k_group;
  float qk_top;  // 127 or 7
  float v_top;   // 0: v is halves with a power of two per channel
  int smooth_q;  // rows per mean of q, 0 = off
  bool smooth_k, smooth_v, want_lse, away, int4, bytes, e4m3;
  float sign;  // of the scale: carried by the codes and means of q
  double scale;
};

__device__ __forceinline__ uint32_t Magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }
__device__ __forceinline__ bool Finite(float x) { return Magnitude(x) < kInfBits; }

// docs/numerics.md 4.2 and 4.6: from the largest magnitude to scale and inverse.
__device__ __forceinline__ float2 ScaleOf(uint32_t largest, float top) {
  if (largest < kTinyBits) return make_float2(0.0f, 0.0f);
  const float amax = __uint_as_float(largest);
  return make_float2(__fdiv_rn(amax, top), __fdiv_rn(top, amax));
}

// The largest power of two that is at most x; 1 for 0.
__device__ __forceinline__ float PowerBelow(float x) {
  return x == 0.0f ? 1.0f : fmaxf(0x1p-126f, __uint_as_float(__float_as_uint(x) & kInfBits));
}

// x · inverse rounded to a code of at most `top`: to nearest even, or half away from zero.
__device__ __forceinline__ int RoundCode(float x, float inverse, int top, bool away) {
  const float y = __fmul_rn(x, inverse);
  int code = __float2int_rn(y);
  if (away) {
    // 0.5 less one unit in the last place: RoundHalfAway of formats/integers.h.
    const int rounded = __float2int_rz(__fadd_rn(fabsf(y), 0x1.fffffep-2f));
    code = y < 0.0f ? -rounded : rounded;
  }
  return max(-top, min(top, code));
}

// Calls f with the type of the elements.
template <class F>
void WithElements(InputType input, const F& f) {
  switch (input) {
    case InputType::kFloat32:
      return f(Float32());
    case InputType::kFloat16:
      return f(Float16());
    case InputType::kBfloat16:
      return f(BFloat16());
  }
}

void LaunchStatistics(const PrepassPlan& plan, int dim, cudaStream_t stream);
void LaunchQuantise(const PrepassPlan& plan, int dim, cudaStream_t stream);

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_ROWS_CUH_
