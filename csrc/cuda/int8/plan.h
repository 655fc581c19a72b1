// What the int8 kernels take: the forms of a recipe they know, the workspace between the pre-pass
// and attention, and the launches.
//
// B = batch, Hq / Hkv = heads of q / of k and v, T = ceil(kv_len / 128), R = q_len rounded up to
// 128, D = 64, 128 or 256 (both head_dims padded with zeros). A block of the attention kernel
// computes V = min(D, 128) channels of o; S = 1 or 2 such parts make up v. Images: images.h.
//
//   q_codes      [B·Hq][R / 16] images        times the sign of the scale
//   q_scale      [B·Hq][R]                    NaN: the row holds a value that is not finite
//   lse_shift    [B·Hq][R]                    scale · q · mean(k); with want_lse
//   mean_image   [B·Hq][R / 128] images, mean_scale [B·Hq][R / 128][4]; with a smoothed q
//   k_codes      [B·Hkv][8 T] images
//   k_scale      [B·Hkv][128 T]               by token
//   k_table      [B·Hkv][4 T][4]              by 32 tokens and c: of the tokens that a lane's
//   scores
//                                             are of, where those share one
//   k_halves     [B·Hkv][4 T] images, k_halves_scale [B·Hkv][128 T]; with a smoothed q
//   k_scale_most [B·Hkv]                      largest scale of k, as bits
//   v_codes      [B·Hkv][S][4 T] images of V channels
//   v_scale      [B·Hkv][D]                   0: the channel is all zero
//   v_mean       [B·Hkv][T][D]                taken out before quantising
//   v_back       [B·Hkv][S][T][V]             put back, in units of v_scale (of 1 where that is 0)
//   k_marks [B·Hkv][128 T], v_marks [B·Hkv][S][128 T]  1: a value of the token is not finite
#ifndef SAGE_CUDA_INT8_PLAN_H_
#define SAGE_CUDA_INT8_PLAN_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "sage/attention.h"
#include "sage/problem.h"

namespace sage::cuda::int8 {

constexpr int kTileTokens = 128;  // of the pre-pass: the largest group, and the block of v's means
constexpr int kMostMeans = 4;     // means of q in 128 rows
constexpr int kMostDim = 256;     // of q·k and of v
constexpr int kPartDim = 128;     // channels of v that a block of rows can hold

// How P·V is computed.
enum class Values {
  kHalf,          // halves, sums in float32
  kHalfBy64,      // halves, sums of 64 keys in halves, added in float32 ("fp16+fp32")
  kHalfSums,      // halves, all sums in halves ("fp16")
  kE4m3InHalf,    // P and v rounded to e4m3, multiplied as halves: devices without e4m3 products
  kE4m3,          // e4m3, sums in the tensor core's accumulator ("fp32")
  kE4m3TwoLevel,  // e4m3, sums of 64 keys added in float32 ("fp32+fp32")
  kE4m3HalfSums,  // e4m3, sums of 64 keys in halves, added in float32 ("fp32+fp16")
};

// Which kernels compute a problem.
struct Form {
  int dim;      // D
  int v_parts;  // S
  bool int4;    // codes of q and k are nibbles
  Values values;
};

constexpr bool ValuesAreBytes(Values v) {
  return v == Values::kE4m3 || v == Values::kE4m3TwoLevel || v == Values::kE4m3HalfSums;
}

struct Workspace {
  // Zeroed before the pre-pass, in this order.
  uint32_t* arrived;       // [B·Hkv] tiles whose statistics are written
  uint32_t* not_finite;    // [B·Hkv] 1: of k, 2: of v
  uint32_t* k_scale_most;  // [B·Hkv]
  uint32_t* v_largest;     // [B·Hkv][D] largest |v'|, as bits
  int64_t zeroed_bytes;

  double* k_sum;     // [B·Hkv][T][D] sums of finite k
  int32_t* k_count;  // [B·Hkv][T][D] how many they are
  int32_t* v_count;  // [B·Hkv][T][D] how many values of v are finite
  float* k_mean;     // [B·Hkv][D]
  float *v_mean, *v_back;
  float *v_scale, *v_inverse;  // [B·Hkv][D]
  float *q_scale, *lse_shift;
  float *k_scale, *k_table;
  float *mean_scale, *k_halves_scale;
  uint8_t *k_marks, *v_marks;
  uint8_t *q_codes, *k_codes, *v_codes;
  uint8_t *mean_image, *k_halves;
  int64_t bytes;

  int tiles;   // T
  int q_rows;  // R
};

// Lays the workspace out at `base`; with null it only measures (`bytes`).
Workspace LayOut(const Problem& problem, const Form& form, void* base);

// The kernels of a problem that Int8Supports accepts, on the current device.
Form FormOf(const Problem& problem);

// Statistics and quantisation: two launches after one clearing of `zeroed_bytes`.
cudaError_t Prepass(const Problem& problem, const Form& form, const ForwardBuffers& buffers,
                    const Workspace& space, cudaStream_t stream);

// Attention over what Prepass left. May run again over the same workspace.
cudaError_t Attend(const Problem& problem, const Form& form, const ForwardBuffers& buffers,
                   const Workspace& space, cudaStream_t stream);

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_PLAN_H_
