// `exact` gradients on the tensor cores (docs/numerics.md sections 1 and 2), each product as three
// products of halves (split_tensor.cuh). With P = 2^(S - lse) and delta = rowsum(o * dO) - dLse:
//   dP = dO V^T   dS = P (dP - delta)   dV = P^T dO   dK = scale dS^T Q   dQ = scale dS K
// Two passes of one kernel, so that every sum has one owner and one order, and no N x N is stored:
//   queries: rows = queries, columns = keys     first = Q, K   second = dO, V   sums dQ
//   keys:    rows = keys, columns = queries     first = K, Q   second = V, dO   sums dK and dV
// In both, S and dP (or their transposes) are rows x columns, and dS, P go straight from
// accumulators to A fragments of the sums over columns.
//
// One block of 4 warps owns 64 rows, a warp 16, and runs over columns in tiles of 32. dS and P
// differ by many orders of magnitude between tiles, so each warp scales those of a tile by a power
// of two to their largest magnitude. Sums of a tile are added to the totals by rounded additions.
//
// Shared memory, for kPitch dims a row (halves, high and low planes):
//   rows: first 64 | second 64   columns: first 32 | second 32   columns: scale_1, scale_2, lse,
//   delta kPitch 128: 98,816 bytes, two blocks per multiprocessor of sm_90; kPitch 64: 49,664.
// The second tensor's next tile loads while the first's sum runs.
//
// head_dim above kPitch: S and dP are summed over chunks of kPitch dims, tiles reloaded for each;
// each chunk of the outputs is computed by a block of its own.
#ifndef SAGE_CUDA_EXACT_BACKWARD_CUH_
#define SAGE_CUDA_EXACT_BACKWARD_CUH_

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "cuda/exact/plan.h"
#include "cuda/exact/split_tensor.cuh"
#include "cuda/tensor_core.cuh"

namespace sage::cuda {

constexpr int kBackwardThreads = 128, kBackwardRows = 64, kBackwardColumns = 32;

template <int kPitch>
struct BackwardMemory {
  static constexpr int kRows1 = 0;
  static constexpr int kRows2 = kRows1 + kTileBytes<kBackwardRows, kPitch>;
  static constexpr int kColumns1 = kRows2 + kTileBytes<kBackwardRows, kPitch>;
  static constexpr int kColumns2 = kColumns1 + kTileBytes<kBackwardColumns, kPitch>;
  static constexpr int kFloats = kColumns2 + kTileBytes<kBackwardColumns, kPitch>;
  static constexpr int kBytes = kFloats + 4 * kBackwardColumns * 4;
};

// 16 rows x 32 columns over `steps` k16 steps.
template <int kPitch>
__device__ __forceinline__ void MultiplyRows(uint32_t rows, uint32_t columns, int warp, int lane,
                                             int steps, float (&big)[4][4], float (&small)[4][4]) {
  const LaneAddress a0 = RowsBySixteen<kPitch>(rows, warp * 16, lane);
  const LaneAddress b0 = ColumnsBySixteen<kPitch>(columns, 0, lane);
#pragma unroll 2
  for (int ks = 0; ks < steps; ++ks) {
    uint32_t a_high[4], a_low[4];
    LoadMatrices(a0.At(ks), a_high);
    LoadMatrices(a0.At(ks) + kPlaneBytes<kBackwardRows, kPitch>, a_low);
    uint32_t b_high[2][4], b_low[2][4];
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      LoadMatrices(b0.At(ks) + pair * 16 * kPitch * 2, b_high[pair]);
      LoadMatrices(b0.At(ks) + pair * 16 * kPitch * 2 + kPlaneBytes<kBackwardColumns, kPitch>,
                   b_low[pair]);
    }
    // Eight products lie between two into the same accumulator: as long as one takes.
#pragma unroll
    for (int n = 0; n < 4; ++n)
      Multiply(small[n], a_low, b_high[n / 2][n % 2 * 2], b_high[n / 2][n % 2 * 2 + 1]);
#pragma unroll
    for (int n = 0; n < 4; ++n)
      Multiply(big[n], a_high, b_high[n / 2][n % 2 * 2], b_high[n / 2][n % 2 * 2 + 1]);
#pragma unroll
    for (int n = 0; n < 4; ++n)
      Multiply(small[n], a_high, b_low[n / 2][n % 2 * 2], b_low[n / 2][n % 2 * 2 + 1]);
  }
}

// total[16 rows][kPitch dims] += weights[16 rows][32 columns] * columns[32][kPitch dims].
// The weights are scaled as a whole to halves; those that are not finite do not count for that.
template <int kPitch>
__device__ __forceinline__ void AddProduct(const float (&weights)[4][4], uint32_t columns, int lane,
                                           int pairs, float (&total)[kPitch / 8][4]) {
  uint32_t top = 0;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const uint32_t magnitude = __float_as_uint(weights[n][e]) & 0x7fffffffu;
      if (magnitude < 0x7f800000u) top = max(top, magnitude);
    }
  }
  const int power = min(14 + 127 - static_cast<int>(__reduce_max_sync(~0u, top) >> 23), 126);
  const float up = __uint_as_float(static_cast<uint32_t>(127 + power) << 23);
  const float down = __uint_as_float(static_cast<uint32_t>(127 - power) << 23);
  uint32_t high[2][4], low[2][4];
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Split(weights[n][half * 2] * up, weights[n][half * 2 + 1] * up,
            &high[n / 2][n % 2 * 2 + half], &low[n / 2][n % 2 * 2 + half]);
    }
  }
  const LaneAddress b0 = RowsBySixteen<kPitch>(columns, 0, lane);
#pragma unroll
  for (int pair = 0; pair < kPitch / 16; ++pair) {
    if (pair >= pairs) break;
    float big[2][4] = {}, small1[2][4] = {}, small2[2][4] = {};
#pragma unroll
    for (int ks = 0; ks < 2; ++ks) {
      uint32_t b_high[4], b_low[4];
      LoadMatricesTransposed(b0.At(pair) + ks * 16 * kPitch * 2, b_high);
      LoadMatricesTransposed(
          b0.At(pair) + ks * 16 * kPitch * 2 + kPlaneBytes<kBackwardColumns, kPitch>, b_low);
#pragma unroll
      for (int t = 0; t < 2; ++t) Multiply(small1[t], low[ks], b_high[2 * t], b_high[2 * t + 1]);
#pragma unroll
      for (int t = 0; t < 2; ++t) Multiply(big[t], high[ks], b_high[2 * t], b_high[2 * t + 1]);
#pragma unroll
      for (int t = 0; t < 2; ++t) Multiply(small2[t], high[ks], b_low[2 * t], b_low[2 * t + 1]);
    }
#pragma unroll
    for (int t = 0; t < 2; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& sum = total[pair * 2 + t][e];
        sum = fmaf(big[t][e] + (small1[t][e] + small2[t][e]), down, sum);
      }
    }
  }
}

// Writes 16 rows of a gradient.
template <int kPitch>
__device__ __forceinline__ void StoreRows(const float (&total)[kPitch / 8][4], float factor,
                                          float* out, int64_t token, int row0, int rows, int dim0,
                                          int dim, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row0 + half * 8 + lane / 4;
    if (row >= rows) continue;
    float* to = out + row * token;
#pragma unroll
    for (int n = 0; n < kPitch / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int d = dim0 + n * 8 + lane % 4 * 2 + e;
        if (d < dim) to[d] = total[n][half * 2 + e] * factor;
      }
    }
  }
}

template <int kPitch, bool kKeys>
__global__ void __launch_bounds__(kBackwardThreads, 2)
    BackwardKernel(const __grid_constant__ BackwardPlan plan) {
  using Memory = BackwardMemory<kPitch>;
  extern __shared__ __align__(128) uint8_t memory[];
  const uint32_t base = SharedAddress(memory);
  const uint32_t rows1 = base + Memory::kRows1, rows2 = base + Memory::kRows2;
  const uint32_t columns1 = base + Memory::kColumns1, columns2 = base + Memory::kColumns2;
  const float* floats = reinterpret_cast<const float*>(memory + Memory::kFloats);
  const float *column_scale1 = floats, *column_scale2 = floats + kBackwardColumns;
  const float *column_lse = floats + 2 * kBackwardColumns,
              *column_delta = floats + 3 * kBackwardColumns;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Visibility& see = plan.visibility;

  const SplitTensor& row1 = kKeys ? plan.k : plan.q;
  const SplitTensor& row2 = kKeys ? plan.v : plan.d_o;
  const SplitTensor& column1 = kKeys ? plan.q : plan.k;
  const SplitTensor& column2 = kKeys ? plan.d_o : plan.v;
  const int row_count = kKeys ? see.kv_len : see.q_len;
  const int column_count = kKeys ? see.q_len : see.kv_len;

  // Longest blocks first: under causality the last queries and the first keys.
  const int tiles = (row_count + kBackwardRows - 1) / kBackwardRows;
  const int64_t row_heads = plan.batch * (kKeys ? plan.kv_heads : plan.q_heads);
  int64_t id = blockIdx.x;
  const int64_t row_head = id % row_heads;
  id /= row_heads;
  const int tile = kKeys ? static_cast<int>(id % tiles) : tiles - 1 - static_cast<int>(id % tiles);
  const int chunk = static_cast<int>(id / tiles);
  const int row0 = tile * kBackwardRows, rows = min(kBackwardRows, row_count - row0);
  const int64_t batch = row_head / (kKeys ? plan.kv_heads : plan.q_heads);
  const int kv_head =
      static_cast<int>(kKeys ? row_head % plan.kv_heads : row_head % plan.q_heads / plan.group);
  const int64_t first_row = row_head * row_count + row0;

  const int begin = kKeys ? see.FirstQuery(row0) : see.FirstKey(row0);
  const int end = kKeys ? see.EndQuery(row0 + rows - 1) : see.EndKey(row0 + rows - 1);
  const int first_tile = begin / kBackwardColumns;
  const int tiles_a_head = max(0, (end + kBackwardColumns - 1) / kBackwardColumns - first_tile);
  const int head0 = kKeys ? kv_head * plan.group : static_cast<int>(row_head % plan.q_heads);
  const int steps = tiles_a_head * (kKeys ? plan.group : 1);

  const auto load_rows1 = [&](int c) {
    LoadTile<kBackwardRows, kPitch, kBackwardThreads>(rows1, row1, first_row, rows, c * kPitch);
  };
  const auto load_rows2 = [&](int c) {
    LoadTile<kBackwardRows, kPitch, kBackwardThreads>(rows2, row2, first_row, rows, c * kPitch);
  };
  // The tiles of columns, all heads of the group one after another.
  const auto column_head = [&](int step) {
    return kKeys ? batch * plan.q_heads + head0 + step / tiles_a_head
                 : batch * plan.kv_heads + kv_head;
  };
  const auto column_begin = [&](int step) {
    return (first_tile + step % tiles_a_head) * kBackwardColumns;
  };
  const auto load_columns1 = [&](int step, int c) {
    const int at = column_begin(step);
    const int64_t row = column_head(step) * column_count + at;
    LoadTile<kBackwardColumns, kPitch, kBackwardThreads>(columns1, column1, row, column_count - at,
                                                         c * kPitch);
    LoadFloats<kBackwardColumns>(base + Memory::kFloats, column1.scale + row, column_count - at);
    if (kKeys) {
      LoadFloats<kBackwardColumns>(base + Memory::kFloats + 8 * kBackwardColumns, plan.lse + row,
                                   column_count - at);
      LoadFloats<kBackwardColumns>(base + Memory::kFloats + 12 * kBackwardColumns, plan.delta + row,
                                   column_count - at);
    }
  };
  const auto load_columns2 = [&](int step, int c) {
    const int at = column_begin(step);
    const int64_t row = column_head(step) * column_count + at;
    LoadTile<kBackwardColumns, kPitch, kBackwardThreads>(columns2, column2, row, column_count - at,
                                                         c * kPitch);
    LoadFloats<kBackwardColumns>(base + Memory::kFloats + 4 * kBackwardColumns, column2.scale + row,
                                 column_count - at);
  };

  // What belongs to this lane's two rows.
  float row_scale1[2], row_scale2[2], row_lse[2] = {}, row_delta[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp * 16 + half * 8 + lane / 4;
    const bool exists = row < rows;
    row_scale1[half] = exists ? row1.scale[first_row + row] * (plan.scale * kLog2E) : 0.0f;
    row_scale2[half] = exists ? fabsf(row2.scale[first_row + row]) : 0.0f;
    if (!kKeys && exists) {
      row_lse[half] = plan.lse[first_row + row];
      row_delta[half] = plan.delta[first_row + row];
    }
    // A row of dO that is not finite has a delta that is not, which is all that matters.
  }

  float total1[kPitch / 8][4] = {}, total2[kKeys ? kPitch / 8 : 1][4] = {};
  const bool chunked = plan.qk_chunks > 1 || plan.v_chunks > 1;
  const auto dims_in = [&](const SplitTensor& tensor, int c) {
    return min(kPitch, max(0, tensor.padded - c * kPitch)) / 16;
  };

  if (steps > 0 && !chunked) {
    load_rows2(0);
    load_columns2(0, 0);
    CommitCopies();
    load_rows1(0);
    load_columns1(0, 0);
    CommitCopies();
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const int column0 = column_begin(step);
    float s[4][4] = {}, d_p[4][4] = {};
    {
      float small[4][4] = {};
      if (chunked) {
#pragma unroll 1
        for (int c = 0; c < plan.v_chunks; ++c) {
          __syncthreads();
          load_rows2(c);
          load_columns2(step, c);
          CommitCopies();
          WaitForCopies<0>();
          __syncthreads();
          MultiplyRows<kPitch>(rows2, columns2, warp, lane, dims_in(row2, c), d_p, small);
        }
      } else {
        WaitForCopies<1>();
        __syncthreads();
        MultiplyRows<kPitch>(rows2, columns2, warp, lane, dims_in(row2, 0), d_p, small);
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          d_p[n][e] += small[n][e];
          small[n][e] = 0.0f;
        }
      }
      if (chunked) {
#pragma unroll 1
        for (int c = 0; c < plan.qk_chunks; ++c) {
          __syncthreads();
          load_rows1(c);
          load_columns1(step, c);
          CommitCopies();
          WaitForCopies<0>();
          __syncthreads();
          MultiplyRows<kPitch>(rows1, columns1, warp, lane, dims_in(row1, c), s, small);
        }
      } else {
        WaitForCopies<0>();
        __syncthreads();
        MultiplyRows<kPitch>(rows1, columns1, warp, lane, dims_in(row1, 0), s, small);
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[n][e] += small[n][e];
      }
    }

    // P and dS, weighted with the scales of the columns; 0 where the pair is hidden.
    const int query0 = kKeys ? column0 : row0, key0 = kKeys ? row0 : column0;
    const bool all =
        (!kKeys || column0 + kBackwardColumns <= see.q_len) &&
        see.SeesAll(query0, kKeys ? kBackwardColumns : rows, key0, kKeys ? rows : kBackwardColumns);
    const int64_t head = head0 + (kKeys ? step / tiles_a_head : 0);
    unsigned attends = 0;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int half = e / 2, column = n * 8 + lane % 4 * 2 + e % 2;
        const int row = warp * 16 + half * 8 + lane / 4;
        const float lse = kKeys ? column_lse[column] : row_lse[half];
        const float delta = kKeys ? column_delta[column] : row_delta[half];
        const float scale1 = column_scale1[column], scale2 = fabsf(column_scale2[column]);
        float x = s[n][e] * (row_scale1[half] * scale1);
        bool seen = row < rows && lse != -INFINITY;
        if (!all) {
          const int query = kKeys ? column0 + column : row0 + row;
          const int key = kKeys ? row0 + row : column0 + column;
          seen = seen && query < see.q_len && key >= see.FirstKey(query) && key < see.EndKey(query);
          if (seen && see.mask_kind != MaskKind::kNone) {
            const float bias = see.Bias(see.MaskRow(batch, head, query), key);
            seen = bias != -INFINITY;
            x = fmaf(bias, kLog2E, x);
          }
        }
        attends |= static_cast<unsigned>(seen) << (n * 4 + e);
        x = fmaf(lse, -kLog2E, x);
        // Beyond it a power of two overflows; only an lse that is not that of the scores gets
        // there.
        const float p = Exp2(x > 127.0f ? 127.0f : x);
        const float d_s = p * (fmaf(d_p[n][e], row_scale2[half] * scale2, -delta));
        s[n][e] = seen ? d_s * scale1 : 0.0f;
        d_p[n][e] = seen ? p * scale2 : 0.0f;
      }
    }

    if (kKeys) {
      if (chunked) {
        __syncthreads();
        if (chunk < plan.v_chunks) load_columns2(step, chunk);
        CommitCopies();
        WaitForCopies<0>();
        __syncthreads();
      }
      const int pairs = dims_in(column2, chunk);
      AddProduct<kPitch>(d_p, columns2, lane, pairs,
                         reinterpret_cast<float(&)[kPitch / 8][4]>(total2));
      // Elements of dO that are not finite: NaN in that channel of dV for the keys attended to.
      unsigned not_finite = __ballot_sync(~0u, column_scale2[lane] < 0.0f);
      for (; not_finite != 0; not_finite &= not_finite - 1) {
        const int column = __ffs(not_finite) - 1;
        const unsigned bits = __shfl_sync(~0u, attends, (lane & ~3) | (column % 8 / 2)) >>
                              (column / 8 * 4 + column % 2);
        const float* from = plan.d_o_source + batch * plan.d_o_strides.batch +
                            head * plan.d_o_strides.head +
                            static_cast<int64_t>(column0 + column) * plan.d_o_strides.token;
#pragma unroll
        for (int n = 0; n < (kKeys ? kPitch / 8 : 0); ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int dim = chunk * kPitch + n * 8 + lane % 4 * 2 + e;
            if (dim >= plan.v_dim || isfinite(from[dim])) continue;
            if (bits & 1) total2[n][e] = __int_as_float(0x7fffffff);
            if (bits & 4) total2[n][2 + e] = __int_as_float(0x7fffffff);
          }
        }
      }
    }
    if (chunked) {
      __syncthreads();
      if (chunk < plan.qk_chunks) load_columns1(step, chunk);
      CommitCopies();
      WaitForCopies<0>();
      __syncthreads();
    } else {
      __syncthreads();  // nobody reads the second tensor's columns any more
      if (step + 1 < steps) load_columns2(step + 1, 0);
      CommitCopies();
    }
    AddProduct<kPitch>(s, columns1, lane, dims_in(column1, chunk), total1);
    if (!chunked) {
      __syncthreads();  // nor the first's
      if (step + 1 < steps) load_columns1(step + 1, 0);
      CommitCopies();
    }
  }
  WaitForCopies<0>();

  const int64_t row_head_at = row_head % (kKeys ? plan.kv_heads : plan.q_heads);
  const TokenStrides& strides1 = kKeys ? plan.k_strides : plan.q_strides;
  float* out1 = (kKeys ? plan.d_k : plan.d_q) + batch * strides1.batch +
                row_head_at * strides1.head + row0 * strides1.token;
  StoreRows<kPitch>(total1, plan.scale, out1, strides1.token, warp * 16, rows, chunk * kPitch,
                    plan.qk_dim, lane);
  if (kKeys) {
    float* out2 = plan.d_v + batch * plan.v_strides.batch + row_head_at * plan.v_strides.head +
                  row0 * plan.v_strides.token;
    StoreRows<kPitch>(reinterpret_cast<float(&)[kPitch / 8][4]>(total2), 1.0f, out2,
                      plan.v_strides.token, warp * 16, rows, chunk * kPitch, plan.v_dim, lane);
  }
}

template <int kPitch, bool kKeys>
void LaunchBackwardKernel(const BackwardPlan& plan, void* stream) {
  constexpr int kBytes = BackwardMemory<kPitch>::kBytes;
  const auto kernel = BackwardKernel<kPitch, kKeys>;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes) !=
      cudaSuccess)
    return;
  const int64_t rows = kKeys ? plan.visibility.kv_len : plan.visibility.q_len;
  const int64_t heads = plan.batch * (kKeys ? plan.kv_heads : plan.q_heads);
  const int chunks = kKeys && plan.v_chunks > plan.qk_chunks ? plan.v_chunks : plan.qk_chunks;
  const int64_t blocks = (rows + kBackwardRows - 1) / kBackwardRows * heads * chunks;
  if (blocks == 0) return;
  kernel<<<static_cast<unsigned>(blocks), kBackwardThreads, kBytes,
           static_cast<cudaStream_t>(stream)>>>(plan);
}

}  // namespace sage::cuda

#endif  // SAGE_CUDA_EXACT_BACKWARD_CUH_
