// The kernel over the pages of the device cache: a block's ranges of pages, the end of a unit, the
// merge of the parts of a unit, and the launch. What happens on a page is in attend_pages.cuh.
#include <algorithm>

#include "cuda/cache/attend_pages.cuh"
#include "cuda/device.h"

namespace sage::cuda {
namespace {

// Warps of a block, as registers allow.
template <int kDims, int kTiles>
constexpr int kWarpLimit = kDims <= 128 && kTiles == 1 ? kMostWarps : 8;
// Units of work per multiprocessor from which on none is cut.
constexpr int kWholeUnits = 4;

// Factor that brings sums under one maximum to another, not below it.
__device__ __forceinline__ float Rescale(float top, float common) {
  return Exp2(top - (common == -INFINITY ? 0.0f : common));
}

// The parts of one row, added in order by a warp.
template <int kDims>
__device__ __forceinline__ void MergeRow(const AttendPlan& plan, int64_t unit, int parts,
                                         const float* part0, int64_t part_stride, int row,
                                         double shift, int lane) {
  const int width = plan.layout.v_dims;
  float top = -INFINITY;
  for (int n = lane; n < parts; n += 32) {
    top = fmaxf(top, __ldcg(part0 + n * part_stride + width));
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
  }
  float o[kDims / 32] = {}, sum = 0.0f;
#pragma unroll 2
  for (int n = 0; n < parts; ++n) {
    const float* part = part0 + n * part_stride;
    const float factor = Rescale(__ldcg(part + width), top);
    sum = fmaf(__ldcg(part + width + 1), factor, sum);
#pragma unroll
    for (int i = 0; i < kDims / 32; ++i) {
      if (32 * i + lane < width) o[i] = fmaf(__ldcg(part + 32 * i + lane), factor, o[i]);
    }
  }
  WriteRow(plan, unit, row, top, sum, shift, lane, [&](int d) {
    float x = 0.0f;
#pragma unroll
    for (int i = 0; i < kDims / 32; ++i) x = d / 32 == i ? o[i] : x;
    return x;
  });
}

template <int kDims, int kTiles>
__global__ void __launch_bounds__(32 * kWarpLimit<kDims, kTiles>, 1)
    AttendKernel(const __grid_constant__ AttendPlan plan) {
  constexpr int kRows = 4 * kTiles;
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ bool last;
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32), 0);
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32, g = lane / 4, c = lane % 4;
  const CachePageLayout& layout = plan.layout;
  const AttendShared<kTiles> map(layout, warps);
  uint8_t* page_memory = memory + warp * layout.PageBytes();
  uint8_t* digits = memory + map.digits;
  float* block_sums = reinterpret_cast<float*>(memory + map.sums);
  float* tops = reinterpret_cast<float*>(memory + map.tops);
  float* lasts = reinterpret_cast<float*>(memory + map.lasts);
  RowRecord* records = reinterpret_cast<RowRecord*>(memory + map.records);
  PageStream stream(SharedAddress(memory + map.barriers) + 16 * warp, lane);

  const int64_t total = plan.heads * plan.row_groups * plan.pages;
  int64_t flat = blockIdx.x * total / gridDim.x;
  const int64_t to = (blockIdx.x + int64_t{1}) * total / gridDim.x;
  PageCursor cursor;
  cursor.Begin(plan, kRows, flat, to, warp);
  const uint32_t k_at = SharedAddress(page_memory), v_at = k_at + layout.KBytes();
  const auto copy_k = [&] { stream.Copy(0, k_at, cursor.Data(plan), layout.KBytes()); };
  const auto copy_v = [&] {
    const uint8_t* page = cursor.Data(plan);
    stream.Copy(1, v_at, page == nullptr ? nullptr : page + layout.KBytes(), layout.VBytes());
  };
  copy_k();
  copy_v();
  uint32_t round = 0;
  while (flat < to) {
    const Segment segment = SegmentAt(plan, kRows, flat, to);
    const int64_t unit = segment.unit;
    const int row0 = static_cast<int>(unit % plan.row_groups) * kRows;
    __syncthreads();  // what the last segment left in shared memory is read
    for (int r = warp; r < kRows; r += warps) {
      PrepareRow<kTiles>(plan, unit, r, lane, digits, records + r);
    }
    __syncthreads();
    RowSums<kDims, kTiles> sums;
    sums.Clear();
    while (!cursor.done && cursor.segment.unit == unit) {
      const int key0 = cursor.page * kPageTokens;
      stream.Wait(0, round);
      AttendPage<kDims, kTiles>(
          plan, page_memory, key0, digits, records, lane, &sums,
          [&] {
            cursor.Advance(plan, kRows, to, warp, warps);
            copy_k();
          },
          [&] { stream.Wait(1, round); });
      copy_v();
      ++round;
    }

    // The warps' sums in their order.
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      float sum = sums.sum[j];
#pragma unroll
      for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
      if (g == 0) {
        tops[warp * kRows + 4 * j + c] = sums.top[j];
        lasts[warp * kRows + 4 * j + c] = sum;
      }
    }
    __syncthreads();
    const auto top_of = [&](int r) {
      float top = -INFINITY;
      for (int w = 0; w < warps; ++w) top = fmaxf(top, tops[w * kRows + r]);
      return top;
    };
    for (int w = 0; w < warps; ++w) {
      if (warp == w) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          const int r = 4 * j + c;
          const float factor = Rescale(sums.top[j], top_of(r));
          float* row = block_sums + r * layout.v_dims + g;
#pragma unroll
          for (int m = 0; m < kDims / 8; ++m) {
            if (8 * m >= layout.v_dims) break;
            const float before = w == 0 ? 0.0f : row[8 * m];
            row[8 * m] = fmaf(sums.o[j][m / 2][m % 2], factor, before);
          }
        }
      }
      __syncthreads();
    }
    const int64_t part_stride = static_cast<int64_t>(kRows) * (layout.v_dims + 2);
    for (int r = warp; r < kRows; r += warps) {
      if (row0 + r >= plan.rows) continue;
      const float top = top_of(r);
      float sum = 0.0f;
      for (int w = 0; w < warps; ++w) {
        sum = fmaf(lasts[w * kRows + r], Rescale(tops[w * kRows + r], top), sum);
      }
      const float* row = block_sums + r * layout.v_dims;
      if (segment.parts == 1) {
        WriteRow(plan, unit, row0 + r, top, sum, records[r].shift, lane,
                 [&](int d) { return row[d]; });
        continue;
      }
      float* part = plan.partial + (blockIdx.x + unit) * part_stride + r * (layout.v_dims + 2);
      for (int d = lane; d < layout.v_dims; d += 32) part[d] = row[d];
      if (lane == 0) {
        part[layout.v_dims] = top;
        part[layout.v_dims + 1] = sum;
      }
    }
    flat = segment.next_flat;
    if (segment.parts == 1) continue;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      last = atomicAdd(plan.taken + unit, 1u) + 1 == static_cast<uint32_t>(segment.parts);
    }
    __syncthreads();
    if (!last) continue;
    __threadfence();
    const int64_t first_block = BlockOf(plan, unit * plan.pages);
    for (int r = warp; r < kRows; r += warps) {
      if (row0 + r >= plan.rows) continue;
      MergeRow<kDims>(plan, unit, segment.parts,
                      plan.partial + (first_block + unit) * part_stride + r * (layout.v_dims + 2),
                      part_stride, row0 + r, records[r].shift, lane);
    }
    if (threadIdx.x == 0) plan.taken[unit] = 0;
  }
}

int SharedLimit() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
          cudaSuccess) {
    return 0;
  }
  return bytes;
}

template <int kDims, int kTiles>
cudaError_t Launch(const AttendPlan& plan, cudaStream_t stream) {
  // A few hundred bytes of static shared memory and of the system's stay free.
  const int limit = SharedLimit() - 256;
  int warps = kWarpLimit<kDims, kTiles>;
  while (warps > 1 && AttendShared<kTiles>(plan.layout, warps).bytes > limit) --warps;
  const int bytes = AttendShared<kTiles>(plan.layout, warps).bytes;
  cudaError_t error = cudaFuncSetAttribute(AttendKernel<kDims, kTiles>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int64_t units = plan.heads * plan.row_groups;
  const int64_t blocks =
      plan.split ? std::min<int64_t>(units * plan.pages, Multiprocessors()) : units;
  AttendKernel<kDims, kTiles><<<static_cast<unsigned>(blocks), 32 * warps, bytes, stream>>>(plan);
  return cudaGetLastError();
}

template <int kDims>
cudaError_t LaunchFor(const AttendPlan& plan, int unit_rows, cudaStream_t stream) {
  if (unit_rows == 4) return Launch<kDims, 1>(plan, stream);
  if (unit_rows == 8) return Launch<kDims, 2>(plan, stream);
  if constexpr (kDims <= 128) return Launch<kDims, 4>(plan, stream);
  return cudaErrorInvalidValue;
}

int MostRows(const CachePageLayout& layout) {
  return std::max(layout.k_dims, layout.v_dims) <= 128 ? 16 : 8;
}

}  // namespace

int AttendRows(int rows, const CachePageLayout& layout) {
  return rows <= 4 ? 4 : rows <= 8 ? 8 : MostRows(layout);
}

int64_t AttendMostUnits() { return int64_t{kWholeUnits} * Multiprocessors(); }

int64_t AttendPartialBytes(const CachePageLayout& layout) {
  return (AttendMostUnits() + Multiprocessors()) * MostRows(layout) * (layout.v_dims + 2) *
         static_cast<int64_t>(sizeof(float));
}

cudaError_t LaunchAttendPages(AttendPlan plan, cudaStream_t stream) {
  const int unit_rows = AttendRows(plan.rows, plan.layout);
  plan.row_groups = (plan.rows + unit_rows - 1) / unit_rows;
  plan.split = plan.heads * plan.row_groups < AttendMostUnits();
  const int dims = std::max(plan.layout.k_dims, plan.layout.v_dims);
  if (dims <= 64) return LaunchFor<64>(plan, unit_rows, stream);
  if (dims <= 128) return LaunchFor<128>(plan, unit_rows, stream);
  return LaunchFor<256>(plan, unit_rows, stream);
}

}  // namespace sage::cuda
