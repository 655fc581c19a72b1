// The pass before the tensor-core kernels: float32 rows to scaled halves (split_tensor.cuh), and
// the row sums delta of the gradient. One warp per row, 8 bytes read and written per element and
// lane.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/exact/split_tensor.cuh"

namespace sage::cuda {
namespace {

constexpr int kWarps = 8;

__device__ float WarpSum(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
  return x;
}

// Reads one row; returns whether it is finite. Elements that are not are 0 in `x`.
template <int kPairs>
__device__ __forceinline__ bool ReadRow(const float* row, int dim, int lane, float (&x)[kPairs][2],
                                        float* largest) {
  bool finite = true;
  uint32_t top = 0;
#pragma unroll
  for (int n = 0; n < kPairs; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int d = n * 64 + lane * 2 + e;
      const float value = d < dim ? row[d] : 0.0f;
      const uint32_t magnitude = __float_as_uint(value) & 0x7fffffffu;
      const bool good = magnitude < 0x7f800000u;
      finite = finite && good;
      x[n][e] = good ? value : 0.0f;
      top = max(top, good ? magnitude : 0u);
    }
  }
  *largest = __uint_as_float(__reduce_max_sync(~0u, top));
  return __all_sync(~0u, finite);
}

// Rows of up to 64 * kPairs dims.
template <int kPairs>
__global__ void __launch_bounds__(kWarps * 32)
    SplitRowsKernel(const __grid_constant__ SplitJob job) {
  const int lane = threadIdx.x % 32;
  int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  int which = 0;
  while (which < job.count && index >= job.sources[which].rows) index -= job.sources[which++].rows;
  if (which == job.count) return;
  const SplitSource& source = job.sources[which];
  const int64_t head = index / source.tokens;
  const int64_t at = head / source.heads * source.strides.batch +
                     head % source.heads * source.strides.head +
                     index % source.tokens * source.strides.token;
  float x[kPairs][2], largest;
  const bool finite = ReadRow(source.values + at, source.dim, lane, x, &largest);

  // 2^power brings the largest magnitude into [2^14, 2^15). Below 2^-112 it stays smaller, and what
  // is lost lies below the smallest float32.
  const int power = min(14 + 127 - static_cast<int>(__float_as_uint(largest) >> 23), 126);
  const float up = __uint_as_float(static_cast<uint32_t>(127 + power) << 23);
  const float down = __uint_as_float(static_cast<uint32_t>(127 - power) << 23);
  const SplitTensor& out = source.out;
  uint32_t* high = reinterpret_cast<uint32_t*>(out.halves + index * 2 * out.padded);
  uint32_t* low = high + out.padded / 2;
#pragma unroll
  for (int n = 0; n < kPairs; ++n) {
    const int pair = n * 32 + lane;
    if (pair * 2 < out.padded) Split(x[n][0] * up, x[n][1] * up, &high[pair], &low[pair]);
  }
  if (lane == 0) {
    out.scale[index] = finite ? down : source.poisons_row ? __uint_as_float(0x7fffffffu) : -down;
  }

  if (job.delta == nullptr || which != 3) return;
  float sum = 0.0f;
#pragma unroll
  for (int n = 0; n < kPairs; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int d = n * 64 + lane * 2 + e;
      // From memory again: x has zeros where dO is not finite, and delta must not be.
      if (d < source.dim) sum = fmaf(job.o[at + d], source.values[at + d], sum);
    }
  }
  sum = WarpSum(sum);
  if (lane == 0) job.delta[index] = sum - (job.d_lse == nullptr ? 0.0f : job.d_lse[index]);
}

}  // namespace

void LaunchSplitRows(const SplitJob& job, void* stream) {
  int64_t rows = 0;
  for (int n = 0; n < job.count; ++n) rows += job.sources[n].rows;
  if (rows == 0) return;
  const unsigned blocks = static_cast<unsigned>((rows + kWarps - 1) / kWarps);
  int dim = 0;
  for (int n = 0; n < job.count; ++n) dim = std::max(dim, job.sources[n].dim);
  const auto kernel = dim <= 64    ? SplitRowsKernel<1>
                      : dim <= 128 ? SplitRowsKernel<2>
                      : dim <= 256 ? SplitRowsKernel<4>
                                   : SplitRowsKernel<8>;
  kernel<<<blocks, kWarps * 32, 0, static_cast<cudaStream_t>(stream)>>>(job);
}

}  // namespace sage::cuda
