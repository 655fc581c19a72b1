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
#include "cuda/int8/warp_rows.cuh"
#include "formats/token_group.h"

namespace sage::cuda::int8 {
namespace {

// The codes of a warp's rows as image number `image` of `images`, of k or of q; `inverse`: of the
// row that the lane keeps.
template <int D, bool kOfK, class Rows>
__device__ __forceinline__ void StoreCodes(uint8_t* images, int64_t image, const Rows& rows,
                                           float inverse, const PrepassPlan& a) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float of_row = __shfl_sync(~0u, inverse, rows.Keeper(i));
    // Row i + 8, where the lane has it: in an image of q the two are neighbours.
    constexpr bool kBoth = Rows::kLoads == 16;
    constexpr int kOther = kBoth ? 8 : 0;
    const float of_other = kBoth ? __shfl_sync(~0u, inverse, rows.Keeper(i + kOther)) : 0.0f;
#pragma unroll
    for (int c = 0; c < Rows::kChannels; c += 4) {
      const int row = rows.Row(i), d = rows.channel + Rows::Beyond(c);
      const uint32_t codes = rows.Codes(i, c, of_row, a);
      const uint32_t other = kBoth ? rows.Codes(i + kOther, c, of_other, a) : 0;
      if (a.int4) {
        uint8_t* at = images + image * kCodeImageBytes<D, true>;
        const auto store = [&](int r, uint32_t x) {
          *reinterpret_cast<uint16_t*>(at +
                                       (kOfK ? KOffset<D, true>(r, d) : QOffset<D, true>(r, d))) =
              static_cast<uint16_t>(x);
        };
        store(row, codes);
        if (kBoth) store(row + 8, other);
        continue;
      }
      uint8_t* at = images + image * kCodeImageBytes<D, false>;
      if (kBoth && !kOfK) {
        *reinterpret_cast<uint2*>(at + QOffset<D, false>(row, d)) = make_uint2(codes, other);
        continue;
      }
      const auto store = [&](int r, uint32_t x) {
        *reinterpret_cast<uint32_t*>(
            at + (kOfK ? KOffset<D, false>(r, d) : QOffset<D, false>(r, d))) = x;
      };
      store(row, codes);
      if (kBoth) store(row + 8, other);
    }
  }
}

// x as two halves, x = high + low up to 2^-22 of 1 for |x| < 256.
__device__ __forceinline__ void StoreHalves(uint8_t* high_at, uint8_t* low_at, float x) {
  const __half high = __float2half_rn(x);
  *reinterpret_cast<__half*>(high_at) = high;
  *reinterpret_cast<__half*>(low_at) = __float2half_rn(__fsub_rn(x, __half2float(high)));
}

// Means of q per `smooth_q` rows of this block into means[block][d], and their image.
template <int D, class E>
__device__ void MeansOfQ(const PrepassPlan& a, int head, int block, float (*means)[D],
                         uint32_t* largest) {
  const int count = kTileTokens / a.smooth_q, first = block * kTileTokens;
  const typename E::Storage* rows = a.q.Row<E>(head, 0);
  if (threadIdx.x < kMostMeans) largest[threadIdx.x] = 0;
  __syncthreads();
  for (int n = threadIdx.x; n < count * D; n += kThreads) {
    const int d = n % D, b = n / D, row0 = first + b * a.smooth_q;
    double sum = 0.0;
    int finite = 0;
    if (d < a.q.dim) {
      const int end = min(row0 + a.smooth_q, a.q.tokens);
      for (int t = row0; t < end; ++t) {
        const float x = E::At(__ldg(rows + t * a.q.strides.token + d), 0);
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

template <int D, class E>
__device__ void QuantiseQ(const PrepassPlan& a, int head, int block) {
  using Rows = WarpRows<D, E>;
  __shared__ __align__(16) float means[kMostMeans][D];
  __shared__ uint32_t largest[kTileTokens];
  const Workspace& space = a.space;
  const int warp = threadIdx.x / 32;
  const int first = block * kTileTokens + warp * kWarpTokens;
  const int kv_head = head / a.q_heads * (a.q_heads / a.group) + head % a.q_heads / a.group;
  const int64_t row0 =
      static_cast<int64_t>(head) * space.q_rows + static_cast<int64_t>(block) * kTileTokens;
  Rows rows;
  rows.Load(a.q, a.q.Row<E>(head, 0), first);
  if (a.smooth_q > 0) MeansOfQ<D, E>(a, head, block, means, largest);
  __syncthreads();
  for (int t = threadIdx.x; t < kTileTokens; t += kThreads) largest[t] = 0;
  if (a.want_lse) {
    float k_mean[Rows::kChannels];
    rows.OfChannels(space.k_mean + static_cast<int64_t>(kv_head) * D, k_mean);
#pragma unroll
    for (int i = 0; i < Rows::kLoads; ++i) {
      // A row with a value that is not finite has no lse.
      double shift = 0.0;
#pragma unroll
      for (int c = 0; c < Rows::kChannels; ++c)
        shift += static_cast<double>(rows.x[i][c]) * static_cast<double>(k_mean[c]);
#pragma unroll
      for (int step = Rows::kRowLanes / 2; step > 0; step /= 2)
        shift += __shfl_xor_sync(~0u, shift, step);
      if (rows.lane == rows.Keeper(i)) {
        space.lse_shift[row0 + warp * kWarpTokens + rows.Row(i)] =
            static_cast<float>(a.scale * shift);
      }
    }
  }
  float mean[Rows::kChannels] = {};
  if (a.smooth_q > 0) rows.OfChannels(means[warp * kWarpTokens / a.smooth_q], mean);
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
  StoreCodes<D, false>(space.q_codes, row0 / kRowImage + warp, rows, inverse, a);
}

template <int D, class E>
__device__ void QuantiseK(const PrepassPlan& a, int head, int tile) {
  using Rows = WarpRows<D, E>;
  __shared__ uint32_t largest[kTileTokens];
  const Workspace& space = a.space;
  const int warp = threadIdx.x / 32, first = tile * kTileTokens + warp * kWarpTokens;
  const int64_t token0 =
      (static_cast<int64_t>(head) * space.tiles + tile) * kTileTokens + warp * kWarpTokens;
  Rows rows;
  rows.Load(a.k, a.k.Row<E>(head, 0), first);
  for (int t = threadIdx.x; t < kTileTokens; t += kThreads) largest[t] = 0;
  float mean[Rows::kChannels];
  rows.OfChannels(space.k_mean + static_cast<int64_t>(head) * D, mean);
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
  StoreCodes<D, true>(space.k_codes, token0 / kRowImage, rows, pair.y, a);
  if (a.smooth_q > 0) {
    uint8_t* halves = space.k_halves + token0 / kStepTokens * kKHalvesImageBytes<D>;
#pragma unroll
    for (int i = 0; i < Rows::kLoads; ++i) {
      const float unit = PowerBelow(__shfl_sync(~0u, pair.x, rows.Keeper(i)));
      const int t = warp % 2 * kWarpTokens + rows.Row(i);
#pragma unroll
      for (int c = 0; c < Rows::kChannels; ++c) {
        const int d = rows.channel + Rows::Beyond(c);
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

// sum += the codes of a chunk, over tokens: 16 bytes of an image of v are columns of two fragments
// of the product by halves; bytes are those of two such products, in another order of tokens.
__device__ __forceinline__ void AddCodes(float (&sum)[2][4], const uint4& chunk, bool bytes) {
  constexpr uint32_t kOnes = 0x3c003c00;  // two halves
  constexpr uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
  const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const uint32_t low = words[2 * odd], high = words[2 * odd + 1];
    if (bytes) {
      const uint2 a = HalvesOfE4m3(low), b = HalvesOfE4m3(high);
      Multiply(sum[odd], ones, a.x, a.y);
      Multiply(sum[odd], ones, b.x, b.y);
    } else {
      Multiply(sum[odd], ones, low, high);
    }
  }
}

// Channels `channel0` on of the tile's v: V of plan.h, with the statistics in rows of kStride.
template <int D, int kStride, class E>
__device__ void QuantiseV(const PrepassPlan& a, int head, int tile, int part) {
  using Rows = WarpRows<D, E>;
  // Both rows of a lane, or one of its own and one of its other half.
  constexpr bool kBoth = Rows::kLoads == 16;
  constexpr int kSharers = kWarps / (D / 16);  // warps that store the same channels
  __shared__ uint4 turned[kTileTokens * D * 2 / 16];
  __shared__ float sums[kSharers][D];  // of codes
  const Workspace& space = a.space;
  const int warp = threadIdx.x / 32, first = tile * kTileTokens + warp * kWarpTokens;
  const int channel0 = part * kPartDim;
  const int64_t of_head = static_cast<int64_t>(head) * kStride + channel0;
  const int64_t of_block = (static_cast<int64_t>(head) * space.tiles + tile) * kStride + channel0;
  const int64_t block = (static_cast<int64_t>(head) * a.v_parts + part) * space.tiles + tile;
  Source source = a.v;
  source.dim = min(source.dim - channel0, D);
  Rows rows;
  rows.Load(source, a.v.Row<E>(head, 0) + channel0, first);
  float mean[4], inverse[4];
  rows.OfChannels(space.v_mean + of_block, mean);
  rows.OfChannels(space.v_inverse + of_head, inverse);
  rows.Centre(source, first, mean);
  if (rows.Keeps())
    space.v_marks[block * kTileTokens + warp * kWarpTokens + rows.KeptRow()] = rows.bad;
  if (__any_sync(~0u, rows.bad) && rows.lane == 0) atomicOr(space.not_finite + head, 2u);
#pragma unroll
  for (int i = 0; i < Rows::kLoads; ++i) {
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
      // The same of tokens 8 on.
      float high[2] = {kBoth ? rows.x[kBoth ? 2 * c + 8 : 0][e] : 0.0f,
                       kBoth ? rows.x[kBoth ? 2 * c + 9 : 0][e] : 0.0f};
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
      const uint2 words = make_uint2(PackHalves(low[0], low[1]), PackHalves(high[0], high[1]));
      if constexpr (kBoth) {
        *reinterpret_cast<uint2*>(at) = words;
      } else {
        *reinterpret_cast<uint32_t*>(at + rows.half * 4) = words.x;
      }
    }
  }
  __syncthreads();
  // Every chunk that a lane stores is a fragment of the same 16 channels, so that a product with
  // ones adds the codes up: channels 2 c of the first eight and of the others in [.][0].
  float code_sum[2][4] = {};
  const int chunks = kTileTokens / (a.bytes ? 32 : 16) * kChunks;
  uint4* out = reinterpret_cast<uint4*>(space.v_codes) + block * chunks;
  for (int n = threadIdx.x; n < chunks; n += kThreads) {
    const uint4 chunk = turned[n / kChunks * kChunks + TurnedChunk(n % kChunks)];
    out[n] = chunk;
    if (a.smooth_v) AddCodes(code_sum, chunk, a.bytes);
  }
  if (!a.smooth_v) return;
  if (rows.lane < 4) {
    float* sum = &sums[warp / (D / 16)][warp % (D / 16) * 16 + rows.lane * 2];
    sum[0] = code_sum[0][0], sum[1] = code_sum[0][1];
    sum[8] = code_sum[1][0], sum[9] = code_sum[1][1];
  }
  __syncthreads();
  for (int d = threadIdx.x; d < D; d += kThreads) {
    // The mean of the block less that of its codes: what is put back carries the mean of their
    // errors (docs/numerics.md 3).
    float codes = 0.0f;
#pragma unroll
    for (int n = 0; n < kSharers; ++n) codes += sums[n][d];
    const float scale = space.v_scale[of_head + d];
    const int count = space.v_count[of_block + d];
    float units = __fdiv_rn(space.v_mean[of_block + d], scale == 0.0f ? 1.0f : scale);
    if (count > 0) units = __fsub_rn(units, __fdiv_rn(codes, static_cast<float>(count)));
    // Means far beyond their channel's spread must not become infinite.
    space.v_back[block * D + d] = fmaxf(-1e37f, fminf(1e37f, units));
  }
}

template <int D, class E>
__global__ void __launch_bounds__(kThreads, D == 256 ? 1 : 2)
    Quantise(const __grid_constant__ PrepassPlan a) {
  const unsigned tiles = a.space.tiles, kv_blocks = static_cast<unsigned>(a.kv_count) * tiles;
  unsigned block = blockIdx.x;
  if (block < kv_blocks) return QuantiseK<D, E>(a, block / tiles, block % tiles);
  block -= kv_blocks;
  const unsigned v_blocks = kv_blocks * a.v_parts;
  if (block < v_blocks) {
    const unsigned head_part = block / tiles;
    return QuantiseV<(D < kPartDim ? D : kPartDim), D, E>(a, head_part / a.v_parts, block % tiles,
                                                          head_part % a.v_parts);
  }
  block -= v_blocks;
  QuantiseQ<D, E>(a, block / a.q_blocks, block % a.q_blocks);
}

template <class E>
void Launch(const PrepassPlan& plan, int dim, cudaStream_t stream) {
  const int64_t q_heads = static_cast<int64_t>(plan.kv_count) * plan.group;
  const int64_t kv_blocks = static_cast<int64_t>(plan.kv_count) * plan.space.tiles;
  const unsigned blocks =
      static_cast<unsigned>(kv_blocks * (1 + plan.v_parts) + q_heads * plan.q_blocks);
  switch (dim) {
    case 64:
      Quantise<64, E><<<blocks, kThreads, 0, stream>>>(plan);
      break;
    case 128:
      Quantise<128, E><<<blocks, kThreads, 0, stream>>>(plan);
      break;
    default:
      Quantise<256, E><<<blocks, kThreads, 0, stream>>>(plan);
  }
}

}  // namespace

void LaunchQuantise(const PrepassPlan& plan, int dim, cudaStream_t stream) {
  WithElements(plan.input, [&](auto element) { Launch<decltype(element)>(plan, dim, stream); });
}

}  // namespace sage::cuda::int8
