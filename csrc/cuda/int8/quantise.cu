// Second launch of the pre-pass: codes and scales, bit for bit those of docs/numerics.md 2 to 4,
// written as the images that the products read (images.h).
//
//   block of k or q  128 tokens: warp = 16 of them, lane = 4 channels (2 where D is 64); the
//   largest
//                    magnitudes of the groups meet in shared memory, then the rows become codes
//   block of v       128 tokens: thread = one lane's 16 bytes of an image at a time, gathered from
//                    8 or 16 elements; a warp reads 32 bytes of each of 32 rows
//
// Every element is read once and written once; nothing may be contracted.
#include <cuda_fp16.h>

#include "cuda/int8/images.h"
#include "cuda/int8/products.cuh"
#include "cuda/int8/rows.cuh"
#include "formats/token_group.h"

namespace sage::cuda::int8 {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32;
constexpr int kWarpTokens = kTileTokens / kWarps;  // 16

// This lane's channels of one row of the head whose row 0 is `rows`; zeros outside the tensor.
template <int kChannels>
__device__ __forceinline__ void LoadRow(const Source& source, const float* rows, int token,
                                        int lane, float (&x)[kChannels]) {
#pragma unroll
  for (int c = 0; c < kChannels; ++c) x[c] = 0.0f;
  const int d = lane * kChannels;
  if (token >= source.tokens || d >= source.dim) return;
  const float* row = rows + token * source.strides.token + d;
  if (source.vectors) {
    if constexpr (kChannels == 4) {
      const float4 y = __ldg(reinterpret_cast<const float4*>(row));
      x[0] = y.x, x[1] = y.y, x[2] = y.z, x[3] = y.w;
    } else {
      const float2 y = __ldg(reinterpret_cast<const float2*>(row));
      x[0] = y.x, x[1] = y.y;
    }
    return;
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    if (d + c < source.dim) x[c] = __ldg(row + c);
  }
}

// Stores the codes of kChannels neighbouring channels where the first of them lies in its image.
template <int kChannels>
__device__ __forceinline__ void StoreCodes(uint8_t* at, const int (&code)[kChannels], bool int4) {
  if (!int4) {
    uint32_t word = 0;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) word |= (static_cast<uint32_t>(code[c]) & 0xffu) << (8 * c);
    if constexpr (kChannels == 4) {
      *reinterpret_cast<uint32_t*>(at) = word;
    } else {
      *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(word);
    }
    return;
  }
  uint32_t word = 0;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) word |= (static_cast<uint32_t>(code[c]) & 0xfu) << (4 * c);
  if constexpr (kChannels == 4) {
    *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(word);
  } else {
    *at = static_cast<uint8_t>(word);
  }
}

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
  constexpr int kChannels = D / 32;
  __shared__ float means[kMostMeans][D];
  __shared__ uint32_t largest[kTileTokens];
  const Workspace& space = a.space;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = block * kTileTokens;
  if (a.smooth_q > 0) MeansOfQ<D>(a, head, block, means, largest);
  __syncthreads();
  for (int t = threadIdx.x; t < kTileTokens; t += kThreads) largest[t] = 0;
  __syncthreads();

  const int kv_head = head / a.q_heads * (a.q_heads / a.group) + head % a.q_heads / a.group;
  const int64_t row0 = static_cast<int64_t>(head) * space.q_rows + first;
  float k_mean[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    k_mean[c] =
        a.want_lse ? space.k_mean[static_cast<int64_t>(kv_head) * D + lane * kChannels + c] : 0.0f;
  }
  const float* rows = a.q.Row(head, 0);
  float x[kWarpTokens][kChannels];
  uint32_t bad = 0;
#pragma unroll
  for (int i = 0; i < kWarpTokens; ++i) {
    LoadRow(a.q, rows, first + warp * kWarpTokens + i, lane, x[i]);
  }
#pragma unroll
  for (int i = 0; i < kWarpTokens; ++i) {
    const int row = warp * kWarpTokens + i;
    bool finite = true;
    uint32_t most = 0;
    double shift = 0.0;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      float& y = x[i][c];
      const bool number = Finite(y);
      finite &= number;
      if (a.want_lse && number) shift += static_cast<double>(y) * static_cast<double>(k_mean[c]);
      // Rows past the end are no rows: they stay zero, not minus the mean.
      if (a.smooth_q > 0 && first + row < a.q.tokens)
        y = __fsub_rn(y, means[row / a.smooth_q][lane * kChannels + c]);
      if (!number) y = 0.0f;
      most = max(most, Magnitude(y));
    }
    if (!__all_sync(~0u, finite)) bad |= 1u << i;
    most = __reduce_max_sync(~0u, most);
    if (lane == 0) atomicMax(largest + GroupInBlock(a.q_group, row), most);
    if (a.want_lse) {
#pragma unroll
      for (int step = 16; step > 0; step /= 2) shift += __shfl_xor_sync(~0u, shift, step);
      if (lane == 0) space.lse_shift[row0 + row] = static_cast<float>(a.scale * shift);
    }
  }
  __syncthreads();
  const int top = static_cast<int>(a.qk_top);
  const int d = lane * kChannels;
#pragma unroll
  for (int i = 0; i < kWarpTokens; ++i) {
    const int row = warp * kWarpTokens + i;
    const float2 pair = ScaleOf(largest[GroupInBlock(a.q_group, row)], a.qk_top);
    int code[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      code[c] = RoundCode(x[i][c], pair.y, top, a.away);
      if (a.sign < 0.0f) code[c] = -code[c];
    }
    const int64_t image = (row0 + row) / kRowImage;
    if (a.int4) {
      StoreCodes(space.q_codes + image * kQImageBytes<D, true> + QOffset<D, true>(i, d), code,
                 true);
    } else {
      StoreCodes(space.q_codes + image * kQImageBytes<D, false> + QOffset<D, false>(i, d), code,
                 false);
    }
    if (lane == 0) {
      space.q_scale[row0 + row] = bad >> i & 1u ? __uint_as_float(0x7fc00000u) : pair.x;
    }
  }
}

template <int D>
__device__ void QuantiseK(const PrepassPlan& a, int head, int tile) {
  constexpr int kChannels = D / 32;
  __shared__ uint32_t largest[kTileTokens];
  const Workspace& space = a.space;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = tile * kTileTokens, d = lane * kChannels;
  const int64_t token0 = static_cast<int64_t>(head) * space.tiles * kTileTokens + first;
  for (int t = threadIdx.x; t < kTileTokens; t += kThreads) largest[t] = 0;
  float mean[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c)
    mean[c] = space.k_mean[static_cast<int64_t>(head) * D + d + c];
  const float* rows = a.k.Row(head, 0);
  float x[kWarpTokens][kChannels];
#pragma unroll
  for (int i = 0; i < kWarpTokens; ++i)
    LoadRow(a.k, rows, first + warp * kWarpTokens + i, lane, x[i]);
  __syncthreads();
  uint32_t bad = 0;
#pragma unroll
  for (int i = 0; i < kWarpTokens; ++i) {
    const int row = warp * kWarpTokens + i;
    bool finite = true;
    uint32_t most = 0;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      float& y = x[i][c];
      const bool number = Finite(y);
      finite &= number;
      // Channels and tokens past the end stay zero, not minus the mean.
      y = number && first + row < a.k.tokens && d + c < a.k.dim ? __fsub_rn(y, mean[c]) : 0.0f;
      most = max(most, Magnitude(y));
    }
    if (!__all_sync(~0u, finite)) bad |= 1u << i;
    most = __reduce_max_sync(~0u, most);
    if (lane == 0) atomicMax(largest + GroupInBlock(a.k_group, row), most);
  }
  __syncthreads();
  const int top = static_cast<int>(a.qk_top);
  uint32_t scale_most = 0;
#pragma unroll
  for (int i = 0; i < kWarpTokens; ++i) {
    const int row = warp * kWarpTokens + i;
    const float2 pair = ScaleOf(largest[GroupInBlock(a.k_group, row)], a.qk_top);
    scale_most = max(scale_most, __float_as_uint(pair.x));
    int code[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) code[c] = RoundCode(x[i][c], pair.y, top, a.away);
    const int64_t image = (token0 + row) / kStepTokens;
    const int t = row % kStepTokens;
    if (a.int4) {
      StoreCodes(space.k_codes + image * kKImageBytes<D, true> + KOffset<D, true>(t, d), code,
                 true);
    } else {
      StoreCodes(space.k_codes + image * kKImageBytes<D, false> + KOffset<D, false>(t, d), code,
                 false);
    }
    if (a.smooth_q > 0) {
      uint8_t* halves = space.k_halves + image * kKHalvesImageBytes<D>;
      const float unit = PowerBelow(pair.x);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        StoreHalves(halves + KHalvesOffset<D>(t, d + c, 0), halves + KHalvesOffset<D>(t, d + c, 1),
                    __fdiv_rn(x[i][c], unit));
      }
      if (lane == 0) space.k_halves_scale[token0 + row] = unit;
    }
    if (lane == 0) {
      space.k_scale[token0 + row] = pair.x;
      space.k_marks[token0 + row] = bad >> i & 1u;
    }
  }
  if (lane == 0) {
    atomicMax(space.k_scale_most + head, scale_most);
    if (bad != 0) atomicOr(space.not_finite + head, 1u);
  }
  // A lane's scores of 32 tokens are of the tokens 8 j + 2 c + e: token 2 c has their scale.
  if (threadIdx.x < kTileTokens / kStepTokens * 4) {
    const int step = threadIdx.x / 4, c = threadIdx.x % 4;
    space.k_table[token0 / kStepTokens * 4 + threadIdx.x] =
        ScaleOf(largest[GroupInBlock(a.k_group, step * kStepTokens + 2 * c)], a.qk_top).x;
  }
}

// Two channels of an image's 16 bytes at kCount tokens each: 2c, 2c + 1 of each eight. All loads
// come before anything that depends on one.
template <int kCount>
struct Gathered {
  float x[2][kCount];

  __device__ __forceinline__ void Load(const Source& v, const float* rows, int first, int token0,
                                       int d, int c) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int token = TokenOf(token0, c, i), channel = d + 8 * odd;
        const bool exists = first + token < v.tokens && channel < v.dim;
        x[odd][i] = exists ? __ldg(rows + token * v.strides.token + channel) : 0.0f;
      }
    }
  }
  // v' · inverse, 0 where a value is not finite; marks its token.
  __device__ __forceinline__ void Scale(const Source& v, const float* mean, const float* inverse,
                                        int first, int token0, int d, int c, uint32_t* marks) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const float m = mean[d + 8 * odd], inv = inverse[d + 8 * odd];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int token = TokenOf(token0, c, i);
        const bool finite = Finite(x[odd][i]);
        if (!finite) atomicOr(marks + token / 32, 1u << (token % 32));
        // Past the end and past the last channel there is nothing, not minus the mean.
        const bool counts = finite && first + token < v.tokens && d + 8 * odd < v.dim;
        x[odd][i] = counts ? __fmul_rn(__fsub_rn(x[odd][i], m), inv) : 0.0f;
      }
    }
  }

 private:
  __device__ __forceinline__ static int TokenOf(int token0, int c, int i) {
    return token0 + i / 2 * 8 + 2 * c + i % 2;
  }
};

template <int D>
__device__ void QuantiseV(const PrepassPlan& a, int head, int tile) {
  __shared__ uint32_t marks[kTileTokens / 32];
  const Workspace& space = a.space;
  const int first = tile * kTileTokens;
  const int64_t token0 = static_cast<int64_t>(head) * space.tiles * kTileTokens + first;
  const float* mean = space.v_mean + (static_cast<int64_t>(head) * space.tiles + tile) * D;
  const float* inverse = space.v_inverse + static_cast<int64_t>(head) * D;
  if (threadIdx.x < kTileTokens / 32) marks[threadIdx.x] = 0;
  __syncthreads();
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const float* rows = a.v.Row(head, first);
  constexpr int kPieces = D / 16;
  // Tokens of an image's 16 bytes: 32 as bytes, 16 as halves.
  const int tokens = a.bytes ? 32 : 16;
  uint8_t* images = space.v_codes + token0 * D * (a.bytes ? 1 : 2);
#pragma unroll 2
  for (int n = threadIdx.x / 32; n < kTileTokens / tokens * kPieces; n += kWarps) {
    const int step = n / kPieces, d = n % kPieces * 16 + g;
    uint32_t word[4];
    if (a.bytes) {
      Gathered<8> v;
      v.Load(a.v, rows, first, step * 32, d, c);
      v.Scale(a.v, mean, inverse, first, step * 32, d, c, marks);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float* x = v.x[w / 2] + w % 2 * 4;
        word[w] = PackE4m3(x[0], x[1], x[2], x[3]);
      }
    } else {
      Gathered<4> v;
      v.Load(a.v, rows, first, step * 16, d, c);
      v.Scale(a.v, mean, inverse, first, step * 16, d, c, marks);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float x = v.x[w / 2][w % 2 * 2], y = v.x[w / 2][w % 2 * 2 + 1];
        if (a.e4m3) x = RoundE4m3(x), y = RoundE4m3(y);
        word[w] = PackHalves(x, y);
      }
    }
    reinterpret_cast<uint4*>(images)[n * 32 + lane] =
        make_uint4(word[0], word[1], word[2], word[3]);
  }
  for (int d = threadIdx.x; d < D; d += kThreads) {
    const float scale = space.v_scale[static_cast<int64_t>(head) * D + d];
    const float units = __fdiv_rn(mean[d], scale == 0.0f ? 1.0f : scale);
    // Means far beyond their channel's spread must not become infinite.
    space.v_mean_units[(static_cast<int64_t>(head) * space.tiles + tile) * D + d] =
        fmaxf(-1e37f, fminf(1e37f, units));
  }
  __syncthreads();
  for (int t = threadIdx.x; t < kTileTokens; t += kThreads)
    space.v_marks[token0 + t] = marks[t / 32] >> (t % 32) & 1u;
  if (threadIdx.x < kTileTokens / 32 && marks[threadIdx.x] != 0)
    atomicOr(space.not_finite + head, 2u);
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
