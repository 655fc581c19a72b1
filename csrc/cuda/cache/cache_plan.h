// What the kernels of the device cache are given.
#ifndef SAGE_CUDA_CACHE_CACHE_PLAN_H_
#define SAGE_CUDA_CACHE_CACHE_PLAN_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/cache/page_layout.h"
#include "cuda/visibility.cuh"
#include "sage/problem.h"

namespace sage::cuda {

// Tokens [first, first + count) of the cache, from float32.
struct StorePlan {
  CacheSlabs slabs;
  CachePageLayout layout;
  const float *k, *v;
  TokenStrides k_strides, v_strides;
  int64_t heads;  // batch * kv_heads
  int kv_heads, qk_dim, v_dim;
  int first, count;
  bool k_vectors, v_vectors;  // rows are whole 16-byte vectors
  float* k_mean;              // [heads][k_dims]
  uint32_t* arrived;          // [heads], zero before and after
};

// One pass over the cache. Rows are (query, head of the group) pairs of a key/value head, query by
// query; a fixed number of them is one unit of work. The pages of all units, one unit after the
// other, are cut into ranges of equal length, one per block; `flat` counts them.
struct AttendPlan {
  CacheSlabs slabs;
  CachePageLayout layout;
  Visibility visibility;
  const float* q;
  TokenStrides q_strides, o_strides;
  float *o, *lse;
  const float* k_mean;
  double scale;  // natural-log domain
  int64_t heads;
  int kv_heads, group, qk_dim, v_dim;
  int rows;           // group * q_len
  int row_groups;     // units of a head
  int first_page;     // of those that any row sees
  int pages;          // from there
  int range, longer;  // pages of a range; the first `longer` ranges have one more
  float* partial;     // [block + unit][rows of a unit][v_dims + 2], of units that are cut
  uint32_t* taken;    // [units], zero before and after
};

// Floats of `partial` that a pass needs; elements of `taken` that suffice for any; whether it can
// be done in one pass.
int64_t AttendPartialFloats(const AttendPlan& plan);
int64_t AttendMostUnits();
bool AttendFits(const AttendPlan& plan);

cudaError_t LaunchFreezeMean(const StorePlan& plan, cudaStream_t stream);
cudaError_t LaunchStoreTokens(const StorePlan& plan, cudaStream_t stream);
// Sets row_groups, range and longer itself.
cudaError_t LaunchAttendPages(const AttendPlan& plan, cudaStream_t stream);

}  // namespace sage::cuda

#endif  // SAGE_CUDA_CACHE_CACHE_PLAN_H_
