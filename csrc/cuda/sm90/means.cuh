// V's means, put back by tensor-core products: row sums of 8 tiles, an A fragment of m16n8k8, times
// the means of these tiles, B fragments as the pre-pass leaves them (workspace.h, mean_image).
#ifndef SAGE_CUDA_SM90_MEANS_CUH_
#define SAGE_CUDA_SM90_MEANS_CUH_

#include "cuda/sm90/hopper.cuh"

namespace sage {
namespace sm90 {

// The means of one group of tiles; `image`: that group's.
template <int D>
SAGE_DEVICE void LoadMeans(const float* image, float4 (&means)[D / 16]) {
  const float* mine = image + 4 * (threadIdx.x & 31);
#pragma unroll
  for (int j = 0; j < D / 16; ++j) means[j] = LoadGlobal4(mine + 128 * j);
}

// sums += row sums r of the group, which are rounded to tf32, times its means.
template <int D>
SAGE_DEVICE void AddMeans(float (&sums)[D / 2], const float4& r, const float4 (&means)[D / 16]) {
  const uint32_t fragment[4] = {RoundTf32(r.x), RoundTf32(r.y), RoundTf32(r.z), RoundTf32(r.w)};
#pragma unroll
  for (int j = 0; j < D / 16; ++j) {
    MmaTf32(sums + 8 * j, fragment, means[j].x, means[j].y);
    MmaTf32(sums + 8 * j + 4, fragment, means[j].z, means[j].w);
  }
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_MEANS_CUH_
