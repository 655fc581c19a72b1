// The pre-pass of int8_fp8 on Hopper: statistics, then quantisation, from float32 in any strides.
// Codes and scales are those of docs/numerics.md 2 to 4, bit for bit.
//
//   Statistics  block = 128 tokens of k and v of one head, thread = channel of one of them
//               k: float64 sum over the tokens in order; v: mean of the block, largest |v - mean|
//               (subtraction rounds monotonically, so the extremes of v give it in one pass);
//               the last block of a head adds the sums in block order: mean of k, scales of v
//   Quantise    block = 128 tokens of k and v, or 128 rows of q; warp = 16 of them, lane = D / 32
//               channels
//
// Traffic per element of k and v: 4 bytes read twice, 1 written; of q: 4 read once, 1 written.
// No arithmetic here may be contracted: products and differences are rounded one by one.
#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/launch.h"
#include "formats/float_bits.h"

namespace sage {
namespace sm90 {
namespace {

constexpr int kWarps = 8;                          // of Quantise
constexpr int kWarpTokens = kTile / kWarps;        // 16
constexpr uint32_t kInfBits = 0x7f800000;          // exponent all ones: not finite from here on
constexpr uint32_t kTinyBits = (127 - 110) << 23;  // 2^-110
constexpr float kInt8Top = 127.0f;
constexpr float kE4m3Top = 448.0f;

struct Source {
  const float* data;
  TokenStrides strides;
  int heads, tokens, dim;
  bool vectors;  // rows of D floats, aligned for the widest loads

  __device__ const float* Row(int batch_head, int token) const {
    const int64_t batch = batch_head / heads, head = batch_head % heads;
    return data + batch * strides.batch + head * strides.head + token * strides.token;
  }
};

struct Arguments {
  Source q, k, v;
  Workspace space;
  int q_heads, group, kv_count;  // query heads, query heads per kv head, B·Hkv
  int q_blocks;                  // 128-row blocks of q
  bool smooth_k, smooth_v, want_lse;
  float sign;  // of the scale: carried by the codes of q
  double scale;
};

SAGE_DEVICE uint32_t Magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }
SAGE_DEVICE bool Finite(float x) { return Magnitude(x) < kInfBits; }

// docs/numerics.md 4.2 and 4.6: largest magnitude to scale and inverse.
SAGE_DEVICE float2 ScaleOf(uint32_t largest, float top) {
  if (largest < kTinyBits) return make_float2(0.0f, 0.0f);
  const float amax = __uint_as_float(largest);
  return make_float2(__fdiv_rn(amax, top), __fdiv_rn(top, amax));
}

template <int D>
__global__ void __launch_bounds__(2 * D) Statistics(const Arguments a) {
  constexpr int kBatch = 16;  // loads in flight per thread
  const int tile = blockIdx.x % a.space.tiles, head = blockIdx.x / a.space.tiles;
  const bool is_v = threadIdx.x >= D;
  const int d = threadIdx.x % D;
  const Source& x = is_v ? a.v : a.k;
  const int first = tile * kTile, rows = min(kTile, x.tokens - first);
  double sum = 0.0;
  int count = 0;
  float low = __uint_as_float(kInfBits), high = -low;
  if (d < x.dim) {
    const float* at = x.Row(head, first) + d;
    for (int t = 0; t < rows; t += kBatch) {
      float batch[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        batch[i] = t + i < rows ? __ldg(at + (t + i) * x.strides.token) : __uint_as_float(kInfBits);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (!Finite(batch[i])) continue;
        sum += static_cast<double>(batch[i]);
        ++count;
        low = fminf(low, batch[i]);
        high = fmaxf(high, batch[i]);
      }
    }
  }
  const int64_t block_channel = static_cast<int64_t>(blockIdx.x) * D + d;
  if (!is_v) {
    a.space.k_sum[block_channel] = sum;
    a.space.k_count[block_channel] = count;
  } else {
    const float mean =
        a.smooth_v && count > 0 ? static_cast<float>(sum / static_cast<double>(count)) : 0.0f;
    a.space.v_mean[block_channel] = mean;
    if (count > 0) {
      const uint32_t largest =
          max(Magnitude(__fsub_rn(high, mean)), Magnitude(__fsub_rn(low, mean)));
      atomicMax(a.space.v_largest + static_cast<int64_t>(head) * D + d, largest);
    }
  }

  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(a.space.arrived + head, 1u) + 1 == a.space.tiles;
  __syncthreads();
  if (!last) return;
  __threadfence();
  const int64_t head_channel = static_cast<int64_t>(head) * D + d;
  if (is_v) {
    const float2 pair = ScaleOf(__ldcg(a.space.v_largest + head_channel), kE4m3Top);
    a.space.v_scale[head_channel] = pair.x;
    a.space.v_inverse[head_channel] = pair.y;
    return;
  }
  double total = 0.0;
  int64_t finite = 0;
  const int64_t base = static_cast<int64_t>(head) * a.space.tiles * D + d;
  for (int t = 0; t < a.space.tiles; t += 8) {
    double sums[8];
    int counts[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool inside = t + i < a.space.tiles;
      sums[i] = inside ? __ldcg(a.space.k_sum + base + static_cast<int64_t>(t + i) * D) : 0.0;
      counts[i] = inside ? __ldcg(a.space.k_count + base + static_cast<int64_t>(t + i) * D) : 0;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (t + i < a.space.tiles) total += sums[i];
      finite += counts[i];
    }
  }
  a.space.k_mean[head_channel] =
      a.smooth_k && finite > 0 ? static_cast<float>(total / static_cast<double>(finite)) : 0.0f;
}

// This lane's D / 32 channels of one row; zeros outside the tensor.
template <int kChannels>
SAGE_DEVICE void LoadRow(const Source& source, int batch_head, int token, int lane,
                         float (&x)[kChannels]) {
#pragma unroll
  for (int c = 0; c < kChannels; ++c) x[c] = 0.0f;
  if (token >= source.tokens) return;
  const float* row = source.Row(batch_head, token) + lane * kChannels;
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
    if (lane * kChannels + c < source.dim) x[c] = __ldg(row + c);
  }
}

SAGE_DEVICE int RoundCode(float x, float inverse) {
  return max(-127, min(127, __float2int_rn(__fmul_rn(x, inverse))));
}

// Stores this lane's codes of one row in its swizzled place.
template <int D, int kChannels>
SAGE_DEVICE void StoreCodes(uint8_t* rows, int row, int lane, const int (&code)[kChannels]) {
  uint32_t word = 0;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) word |= (static_cast<uint32_t>(code[c]) & 0xffu) << 8 * c;
  const int byte = lane * kChannels;
  uint8_t* at = rows + row * D + SwizzledChunk<D>(row, byte >> 4) * 16 + (byte & 15);
  if constexpr (kChannels == 4) {
    *reinterpret_cast<uint32_t*>(at) = word;
  } else {
    *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(word);
  }
}

template <int D>
SAGE_DEVICE void QuantiseQ(const Arguments& a, int block) {
  constexpr int kChannels = D / 32, kBatch = 8;
  const int head = block / a.q_blocks, first = block % a.q_blocks * kTile;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int kv_head = head / a.q_heads * (a.q_heads / a.group) + head % a.q_heads / a.group;
  uint8_t* codes = a.space.q_codes + (static_cast<int64_t>(head) * a.space.q_rows + first) * D;
  const int64_t row0 = static_cast<int64_t>(head) * a.space.q_rows + first;
  float mean[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    mean[c] = a.want_lse ? a.space.k_mean[static_cast<int64_t>(kv_head) * D + lane * kChannels + c]
                         : 0.0f;
  }
#pragma unroll 1
  for (int t = 0; t < kWarpTokens; t += kBatch) {
    float x[kBatch][kChannels];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      LoadRow(a.q, head, first + warp * kWarpTokens + t + i, lane, x[i]);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int row = warp * kWarpTokens + t + i;
      bool finite = true;
      uint32_t most = 0;
      double shift = 0.0;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (!Finite(x[i][c])) {
          finite = false;
          x[i][c] = 0.0f;
        }
        most = max(most, Magnitude(x[i][c]));
        if (a.want_lse) shift += static_cast<double>(x[i][c]) * static_cast<double>(mean[c]);
      }
      finite = __all_sync(~0u, finite);
      most = __reduce_max_sync(~0u, most);
      if (a.want_lse) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) shift += __shfl_xor_sync(~0u, shift, step);
      }
      const float2 pair = ScaleOf(most, kInt8Top);
      int code[kChannels];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        code[c] = RoundCode(x[i][c], pair.y);
        if (a.sign < 0.0f) code[c] = -code[c];
      }
      StoreCodes<D>(codes, row, lane, code);
      if (lane == 0) {
        a.space.q_scale[row0 + row] = finite ? pair.x : __uint_as_float(0x7fc00000u);
        if (a.want_lse) a.space.lse_shift[row0 + row] = static_cast<float>(a.scale * shift);
      }
    }
  }
}

template <int D>
SAGE_DEVICE void QuantiseK(const Arguments& a, int head, int tile, uint32_t* tile_not_finite) {
  constexpr int kChannels = D / 32;
  __shared__ uint32_t largest[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = tile * kTile + warp * kWarpTokens;
  const int64_t block = static_cast<int64_t>(head) * a.space.tiles + tile;
  float mean[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    mean[c] = a.space.k_mean[static_cast<int64_t>(head) * D + lane * kChannels + c];
  }
  float x[kWarpTokens][kChannels];
#pragma unroll
  for (int i = 0; i < kWarpTokens; ++i) LoadRow(a.k, head, first + i, lane, x[i]);
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < kWarpTokens; ++i) {
    bool finite = true;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const bool number = Finite(x[i][c]);
      finite &= number;
      // Rows past the end are not tokens: they stay zero, not minus the mean.
      x[i][c] = number && first + i < a.k.tokens ? __fsub_rn(x[i][c], mean[c]) : 0.0f;
      most = max(most, Magnitude(x[i][c]));
    }
    if (!__all_sync(~0u, finite)) *tile_not_finite |= 1u << i;
  }
  most = __reduce_max_sync(~0u, most);
  if (lane == 0) largest[warp] = most;
  __syncthreads();
  const float2 pair = ScaleOf(max(largest[warp & ~1], largest[warp | 1]), kInt8Top);
  if (lane == 0 && (warp & 1) == 0) a.space.k_scale[block * 4 + warp / 2] = pair.x;
  uint8_t* codes = a.space.k_codes + block * kTile * D;
#pragma unroll
  for (int i = 0; i < kWarpTokens; ++i) {
    int code[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) code[c] = RoundCode(x[i][c], pair.y);
    const int t = warp % 2 * kWarpTokens + i;  // of 32; see workspace.h for the order of rows
    StoreCodes<D>(codes, 8 * (t / 2) + 2 * (warp / 2) + t % 2, lane, code);
  }
}

template <int D>
SAGE_DEVICE void QuantiseV(const Arguments& a, int head, int tile, uint32_t* tile_not_finite) {
  constexpr int kChannels = D / 32;
  // [channel][word of 4 tokens], words exchanged so that neither the writes by channel nor the
  // reads by word meet in one bank.
  __shared__ uint32_t words[D * 32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = tile * kTile + warp * kWarpTokens;
  const int64_t block = static_cast<int64_t>(head) * a.space.tiles + tile;
  const int64_t head_channel = static_cast<int64_t>(head) * D + lane * kChannels;
  float mean[kChannels], inverse[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    mean[c] = a.space.v_mean[block * D + lane * kChannels + c];
    inverse[c] = a.space.v_inverse[head_channel + c];
  }
  float x[kWarpTokens][kChannels];
#pragma unroll
  for (int i = 0; i < kWarpTokens; ++i) LoadRow(a.v, head, first + i, lane, x[i]);
#pragma unroll
  for (int i = 0; i < kWarpTokens; ++i) {
    bool finite = true;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const bool number = Finite(x[i][c]);
      finite &= number;
      x[i][c] = number && first + i < a.v.tokens
                    ? __fmul_rn(__fsub_rn(x[i][c], mean[c]), inverse[c])
                    : 0.0f;
    }
    if (!__all_sync(~0u, finite)) *tile_not_finite |= 0x10000u << i;
  }
#pragma unroll
  for (int i = 0; i < kWarpTokens; i += 4) {
    // Token 16 warp + i = 32c + 8s + 4h lies at byte 32s + 16h + 4c.
    const int word = 8 * (warp % 2 * 2 + i / 8) + 4 * (i / 4 % 2) + warp / 2;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      words[(lane * kChannels + c) * 32 + (word ^ lane)] =
          PackE4m3(x[i][c], x[i + 1][c], x[i + 2][c], x[i + 3][c]);
    }
  }
  __syncthreads();
  uint32_t* out = reinterpret_cast<uint32_t*>(a.space.v_codes + block * kTile * D);
  for (int d = warp; d < D; d += kWarps) {
    out[d * 32 + SwizzledChunk<128>(d, lane / 4) * 4 + lane % 4] =
        words[d * 32 + (lane ^ (d / kChannels))];
  }
}

// The means of one tile of v in units of v_scale, as B fragments: lane (g, c) of a warp reads
// channel 8j + g of tiles c and c + 4 of a group of 8, two j at a time.
template <int D>
SAGE_DEVICE void StoreMeans(const Arguments& a, int head, int tile) {
  const int d = threadIdx.x;
  if (d >= D) return;
  const float scale = a.space.v_scale[static_cast<int64_t>(head) * D + d];
  const float mean = a.space.v_mean[(static_cast<int64_t>(head) * a.space.tiles + tile) * D + d];
  float in_units = __fdiv_rn(mean, scale == 0.0f ? 1.0f : scale);
  in_units = fmaxf(-3e38f, fminf(3e38f, in_units));
  float* image =
      a.space.mean_image +
      (static_cast<int64_t>(head) * a.space.mean_groups + tile / kMeanTiles) * (kMeanTiles * D);
  const int j = d / 8, g = d % 8;
  // Tiles past the end of the last group are zero.
  const int end = tile + 1 == a.space.tiles ? kMeanTiles : tile % kMeanTiles + 1;
  for (int s = tile % kMeanTiles; s < end; ++s) {
    image[(j / 2 * 32 + g * 4 + s % 4) * 4 + j % 2 * 2 + s / 4] =
        __uint_as_float(s == tile % kMeanTiles ? RoundTf32(in_units) : 0u);
  }
}

template <int D>
__global__ void __launch_bounds__(kWarps * 32, 2) Quantise(const Arguments a) {
  const int kv_blocks = a.kv_count * a.space.tiles;
  if (static_cast<int>(blockIdx.x) >= kv_blocks) {
    QuantiseQ<D>(a, static_cast<int>(blockIdx.x) - kv_blocks);
    return;
  }
  const int head = blockIdx.x / a.space.tiles, tile = blockIdx.x % a.space.tiles;
  uint32_t not_finite = 0;  // bit i: k of this warp's token i; bit 16 + i: v
  QuantiseK<D>(a, head, tile, &not_finite);
  QuantiseV<D>(a, head, tile, &not_finite);
  StoreMeans<D>(a, head, tile);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane < kWarpTokens) {
    const uint32_t mark = (not_finite >> lane & 1u) | (not_finite >> (16 + lane) & 1u) << 1;
    a.space.marks[(static_cast<int64_t>(head) * a.space.tiles + tile) * kTile + warp * kWarpTokens +
                  lane] = static_cast<uint8_t>(mark);
  }
  if (lane == 0 && not_finite != 0) {
    atomicOr(a.space.not_finite + head,
             ((not_finite & 0xffffu) != 0 ? 1u : 0u) | ((not_finite >> 16) != 0 ? 2u : 0u));
  }
}

Source SourceOf(const float* data, const TokenStrides& strides, int64_t heads, int64_t tokens,
                int64_t dim, int padded) {
  Source source = {};
  source.data = data;
  source.strides = strides;
  source.heads = static_cast<int>(heads);
  source.tokens = static_cast<int>(tokens);
  source.dim = static_cast<int>(dim);
  source.vectors = dim == padded && reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
                   strides.batch % 4 == 0 && strides.head % 4 == 0 && strides.token % 4 == 0;
  return source;
}

template <int D>
void Launch(const Arguments& a, int64_t q_blocks, cudaStream_t stream) {
  const unsigned kv_blocks = static_cast<unsigned>(a.kv_count) * a.space.tiles;
  Statistics<D><<<kv_blocks, 2 * D, 0, stream>>>(a);
  Quantise<D><<<kv_blocks + static_cast<unsigned>(q_blocks), kWarps * 32, 0, stream>>>(a);
}

}  // namespace

cudaError_t Prepass(const Problem& p, const ForwardBuffers& buffers, const Workspace& space,
                    cudaStream_t stream) {
  Arguments a = {};
  a.q = SourceOf(buffers.q, p.q, p.q_heads, p.q_len, p.qk_dim, space.dim);
  a.k = SourceOf(buffers.k, p.k, p.kv_heads, p.kv_len, p.qk_dim, space.dim);
  a.v = SourceOf(buffers.v, p.v, p.kv_heads, p.kv_len, p.v_dim, space.dim);
  a.space = space;
  a.q_heads = static_cast<int>(p.q_heads);
  a.group = static_cast<int>(p.group());
  a.kv_count = static_cast<int>(p.batch * p.kv_heads);
  a.q_blocks = space.q_rows / kTile;
  a.smooth_k = p.recipe.smooth_k;
  a.smooth_v = p.recipe.smooth_v > 0;
  a.want_lse = p.want_lse;
  a.sign = p.scale < 0.0 ? -1.0f : 1.0f;
  a.scale = p.scale;
  const cudaError_t cleared = cudaMemsetAsync(space.schedule, 0, space.zeroed_bytes, stream);
  if (cleared != cudaSuccess) return cleared;
  const int64_t q_blocks = p.batch * p.q_heads * a.q_blocks;
  if (space.dim == 64) {
    Launch<64>(a, q_blocks, stream);
  } else {
    Launch<128>(a, q_blocks, stream);
  }
  return cudaGetLastError();
}

}  // namespace sm90
}  // namespace sage
