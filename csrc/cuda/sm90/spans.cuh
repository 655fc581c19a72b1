// The part of the outputs that lies in memory: sums of earlier spans of keys.
//
// A warp owns [D / 8][32 lanes] float4 of the workspace, which stays in L2: accumulators 4j to
// 4j + 3 of a lane are one of them. Only that lane touches it, in order, so sums are deterministic.
#ifndef SAGE_CUDA_SM90_SPANS_CUH_
#define SAGE_CUDA_SM90_SPANS_CUH_

#include "cuda/sm90/block.cuh"
#include "cuda/sm90/hopper.cuh"

namespace sage {
namespace sm90 {

// `spans`: this lane's first float4.
template <int kSums>
SAGE_DEVICE void KeepSpan(float* spans, const float (&t)[kSums]) {
#pragma unroll
  for (int j = 0; j < kSums / 4; ++j) {
    __stcg(reinterpret_cast<float4*>(spans) + 32 * j,
           make_float4(t[4 * j], t[4 * j + 1], t[4 * j + 2], t[4 * j + 3]));
  }
}

template <int kSums>
SAGE_DEVICE void AddSpan(float* spans, const float (&t)[kSums]) {
#pragma unroll
  for (int j = 0; j < kSums / 4; ++j) {
    AddGlobal4(spans + 128 * j, t[4 * j], t[4 * j + 1], t[4 * j + 2], t[4 * j + 3]);
  }
}

// Rows g and g + 8 come under other offsets. Rare.
template <int kSums>
SAGE_DEVICE void ScaleSpans(float* spans, float a0, float a1) {
#pragma unroll 1
  for (int j = 0; j < kSums / 4; ++j) {
    float4* at = reinterpret_cast<float4*>(spans) + 32 * j;
    const float4 x = __ldcg(at);
    __stcg(at, make_float4(x.x * a0, x.y * a0, x.z * a1, x.w * a1));
  }
}

template <int kSums>
SAGE_DEVICE void TakeSpans(const float* spans, float (&t)[kSums]) {
#pragma unroll
  for (int j = 0; j < kSums / 4; ++j) {
    const float4 x = __ldcg(reinterpret_cast<const float4*>(spans) + 32 * j);
    t[4 * j] += x.x;
    t[4 * j + 1] += x.y;
    t[4 * j + 2] += x.z;
    t[4 * j + 3] += x.w;
  }
}

// The row sums of a group of tiles, an A fragment of m16n8k8, and the offsets they stand under. A
// warp owns [groups of a span]{[32 lanes] float4, [32 lanes] float2}.
SAGE_DEVICE void KeepSums(float* kept, int group, const float4& r, float m0, float m1) {
  const int lane = threadIdx.x & 31;
  float* at = kept + group % kSpanGroups * (32 * 6);
  __stcg(reinterpret_cast<float4*>(at), r);
  __stcg(reinterpret_cast<float2*>(at + 128 - 2 * lane), make_float2(m0, m1));
}

// Under the offsets of now.
SAGE_DEVICE float4 TakeSums(const float* kept, int group, float m0, float m1) {
  const int lane = threadIdx.x & 31;
  const float* at = kept + group % kSpanGroups * (32 * 6);
  const float4 x = __ldcg(reinterpret_cast<const float4*>(at));
  const float2 m = __ldcg(reinterpret_cast<const float2*>(at + 128 - 2 * lane));
  const float a0 = Exp2(m.x - m0), a1 = Exp2(m.y - m1);
  return make_float4(x.x * a0, x.y * a1, x.z * a0, x.w * a1);
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_SPANS_CUH_
