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

// The row sums of a group of tiles, an A fragment of m16n8k8, and the offsets they stand under. In
// fp16, whose mantissa is that of tf32: a row's sum of a tile is at most 128 x 448, below fp16's
// largest, and what fp16 loses of sums below 2^-14 is nothing beside l, which is at least 10. A
// warp owns [groups of a span][32 lanes]{2 x fp16, 2 x fp16, offsets of rows g and g + 8}; `kept`:
// this lane's first.
SAGE_DEVICE void KeepSums(uint32_t* kept, int group, const float4& r, float m0, float m1) {
  __stcg(reinterpret_cast<uint4*>(kept) + group % kSpanGroups * 32,
         make_uint4(PackHalves(r.x, r.y), PackHalves(r.z, r.w), __float_as_uint(m0),
                    __float_as_uint(m1)));
}
SAGE_DEVICE uint4 LoadSums(const uint32_t* kept, int group) {
  return __ldcg(reinterpret_cast<const uint4*>(kept) + group % kSpanGroups * 32);
}

// What LoadSums loaded, under the offsets of now.
SAGE_DEVICE float4 SumsUnder(const uint4& kept, float m0, float m1) {
  const float a0 = Exp2(__uint_as_float(kept.z) - m0), a1 = Exp2(__uint_as_float(kept.w) - m1);
  const float2 x = UnpackHalves(kept.x), y = UnpackHalves(kept.y);
  return make_float4(x.x * a0, x.y * a1, y.x * a0, y.y * a1);
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_SPANS_CUH_
