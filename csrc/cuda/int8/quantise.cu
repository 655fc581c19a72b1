// Second launch of the pre-pass: codes and scales, bit for bit those of docs/numerics.md 2 to 4,
// written as the images that the products read (images.h).
//
//   block of k or q  128 tokens: warp = 16 of them; the largest magnitudes of the groups meet in
//                    shared memory, then the rows become codes, stored by whole sectors
//   block of v       128 tokens: warp = 16 of them; codes are turned in shared memory (32 KiB at
//                    most), so that images are written in order
//
// Rows are taken to be whole and finite; where one of a warp is not, its elements are looked at one
// by one. Every element is read once and written once; nothing may be contracted.
#include <cuda_fp16.h>

#include "cuda/int8/images.h"
#include "cuda/int8/products.cuh"
#include "cuda/int8/rows.cuh"
#include "formats/token_group.h"

namespace sage::cuda::int8 {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32;
constexpr int kWarpTokens = kTileTokens / kWarps;  // 16

// 16 rows of a warp, four channels of a lane: at 128 channels a row is the warp's, at 64 half a
// warp's, rows 0 to 7 and 8 to 15. What is of a row alone is kept by one lane of it.
template <int D>
struct WarpRows {
  static constexpr int kRowLanes = D / 4, kLoads = kWarpTokens * kRowLanes / 32;

  float x[kLoads][4];
  bool bad = false;  // the row that this lane keeps holds a value that is not finite
  int lane = static_cast<int>(threadIdx.x) % 32;
  int half = lane / kRowLanes, channel = lane % kRowLanes * 4;

  __device__ __forceinline__ int Row(int i) const { return i + 8 * half; }
  __device__ __forceinline__ int Keeper(int i) const { return half * kRowLanes + i; }
  __device__ __forceinline__ bool Keeps() const { return lane % kRowLanes < kLoads; }
  __device__ __forceinline__ int KeptRow() const { return lane % kRowLanes + 8 * half; }

  // Rows from token `first` of the head whose row 0 is `rows`; zeros outside the tensor.
  __device__ __forceinline__ void Load(const Source& source, const float* rows, int first) {
    const float* at =
        rows + static_cast<int64_t>(first + 8 * half) * source.strides.token + channel;
    if (source.vectors && first + kWarpTokens <= source.tokens && source.dim == D) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const float4 y = __ldcs(reinterpret_cast<const float4*>(at + i * source.strides.token));
        x[i][0] = y.x, x[i][1] = y.y, x[i][2] = y.z, x[i][3] = y.w;
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const bool exists = first + Row(i) < source.tokens && channel + c < source.dim;
        x[i][c] = exists ? __ldg(at + i * source.strides.token + c) : 0.0f;
      }
    }
  }

  // Takes a mean from every value; what is not finite or lies outside the tensor becomes zero, not
  // minus the mean.
  __device__ __forceinline__ void Centre(const Source& source, int first, const float (&mean)[4]) {
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
#pragma unroll
      for (int c = 0; c < 4; c += 2)
        most = __vimax3_u32(most, Magnitude(x[i][c]), Magnitude(x[i][c + 1]));
    }
    const bool whole = first + kWarpTokens <= source.tokens && source.dim == D;
    if (!whole || __any_sync(~0u, most >= kInfBits)) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        bool finite = true;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const bool number = Finite(x[i][c]);
          finite &= number;
          if (!number || first + Row(i) >= source.tokens || channel + c >= source.dim)
            x[i][c] = mean[c];
        }
        const uint32_t lanes = __ballot_sync(~0u, !finite);
        constexpr uint32_t kOfRow = kRowLanes == 32 ? ~0u : (1u << (kRowLanes % 32)) - 1;
        if (lane == Keeper(i)) bad = (lanes >> half * kRowLanes & kOfRow) != 0;
      }
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) x[i][c] = __fsub_rn(x[i][c], mean[c]);
    }
  }

  // The largest magnitude of each row, each in the lane that keeps it.
  __device__ __forceinline__ uint32_t Largest() const {
    uint32_t kept = 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      uint32_t most = __vimax3_u32(Magnitude(x[i][0]), Magnitude(x[i][1]), Magnitude(x[i][2]));
      most = max(most, Magnitude(x[i][3]));
      if constexpr (kRowLanes == 32) {
        most = __reduce_max_sync(~0u, most);
      } else {
#pragma unroll
        for (int step = kRowLanes / 2; step > 0; step /= 2)
          most = max(most, __shfl_xor_sync(~0u, most, step));
      }
      if (lane == Keeper(i)) kept = most;
    }
    return kept;
  }

  // This lane's codes of load i as bytes of a word, or nibbles of half a word.
  __device__ __forceinline__ uint32_t Codes(int i, float inverse, const PrepassPlan& a) const {
    uint32_t code[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      // To nearest even: |x · (top / max |x|)| rounds to at most top, so that nothing needs
      // clamping, and adding 1.5 · 2^23 leaves the integer in the lowest bits.
      code[c] =
          a.away
              ? static_cast<uint32_t>(RoundCode(x[i][c], inverse, static_cast<int>(a.qk_top), true))
              : __float_as_uint(__fadd_rn(__fmul_rn(x[i][c], inverse), kMagic));
    }
    if (!a.int4) {
      return __byte_perm(__byte_perm(code[0], code[1], 0x0040),
                         __byte_perm(code[2], code[3], 0x0040), 0x5410);
    }
    return (code[0] & 15u) | (code[1] & 15u) << 4 | (code[2] & 15u) << 8 | (code[3] & 15u) << 12;
  }
};

// x as two halves, x = high + low up to 2^-22 of 1 for |x| < 256.
__device__ __forceinline__ void StoreHalves(uint8_t* high_at, uint8_t* low_at, float x) {
  const __half high = __float2half_rn(x);
  *reinterpret_cast<__half*>(high_at) = high;
  *reinterpret_cast<__half*>(low_at) = __float2half_rn(__fsub_rn(x, __half2float(high)));
}

// Means of q per `smooth_q` rows of this block into means[block][d], and their image.
template <int D>
__device__ void MeansOfQ(const PrepassPlan& a, int head, int block, float (*means)[D],
                         uint32_t* largest) {
  const int count = kTileTokens / a.smooth_q, first = block * kTileTokens;
  const float* rows = a.q.Row(head, 0);
  if (threadIdx.x < kMostMeans) largest[threadIdx.x] = 0;
  __syncthreads();
  for (int n = threadIdx.x; n < count * D; n += kThreads) {
    const int d = n % D, b = n / D, row0 = first + b * a.smooth_q;
    double sum = 0.0;
    int finite = 0;
    if (d < a.q.dim) {
      const int end = min(row0 + a.smooth_q, a.q.tokens);
      for (int t = row0; t < end; ++t) {
        const float x = __ldg(rows + t * a.q.strides.token + d);
        if (!Finite(x)) continue;
        sum += static_cast<double>(x);
        ++finite;
      }
    }
    const float mean = finite > 0 ? static_cast<float>(sum / static_cast<double>(finite)) : 0.0f;
    means[b][d] = mean;
    atomicMax(largest + b, Magnitude(mean));
  }
  __syncthreads();
  const int64_t tile = static_cast<int64_t>(head) * a.q_blocks + block;
  uint8_t* image = a.space.mean_image + tile * kMeanImageBytes<D>;
  for (int n = threadIdx.x; n < kMostMeans * D; n += kThreads) {
    const int d = n % D, b = n / D;
    const float x =
        b < count ? __fdiv_rn(means[b][d], PowerBelow(__uint_as_float(largest[b]))) : 0.0f;
    StoreHalves(image + MeanOffset<D>(b, d), image + MeanOffset<D>(kMostMeans + b, d), a.sign * x);
  }
  if (threadIdx.x < kMostMeans) {
    a.space.mean_scale[tile * kMostMeans + threadIdx.x] =
        PowerBelow(__uint_as_float(largest[threadIdx.x]));
  }
}

template <int D>
__device__ void QuantiseQ(const PrepassPlan& a, int head, int block) {
  __shared__ float means[kMostMeans][D];
  __shared__ uint32_t largest[kTileTokens];
  const Workspace& space = a.space;
  const int warp = threadIdx.x / 32;
  const int first = block * kTileTokens + warp * kWarpTokens;
  const int kv_head = head / a.q_heads * (a.q_heads / a.group) + head % a.q_heads / a.group;
  const int64_t row0 =
      static_cast<int64_t>(head) * space.q_rows + static_cast<int64_t>(block) * kTileTokens;
  WarpRows<D> rows;
  rows.Load(a.q, a.q.Row(head, 0), first);
  if (a.smooth_q > 0) MeansOfQ<D>(a, head, block, means, largest);
  __syncthreads();
  for (int t = threadIdx.x; t < kTileTokens; t += kThreads) largest[t] = 0;
  if (a.want_lse) {
    const float4 k_mean = *reinterpret_cast<const float4*>(
        space.k_mean + static_cast<int64_t>(kv_head) * D + rows.channel);
#pragma unroll
    for (int i = 0; i < WarpRows<D>::kLoads; ++i) {
      // A row with a value that is not finite has no lse.
      const float(&x)[4] = rows.x[i];
      double shift = static_cast<double>(x[0]) * static_cast<double>(k_mean.x) +
                     static_cast<double>(x[1]) * static_cast<double>(k_mean.y) +
                     static_cast<double>(x[2]) * static_cast<double>(k_mean.z) +
                     static_cast<double>(x[3]) * static_cast<double>(k_mean.w);
#pragma unroll
      for (int step = WarpRows<D>::kRowLanes / 2; step > 0; step /= 2)
        shift += __shfl_xor_sync(~0u, shift, step);
      if (rows.lane == rows.Keeper(i)) {
        space.lse_shift[row0 + warp * kWarpTokens + rows.Row(i)] =
            static_cast<float>(a.scale * shift);
      }
    }
  }
  float mean[4] = {};
  if (a.smooth_q > 0) {
#pragma unroll
    for (int c = 0; c < 4; ++c) mean[c] = means[warp * kWarpTokens / a.smooth_q][rows.channel + c];
  }
  rows.Centre(a.q, first, mean);
  const uint32_t most = rows.Largest();
  __syncthreads();
  const int group = GroupInBlock(a.q_group, warp * kWarpTokens + rows.KeptRow());
  if (rows.Keeps()) atomicMax(largest + group, most);
  __syncthreads();
  const int64_t kept = row0 + warp * kWarpTokens + rows.KeptRow();
  float inverse = 0.0f;
  if (rows.Keeps()) {
    const float2 pair = ScaleOf(largest[group], a.qk_top);
    space.q_scale[kept] = rows.bad ? __uint_as_float(0x7fc00000u) : pair.x;
    inverse = a.sign * pair.y;
  }
  // Rows r and r + 8 are neighbours in an image.
  const int64_t image = row0 / kRowImage + warp;
  if (a.int4) {
    uint8_t* at = space.q_codes + image * kQImageBytes<D, true>;
#pragma unroll
    for (int i = 0; i < WarpRows<D>::kLoads; ++i) {
      const float of_row = __shfl_sync(~0u, inverse, rows.Keeper(i));
      *reinterpret_cast<uint16_t*>(at + QOffset<D, true>(rows.Row(i), rows.channel)) =
          static_cast<uint16_t>(rows.Codes(i, of_row, a));
    }
    return;
  }
  uint8_t* at = space.q_codes + image * kQImageBytes<D, false>;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float of_row = __shfl_sync(~0u, inverse, rows.Keeper(i));
    const uint32_t word = rows.Codes(i, of_row, a);
    uint8_t* to = at + QOffset<D, false>(rows.Row(i), rows.channel);
    if constexpr (WarpRows<D>::kLoads == 16) {
      const float of_other = __shfl_sync(~0u, inverse, rows.Keeper(i + 8));
      *reinterpret_cast<uint2*>(to) = make_uint2(word, rows.Codes(i + 8, of_other, a));
    } else {
      *reinterpret_cast<uint32_t*>(to) = word;
    }
  }
}

template <int D>
__device__ void QuantiseK(const PrepassPlan& a, int head, int tile) {
  __shared__ uint32_t largest[kTileTokens];
  const Workspace& space = a.space;
  const int warp = threadIdx.x / 32, first = tile * kTileTokens + warp * kWarpTokens;
  const int64_t token0 =
      (static_cast<int64_t>(head) * space.tiles + tile) * kTileTokens + warp * kWarpTokens;
  WarpRows<D> rows;
  rows.Load(a.k, a.k.Row(head, 0), first);
  for (int t = threadIdx.x; t < kTileTokens; t += kThreads) largest[t] = 0;
  const float4 of_head = *reinterpret_cast<const float4*>(
      space.k_mean + static_cast<int64_t>(head) * D + rows.channel);
  const float mean[4] = {of_head.x, of_head.y, of_head.z, of_head.w};
  rows.Centre(a.k, first, mean);
  const uint32_t most = rows.Largest();
  __syncthreads();
  const int group = GroupInBlock(a.k_group, warp * kWarpTokens + rows.KeptRow());
  if (rows.Keeps()) atomicMax(largest + group, most);
  __syncthreads();
  float2 pair = make_float2(0.0f, 0.0f);
  if (rows.Keeps()) {
    pair = ScaleOf(largest[group], a.qk_top);
    space.k_scale[token0 + rows.KeptRow()] = pair.x;
    space.k_marks[token0 + rows.KeptRow()] = rows.bad;
  }
  const uint32_t scale_most = __reduce_max_sync(~0u, __float_as_uint(pair.x));
  const bool bad = __any_sync(~0u, rows.bad);
  if (rows.lane == 0) {
    atomicMax(space.k_scale_most + head, scale_most);
    if (bad) atomicOr(space.not_finite + head, 1u);
  }
  const int64_t image = token0 / kStepTokens;
#pragma unroll
  for (int i = 0; i < WarpRows<D>::kLoads; ++i) {
    const float inverse = __shfl_sync(~0u, pair.y, rows.Keeper(i));
    const uint32_t codes = rows.Codes(i, inverse, a);
    const int t = warp % 2 * kWarpTokens + rows.Row(i);
    if (a.int4) {
      *reinterpret_cast<uint16_t*>(space.k_codes + image * kKImageBytes<D, true> +
                                   KOffset<D, true>(t, rows.channel)) =
          static_cast<uint16_t>(codes);
    } else {
      *reinterpret_cast<uint32_t*>(space.k_codes + image * kKImageBytes<D, false> +
                                   KOffset<D, false>(t, rows.channel)) = codes;
    }
  }
  if (a.smooth_q > 0) {
    uint8_t* halves = space.k_halves + image * kKHalvesImageBytes<D>;
#pragma unroll
    for (int i = 0; i < WarpRows<D>::kLoads; ++i) {
      const float unit = PowerBelow(__shfl_sync(~0u, pair.x, rows.Keeper(i)));
      const int t = warp % 2 * kWarpTokens + rows.Row(i);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int d = rows.channel + c;
        StoreHalves(halves + KHalvesOffset<D>(t, d, 0), halves + KHalvesOffset<D>(t, d, 1),
                    __fdiv_rn(rows.x[i][c], unit));
      }
      if (rows.lane == rows.Keeper(i)) space.k_halves_scale[token0 + rows.Row(i)] = unit;
    }
  }
  // A lane's scores of 32 tokens are of the tokens 8 j + 2 c + e: token 2 c has their scale.
  if (threadIdx.x < kTileTokens / kStepTokens * 4) {
    const int step = threadIdx.x / 4, c = threadIdx.x % 4;
    space.k_table[(token0 - warp * kWarpTokens) / kStepTokens * 4 + threadIdx.x] =
        ScaleOf(largest[GroupInBlock(a.k_group, step * kStepTokens + 2 * c)], a.qk_top).x;
  }
}

// Where 16-byte chunk n of an image of v stands in shared memory: the eight chunks that a quarter
// of a warp writes at once lie in different banks.
__device__ __forceinline__ int TurnedChunk(int n) { return n ^ ((n >> 5 & 3) * 2 | (n >> 4 & 1)); }

template <int D>
__device__ void QuantiseV(const PrepassPlan& a, int head, int tile) {
  __shared__ uint4 turned[kTileTokens * D * 2 / 16];
  const Workspace& space = a.space;
  const int warp = threadIdx.x / 32, first = tile * kTileTokens + warp * kWarpTokens;
  const int64_t block = static_cast<int64_t>(head) * space.tiles + tile;
  WarpRows<D> rows;
  rows.Load(a.v, a.v.Row(head, 0), first);
  const float4 m = *reinterpret_cast<const float4*>(space.v_mean + block * D + rows.channel);
  const float4 inv = *reinterpret_cast<const float4*>(
      space.v_inverse + static_cast<int64_t>(head) * D + rows.channel);
  const float mean[4] = {m.x, m.y, m.z, m.w}, inverse[4] = {inv.x, inv.y, inv.z, inv.w};
  rows.Centre(a.v, first, mean);
  if (rows.Keeps())
    space.v_marks[block * kTileTokens + warp * kWarpTokens + rows.KeptRow()] = rows.bad;
  if (__any_sync(~0u, rows.bad) && rows.lane == 0) atomicOr(space.not_finite + head, 2u);
#pragma unroll
  for (int i = 0; i < WarpRows<D>::kLoads; ++i) {
#pragma unroll
    for (int c = 0; c < 4; ++c) rows.x[i][c] = __fmul_rn(rows.x[i][c], inverse[c]);
  }
  // An image of 16 tokens as halves or 32 as bytes has D / 16 * 32 chunks; a channel and the tokens
  // 2 c and 2 c + 1 of each eight share one.
  constexpr int kChunks = D * 2, kPerEight = 4;
  uint8_t* image = reinterpret_cast<uint8_t*>(turned + (a.bytes ? warp / 2 : warp) * kChunks);
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int d = rows.channel + e;
#pragma unroll
    for (int c = 0; c < kPerEight; ++c) {
      uint8_t* at = image + TurnedChunk(d / 16 * 32 + d % 8 * 4 + c) * 16 + d / 8 % 2 * 8;
      float low[2] = {rows.x[2 * c][e], rows.x[2 * c + 1][e]};
      // The same of tokens 8 on: of this lane, or of its other half.
      constexpr bool kBoth = WarpRows<D>::kLoads == 16;
      float high[2] = {rows.x[kBoth ? 2 * c + 8 : 0][e], rows.x[kBoth ? 2 * c + 9 : 0][e]};
      if (a.bytes) {
        const uint32_t word = PackE4m3(low[0], low[1], high[0], high[1]);
        at += warp % 2 * 4 + (kBoth ? 0 : rows.half * 2);
        if constexpr (kBoth) {
          *reinterpret_cast<uint32_t*>(at) = word;
        } else {
          *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(word);
        }
        continue;
      }
      if (a.e4m3) {
#pragma unroll
        for (int n = 0; n < 2; ++n) low[n] = RoundE4m3(low[n]), high[n] = RoundE4m3(high[n]);
      }
      if constexpr (kBoth) {
        *reinterpret_cast<uint2*>(at) =
            make_uint2(PackHalves(low[0], low[1]), PackHalves(high[0], high[1]));
      } else {
        *reinterpret_cast<uint32_t*>(at + rows.half * 4) = PackHalves(low[0], low[1]);
      }
    }
  }
  __syncthreads();
  const int chunks = kTileTokens / (a.bytes ? 32 : 16) * kChunks;
  uint4* out = reinterpret_cast<uint4*>(space.v_codes) + block * chunks;
  for (int n = threadIdx.x; n < chunks; n += kThreads)
    out[n] = turned[n / kChunks * kChunks + TurnedChunk(n % kChunks)];
  for (int d = threadIdx.x; d < D; d += kThreads) {
    const float scale = space.v_scale[static_cast<int64_t>(head) * D + d];
    const float units = __fdiv_rn(space.v_mean[block * D + d], scale == 0.0f ? 1.0f : scale);
    // Means far beyond their channel's spread must not become infinite.
    space.v_mean_units[block * D + d] = fmaxf(-1e37f, fminf(1e37f, units));
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads, 2) Quantise(const __grid_constant__ PrepassPlan a) {
  const unsigned kv_blocks = static_cast<unsigned>(a.kv_count) * a.space.tiles;
  unsigned block = blockIdx.x;
  if (block < kv_blocks) return QuantiseK<D>(a, block / a.space.tiles, block % a.space.tiles);
  block -= kv_blocks;
  if (block < kv_blocks) return QuantiseV<D>(a, block / a.space.tiles, block % a.space.tiles);
  block -= kv_blocks;
  QuantiseQ<D>(a, block / a.q_blocks, block % a.q_blocks);
}

}  // namespace

void LaunchQuantise(const PrepassPlan& plan, int dim, cudaStream_t stream) {
  const int64_t q_heads = static_cast<int64_t>(plan.kv_count) * plan.group;
  const unsigned blocks =
      static_cast<unsigned>(2ll * plan.kv_count * plan.space.tiles + q_heads * plan.q_blocks);
  if (dim == 64) {
    Quantise<64><<<blocks, kThreads, 0, stream>>>(plan);
  } else {
    Quantise<128><<<blocks, kThreads, 0, stream>>>(plan);
  }
}

}  // namespace sage::cuda::int8
