// `exact` forward for few queries against many keys: bound by reading K and V, so float32 as it
// lies in memory and ordinary arithmetic. All query heads that share a key/value head, at most
// kRows (head, query) rows, are computed together; the keys are cut into parts, and merge.cu adds
// them up.
//
// One block of 128 threads, 64 keys at a time:
//   1. scores: 8 lanes per key, each 4 dims of 32; rows of Q in shared memory
//   2. softmax: a warp per row, running maximum; p[key][row], -1 where the pair is hidden
//   3. P V: a thread per 4 dims and share of the keys, all rows in registers
// Shared memory: q [kRows][dims rounded up to 32] (later the sums of the shares) | p | top | alpha.
#include <cuda_runtime.h>

#include <cmath>

#include "cuda/exact/plan.h"

namespace sage::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kKeys = 64;
constexpr int kMaxDim = 512;

// Four elements from dim d, zeros beyond `dim`.
__device__ __forceinline__ float4 ReadFour(const float* row, int d, int dim, bool vectors) {
  if (vectors) return d < dim ? *reinterpret_cast<const float4*>(row + d) : make_float4(0, 0, 0, 0);
  return make_float4(d < dim ? row[d] : 0.0f, d + 1 < dim ? row[d + 1] : 0.0f,
                     d + 2 < dim ? row[d + 2] : 0.0f, d + 3 < dim ? row[d + 3] : 0.0f);
}

template <int kRows>
struct Shared {
  static constexpr int kQ = kRows * kMaxDim;
  float q[kQ < kThreads * 4 * kRows ? kThreads * 4 * kRows : kQ];
  float p[kKeys][kRows];
  float top[kRows], sum[kRows], alpha[kRows];
};

template <int kRows>
__global__ void __launch_bounds__(kThreads, kRows <= 4 ? 8 : 2)
    DecodeKernel(const __grid_constant__ DecodePlan plan) {
  extern __shared__ __align__(16) uint8_t memory[];
  Shared<kRows>& shared = *reinterpret_cast<Shared<kRows>*>(memory);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const Visibility& see = plan.visibility;
  const int part = static_cast<int>(blockIdx.x % plan.parts);
  const int64_t kv_row = blockIdx.x / plan.parts, batch = kv_row / plan.kv_heads;
  const int kv_head = static_cast<int>(kv_row % plan.kv_heads);
  const int rows = plan.group * see.q_len;
  const int padded = (plan.qk_dim + 31) / 32 * 32;
  const auto head_of = [&](int row) { return kv_head * plan.group + row / see.q_len; };

  for (int row = 0; row < kRows; ++row) {
    const float* q = plan.q + batch * plan.q_strides.batch +
                     head_of(min(row, rows - 1)) * plan.q_strides.head +
                     static_cast<int64_t>(row % see.q_len) * plan.q_strides.token;
    for (int d = thread; d < padded; d += kThreads)
      shared.q[row * padded + d] = row < rows && d < plan.qk_dim ? q[d] : 0.0f;
  }
  if (thread < kRows) {
    shared.top[thread] = -INFINITY;
    shared.sum[thread] = 0.0f;
  }

  const float* k = plan.k + batch * plan.k_strides.batch + kv_head * plan.k_strides.head;
  const float* v = plan.v + batch * plan.v_strides.batch + kv_head * plan.v_strides.head;
  const int begin = max(part * plan.keys_a_part, see.FirstKey(0) / kKeys * kKeys);
  const int end = min((part + 1) * plan.keys_a_part, see.EndKey(see.q_len - 1));
  const int fours = (plan.v_dim + 3) / 4, shares = kThreads / fours;
  const int four = thread % fours, share = thread / fours;
  float o[kRows][4] = {};

  for (int key0 = begin; key0 < end; key0 += kKeys) {
    __syncthreads();
    for (int pass = 0; pass < kKeys / 16; ++pass) {
      const int key = key0 + pass * 16 + warp * 4 + lane / 8;
      float s[kRows] = {};
      if (key < end) {
        const float* row = k + key * plan.k_strides.token;
#pragma unroll 4
        for (int d = lane % 8 * 4; d < padded; d += 32) {
          const float4 x = ReadFour(row, d, plan.qk_dim, plan.vectors);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const float4 y = *reinterpret_cast<const float4*>(&shared.q[r * padded + d]);
            s[r] = fmaf(x.x, y.x, fmaf(x.y, y.y, fmaf(x.z, y.z, fmaf(x.w, y.w, s[r]))));
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        s[r] += __shfl_xor_sync(~0u, s[r], 1);
        s[r] += __shfl_xor_sync(~0u, s[r], 2);
        s[r] += __shfl_xor_sync(~0u, s[r], 4);
        if (lane % 8 == 0) shared.p[key - key0][r] = s[r];
      }
    }
    __syncthreads();
    bool hides = false;
    for (int row = warp; row < rows; row += kWarps) {
      const int query = row % see.q_len, first = see.FirstKey(query), last = see.EndKey(query);
      const int64_t mask_row = see.MaskRow(batch, head_of(row), query);
      float x[kKeys / 32], most = -INFINITY;
#pragma unroll
      for (int n = 0; n < kKeys / 32; ++n) {
        const int key = key0 + n * 32 + lane;
        x[n] = -INFINITY;
        if (key >= first && key < last && key < end) {
          const float bias = see.Bias(mask_row, key);
          const float s = shared.p[n * 32 + lane][row] * plan.scale;
          // Inputs that are not finite make their scores NaN.
          if (bias != -INFINITY) x[n] = isfinite(s) ? AddBias(s, bias) : __int_as_float(0x7fffffff);
        }
        most = fmaxf(most, x[n]);
      }
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, distance));
      const float before = shared.top[row], now = fmaxf(before, most);
      const float origin = now == -INFINITY ? 0.0f : now;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 32; ++n) {
        const bool hidden = x[n] == -INFINITY;
        const float p = Exp2(x[n] - origin);
        sum += p;
        hides = hides || hidden;
        shared.p[n * 32 + lane][row] = hidden ? -1.0f : p;
      }
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(~0u, sum, distance);
      __syncwarp();
      if (lane == 0) {
        const float alpha = Exp2(before - origin);
        shared.alpha[row] = alpha;
        shared.top[row] = now;
        shared.sum[row] = fmaf(shared.sum[row], alpha, sum);
      }
    }
    hides = __syncthreads_or(hides);
    if (share >= shares) continue;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float alpha = r < rows ? shared.alpha[r] : 0.0f;
#pragma unroll
      for (int e = 0; e < 4; ++e) o[r][e] *= alpha;
    }
    const int count = min(kKeys, end - key0);
#pragma unroll 4
    for (int j = share; j < count; j += shares) {
      const float4 x =
          ReadFour(v + (key0 + j) * plan.v_strides.token, four * 4, plan.v_dim, plan.vectors);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float p = shared.p[j][r];
        if (r >= rows || (hides && p < 0.0f)) continue;
        o[r][0] = fmaf(p, x.x, o[r][0]);
        o[r][1] = fmaf(p, x.y, o[r][1]);
        o[r][2] = fmaf(p, x.z, o[r][2]);
        o[r][3] = fmaf(p, x.w, o[r][3]);
      }
    }
  }

  // The shares, summed in order.
  __syncthreads();
  if (share < shares) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int e = 0; e < 4; ++e) shared.q[((share * kRows + r) * fours + four) * 4 + e] = o[r][e];
    }
  }
  __syncthreads();
  const int64_t all_rows = plan.batch * plan.q_heads * see.q_len;
  for (int row = 0; row < rows; ++row) {
    const int64_t index = (batch * plan.q_heads + head_of(row)) * see.q_len + row % see.q_len;
    const int64_t at = part * all_rows + index;
    for (int d = thread; d < plan.v_dim; d += kThreads) {
      float sum = 0.0f;
      for (int n = 0; n < shares; ++n) sum += shared.q[(n * kRows + row) * fours * 4 + d];
      plan.partial.o[at * plan.v_dim + d] = isfinite(sum) ? sum : __int_as_float(0x7fffffff);
    }
    if (thread == 0) {
      plan.partial.top[at] = shared.top[row];
      plan.partial.sum[at] = shared.sum[row];
    }
  }
}

template <int kRows>
void Launch(const DecodePlan& plan, void* stream) {
  constexpr int kBytes = sizeof(Shared<kRows>);
  if (cudaFuncSetAttribute(DecodeKernel<kRows>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           kBytes) != cudaSuccess)
    return;
  const int64_t blocks = plan.batch * plan.kv_heads * plan.parts;
  DecodeKernel<kRows>
      <<<static_cast<unsigned>(blocks), kThreads, kBytes, static_cast<cudaStream_t>(stream)>>>(
          plan);
}

}  // namespace

void LaunchDecode(const DecodePlan& plan, void* stream) {
  const int rows = plan.group * plan.visibility.q_len;
  if (rows <= 1) {
    Launch<1>(plan, stream);
  } else if (rows <= 4) {
    Launch<4>(plan, stream);
  } else {
    Launch<kMaxDecodeRows>(plan, stream);
  }
}

}  // namespace sage::cuda
