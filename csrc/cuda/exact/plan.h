// What the `exact` kernels take: device pointers into the caller's buffers and the workspace.
#ifndef SAGE_CUDA_EXACT_PLAN_H_
#define SAGE_CUDA_EXACT_PLAN_H_

#include <cstdint>

#include "cuda/exact/split_tensor.cuh"
#include "cuda/visibility.cuh"
#include "sage/attention.h"
#include "sage/problem.h"

namespace sage::cuda {

// Unnormalised outputs of the parts that the keys of a call are cut into; rows = [B, H, Nq].
struct PartialOutputs {
  float* o;    // [parts][rows][v_dim]
  float* top;  // [parts][rows], largest score in log2 units, -Infinity when nothing is attended to
  float* sum;  // [parts][rows]
};

// Where the outputs of a row go.
struct Destination {
  float* o;
  TokenStrides strides;
  float* lse;   // null = not wanted
  bool paired;  // two floats at an even dim are 8-byte aligned
};

struct ForwardPlan {
  SplitTensor q, k, v;
  Visibility visibility;
  Destination out;
  PartialOutputs partial;
  int parts;         // 1 = straight to `out`
  int tiles_a_part;  // key tiles
  const float* v_source;
  TokenStrides v_strides;
  int q_heads, group;
  int64_t heads;  // batch * q_heads
  int v_dim;
  int query_tiles, qk_chunks, v_chunks;
  float scale;  // log2 domain
};

struct DecodePlan {
  const float *q, *k, *v;
  TokenStrides q_strides, k_strides, v_strides;
  Visibility visibility;
  Destination out;
  PartialOutputs partial;
  int parts, keys_a_part;
  int q_heads, kv_heads, group;
  int64_t batch;
  int qk_dim, v_dim;
  bool vectors;  // rows of k and v are whole 16-byte vectors
  float scale;   // log2 domain
};

struct MergePlan {
  PartialOutputs partial;
  int parts;
  int64_t rows;
  int q_heads, q_len, v_dim;
  Destination out;
};

struct BackwardPlan {
  SplitTensor q, k, v, d_o;
  Visibility visibility;
  const float* lse;    // [B, H, Nq]
  const float* delta;  // [B, H, Nq]
  const float* d_o_source;
  TokenStrides d_o_strides;
  float *d_q, *d_k, *d_v;
  TokenStrides q_strides, k_strides, v_strides;
  int q_heads, kv_heads, group;
  int64_t batch;
  int qk_dim, v_dim;
  int qk_chunks, v_chunks;
  float scale;
};

struct MaskGradientPlan {
  const float *q, *k, *v, *d_o, *lse, *delta;
  TokenStrides q_strides, k_strides, v_strides, d_o_strides;
  Visibility visibility;
  float* d_mask;
  int q_heads, group;
  int64_t batch;
  int qk_dim, v_dim;
  float scale;
};

// Queries of a decode problem, all query heads of one key/value head together.
constexpr int kMaxDecodeRows = 16;

// Tiles of the forward kernels.
constexpr int kForwardQueries = 128, kForwardKeys = 32;
constexpr int kSm90Queries = 64, kSm90Keys = 64;

// Launches of one kernel each, in `stream`; errors show in cudaGetLastError. 64 and 128 are the
// dims of a row of a tile.
void LaunchForward64(const ForwardPlan& plan, void* stream);
void LaunchForward128(const ForwardPlan& plan, void* stream);
void LaunchForwardSm90(const ForwardPlan& plan, void* stream);
void LaunchDecode(const DecodePlan& plan, void* stream);
void LaunchMerge(const MergePlan& plan, void* stream);
void LaunchQueryGradient64(const BackwardPlan& plan, void* stream);
void LaunchQueryGradient128(const BackwardPlan& plan, void* stream);
void LaunchKeyValueGradient64(const BackwardPlan& plan, void* stream);
void LaunchKeyValueGradient128(const BackwardPlan& plan, void* stream);
void LaunchMaskGradient(const MaskGradientPlan& plan, void* stream);

// Whole calls (exact.cu). With a null workspace only its bytes are counted.
int64_t ExactForwardWorkspace(const Problem& problem);
int64_t ExactBackwardWorkspace(const Problem& problem);
void ExactForward(const Problem& problem, const ForwardBuffers& buffers, void* workspace,
                  void* stream);
void ExactBackward(const Problem& problem, const BackwardBuffers& buffers, void* workspace,
                   void* stream);

}  // namespace sage::cuda

#endif  // SAGE_CUDA_EXACT_PLAN_H_
