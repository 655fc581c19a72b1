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
// query; kRows of them are one unit of work, and units are cut into ranges of pages.
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
  int rows;         // group * q_len
  int row_groups;   // units of a head
  int first_page;   // of those that any row sees
  int pages;        // from there
  bool split;       // blocks take equal ranges of all pages of all units; else a unit each
  float* partial;   // [block + unit][rows of a unit][v_dims + 2], only with split
  uint32_t* taken;  // [units], zero before and after
};

// Each block's warps stream pages of their own; rows per unit by group * q_len and head dims.
int AttendRows(int rows, const CachePageLayout& layout);
// Bytes of `partial` and elements of `taken` that suffice for any problem on this device.
int64_t AttendPartialBytes(const CachePageLayout& layout);
int64_t AttendMostUnits();

cudaError_t LaunchFreezeMean(const StorePlan& plan, cudaStream_t stream);
cudaError_t LaunchStoreTokens(const StorePlan& plan, cudaStream_t stream);
// Sets row_groups and split itself.
cudaError_t LaunchAttendPages(AttendPlan plan, cudaStream_t stream);

}  // namespace sage::cuda

#endif  // SAGE_CUDA_CACHE_CACHE_PLAN_H_
