// What the attention kernels take, and the launches of their instances.
#ifndef SAGE_CUDA_INT8_ATTEND_PLAN_H_
#define SAGE_CUDA_INT8_ATTEND_PLAN_H_

#include <cstdint>

#include "cuda/elements.cuh"
#include "cuda/int8/plan.h"
#include "cuda/visibility.cuh"

namespace sage::cuda::int8 {

struct AttendPlan {
  Visibility see;
  Workspace space;
  sage::Values v;  // the caller's, for values that are not finite
  float* o;
  TokenStrides o_strides;
  bool o_pairs;  // two floats at an even dim are 8-byte aligned
  float* lse;    // null = not wanted
  int q_heads, group, v_dim, v_parts;
  int64_t heads;              // B·Hq·S: each head once for every part of v
  int query_tiles;            // of the instance's rows
  int heads_at_once;          // of these, whose k and v share the L2 cache
  int smooth_q;               // rows per mean of q, 0 = off
  bool smooth_v, key_scales;  // key_scales: one of k's scales per key, not per 32 keys and lane
  int zero;                   // 0, as what the assembler cannot know
  float scale;                // |scale| · log2(e)
};

// Launch one instance in `stream`; errors show in cudaGetLastError. One file per family, so that
// they compile apart.
void LaunchHalf(const Form& form, const AttendPlan& plan, cudaStream_t stream);
void LaunchHalfSums(const Form& form, const AttendPlan& plan, cudaStream_t stream);
void LaunchE4m3InHalf(const Form& form, const AttendPlan& plan, cudaStream_t stream);
#ifdef SAGE_WITH_E4M3
void LaunchE4m3(const Form& form, const AttendPlan& plan, cudaStream_t stream);
void LaunchE4m3TwoLevel(const Form& form, const AttendPlan& plan, cudaStream_t stream);
#endif

}  // namespace sage::cuda::int8

#endif  // SAGE_CUDA_INT8_ATTEND_PLAN_H_
