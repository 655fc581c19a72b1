// Rounding q, k and v to codes, tile by tile, in the order that attention reads (workspace.h).
// Codes and scales are those of docs/numerics.md 4, bit for bit; warp = 16 tokens of a tile (8
// where D = 256), lane = D / 32 channels. Means and scales come from blocks of the same launch,
// hence loads past L1.
//
// Rows are taken to be whole and finite; where the largest magnitude says that they are not, they
// are read again and looked at one by one.
#ifndef SAGE_CUDA_SM90_QUANTISE_CUH_
#define SAGE_CUDA_SM90_QUANTISE_CUH_

#include <cstdint>

#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/source.cuh"
#include "cuda/sm90/statistics.cuh"
#include "cuda/sm90/workspace.h"

namespace sage {
namespace sm90 {

template <int D>
constexpr int kWarps = kPrepassThreads<D> / 32;
template <int D>
constexpr int kWarpTokens = kTile / kWarps<D>;  // 16 or 8
constexpr int kMarkBits = 16;  // where the marks of v begin in a warp's bits of k and v

// Shared memory of one block.
template <int D>
struct QuantiseShared {
  // Codes of v, [channel][word of 4 tokens]; words exchanged so that neither the writes by channel
  // nor the reads by word meet in one bank.
  uint32_t words[D * 32];
  uint32_t largest[kWarps<D>];
};

// This lane's channels of a warp's rows from `token` on, read for the last time; zeros outside the
// tensor.
template <class E, int kRows, int kChannels>
SAGE_DEVICE void LoadRows(const Source& source, int batch_head, int token, int lane,
                          float (&x)[kRows][kChannels]) {
  const typename E::Storage* row = source.Row<E>(batch_head, token) + lane * kChannels;
  const int rows = source.tokens - token;
  if (source.vectors && rows >= kRows) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) LoadElements<E>(row + i * source.strides.token, x[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (source.pieces) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) x[i][c] = 0.0f;
      if (i < rows && lane * kChannels < source.dim) {
        LoadElements<E>(row + i * source.strides.token, x[i]);
      }
      continue;
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      x[i][c] = i < rows && lane * kChannels + c < source.dim
                    ? LoadElement<E>(row + i * source.strides.token + c)
                    : 0.0f;
    }
  }
}

// Stores this lane's codes of one row of an operand in its swizzled place.
template <int D, int kBlockRows, int kChannels>
SAGE_DEVICE void StoreCodes(uint8_t* rows, int row, int lane, const float (&x)[kChannels],
                            float inverse) {
  uint32_t words[(kChannels + 3) / 4];
  RoundToCodes(x, inverse, words);
  uint8_t* at = rows + OperandByte<D, kBlockRows>(row, lane * kChannels);
  if constexpr (kChannels == 2) {
    *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(words[0]);
  } else if constexpr (kChannels == 4) {
    *reinterpret_cast<uint32_t*>(at) = words[0];
  } else {
    *reinterpret_cast<uint2*>(at) = make_uint2(words[0], words[1]);
  }
}

template <int D, class E>
SAGE_DEVICE void QuantiseQ(const PrepassArguments& a, int block) {
  constexpr int kChannels = D / 32, kRows = kWarpTokens<D>;
  const int head = block / a.q_blocks, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = block % a.q_blocks * kTile + warp * kRows;
  const int kv_head = head / a.group;  // the query heads of a group are next to each other
  const int64_t row0 = static_cast<int64_t>(head) * a.space.q_rows + first;
  // Rows of a warp are whole periods of the swizzle.
  const int in_block = first % kQueryBlock;
  uint8_t* codes =
      a.space.q_codes + (row0 - in_block) * D + in_block * static_cast<int>(D < 128 ? D : 128);
  float x[kRows][kChannels];
  LoadRows<E>(a.q, head, first, lane, x);
  if (a.want_lse) AwaitHead(a, kv_head);  // while the rows come
  float mean[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    mean[c] =
        a.want_lse
            ? __ldcg(a.space.k_mean + static_cast<int64_t>(kv_head) * D + lane * kChannels + c)
            : 0.0f;
  }
  float my_scale = 0.0f, my_shift = 0.0f;  // of row `lane`
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    uint32_t most = __reduce_max_sync(~0u, Largest(0u, x[i]));
    const bool finite = most < kInfBits;
    if (!finite) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) x[i][c] = Finite(x[i][c]) ? x[i][c] : 0.0f;
      most = __reduce_max_sync(~0u, Largest(0u, x[i]));
    }
    if (a.want_lse) {
      double shift = 0.0;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        shift += static_cast<double>(x[i][c]) * static_cast<double>(mean[c]);
      }
#pragma unroll
      for (int step = 16; step > 0; step /= 2) shift += __shfl_xor_sync(~0u, shift, step);
      if (lane == i) my_shift = static_cast<float>(a.scale * shift);
    }
    const float2 pair = ScaleOf(most, kInt8Top);
    StoreCodes<D, kQueryBlock>(codes, i, lane, x[i], a.sign * pair.y);
    if (lane == i) my_scale = finite ? pair.x : __uint_as_float(0x7fc00000u);
  }
  if (lane >= kRows) return;
  a.space.q_scale[row0 + lane] = my_scale;
  if (a.want_lse) a.space.lse_shift[row0 + lane] = my_shift;
}

template <int D, class E>
SAGE_DEVICE void QuantiseK(const PrepassArguments& a, int head, int tile, uint32_t* largest,
                           uint32_t* tile_not_finite) {
  constexpr int kChannels = D / 32, kRows = kWarpTokens<D>;
  constexpr int kGroupWarps = 32 / kRows;  // that share a scale
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = tile * kTile + warp * kRows;
  const int64_t block = static_cast<int64_t>(head) * a.space.tiles + tile;
  float x[kRows][kChannels], mean[kChannels];
  LoadRows<E>(a.k, head, first, lane, x);
  AwaitHead(a, head);  // while the rows come
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    mean[c] = __ldcg(a.space.k_mean + static_cast<int64_t>(head) * D + lane * kChannels + c);
  }
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) x[i][c] = __fsub_rn(x[i][c], mean[c]);
    most = Largest(most, x[i]);
  }
  most = __reduce_max_sync(~0u, most);
  if (first + kRows > a.k.tokens || most >= kInfBits) {
    LoadRows<E>(a.k, head, first, lane, x);
    most = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      bool finite = true;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const bool number = Finite(x[i][c]);
        finite &= number;
        // Rows past the end are not tokens: they stay zero, not minus the mean.
        x[i][c] = number && first + i < a.k.tokens ? __fsub_rn(x[i][c], mean[c]) : 0.0f;
      }
      most = Largest(most, x[i]);
      if (!__all_sync(~0u, finite)) *tile_not_finite |= 1u << i;
    }
    most = __reduce_max_sync(~0u, most);
  }
  if (lane == 0) largest[warp] = most;
  __syncthreads();
  const int group = warp / kGroupWarps;
#pragma unroll
  for (int i = 0; i < kGroupWarps; ++i) most = max(most, largest[group * kGroupWarps + i]);
  const float2 pair = ScaleOf(most, kInt8Top);
  if (lane == 0 && warp % kGroupWarps == 0) a.space.k_scale[block * 4 + group] = pair.x;
  uint8_t* codes = a.space.k_codes + block * kTile * D;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int t = warp % kGroupWarps * kRows + i;  // of 32; see workspace.h for the order of rows
    StoreCodes<D, kTile>(codes, 8 * (t / 2) + 2 * group + t % 2, lane, x[i], pair.y);
  }
}

// Codes of a tile of v to `words`, for all warps. Whether the tile has a value that is not finite.
template <int D, class E>
SAGE_DEVICE bool QuantiseV(const PrepassArguments& a, int head, int tile, uint32_t* words,
                           uint32_t* tile_not_finite) {
  constexpr int kChannels = D / 32, kRows = kWarpTokens<D>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = tile * kTile + warp * kRows;
  const int64_t block = static_cast<int64_t>(head) * a.space.tiles + tile;
  const int64_t head_channel = static_cast<int64_t>(head) * D + lane * kChannels;
  float x[kRows][kChannels], mean[kChannels], inverse[kChannels];
  LoadRows<E>(a.v, head, first, lane, x);
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    mean[c] = __ldcg(a.space.v_mean + block * D + lane * kChannels + c);
    inverse[c] = __ldcg(a.space.v_inverse + head_channel + c);
  }
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      x[i][c] = __fmul_rn(__fsub_rn(x[i][c], mean[c]), inverse[c]);
    }
    most = Largest(most, x[i]);
  }
  if (first + kRows > a.v.tokens || __any_sync(~0u, most >= kInfBits)) {
    LoadRows<E>(a.v, head, first, lane, x);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      bool finite = true;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const bool number = Finite(x[i][c]);
        finite &= number;
        x[i][c] = number && first + i < a.v.tokens
                      ? __fmul_rn(__fsub_rn(x[i][c], mean[c]), inverse[c])
                      : 0.0f;
      }
      if (!__all_sync(~0u, finite)) *tile_not_finite |= 1u << (kMarkBits + i);
    }
  }
#pragma unroll
  for (int i = 0; i < kRows; i += 4) {
    // Token t = 32c + 8s + 4h lies at byte 32s + 16h + 4c.
    const int t = warp * kRows + i, word = t % 32 / 4 * 4 + t / 32;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      words[(lane * kChannels + c) * 32 + (word ^ lane)] =
          PackE4m3(x[i][c], x[i + 1][c], x[i + 2][c], x[i + 3][c]);
    }
  }
  return __syncthreads_or(static_cast<int>(*tile_not_finite >> kMarkBits)) != 0;
}

// Sums of a tile's codes of v over its tokens, for the 16 channels from `first` on: this lane gets
// those of channels first + g and first + g + 8, g = lane / 4. Tensor-core products with ones in
// fp16, which holds e4m3 exactly, summed in float32.
template <int D>
SAGE_DEVICE float2 SumCodes(const uint32_t* words, int first, int lane) {
  constexpr uint32_t kOnes = 0x3c003c00;
  const int g = lane / 4, c = lane % 4;
  float sums[2][4] = {};  // two chains of products
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    // All words of a channel, in an order that keeps the lanes in different banks.
    const auto word = [&](int d) { return words[d * 32 + ((c + 4 * (i ^ g)) ^ (d / (D / 32)))]; };
    const uint2 low = UnpackE4m3(word(first + g)), high = UnpackE4m3(word(first + g + 8));
    const uint32_t a[4] = {low.x, high.x, low.y, high.y};
    MmaHalf(sums[i % 2], a, kOnes, kOnes);
  }
  return make_float2(sums[0][0] + sums[1][0], sums[0][2] + sums[1][2]);
}

// What is put back for channel d of a tile of v, in units of v_scale, as an element of a B
// fragment: lane (g, c) of a warp reads channel 8j + g of tiles c and c + 4 of a group of 8, two j
// at a time.
template <int D>
SAGE_DEVICE void StoreMean(const PrepassArguments& a, int head, int tile, int d, float in_units) {
  float* image =
      a.space.mean_image +
      (static_cast<int64_t>(head) * a.space.mean_groups + tile / kMeanTiles) * (kMeanTiles * D);
  const int j = d / 8, g = d % 8;
  image += (j / 2 * 32 + g * 4) * 4 + j % 2 * 2;
  const auto at = [](int s) { return s % 4 * 4 + s / 4; };
  image[at(tile % kMeanTiles)] = __uint_as_float(RoundTf32(in_units));
  if (tile + 1 < a.space.tiles) return;
    // Tiles past the end of the last group are zero.
#pragma unroll 1
  for (int s = tile % kMeanTiles + 1; s < kMeanTiles; ++s) image[at(s)] = 0.0f;
}

// How many values of a channel of a tile of v are finite.
template <class E>
SAGE_DEVICE int CountFinite(const Source& v, int head, int tile, int d) {
  int count = 0;
#pragma unroll 1
  for (int t = tile * kTile; t < min(tile * kTile + kTile, v.tokens) && d < v.dim; ++t) {
    count += Finite(LoadElement<E>(v.Row<E>(head, t) + d)) ? 1 : 0;
  }
  return count;
}

// Stores a tile's codes of v, and what is put back for it: its means less the means of what is
// multiplied in their place (docs/numerics.md 3).
template <int D, class E>
SAGE_DEVICE void StoreV(const PrepassArguments& a, int head, int tile, const uint32_t* words,
                        bool spoilt) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t block = static_cast<int64_t>(head) * a.space.tiles + tile;
  // The channel of this lane's mean; it comes while the codes go.
  const int first = warp * 16, d = first + lane % 2 * 8 + lane / 4;
  const bool sums_means = a.smooth_v && first < D;
  float mean = 0.0f, inverse = 0.0f;
  if (sums_means) {
    mean = __ldcg(a.space.v_mean + block * D + d);
    inverse = __ldcg(a.space.v_inverse + static_cast<int64_t>(head) * D + d);
  }
  uint32_t* out = reinterpret_cast<uint32_t*>(a.space.v_codes + block * kTile * D);
#pragma unroll
  for (int n = 0; n < D / kWarps<D>; ++n) {
    const int i = warp + n * kWarps<D>;
    out[i * 32 + SwizzledChunk<128>(i, lane / 4) * 4 + lane % 4] =
        words[i * 32 + (lane ^ (i / (D / 32)))];
  }
  if (!sums_means) return;
  const float2 sums = SumCodes<D>(words, first, lane);
  if (lane % 4 > 1) return;
  const int finite =
      spoilt ? CountFinite<E>(a.v, head, tile, d) : min(kTile, a.v.tokens - tile * kTile);
  // A channel without a scale has codes 0 and means in units of 1.
  float in_units = inverse == 0.0f ? mean : mean * inverse;
  if (finite > 0) in_units -= __fdividef(lane % 2 == 0 ? sums.x : sums.y, finite);
  StoreMean<D>(a, head, tile, d, fmaxf(-3e38f, fminf(3e38f, in_units)));
}

// One tile of k and v of a head.
template <int D, class E>
SAGE_DEVICE void QuantiseTile(const PrepassArguments& a, int head, int tile,
                              QuantiseShared<D>* shared) {
  uint32_t not_finite = 0;  // bit i: k of this warp's token i; bit 16 + i: v
  QuantiseK<D, E>(a, head, tile, shared->largest, &not_finite);
  const bool spoilt = QuantiseV<D, E>(a, head, tile, shared->words, &not_finite);
  StoreV<D, E>(a, head, tile, shared->words, spoilt);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane < kWarpTokens<D>) {
    const uint32_t mark = (not_finite >> lane & 1u) | (not_finite >> (kMarkBits + lane) & 1u) << 1;
    a.space.marks[(static_cast<int64_t>(head) * a.space.tiles + tile) * kTile +
                  warp * kWarpTokens<D> + lane] = static_cast<uint8_t>(mark);
  }
  if (lane == 0 && not_finite != 0) {
    atomicOr(a.space.not_finite + head,
             ((not_finite & 0xffffu) != 0 ? 1u : 0u) | ((not_finite >> 16) != 0 ? 2u : 0u));
  }
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_QUANTISE_CUH_
