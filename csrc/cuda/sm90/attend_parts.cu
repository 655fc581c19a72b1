// Launch of attention by parts of the keys, and the merge of the parts.
#include <algorithm>

#include "cuda/sm90/attend_parts.cuh"
#include "cuda/sm90/launch.h"

namespace sage {
namespace sm90 {
namespace {

constexpr int kMergeThreads = 128;  // 4 rows

// A warp to a row: o and lse from its parts, in their order.
template <int D>
__global__ void __launch_bounds__(kMergeThreads)
    MergeParts(const __grid_constant__ PartsArguments p) {
  constexpr int kChannels = D / 32;
  const AttendArguments& a = p.attend;
  const int lane = threadIdx.x % 32;
  const int64_t n =
      blockIdx.x * static_cast<int64_t>(kMergeThreads / 32) + threadIdx.x / 32;  // row of all heads
  if (n >= p.rows) return;
  float m = -FLT_MAX;
  for (int s = lane; s < p.parts; s += 32) {
    const float2 end = p.ends[s * p.rows + n];
    if (end.y != 0.0f) m = fmaxf(m, end.x);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) m = fmaxf(m, __shfl_xor_sync(~0u, m, step));
  float l = 0.0f, x[kChannels] = {};
#pragma unroll 4
  for (int s = 0; s < p.parts; ++s) {
    const float2 end = p.ends[s * p.rows + n];
    const float weight = end.y == 0.0f ? 0.0f : exp2f(end.x - m);
    const float2* sums =
        reinterpret_cast<const float2*>(p.sums + (s * p.rows + n) * D + lane * kChannels);
    l = fmaf(weight, end.y, l);
#pragma unroll
    for (int c = 0; c < kChannels; c += 2) {
      const float2 y = sums[c / 2];
      x[c] = fmaf(weight, y.x, x[c]);
      x[c + 1] = fmaf(weight, y.y, x[c + 1]);
    }
  }
  const int head = static_cast<int>(n / a.see.q_len), i = static_cast<int>(n % a.see.q_len);
  const int kv_head = KvHead(a, head);
  float* o = a.o + head / a.q_heads * a.o_strides.batch + head % a.q_heads * a.o_strides.head +
             i * a.o_strides.token;
  // Nothing attended to: l = 0 and o = 0.
  const float inverse = l == 0.0f ? 0.0f : 1.0f / l;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const int d = lane * kChannels + c;
    if (d >= a.v_dim) break;
    o[d] = x[c] * inverse * UnitOf(__ldg(a.v_scale + static_cast<int64_t>(kv_head) * D + d));
  }
  float* lse = a.lse == nullptr ? nullptr : a.lse + n;
  if (lse != nullptr && lane == 0) *lse = LseOf(a, head, i, m, l);
  if (!a.see.AnyNotFinite(kv_head)) return;
  __syncwarp();
  if (lane < 4) {
    MarkRow(a.see, kv_head, head, i, lane, a.v, a.q_heads / a.group, a.v_dim, o, lse);
  }
}

template <int D, bool kMasked>
cudaError_t Launch(const PartsArguments& p, cudaStream_t stream) {
  constexpr int kBytes = PartsMap<D>::kBytes;
  cudaError_t error = cudaFuncSetAttribute(AttendPartsKernel<D, kMasked>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  int device = 0, multiprocessors = 0;
  error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const int blocks = std::min(std::min(multiprocessors, kMostBlocks), p.attend.work * p.parts);
  AttendPartsKernel<D, kMasked><<<blocks, PartsMap<D>::kThreads, kBytes, stream>>>(p);
  error = cudaGetLastError();
  if (error != cudaSuccess || p.parts == 1) return error;
  constexpr int kRows = kMergeThreads / 32;
  MergeParts<D>
      <<<static_cast<unsigned>((p.rows + kRows - 1) / kRows), kMergeThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

template <int D>
cudaError_t Launch(const PartsArguments& p, cudaStream_t stream) {
  return p.attend.see.mask_kind != MaskKind::kNone ? Launch<D, true>(p, stream)
                                                   : Launch<D, false>(p, stream);
}

}  // namespace

cudaError_t LaunchParts(const AttendArguments& a, int64_t heads, const Workspace& space,
                        cudaStream_t stream) {
  PartsArguments p = {};
  p.attend = a;
  p.attend.q_tiles = (a.see.q_len + kPartRows - 1) / kPartRows;
  p.attend.work = static_cast<int>(heads * p.attend.q_tiles);
  p.parts = space.plan.parts;
  p.shared_rows = space.plan.shared_rows;
  p.sums = space.part_sums;
  p.ends = reinterpret_cast<float2*>(space.part_ends);
  p.rows = heads * a.see.q_len;
  switch (space.dim) {
    case 64:
      return Launch<64>(p, stream);
    case 128:
      return Launch<128>(p, stream);
    default:
      return Launch<256>(p, stream);
  }
}

}  // namespace sm90
}  // namespace sage
