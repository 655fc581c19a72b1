// What the pre-pass knows of k and v before it quantises them (docs/numerics.md 2 and 3).
//
//   thread = a word (one float32 or two 16-bit channels) of k or of v, 128 tokens of one head in
//   token order
//   k: float64 sum and count; v: mean of the block, largest |v - mean| (subtraction rounds
//   monotonically, so the extremes of v give it in one pass)
//   the last block of a head adds the sums in block order: mean of k, scales of v
//
// No arithmetic here may be contracted: products and differences are rounded one by one.
#ifndef SAGE_CUDA_SM90_STATISTICS_CUH_
#define SAGE_CUDA_SM90_STATISTICS_CUH_

#include <cmath>
#include <cstdint>

#include "cuda/elements.cuh"
#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/source.cuh"
#include "cuda/sm90/workspace.h"
#include "sage/problem.h"

namespace sage {
namespace sm90 {

template <int D>
constexpr int kPrepassThreads = D == 256 ? 512 : 256;

struct PrepassArguments {
  Source q, k, v;
  Workspace space;
  int q_heads, group, kv_count;  // query heads, query heads per kv head, B·Hkv
  int q_blocks;                  // 128-row blocks of q
  int lead;                      // tickets of statistics before the first of quantisation
  bool smooth_k, smooth_v, want_lse;
  float sign;  // of the scale: carried by the codes of q
  double scale;
};

// Tiles of one ticket, so that all threads have a channel.
template <int D, class E>
constexpr int kStatisticsTiles = kPrepassThreads<D> * E::kInWord / (2 * D);

// Sums of the head's blocks in their order, and its scales.
template <int D>
SAGE_DEVICE void FinishHead(const PrepassArguments& a, int head, bool is_v, int d) {
  const int64_t head_channel = static_cast<int64_t>(head) * D + d;
  if (is_v) {
    const float2 pair = ScaleOf(__ldcg(a.space.v_largest + head_channel), kE4m3Top);
    a.space.v_scale[head_channel] = pair.x;
    a.space.v_inverse[head_channel] = pair.y;
    return;
  }
  constexpr int kBatch = 8;
  double total = 0.0;
  int64_t finite = 0;
  const int64_t base = static_cast<int64_t>(head) * a.space.tiles * D + d;
  for (int t = 0; t < a.space.tiles; t += kBatch) {
    double sums[kBatch];
    int counts[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const bool inside = t + i < a.space.tiles;
      sums[i] = inside ? __ldcg(a.space.k_sum + base + static_cast<int64_t>(t + i) * D) : 0.0;
      counts[i] = inside ? __ldcg(a.space.k_count + base + static_cast<int64_t>(t + i) * D) : 0;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (t + i < a.space.tiles) total += sums[i];
      finite += counts[i];
    }
  }
  a.space.k_mean[head_channel] =
      a.smooth_k && finite > 0 ? static_cast<float>(total / static_cast<double>(finite)) : 0.0f;
}

// One channel of a tile: its sum in token order, how many values are finite, their extremes.
struct Channel {
  double sum = 0.0;
  int count = 0;
  float low = INFINITY, high = -INFINITY;
};

constexpr int kBatch = 32;  // loads in flight per thread

// The next tokens of a word's channels, in order.
template <bool kExtremes, class E, int kCount>
SAGE_DEVICE void Absorb(Channel (&channels)[E::kInWord], const uint32_t (&words)[kCount]) {
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < kCount; i += 2) {
#pragma unroll
    for (int n = 0; n < E::kInWord; ++n) {
      most = __vimax3_u32(most, Magnitude(E::At(words[i], n)), Magnitude(E::At(words[i + 1], n)));
    }
  }
  if (most < kInfBits) {
#pragma unroll
    for (int n = 0; n < E::kInWord; ++n) channels[n].count += kCount;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int n = 0; n < E::kInWord; ++n) {
        const float x = E::At(words[i], n);
        channels[n].sum += static_cast<double>(x);
        if constexpr (kExtremes) {
          channels[n].low = fminf(channels[n].low, x);
          channels[n].high = fmaxf(channels[n].high, x);
        }
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
#pragma unroll
    for (int n = 0; n < E::kInWord; ++n) {
      const float x = E::At(words[i], n);
      if (!Finite(x)) continue;
      channels[n].sum += static_cast<double>(x);
      ++channels[n].count;
      channels[n].low = fminf(channels[n].low, x);
      channels[n].high = fmaxf(channels[n].high, x);
    }
  }
}

// The channels of a word, `rows` tokens, `stride` elements apart; `whole` and `second` as
// LoadWord's. Rows past the last and a channel that does not exist count as not finite.
template <bool kExtremes, class E>
SAGE_DEVICE void ReadChannels(const typename E::Storage* at, int64_t stride, int rows, bool whole,
                              bool second, Channel (&channels)[E::kInWord]) {
  for (int t = 0; t < rows; t += kBatch) {
    uint32_t words[kBatch];
    if (t + kBatch <= rows) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        words[i] = LoadWord<E>(at + (t + i) * stride, whole, second);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        words[i] =
            t + i < rows ? LoadWord<E>(at + (t + i) * stride, whole, second) : E::kInfinities;
      }
    }
    Absorb<kExtremes, E>(channels, words);
  }
}

// Tiles [first, first + kStatisticsTiles) of a head. `last` is in shared memory.
template <int D, class E>
SAGE_DEVICE void Statistics(const PrepassArguments& a, int head, int first_tile, bool* last) {
  constexpr int kThreads = D / E::kInWord;  // of one tile of k or of v
  const int tile = first_tile + static_cast<int>(threadIdx.x) / (2 * kThreads);
  const int tiles = min(kStatisticsTiles<D, E>, a.space.tiles - first_tile);
  const bool is_v = threadIdx.x / kThreads % 2 != 0, exists = tile < a.space.tiles;
  const int d = threadIdx.x % kThreads * E::kInWord;
  const Source& x = is_v ? a.v : a.k;
  const int first = tile * kTile, rows = exists && d < x.dim ? min(kTile, x.tokens - first) : 0;
  Channel channels[E::kInWord];
  if (rows > 0) {
    const typename E::Storage* at = x.Row<E>(head, first) + d;
    const bool second = d + 1 < x.dim, whole = x.words && second;
    if (is_v) {
      ReadChannels<true, E>(at, x.strides.token, rows, whole, second, channels);
    } else {
      ReadChannels<false, E>(at, x.strides.token, rows, whole, second, channels);
    }
  }
#pragma unroll
  for (int n = 0; n < E::kInWord; ++n) {
    if (!exists) break;
    const double sum = channels[n].sum;
    const int count = channels[n].count;
    const int64_t block_channel = (static_cast<int64_t>(head) * a.space.tiles + tile) * D + d + n;
    if (!is_v) {
      a.space.k_sum[block_channel] = sum;
      a.space.k_count[block_channel] = count;
      continue;
    }
    const float mean =
        a.smooth_v && count > 0 ? static_cast<float>(sum / static_cast<double>(count)) : 0.0f;
    a.space.v_mean[block_channel] = mean;
    if (count > 0) {
      const uint32_t largest = max(Magnitude(__fsub_rn(channels[n].high, mean)),
                                   Magnitude(__fsub_rn(channels[n].low, mean)));
      atomicMax(a.space.v_largest + static_cast<int64_t>(head) * D + d + n, largest);
    }
  }

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const uint32_t before = atomicAdd(a.space.arrived + head, static_cast<uint32_t>(tiles));
    *last = before + tiles == static_cast<uint32_t>(a.space.tiles);
  }
  __syncthreads();
  if (!*last) return;
  __threadfence();
  if (threadIdx.x < 2 * D) FinishHead<D>(a, head, threadIdx.x >= D, threadIdx.x % D);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) atomicExch(a.space.ready + head, 1u);
}

// Until FinishHead of this head is done, by whichever block.
SAGE_DEVICE void AwaitHead(const PrepassArguments& a, int head) {
  if (threadIdx.x == 0) {
    uint32_t ready = 0;
    while (true) {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                   : "=r"(ready)
                   : "l"(a.space.ready + head)
                   : "memory");
      if (ready != 0) break;
      __nanosleep(200);
    }
  }
  __syncthreads();
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_STATISTICS_CUH_
