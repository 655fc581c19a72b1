// `exact` forward on Hopper: the arithmetic of forward.cuh, on the tensor cores' asynchronous
// instructions (wgmma, sm_90a), which read K, V and Q from shared memory themselves. Heads of up to
// 128 dims.
//
// One block, one warpgroup, owns 64 queries of one head and runs over the keys in tiles of 64:
//   S = Q_low K_high + Q_high K_low, then + Q_high K_high       3 kPitch / 16 x m64n64k16
//   T = P_low V_high + P_high V_low, then + P_high V_high       12 x m64n64k16 for each 64 dims
// The small products go first into the same accumulators: their sum is small, so little is cut off.
// T of the first 64 dims is added to O while the second 64 are computed. What else there is to
// overlap, two blocks on a multiprocessor (three for heads of up to 64 dims) overlap by themselves.
//
// Shared memory, from an address that is a multiple of 1024; tiles of 64 rows x 64 dims (128 bytes
// a row, 16-byte chunk c of row r at c ^ (r % 8), which is the 128-byte swizzle of wgmma):
//   Q [high, low][kPitch / 64] tiles | K likewise | V likewise | scale_k 64 floats | scale_v 64
//   kPitch 128: 98,816 bytes and alignment; kPitch 64: 49,664.
// Q and K are K-major operands; V, [token][dim], is the transposed (MN-major) B operand.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "cuda/exact/forward_rows.cuh"
#include "cuda/exact/plan.h"
#include "cuda/exact/split_tensor.cuh"
#include "cuda/tensor_core.cuh"

namespace sage::cuda {
namespace {

constexpr int kThreads = 128, kRows = kSm90Queries, kKeys = kSm90Keys;
constexpr int kSubtile = 64 * 128;  // bytes

template <int kPitch>
struct Memory {
  static constexpr int kTensor = 2 * (kPitch / 64) * kSubtile;
  static constexpr int kQ = 0, kK = kTensor, kV = 2 * kTensor, kScaleK = 3 * kTensor;
  static constexpr int kScaleV = kScaleK + kKeys * 4;
  static constexpr int kBytes = kScaleV + kKeys * 4 + 1024;  // 1024 to align
};

// Rows [first, first + 64) of `tensor`; zeros from row `valid` and beyond its dims.
template <int kPitch>
__device__ __forceinline__ void LoadSubtiles(uint32_t to, const SplitTensor& tensor, int64_t first,
                                             int valid) {
  constexpr int kChunks = kPitch / 8, kLines = kThreads / kChunks;
  const int thread = static_cast<int>(threadIdx.x), chunk = thread % kChunks;
  const int line = thread / kChunks, plane = line % 2;
  const bool exists = chunk < tensor.padded / 8;
  int row = line / 2;
  const __half* from = tensor.halves + (first * 2 + line) * tensor.padded + chunk * 8;
  const uint32_t at = to + (plane * (kPitch / 64) + chunk / 8) * kSubtile;
#pragma unroll
  for (int n = 0; n < 2 * 64 / kLines; ++n) {
    CopyAsync16(at + row * 128 + ((chunk % 8 ^ (row & 7)) << 4), from, exists && row < valid);
    row += kLines / 2;
    from += kLines * tensor.padded;
  }
}

// 128-byte swizzle; groups of 8 rows are 1024 bytes apart.
__device__ __forceinline__ uint64_t Descriptor(uint32_t at) {
  return uint64_t{1} << 62 | uint64_t{64} << 32 | uint64_t{64} << 16 | (at >> 4 & 0x3fff);
}

#define SAGE_REGISTERS                                                                          \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
  "%25,%26,%27,%28,%29,%30,%31}"
#define SAGE_FOUR(x, n) "+f"(x[n][0]), "+f"(x[n][1]), "+f"(x[n][2]), "+f"(x[n][3])
#define SAGE_TILE(x)                                                                   \
  SAGE_FOUR(x, 0), SAGE_FOUR(x, 1), SAGE_FOUR(x, 2), SAGE_FOUR(x, 3), SAGE_FOUR(x, 4), \
      SAGE_FOUR(x, 5), SAGE_FOUR(x, 6), SAGE_FOUR(x, 7)

// d[64 x 64] (+)= a[64 x 16] b[64 x 16]', both in shared memory.
__device__ __forceinline__ void MultiplyShared(float (&d)[8][4], uint64_t a, uint64_t b,
                                               int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " SAGE_REGISTERS
      ", %32, %33, p, 1, 1, 0, 0;\n}"
      : SAGE_TILE(d)
      : "l"(a), "l"(b), "r"(accumulate));
}
// d[64 x 64] (+)= a[64 x 16] b[16 x 64], a in registers, b in shared memory.
__device__ __forceinline__ void MultiplyRegisters(float (&d)[8][4], const uint32_t (&a)[4],
                                                  uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " SAGE_REGISTERS
      ", {%32,%33,%34,%35}, %36, p, 1, 1, 1;\n}"
      : SAGE_TILE(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

#undef SAGE_REGISTERS
#undef SAGE_FOUR
#undef SAGE_TILE

__device__ __forceinline__ void BeginProducts() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void WaitForProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// What this thread copied is there for the tensor cores, once everybody has passed a barrier.
__device__ __forceinline__ void ShowCopies() {
  WaitForCopies<0>();
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

template <int kPitch, bool kMasked>
__global__ void __launch_bounds__(kThreads, kPitch == 64 ? 3 : 2)
    ForwardSm90Kernel(const __grid_constant__ ForwardPlan plan) {
  using At = Memory<kPitch>;
  constexpr int kSubtiles = kPitch / 64, kSteps = kPitch / 16;
  extern __shared__ uint8_t unaligned[];
  const uint32_t base = (SharedAddress(unaligned) + 1023) & ~1023u;
  const uint8_t* memory = unaligned + (base - SharedAddress(unaligned));
  const float* scale_k = reinterpret_cast<const float*>(memory + At::kScaleK);
  const float* scale_v = reinterpret_cast<const float*>(memory + At::kScaleV);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  const ForwardBlock block(plan);
  const Visibility& see = plan.visibility;
  const int query0 = block.tile * kRows, queries = min(kRows, see.q_len - query0);
  const int64_t batch = block.head / plan.q_heads, head = block.head % plan.q_heads;
  const int64_t kv_row0 = block.head / plan.group * see.kv_len;
  const int64_t q_row0 = block.head * see.q_len + query0;

  int tile = see.FirstKey(query0) / kKeys;
  int end_tile = (see.EndKey(query0 + queries - 1) + kKeys - 1) / kKeys;
  if (plan.parts > 1) {
    tile = max(tile, block.part * plan.tiles_a_part);
    end_tile = min(end_tile, (block.part + 1) * plan.tiles_a_part);
  }
  const auto load = [&](int to, int scale_at, const SplitTensor& tensor, int key0) {
    LoadSubtiles<kPitch>(base + to, tensor, kv_row0 + key0, see.kv_len - key0);
    LoadFloats<kKeys>(base + scale_at, tensor.scale + kv_row0 + key0, see.kv_len - key0);
    CommitCopies();
  };

  float o[kPitch / 8][4] = {};
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {}, scale_q[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp * 16 + r * 8 + lane / 4;
    scale_q[r] = row < queries ? plan.q.scale[q_row0 + row] * plan.scale : 0.0f;
  }
  if (tile < end_tile) {
    LoadSubtiles<kPitch>(base + At::kQ, plan.q, q_row0, queries);
    load(At::kK, At::kScaleK, plan.k, tile * kKeys);
  }

#pragma unroll 1
  for (; tile < end_tile; ++tile) {
    const int key0 = tile * kKeys;
    ShowCopies();
    __syncthreads();  // Q and K have come; nobody reads V any more
    load(At::kV, At::kScaleV, plan.v, key0);

    float s[8][4];
    {
      // Operands of step ks: tile ks / 4, 32 bytes of its rows for each of the four steps.
      constexpr uint32_t kLow = kSubtiles * kSubtile;
      const uint64_t q0 = Descriptor(base + At::kQ), k0 = Descriptor(base + At::kK);
      const auto at = [](int ks) { return ((ks / 4) * kSubtile + (ks % 4) * 32) >> 4; };
      BeginProducts();
#pragma unroll
      for (int ks = 0; ks < kSteps; ++ks) {
        MultiplyShared(s, q0 + at(ks) + (kLow >> 4), k0 + at(ks), ks > 0);
        MultiplyShared(s, q0 + at(ks), k0 + at(ks) + (kLow >> 4), 1);
      }
#pragma unroll
      for (int ks = 0; ks < kSteps; ++ks) MultiplyShared(s, q0 + at(ks), k0 + at(ks), 1);
      CommitProducts();
      WaitForProducts<0>();
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 factor = *reinterpret_cast<const float2*>(scale_k + n * 8 + lane % 4 * 2);
#pragma unroll
      for (int e = 0; e < 4; ++e) s[n][e] *= scale_q[e / 2] * (e % 2 == 0 ? factor.x : factor.y);
    }
    if (!see.SeesAll(query0, queries, key0, kKeys)) {
      const int query = query0 + warp * 16 + lane / 4, key = key0 + lane % 4 * 2;
      HideScores<0, kMasked>(s, see, batch, head, query, key);
      HideScores<1, kMasked>(s, see, batch, head, query + 8, key);
    }

    ShowCopies();
    __syncthreads();  // V has come; nobody reads K any more
    if (tile + 1 < end_tile) load(At::kK, At::kScaleK, plan.k, key0 + kKeys);

    const float first = scale_v[lane], second = scale_v[lane + 32];
    const float tile_scale = __uint_as_float(__reduce_max_sync(
        ~0u, max(__float_as_uint(first) & 0x7fffffffu, __float_as_uint(second) & 0x7fffffffu)));
    const uint64_t not_finite = static_cast<uint64_t>(__ballot_sync(~0u, second < 0.0f)) << 32 |
                                __ballot_sync(~0u, first < 0.0f);
    const float inverse = 1.0f / tile_scale;  // kPTop / tile_scale may be beyond float32
    unsigned attends = 0;                     // sixteen columns of two rows
    if (not_finite != 0) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          attends |= static_cast<unsigned>(s[n][e] != -INFINITY) << (e / 2 * 16 + n * 2 + e % 2);
      }
    }

    float alpha[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = fmaxf(s[0][r * 2], s[0][r * 2 + 1]);
#pragma unroll
      for (int n = 1; n < 8; ++n) most = fmaxf(most, fmaxf(s[n][r * 2], s[n][r * 2 + 1]));
      const float now = fmaxf(top[r], QuadMax(most));
      const float origin = now == -INFINITY ? 0.0f : now;
      alpha[r] = Exp2(top[r] - origin);
      top[r] = now;
      float added = 0.0f;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        s[n][r * 2] = Exp2(s[n][r * 2] - origin);
        s[n][r * 2 + 1] = Exp2(s[n][r * 2 + 1] - origin);
        added += s[n][r * 2] + s[n][r * 2 + 1];
      }
      sum[r] = fmaf(sum[r], alpha[r], added);
    }

    uint32_t p_high[4][4], p_low[4][4];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 v2 = *reinterpret_cast<const float2*>(scale_v + n * 8 + lane % 4 * 2);
      const float f0 = fabsf(v2.x) * inverse * kPTop, f1 = fabsf(v2.y) * inverse * kPTop;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        Split(s[n][half * 2] * f0, s[n][half * 2 + 1] * f1, &p_high[n / 2][n % 2 * 2 + half],
              &p_low[n / 2][n % 2 * 2 + half]);
    }

    // T of each 64 dims; step ks takes 16 tokens, 2048 bytes of rows.
    float t[kSubtiles][8][4];
    constexpr uint64_t kLow = (kSubtiles * kSubtile) >> 4;
    BeginProducts();
#pragma unroll
    for (int sub = 0; sub < kSubtiles; ++sub) {
      const uint64_t v0 = Descriptor(base + At::kV + sub * kSubtile);
#pragma unroll
      for (int ks = 0; ks < 4; ++ks) {
        MultiplyRegisters(t[sub], p_low[ks], v0 + ks * 128, ks > 0);
        MultiplyRegisters(t[sub], p_high[ks], v0 + ks * 128 + kLow, 1);
      }
#pragma unroll
      for (int ks = 0; ks < 4; ++ks) MultiplyRegisters(t[sub], p_high[ks], v0 + ks * 128, 1);
      CommitProducts();
    }
    const float o_factor = tile_scale / kPTop;
#pragma unroll
    for (int sub = 0; sub < kSubtiles; ++sub) {
      if (sub + 1 < kSubtiles) {
        WaitForProducts<1>();
      } else {
        WaitForProducts<0>();
      }
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& total = o[sub * 8 + n][e];
          total = fmaf(t[sub][n][e], o_factor, total * alpha[e / 2]);
        }
      }
    }

    // Channels of V that are not finite: NaN for every query that attends to the token.
    for (uint64_t left = not_finite; left != 0; left &= left - 1) {
      const int token = __ffsll(static_cast<long long>(left)) - 1;
      const unsigned bits =
          __shfl_sync(~0u, attends, (lane & ~3) | (token % 8 / 2)) >> (token / 8 * 2 + token % 2);
      const float* row = plan.v_source + batch * plan.v_strides.batch +
                         head / plan.group * plan.v_strides.head +
                         static_cast<int64_t>(key0 + token) * plan.v_strides.token;
#pragma unroll
      for (int n = 0; n < kPitch / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int dim = n * 8 + lane % 4 * 2 + e;
          if (dim >= plan.v_dim || isfinite(row[dim])) continue;
          if (bits & 1) o[n][e] = __int_as_float(0x7fffffff);
          if (bits >> 16 & 1) o[n][2 + e] = __int_as_float(0x7fffffff);
        }
      }
    }
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp * 16 + r * 8 + lane / 4;
    const float total = QuadSum(sum[r]);
    if (row < queries) WriteRow(plan, block, query0 + row, 0, o, r, top[r], total);
  }
}

template <int kPitch>
void Launch(const ForwardPlan& plan, void* stream) {
  constexpr int kBytes = Memory<kPitch>::kBytes;
  const bool masked = plan.visibility.mask_kind != MaskKind::kNone;
  const auto kernel = masked ? ForwardSm90Kernel<kPitch, true> : ForwardSm90Kernel<kPitch, false>;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes) !=
      cudaSuccess)
    return;
  const int64_t blocks = plan.heads * plan.query_tiles * plan.parts;
  kernel<<<static_cast<unsigned>(blocks), kThreads, kBytes, static_cast<cudaStream_t>(stream)>>>(
      plan);
}

}  // namespace

void LaunchForwardSm90(const ForwardPlan& plan, void* stream) {
  if (plan.q.padded <= 64 && plan.v.padded <= 64) {
    Launch<64>(plan, stream);
  } else {
    Launch<128>(plan, stream);
  }
}

}  // namespace sage::cuda
