// Two warpgroups with the same rows: their sums over different keys, added through shared memory.
//
//   m = max(m[0], m[1]),  w[s] = 2^(m[s] - m)
//   l = w[0] l[0] + w[1] l[1],  T = w[0] T[0] + w[1] T[1]
//
// Warp n of one warpgroup has the rows of warp n of the other. Each gives the other half of its
// channels, so that both have the same to add and to write.
#ifndef SAGE_CUDA_SM90_SHARED_ROWS_CUH_
#define SAGE_CUDA_SM90_SHARED_ROWS_CUH_

#include <cfloat>

#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/parts.cuh"

namespace sage {
namespace sm90 {

constexpr int kPairs = 3;  // named barriers of 64 threads, one to a pair of warps

// Sums T, offsets m and sums of P l (of whole quads) of rows g and g + 8 of warpgroup `mine` become
// those over the keys of both; the first half of T then holds channels [0, D / 2) in warpgroup 0,
// [D / 2, D) in 1. `my_place`, `other_place`: this lane's float4 of the row sums of this warp and
// of the other, which nobody needs any more.
template <int kSums>
SAGE_DEVICE void AddSharedRows(uint32_t my_place, uint32_t other_place, int mine, int pair,
                               float (&T)[kSums], float& m0, float& m1, float& l0, float& l1) {
  constexpr int kHalf = kSums / 2, kChunk = 16;
  constexpr uint32_t kEnds = kChunk / 4 * 512;
  static_assert(kEnds + 512 <= kWarpSumBytes, "room of a warp");
  float w0 = 0.0f, w1 = 0.0f, other_w0 = 0.0f, other_w1 = 0.0f;
#pragma unroll
  for (int chunk = 0; chunk < kHalf; chunk += kChunk) {
#pragma unroll
    for (int j = chunk; j < chunk + kChunk; j += 4) {
      const auto give = [&](int n) { return mine ? T[n] : T[kHalf + n]; };
      StoreShared4(my_place + (j - chunk) * 128, give(j), give(j + 1), give(j + 2), give(j + 3));
    }
    if (chunk == 0) StoreShared4(my_place + kEnds, m0, m1, l0, l1);
    NamedSync(pair, 64);
    if (chunk == 0) {
      const float4 other = LoadSharedFloat4(other_place + kEnds);
      // A half without keys has no weight.
      const float n0 = fmaxf(m0, other.x), n1 = fmaxf(m1, other.y);
      const auto weight = [](float l, float m, float n) { return l == 0.0f ? 0.0f : exp2f(m - n); };
      w0 = weight(l0, m0, n0), other_w0 = weight(other.z, other.x, n0);
      w1 = weight(l1, m1, n1), other_w1 = weight(other.w, other.y, n1);
      // In the same order in both.
      l0 = mine ? fmaf(w0, l0, other_w0 * other.z) : fmaf(other_w0, other.z, w0 * l0);
      l1 = mine ? fmaf(w1, l1, other_w1 * other.w) : fmaf(other_w1, other.w, w1 * l1);
      m0 = n0, m1 = n1;
    }
#pragma unroll
    for (int j = chunk; j < chunk + kChunk; j += 4) {
      const float4 other = LoadSharedFloat4(other_place + (j - chunk) * 128);
      const auto keep = [&](int n) { return mine ? T[kHalf + n] : T[n]; };
      T[j] = fmaf(other_w0, other.x, w0 * keep(j));
      T[j + 1] = fmaf(other_w0, other.y, w0 * keep(j + 1));
      T[j + 2] = fmaf(other_w1, other.z, w1 * keep(j + 2));
      T[j + 3] = fmaf(other_w1, other.w, w1 * keep(j + 3));
    }
    NamedSync(pair, 64);  // before either writes there again
  }
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_SHARED_ROWS_CUH_
