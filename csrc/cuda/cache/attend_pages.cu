// The kernel over the pages of the device cache: a block's ranges of pages, the end of a unit, the
// merge of the parts of a unit, and the launch. What happens on a page is in attend_pages.cuh.
#include <algorithm>

#include "cuda/cache/attend_pages.cuh"
#include "cuda/device.h"

namespace sage::cuda {
namespace {

// How the rows of a unit are shared out: kTeam warps read the same pages, each for 4 kTiles rows.
// Warps of a block as registers allow.
template <int kDimsOf, int kTilesOf, int kTeamOf>
struct Shape {
  static constexpr int kDims = kDimsOf, kTiles = kTilesOf, kTeam = kTeamOf;
  static constexpr int kWarpRows = 4 * kTiles, kRows = kWarpRows * kTeam;
  static constexpr int kWarps = kDims <= 128 && kTiles == 1 ? 16 : 8;
};

// Units of work per multiprocessor from which on none is cut.
constexpr int kWholeUnits = 4;

int UnitRows(const AttendPlan& plan) {
  return plan.rows <= 4 ? 4 : plan.rows <= 8 ? 8 : plan.rows <= 16 ? 16 : 32;
}
// Rounded up to whole units.
int64_t Units(const AttendPlan& plan, int unit_rows) {
  return plan.heads * ((plan.rows + unit_rows - 1) / unit_rows);
}
int64_t Blocks(const AttendPlan& plan, int64_t units) {
  return units < AttendMostUnits() ? std::min<int64_t>(units * plan.pages, Multiprocessors())
                                   : units;
}

// Factor that brings sums under one maximum to another, not below it.
__device__ __forceinline__ float Rescale(float top, float common) {
  return Exp2(top - (common == -INFINITY ? 0.0f : common));
}

// The parts of one row, added by a warp, always in the same order.
template <int kDims>
__device__ __forceinline__ void MergeRow(const AttendPlan& plan, int head, int row, int parts,
                                         const float* part0, int64_t part_stride, double shift,
                                         int lane) {
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
  for (int n0 = 0; n0 < parts; n0 += 32) {
    float factor = 0.0f;
    if (n0 + lane < parts) {
      const float* part = part0 + (n0 + lane) * part_stride + width;
      factor = Rescale(__ldcg(part), top);
      sum = fmaf(__ldcg(part + 1), factor, sum);
    }
    const int count = min(32, parts - n0);
#pragma unroll 8
    for (int n = 0; n < count; ++n) {
      const float* part = part0 + (n0 + n) * part_stride + lane;
      const float scale = __shfl_sync(~0u, factor, n);
#pragma unroll
      for (int i = 0; i < kDims / 32; ++i) {
        if (32 * i + lane < width) o[i] = fmaf(__ldcg(part + 32 * i), scale, o[i]);
      }
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  WriteRow(plan, head, row, top, sum, shift, lane, [&](int d) {
    float x = 0.0f;
#pragma unroll
    for (int i = 0; i < kDims / 32; ++i) x = d / 32 == i ? o[i] : x;
    return x;
  });
}

template <class S>
__global__ void __launch_bounds__(32 * S::kWarps, 1)
    AttendKernel(const __grid_constant__ AttendPlan plan) {
  constexpr int kRows = S::kRows, kDims = S::kDims, kTiles = S::kTiles;
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ bool last;
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32), 0);
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32, g = lane / 4, c = lane % 4;
  const int team = warp / S::kTeam, member = warp % S::kTeam, teams = warps / S::kTeam;
  const CachePageLayout& layout = plan.layout;
  const AttendShared<kRows> map(layout, teams);
  uint8_t* page_memory = memory + team * layout.PageBytes();
  uint8_t* digits = memory + map.digits;
  float* block_sums = reinterpret_cast<float*>(memory + map.sums);
  float* tops = reinterpret_cast<float*>(memory + map.tops);
  float* lasts = reinterpret_cast<float*>(memory + map.lasts);
  RowRecord* records = reinterpret_cast<RowRecord*>(memory + map.records);
  PageStream<S::kTeam> stream(SharedAddress(memory + map.barriers) + kStreamBarrierBytes * team,
                              team, member, lane);
  // This warp's rows of a unit.
  const int my_row = member * S::kWarpRows;
  const uint8_t* my_digits = digits + my_row * layout.k_dims * 2;

  const int block = static_cast<int>(blockIdx.x);
  int flat = RangeBegin(plan, block);
  const int to = RangeBegin(plan, block + 1);
  PageCursor cursor;
  cursor.Begin(plan, kRows, flat, to, team);
  const uint32_t k_at = SharedAddress(page_memory), v_at = k_at + layout.KBytes();
  const auto copy_k = [&](const uint8_t* page) { stream.Copy(0, k_at, page, layout.KBytes()); };
  const auto copy_v = [&](const uint8_t* page) {
    stream.Copy(1, v_at, page == nullptr ? nullptr : page + layout.KBytes(), layout.VBytes());
  };
  const uint8_t* next = cursor.Data(plan);
  copy_k(next);
  copy_v(next);
  uint32_t round = 0;
  while (flat < to) {
    const Segment segment = SegmentAt(plan, kRows, flat, to);
    const int unit = segment.unit, row0 = segment.row, head = segment.head;
    __syncthreads();  // what the last segment left in shared memory is read
    for (int r = warp; r < kRows; r += warps) {
      PrepareRow(plan, segment, r, lane, digits, records + r);
    }
    __syncthreads();
    RowSums<kDims, kTiles> sums;
    sums.Clear();
    while (!cursor.done && cursor.segment.unit == unit) {
      const int key0 = cursor.page * kPageTokens;
      stream.Wait(0, round);
      AttendPage<kDims, kTiles>(
          plan, page_memory, key0, my_digits, records + my_row, lane, &sums,
          [&] {
            cursor.Advance(plan, kRows, to, team, teams);
            next = cursor.Data(plan);
            copy_k(next);
          },
          [&] { stream.Wait(1, round); });
      copy_v(next);
      ++round;
    }

    // The teams' sums in their order; teams beyond the pages have none.
    const int active = max(1, min(teams, segment.end - segment.first));
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      float sum = sums.sum[j];
#pragma unroll
      for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
      if (g == 0) {
        tops[team * kRows + my_row + 4 * j + c] = sums.top[j];
        lasts[team * kRows + my_row + 4 * j + c] = sum;
      }
    }
    __syncthreads();
    const auto top_of = [&](int r) {
      float top = -INFINITY;
      for (int t = 0; t < active; ++t) top = fmaxf(top, tops[t * kRows + r]);
      return top;
    };
    for (int t = 0; t < active; ++t) {
      if (team == t) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          const int r = my_row + 4 * j + c;
          const float factor = Rescale(sums.top[j], top_of(r));
          float* row = block_sums + r * layout.v_dims + g;
#pragma unroll
          for (int m = 0; m < kDims / 8; ++m) {
            if (8 * m >= layout.v_dims) break;
            const float before = t == 0 ? 0.0f : row[8 * m];
            row[8 * m] = fmaf(sums.o[j][m / 2][m % 2], factor, before);
          }
        }
      }
      __syncthreads();
    }
    const int first_block = BlockOf(plan, unit * plan.pages);
    const int parts = BlockOf(plan, unit * plan.pages + plan.pages - 1) - first_block + 1;
    const int width = layout.v_dims + 2;
    const int64_t part_stride = static_cast<int64_t>(kRows) * width;
    for (int r = warp; r < kRows && row0 + r < plan.rows; r += warps) {
      const float top = top_of(r);
      float sum = 0.0f;
      for (int t = 0; t < active; ++t) {
        sum = fmaf(lasts[t * kRows + r], Rescale(tops[t * kRows + r], top), sum);
      }
      const float* row = block_sums + r * layout.v_dims;
      if (parts == 1) {
        WriteRow(plan, head, row0 + r, top, sum, records[r].shift, lane,
                 [&](int d) { return row[d]; });
        continue;
      }
      float* part = plan.partial + (block + unit) * part_stride + r * width;
      for (int d = lane; d < layout.v_dims; d += 32) part[d] = row[d];
      if (lane == 0) {
        part[layout.v_dims] = top;
        part[layout.v_dims + 1] = sum;
      }
    }
    flat = segment.next_flat;
    if (parts == 1) continue;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      last = atomicAdd(plan.taken + unit, 1u) + 1 == static_cast<uint32_t>(parts);
    }
    __syncthreads();
    if (!last) continue;
    __threadfence();
    for (int r = warp; r < kRows && row0 + r < plan.rows; r += warps) {
      MergeRow<kDims>(plan, head, row0 + r, parts,
                      plan.partial + (first_block + unit) * part_stride + r * width, part_stride,
                      records[r].shift, lane);
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

template <class S>
cudaError_t Launch(AttendPlan plan, cudaStream_t stream) {
  // A few hundred bytes of static shared memory and of the system's stay free.
  const int limit = SharedLimit() - 256;
  int teams = S::kWarps / S::kTeam;
  while (teams > 1 && AttendShared<S::kRows>(plan.layout, teams).bytes > limit) --teams;
  const int bytes = AttendShared<S::kRows>(plan.layout, teams).bytes;
  cudaError_t error =
      cudaFuncSetAttribute(AttendKernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int64_t units = Units(plan, S::kRows), total = units * plan.pages;
  const int64_t blocks = Blocks(plan, units);
  plan.row_groups = static_cast<int>(units / plan.heads);
  plan.range = static_cast<int>(total / blocks);
  plan.longer = static_cast<int>(total % blocks);
  AttendKernel<S><<<static_cast<unsigned>(blocks), 32 * teams * S::kTeam, bytes, stream>>>(plan);
  return cudaGetLastError();
}

template <int kDims>
cudaError_t LaunchFor(const AttendPlan& plan, cudaStream_t stream) {
  switch (UnitRows(plan)) {
    case 4:
      return Launch<Shape<kDims, 1, 1>>(plan, stream);
    case 8:
      return Launch<Shape<kDims, 1, 2>>(plan, stream);
    case 16:
      return Launch<Shape<kDims, 1, 4>>(plan, stream);
    default:
      return Launch<Shape<kDims, 2, 4>>(plan, stream);
  }
}

}  // namespace

int64_t AttendMostUnits() { return int64_t{kWholeUnits} * Multiprocessors(); }

int64_t AttendPartialFloats(const AttendPlan& plan) {
  const int unit_rows = UnitRows(plan);
  const int64_t units = Units(plan, unit_rows);
  // Whole units go straight to the outputs.
  if (units >= AttendMostUnits()) return 0;
  return (Blocks(plan, units) + units) * unit_rows * (plan.layout.v_dims + 2);
}

bool AttendFits(const AttendPlan& plan) {
  constexpr int64_t kMostPages = int64_t{1} << 30;  // indices are 32-bit
  const int64_t units = Units(plan, UnitRows(plan));
  return units <= kMostPages / plan.pages;
}

cudaError_t LaunchAttendPages(const AttendPlan& plan, cudaStream_t stream) {
  const int dims = std::max(plan.layout.k_dims, plan.layout.v_dims);
  if (dims <= 64) return LaunchFor<64>(plan, stream);
  if (dims <= 128) return LaunchFor<128>(plan, stream);
  return LaunchFor<256>(plan, stream);
}

}  // namespace sage::cuda
