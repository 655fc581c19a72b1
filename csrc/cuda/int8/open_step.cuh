// A step of 64 keys that every row of a warp sees whole, P·V by halves, scores of 32 keys at a
// time. P·V of the second 16 keys waits for the scores of the next 32, so that three softmaxes of
// four have products to run under:
//
//   products   scores A |    | P·V a0 | scores B | P·V a1 | P·V b0 | P·V b1
//   softmax             | a0 | a1     |          | b0     | b1     |
#ifndef SAGE_CUDA_INT8_OPEN_STEP_CUH_
#define SAGE_CUDA_INT8_OPEN_STEP_CUH_

#include "cuda/int8/warp.cuh"

namespace sage::cuda::int8 {

// `keys`, `values`: images in shared memory; `table`: scales of k by 32 keys at this lane's place;
// `zero`: 0 (HoldScores).
template <class Form>
__device__ __forceinline__ void OpenStep(Warp<Form>& w, const uint8_t* keys, const uint8_t* values,
                                         const float* table, const uint8_t* q_image,
                                         const uint32_t* largest_k, float* sums, int zero) {
  using W = Warp<Form>;
  static_assert(Form::kKeys == kStepTokens && Form::kStepKeys == 2 * kStepTokens && W::kTables == 1,
                "scores of 32 keys");
  constexpr int kBytesOf16 = 16 * Form::kVRowBytes;
  uint32_t p[Form::kTiles][4], late[Form::kTiles][4];
  float most[1][W::kRows];
  w.table[0] = table[0];
  const float next_scale = table[4];
  w.Scores(keys, q_image);
  w.SetLines();
  w.Largest(most);
  if (__any_sync(~0u, !w.Fits(most))) w.template Move<false>(most, largest_k, sums);
  w.FirstSoftmax();
  w.PackHalves16(0, p);
  w.OutputsOf16(values, p, 2);
  w.PackHalves16(1, late);

  w.table[0] = next_scale;
  if constexpr (Form::kHoldsScores) w.HoldScores(late, zero);
  w.Scores(keys + kStepTokens * Form::kKRowBytes, q_image);
  w.SetLines();
  w.Largest(most);
  if (__any_sync(~0u, !w.Fits(most))) {
    // What waits stands under the offsets before.
    w.OutputsOf16(values + kBytesOf16, late, -1);
    w.template Move<false>(most, largest_k, sums);
#pragma unroll
    for (int t = 0; t < Form::kTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) late[t][e] = 0;
    }
  }
  w.OutputsOf16(values + kBytesOf16, late, 0);
  w.PackHalves16(0, p);
  w.OutputsOf16(values + 2 * kBytesOf16, p, 2);
  w.PackHalves16(1, p);
  w.OutputsOf16(values + 3 * kBytesOf16, p, -1);
}

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_OPEN_STEP_CUH_
