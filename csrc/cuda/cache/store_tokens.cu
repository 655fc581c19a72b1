// Appending to the device cache (docs/numerics.md 8): the frozen mean of k, and tokens to codes.
//
//   FreezeMean   block = 128 tokens of a head, thread = channel of k; float64 sums in token order,
//                left in the still empty pages; the last block of a head adds them in block order
//   StoreTokens  block = 32 tokens of a head, warp w = tokens w, w + 8, w + 16, w + 24 of them,
//                lane = 4 dims of every 128; codes go straight to their words in the page
//
// k' = k - mean; scale = max |x| / 127; code = round(x · 127 / max |x|), one rounding each: nothing
// here may be contracted. Traffic: 8 bytes read and 2 written per (token, dim) of k and v.
#include "cuda/cache/cache_plan.h"

namespace sage::cuda {
namespace {

constexpr uint32_t kInfBits = 0x7f800000;          // not finite from here on
constexpr uint32_t kTinyBits = (127 - 110) << 23;  // 2^-110
constexpr int kWarps = 8;
constexpr int kTokens = kGroupTokens / kWarps;  // of a warp
constexpr float kTop = 127.0f;

__device__ __forceinline__ uint32_t Magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

// Largest of unsigned integers over a warp; redux.sync is of sm_80 and later.
__device__ __forceinline__ uint32_t WarpMax(uint32_t x) { return __reduce_max_sync(~0u, x); }

__global__ void __launch_bounds__(kCacheDims) FreezeMean(const __grid_constant__ StorePlan plan) {
  constexpr int kBatch = 16;  // loads in flight per thread
  const int blocks = (plan.count + kPageTokens - 1) / kPageTokens;
  const int block = static_cast<int>(blockIdx.x % blocks), d = threadIdx.x;
  const int64_t head = blockIdx.x / blocks;
  const int rows = min(kPageTokens, plan.count - block * kPageTokens);
  const int k_dims = plan.layout.k_dims;
  double sum = 0.0;
  int count = 0;
  if (d < plan.qk_dim) {
    const float* at = plan.k + head / plan.kv_heads * plan.k_strides.batch +
                      head % plan.kv_heads * plan.k_strides.head +
                      static_cast<int64_t>(block) * kPageTokens * plan.k_strides.token + d;
    for (int t = 0; t < rows; t += kBatch) {
      float batch[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        batch[i] =
            t + i < rows ? __ldg(at + (t + i) * plan.k_strides.token) : __uint_as_float(kInfBits);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (Magnitude(batch[i]) >= kInfBits) continue;
        sum += static_cast<double>(batch[i]);
        ++count;
      }
    }
  }
  const auto sum_at = [&](int n) {
    return reinterpret_cast<double*>(plan.slabs.Page(plan.layout, head, n)) + d;
  };
  const auto count_at = [&](int n) {
    return reinterpret_cast<int*>(plan.slabs.Page(plan.layout, head, n) + 8 * k_dims) + d;
  };
  *sum_at(block) = sum;
  *count_at(block) = count;

  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(plan.arrived + head, 1u) + 1 == blocks;
  __syncthreads();
  if (!last) return;
  __threadfence();
  double total = 0.0;
  int64_t finite = 0;
  for (int n = 0; n < blocks; ++n) {
    total += __ldcg(sum_at(n));
    finite += __ldcg(count_at(n));
  }
  plan.k_mean[head * k_dims + d] =
      finite > 0 ? static_cast<float>(total / static_cast<double>(finite)) : 0.0f;
  if (threadIdx.x == 0) plan.arrived[head] = 0;
}

// Four dims from `d`, zeros past the end.
__device__ __forceinline__ float4 LoadFour(const float* row, int d, int dim, bool vectors) {
  if (vectors) {
    return d < dim ? __ldg(reinterpret_cast<const float4*>(row + d)) : make_float4(0, 0, 0, 0);
  }
  return make_float4(d < dim ? __ldg(row + d) : 0.0f, d + 1 < dim ? __ldg(row + d + 1) : 0.0f,
                     d + 2 < dim ? __ldg(row + d + 2) : 0.0f,
                     d + 3 < dim ? __ldg(row + d + 3) : 0.0f);
}

// One token's row, this lane's dims: centred, and what is needed to round it.
template <int kChunks>
struct Row {
  float x[4 * kChunks];
  bool bad[4 * kChunks];
  bool finite;
  float scale, inverse;

  __device__ __forceinline__ void Load(const float* row, int lane, int dim, bool vectors) {
#pragma unroll
    for (int n = 0; n < kChunks; ++n) {
      const float4 y = LoadFour(row, 128 * n + 4 * lane, dim, vectors);
      x[4 * n] = y.x, x[4 * n + 1] = y.y, x[4 * n + 2] = y.z, x[4 * n + 3] = y.w;
    }
  }
  // Dims past the end have mean 0.
  __device__ __forceinline__ void Centre(const float* mean) {
    bool all = true;
    uint32_t most = 0;
#pragma unroll
    for (int e = 0; e < 4 * kChunks; ++e) {
      bad[e] = Magnitude(x[e]) >= kInfBits;
      all = all && !bad[e];
      x[e] = bad[e] ? 0.0f : mean == nullptr ? x[e] : __fsub_rn(x[e], mean[e]);
      most = max(most, Magnitude(x[e]));
    }
    finite = __all_sync(~0u, all);
    most = WarpMax(most);
    const bool tiny = most < kTinyBits;
    scale = tiny ? 0.0f : __fdiv_rn(__uint_as_float(most), kTop);
    inverse = tiny ? 0.0f : __fdiv_rn(kTop, __uint_as_float(most));
  }
  __device__ __forceinline__ int Code(int e) const {
    return max(-127, min(127, __float2int_rn(__fmul_rn(x[e], inverse))));
  }
};

template <int kChunks>
__global__ void __launch_bounds__(kWarps * 32) StoreTokens(const __grid_constant__ StorePlan plan) {
  const int first_group = plan.first / kGroupTokens;
  const int groups = (plan.first + plan.count - 1) / kGroupTokens - first_group + 1;
  const int64_t head = blockIdx.x / groups;
  const int group = first_group + static_cast<int>(blockIdx.x % groups);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const CachePageLayout& layout = plan.layout;
  uint8_t* page = plan.slabs.Page(layout, head, group * kGroupTokens / kPageTokens);
  const int t0 = group * kGroupTokens % kPageTokens + warp;  // in the page
  const int64_t batch = head / plan.kv_heads, kv_head = head % plan.kv_heads;
  const float* k = plan.k + batch * plan.k_strides.batch + kv_head * plan.k_strides.head;
  const float* v = plan.v + batch * plan.v_strides.batch + kv_head * plan.v_strides.head;
  bool valid[kTokens];
  bool any = false, all = true;
  Row<kChunks> row[kTokens];
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    const int n = group * kGroupTokens + 8 * i + warp - plan.first;
    valid[i] = n >= 0 && n < plan.count;
    any = any || valid[i];
    all = all && valid[i];
    // A row that is not to be stored is read as another that is there.
    const int source = max(0, min(n, plan.count - 1));
    row[i].Load(k + source * plan.k_strides.token, lane, plan.qk_dim, plan.k_vectors);
  }
  if (!any) return;
  float mean[4 * kChunks];
#pragma unroll
  for (int e = 0; e < 4 * kChunks; ++e) {
    const int d = 128 * (e / 4) + 4 * lane + e % 4;
    mean[e] = d < plan.qk_dim ? __ldg(plan.k_mean + head * layout.k_dims + d) : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    row[i].Centre(mean);
    if (!valid[i]) continue;
#pragma unroll
    for (int n = 0; n < kChunks; ++n) {
      const int d = 128 * n + 4 * lane;
      uint32_t word = 0;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        word |= (static_cast<uint32_t>(row[i].Code(4 * n + e)) & 0xffu) << 8 * e;
      }
      if (d < layout.k_dims) {
        *reinterpret_cast<uint32_t*>(page + layout.KCodeAt(t0 + 8 * i, d)) = word;
      }
    }
    if (lane == 0) {
      *reinterpret_cast<float*>(page + layout.KScales() + layout.ScaleAt(t0 + 8 * i)) =
          row[i].finite ? row[i].scale : __uint_as_float(0x7fc00000u);
    }
  }

#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    const int n = group * kGroupTokens + 8 * i + warp - plan.first;
    const int source = max(0, min(n, plan.count - 1));
    row[i].Load(v + source * plan.v_strides.token, lane, plan.v_dim, plan.v_vectors);
  }
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    row[i].Centre(nullptr);
    if (lane == 0 && valid[i]) {
      *reinterpret_cast<float*>(page + layout.VScales() + layout.ScaleAt(t0 + 8 * i)) =
          row[i].finite ? row[i].scale : -row[i].scale;
    }
  }
#pragma unroll
  for (int e = 0; e < 4 * kChunks; ++e) {
    const int d = 128 * (e / 4) + 4 * lane + e % 4;
    if (d >= layout.v_dims) continue;
    uint8_t* at = page + layout.VCodeAt(t0, d);
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const int code = row[i].bad[e] ? kNotFiniteCode : row[i].Code(e);
      word |= (static_cast<uint32_t>(code) & 0xffu) << 8 * i;
      // Beside tokens that are there already.
      if (!all && valid[i]) at[i] = static_cast<uint8_t>(code);
    }
    if (all) *reinterpret_cast<uint32_t*>(at) = word;
  }
}

}  // namespace

cudaError_t LaunchFreezeMean(const StorePlan& plan, cudaStream_t stream) {
  const int64_t blocks = plan.heads * ((plan.count + kPageTokens - 1) / kPageTokens);
  FreezeMean<<<static_cast<unsigned>(blocks), plan.layout.k_dims, 0, stream>>>(plan);
  return cudaGetLastError();
}

cudaError_t LaunchStoreTokens(const StorePlan& plan, cudaStream_t stream) {
  const int64_t groups =
      (plan.first + plan.count - 1) / kGroupTokens - plan.first / kGroupTokens + 1;
  const unsigned blocks = static_cast<unsigned>(plan.heads * groups);
  if (plan.qk_dim <= 128 && plan.v_dim <= 128) {
    StoreTokens<1><<<blocks, kWarps * 32, 0, stream>>>(plan);
  } else {
    StoreTokens<2><<<blocks, kWarps * 32, 0, stream>>>(plan);
  }
  return cudaGetLastError();
}

}  // namespace sage::cuda
