// Adds up the parts that the keys of a call were cut into: with M = max top,
//   sum = sum_n sum_n 2^(top_n - M)   o = sum_n o_n 2^(top_n - M) / sum   lse = ln 2 (M + log2 sum)
// in the order of the parts. One warp per row of [B, H, Nq].
#include <cuda_runtime.h>

#include <cmath>

#include "cuda/exact/plan.h"

namespace sage::cuda {
namespace {

constexpr int kWarps = 4;

__global__ void __launch_bounds__(kWarps * 32) MergeKernel(const __grid_constant__ MergePlan plan) {
  const int lane = threadIdx.x % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= plan.rows) return;
  const PartialOutputs& from = plan.partial;
  float top = -INFINITY;
  for (int n = 0; n < plan.parts; ++n) top = fmaxf(top, from.top[n * plan.rows + row]);
  const float origin = top == -INFINITY ? 0.0f : top;
  float sum = 0.0f;
  for (int n = 0; n < plan.parts; ++n) {
    const int64_t at = n * plan.rows + row;
    sum = fmaf(from.sum[at], Exp2(from.top[at] - origin), sum);
  }
  const int64_t head = row / plan.q_len;
  float* out = plan.out.o + head / plan.q_heads * plan.out.strides.batch +
               head % plan.q_heads * plan.out.strides.head +
               row % plan.q_len * plan.out.strides.token;
  for (int d = lane; d < plan.v_dim; d += 32) {
    float o = 0.0f;
    for (int n = 0; n < plan.parts; ++n) {
      const int64_t at = n * plan.rows + row;
      o = fmaf(from.o[at * plan.v_dim + d], Exp2(from.top[at] - origin), o);
    }
    out[d] = sum == 0.0f ? 0.0f : o / sum;
  }
  if (plan.out.lse != nullptr && lane == 0)
    plan.out.lse[row] = sum == 0.0f ? -INFINITY : (top + log2f(sum)) * kLn2;
}

}  // namespace

void LaunchMerge(const MergePlan& plan, void* stream) {
  const unsigned blocks = static_cast<unsigned>((plan.rows + kWarps - 1) / kWarps);
  MergeKernel<<<blocks, kWarps * 32, 0, static_cast<cudaStream_t>(stream)>>>(plan);
}

}  // namespace sage::cuda
