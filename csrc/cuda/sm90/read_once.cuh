// The pre-pass of k and v where a cluster of blocks holds a head in shared memory (kv_len up to
// 2048): each element is read from memory once.
//
//   block    = a tile (128 tokens) of k or of v, as it was given; cluster = the tiles of a head
//   1  the tile comes by bulk copies, in quarters; statistics of each channel as they arrive
//      (statistics.cuh: k in float64 and token order, v its mean and extremes)
//   2  blocks meet; thread d adds the sums of channel d of all tiles in their order (k), or takes
//      the largest of all |v - mean| (v), from the shared memory of the others
//   3  codes, from the tile in shared memory: those of quantise.cuh, bit for bit
//   4  blocks meet again: what others may read outlives their reading
//
// Three blocks share a multiprocessor (five where a tile has 32 KiB or less) and do different
// things at a time; nothing else hides what a block waits for. Shared memory: the tile, 64 KiB for
// D = 128 in float32 | statistics of its channels. Attention may begin as the last blocks leave.
//
// v: thread = channel and a part of its tokens, in chunks of 16 codes as attention wants them
// (workspace.h); codes wait in registers until the tile is no longer needed, take its place, and
// leave by one bulk copy. k: warp = 16 tokens, lane = D / 32 channels.
#ifndef SAGE_CUDA_SM90_READ_ONCE_CUH_
#define SAGE_CUDA_SM90_READ_ONCE_CUH_

#include <cstdint>

#include "cuda/sm90/cluster.cuh"
#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/quantise.cuh"
#include "cuda/sm90/source.cuh"
#include "cuda/sm90/statistics.cuh"
#include "cuda/sm90/workspace.h"

namespace sage {
namespace sm90 {

constexpr int kReadOnceThreads = 256;
template <int D, class E>
constexpr bool kSmallTile = kTile * D * sizeof(typename E::Storage) <= 32768;
// Of a multiprocessor: as many as shared memory holds, or registers where tiles are small.
template <int D, class E>
constexpr int kReadOnceBlocks = kSmallTile<D, E> ? 5 : 3;
constexpr int kReadOnceTiles = 16;  // the largest cluster
constexpr int kQuarters = 4;        // of a tile: 32 tokens, that is one scale of k

// Shared memory of a block, after its tile.
template <int D>
struct ReadOnceShared {
  // Of this tile; read by the whole cluster.
  double sum[D];        // k
  int count[D];         // of finite values
  uint32_t largest[D];  // v: |v - mean|
  // Of the head.
  float mean[D];     // k: of the head, v: of this tile
  float inverse[D];  // v
  float code_sums[kReadOnceThreads];
  uint32_t group_largest[kReadOnceThreads / 32];
  uint64_t arrived[kQuarters];
};

template <int D, class E>
constexpr int kReadOnceBytes = kTile * D * static_cast<int>(sizeof(typename E::Storage)) +
                               static_cast<int>(sizeof(ReadOnceShared<D>));

// Asks for the tile, a quarter a barrier; one warp.
template <int D, class E>
SAGE_DEVICE void FetchTile(const Source& x, int head, int first, int rows, uint32_t tile,
                           uint32_t arrived) {
  constexpr int kRowBytes = D * static_cast<int>(sizeof(typename E::Storage));
  constexpr int kRows = kTile / kQuarters;
  const int lane = threadIdx.x & 31;
#pragma unroll 1
  for (int n = 0; n < kQuarters; ++n) {
    const int here = max(0, min(kRows, rows - n * kRows));
    if (lane == 0) BarrierExpect(arrived + 8 * n, here * kRowBytes);
    __syncwarp();
    const uint32_t to = tile + n * kRows * kRowBytes;
    if (x.dense) {
      if (lane == 0 && here > 0) {
        BulkCopy(to, x.Row<E>(head, first + n * kRows), here * kRowBytes, arrived + 8 * n);
      }
    } else if (lane < here) {
      BulkCopy(to + lane * kRowBytes, x.Row<E>(head, first + n * kRows + lane), kRowBytes,
               arrived + 8 * n);
    }
  }
}

// This lane's channels of a row of the tile.
template <class E, int kChannels>
SAGE_DEVICE void LoadTileRow(const typename E::Storage* at, float (&x)[kChannels]) {
  constexpr int kWords = kChannels / E::kInWord;
  uint32_t words[kWords];
  if constexpr (kWords == 1) {
    words[0] = *reinterpret_cast<const uint32_t*>(at);
  } else if constexpr (kWords == 2) {
    const uint2 y = *reinterpret_cast<const uint2*>(at);
    words[0] = y.x, words[1] = y.y;
  } else {
    const uint4 y = *reinterpret_cast<const uint4*>(at);
    words[0] = y.x, words[1] = y.y, words[2] = y.z, words[3] = y.w;
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c) x[c] = E::At(words[c / E::kInWord], c % E::kInWord);
}

SAGE_DEVICE void MarkToken(const PrepassArguments& a, int head, int64_t token, uint32_t bit) {
  atomicOr(reinterpret_cast<unsigned int*>(a.space.marks) + token / 4, bit << token % 4 * 8);
  atomicOr(a.space.not_finite + head, bit);
}

// Rounds this warp's tokens of the tile of k.
template <int D, class E>
SAGE_DEVICE void RoundTileOfK(const PrepassArguments& a, int head, int tile, int rows,
                              const typename E::Storage* values, ReadOnceShared<D>* shared) {
  constexpr int kChannels = D / 32, kRows = kTile * 32 / kReadOnceThreads;
  constexpr int kGroupWarps = 32 / kRows;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = warp * kRows;
  const int64_t block = static_cast<int64_t>(head) * a.space.tiles + tile;
  const typename E::Storage* at = values + first * D + lane * kChannels;
  float mean[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) mean[c] = shared->mean[lane * kChannels + c];
  uint32_t most = 0;
  bool singly = first + kRows > rows;
  if (!singly) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float x[kChannels];
      LoadTileRow<E>(at + i * D, x);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) x[c] = __fsub_rn(x[c], mean[c]);
      most = Largest(most, x);
    }
    most = __reduce_max_sync(~0u, most);
    singly = most >= kInfBits;
  }
  // Rows past the end and values that are not finite become 0.
  const auto one_by_one = [&](int i, float(&x)[kChannels]) {
    LoadTileRow<E>(at + i * D, x);
    bool finite = true;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const bool number = Finite(x[c]), exists = first + i < rows;
      finite &= number || !exists;
      x[c] = number && exists ? __fsub_rn(x[c], mean[c]) : 0.0f;
    }
    return __all_sync(~0u, finite);
  };
  if (singly) {
    most = 0;
#pragma unroll 1
    for (int i = 0; i < kRows; ++i) {
      float x[kChannels];
      if (!one_by_one(i, x) && lane == 0) MarkToken(a, head, block * kTile + first + i, 1u);
      most = Largest(most, x);
    }
    most = __reduce_max_sync(~0u, most);
  }
  if (lane == 0) shared->group_largest[warp] = most;
  __syncthreads();
  const int group = warp / kGroupWarps;
#pragma unroll
  for (int i = 0; i < kGroupWarps; ++i) {
    most = max(most, shared->group_largest[group * kGroupWarps + i]);
  }
  const float2 pair = ScaleOf(most, kInt8Top);
  if (lane == 0 && warp % kGroupWarps == 0) a.space.k_scale[block * 4 + group] = pair.x;
  uint8_t* codes = a.space.k_codes + block * kTile * D;
  const auto store = [&](int i, const float(&x)[kChannels]) {
    const int t = warp % kGroupWarps * kRows + i;  // of 32; see workspace.h for the order of rows
    StoreCodes<D, kTile>(codes, 8 * (t / 2) + 2 * group + t % 2, lane, x, pair.y);
  };
  if (!singly) {
#pragma unroll 8
    for (int i = 0; i < kRows; ++i) {
      float x[kChannels];
      LoadTileRow<E>(at + i * D, x);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) x[c] = __fsub_rn(x[c], mean[c]);
      store(i, x);
    }
    return;
  }
#pragma unroll 1
  for (int i = 0; i < kRows; ++i) {
    float x[kChannels];
    one_by_one(i, x);
    store(i, x);
  }
}

// Rounds the tile of v, and stores what is put back for it.
template <int D, class E>
SAGE_DEVICE void RoundTileOfV(const PrepassArguments& a, int head, int tile, int rows,
                              typename E::Storage* values, ReadOnceShared<D>* shared) {
  constexpr int kThreads = kReadOnceThreads / D;  // of a channel
  constexpr int kChunks = 8 / kThreads;           // of 16 codes, of a thread
  const int d = threadIdx.x % D, part = threadIdx.x / D;
  const int64_t block = static_cast<int64_t>(head) * a.space.tiles + tile;
  const float mean = shared->mean[d], inverse = shared->inverse[d];
  const bool singly = rows < kTile || shared->count[d] != rows;
  // Chunk 2s + h has tokens 32c + 8s + 4h + i.
  const typename E::Storage* at = values + part * (4 * kChunks) * D + d;
  const auto value = [&](int n, int c, int i) { return E::At(at[(32 * c + 4 * n + i) * D], 0); };
  const auto exists = [&](int n, int c, int i) {
    return part * (4 * kChunks) + 32 * c + 4 * n + i < rows;
  };
  uint32_t words[kChunks][4];
  if (!singly) {
#pragma unroll
    for (int n = 0; n < kChunks; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = __fmul_rn(__fsub_rn(value(n, c, i), mean), inverse);
        words[n][c] = RoundE4m3(x[0], x[1], x[2], x[3]);
      }
    }
  } else {
#pragma unroll
    for (int n = 0; n < kChunks; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          x[i] = value(n, c, i);
          const bool number = Finite(x[i]) && exists(n, c, i);
          x[i] = number ? __fmul_rn(__fsub_rn(x[i], mean), inverse) : 0.0f;
        }
        words[n][c] = RoundE4m3(x[0], x[1], x[2], x[3]);
      }
    }
#pragma unroll 1
    for (int t = 0; t < 16 * kChunks; ++t) {
      const int n = t / 4 % kChunks, c = t / (4 * kChunks), i = t % 4;
      if (exists(n, c, i) && !Finite(value(n, c, i))) {
        MarkToken(a, head, block * kTile + part * (4 * kChunks) + 32 * c + 4 * n + i, 2u);
      }
    }
  }
  float sum = 0.0f;
#pragma unroll
  for (int n = 0; n < 4 * kChunks; ++n) {
    const uint2 halves = UnpackE4m3(words[n / 4][n % 4]);
    const float2 low = UnpackHalves(halves.x), high = UnpackHalves(halves.y);
    sum += (low.x + low.y) + (high.x + high.y);
  }
  shared->code_sums[threadIdx.x] = sum;
  __syncthreads();  // the tile is no longer needed
  uint8_t* image = reinterpret_cast<uint8_t*>(values);
#pragma unroll
  for (int n = 0; n < kChunks; ++n) {
    *reinterpret_cast<uint4*>(image + d * 128 + SwizzledChunk<128>(d, part * kChunks + n) * 16) =
        make_uint4(words[n][0], words[n][1], words[n][2], words[n][3]);
  }
  ProxyFence();
  __syncthreads();
  if (threadIdx.x == 0) {
    BulkStore(a.space.v_codes + block * kTile * D, SharedAddress(image), kTile * D);
  }
  if (!a.smooth_v || part != 0) return;
#pragma unroll
  for (int n = 1; n < kThreads; ++n) sum += shared->code_sums[threadIdx.x + n * D];
  // A channel without a scale has codes 0 and means in units of 1.
  float in_units = inverse == 0.0f ? mean : mean * inverse;
  const int finite = shared->count[d];
  if (finite > 0) in_units -= __fdividef(sum, finite);
  StoreMean<D>(a, head, tile, d, fmaxf(-3e38f, fminf(3e38f, in_units)));
}

// Blocks of a head follow one another, tiles of k, then tiles of v.
template <int D, class E>
__global__ void __launch_bounds__(kReadOnceThreads, kReadOnceBlocks<D, E>)
    ReadOnceKernel(const __grid_constant__ PrepassArguments a) {
  extern __shared__ __align__(1024) uint8_t memory[];
  constexpr int kTileBytes = kTile * D * static_cast<int>(sizeof(typename E::Storage));
  auto* shared = reinterpret_cast<ReadOnceShared<D>*>(memory + kTileBytes);
  auto* values = reinterpret_cast<typename E::Storage*>(memory);
  const uint32_t shared_tile = SharedAddress(memory), arrived = SharedAddress(shared->arrived);
  const int tile = blockIdx.x % a.space.tiles, operand = blockIdx.x / a.space.tiles;
  const int head = operand / 2;
  const bool is_v = operand % 2 != 0;
  LetNextLaunchBegin();
  const Source& x = is_v ? a.v : a.k;
  const int first = tile * kTile, rows = min(kTile, x.tokens - first);
  if (threadIdx.x == 0) {
    for (int n = 0; n < kQuarters; ++n) BarrierInit(arrived + 8 * n, 1);
    BarrierInitFence();
  }
  __syncthreads();
  if (threadIdx.x < 32) FetchTile<D, E>(x, head, first, rows, shared_tile, arrived);

  constexpr int kWords = D / E::kInWord;  // of a row
  if (threadIdx.x < kWords) {
    Channel channels[E::kInWord];
#pragma unroll 1
    for (int n = 0; n < kQuarters; ++n) {
      BarrierWait(arrived + 8 * n, 0);
      constexpr int kCount = kSmallTile<D, E> ? 8 : 16;
#pragma unroll 1
      for (int t = n * (kTile / kQuarters); t < (n + 1) * (kTile / kQuarters); t += kCount) {
        uint32_t words[kCount];
        const uint32_t* at = reinterpret_cast<const uint32_t*>(memory) + t * kWords + threadIdx.x;
        const int here = rows - t;
        if (here <= 0) break;
#pragma unroll
        for (int i = 0; i < kCount; ++i) words[i] = at[i * kWords];
        if (here < kCount) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) words[i] = i < here ? words[i] : E::kInfinities;
        }
        if (is_v) {
          Absorb<true, E>(channels, words);
        } else {
          Absorb<false, E>(channels, words);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < E::kInWord; ++n) {
      const int d = threadIdx.x * E::kInWord + n, count = channels[n].count;
      shared->count[d] = count;
      if (!is_v) {
        shared->sum[d] = channels[n].sum;
        continue;
      }
      const float mean = a.smooth_v && count > 0
                             ? static_cast<float>(channels[n].sum / static_cast<double>(count))
                             : 0.0f;
      shared->mean[d] = mean;
      shared->largest[d] = count > 0 ? max(Magnitude(__fsub_rn(channels[n].high, mean)),
                                           Magnitude(__fsub_rn(channels[n].low, mean)))
                                     : 0u;
    }
  }
  ClusterArrive();
  ClusterWait();
  if (threadIdx.x < D) {
    const int d = threadIdx.x, tiles = a.space.tiles;
    // So many answers are on their way before the first is looked at: what registers allow.
    constexpr int kAsked = kSmallTile<D, E> ? 8 : 16;
    uint32_t largest = 0;
    double total = 0.0;
    int finite = 0;
#pragma unroll 1
    for (int first_tile = 0; first_tile < tiles; first_tile += kAsked) {
      double sums[kAsked];
      uint32_t words[kAsked];  // counts of k; largest differences of v
#pragma unroll
      for (int i = 0; i < kAsked; ++i) {
        const int t = first_tile + i;
        sums[i] = 0.0, words[i] = 0;
        if (t >= tiles) continue;
        if (!is_v) sums[i] = LoadClusterDouble(ClusterAddress(SharedAddress(shared->sum + d), t));
        const uint32_t at =
            is_v ? SharedAddress(shared->largest + d) : SharedAddress(shared->count + d);
        words[i] = LoadCluster(ClusterAddress(at, t));
      }
#pragma unroll
      for (int i = 0; i < kAsked; ++i) {
        total += sums[i];
        finite += static_cast<int>(words[i]);
        largest = max(largest, words[i]);
      }
    }
    if (is_v) {
      const float2 pair = ScaleOf(largest, kE4m3Top);
      shared->inverse[d] = pair.y;
      if (tile == 0) a.space.v_scale[static_cast<int64_t>(head) * D + d] = pair.x;
    } else {
      shared->mean[d] =
          a.smooth_k && finite > 0 ? static_cast<float>(total / static_cast<double>(finite)) : 0.0f;
    }
  }
  ClusterArriveRelaxed();
  __syncthreads();
  if (is_v) {
    RoundTileOfV<D, E>(a, head, tile, rows, values, shared);
  } else {
    RoundTileOfK<D, E>(a, head, tile, rows, values, shared);
  }
  __syncwarp();
  ClusterWait();
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_READ_ONCE_CUH_
