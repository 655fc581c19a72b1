// The statistics of the pre-pass (prepass.h): float64 sums of k over tokens in order, means of
// blocks of v, and largest magnitudes of q, k and v.
#ifndef SAGE_CUDA_SM120_STATISTICS_H_
#define SAGE_CUDA_SM120_STATISTICS_H_

#include "cuda/core/convert.h"
#include "cuda/core/warp.h"
#include "cuda/sm120/block.h"

namespace sage {
namespace sm120 {

using tile::Least;
using tile::Most;

constexpr uint32_t kTinyBits = (127 - 110) << 23;  // 2^-110 (docs/numerics.md 4)

SAGE_TILE const float* RowOf(const Source& x, int batch_head, int token) {
  const int64_t batch = batch_head / x.heads, head = batch_head % x.heads;
  return x.data + batch * x.strides.batch + head * x.strides.head + token * x.strides.token;
}

SAGE_TILE float MeanOf(double sum, int count) {
  return count > 0 ? static_cast<float>(sum / static_cast<double>(count)) : 0.0f;
}

struct ChannelStatistics {
  double sum;
  int count;
  float low, high;
};

SAGE_TILE ChannelStatistics ReadChannel(const Source& x, int head, int first, int rows, int d) {
  constexpr int kBatch = 16;  // loads in flight per thread
  ChannelStatistics s = {0.0, 0, tile::kInfinity, -tile::kInfinity};
  if (d >= x.dim) return s;
  const float* at = RowOf(x, head, first) + d;
  for (int t = 0; t < rows; t += kBatch) {
    float batch[kBatch];
    SAGE_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      batch[i] = t + i < rows ? at[(t + i) * x.strides.token] : tile::kInfinity;
    }
    SAGE_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      if (!IsFinite(batch[i])) continue;
      s.sum += static_cast<double>(batch[i]);
      ++s.count;
      s.low = fminf(s.low, batch[i]);
      s.high = fmaxf(s.high, batch[i]);
    }
  }
  return s;
}

SAGE_TILE uint32_t LargestOf(const ChannelStatistics& s) {
  return s.count == 0                           ? 0u
         : Magnitude(s.high) > Magnitude(s.low) ? Magnitude(s.high)
                                                : Magnitude(s.low);
}

// Largest over the block's threads of one half, into memory.
SAGE_TILE void MaxToMemory(uint32_t largest, uint32_t* to) {
  SAGE_UNROLL
  for (int step = 16; step > 0; step /= 2) {
    const uint32_t other = tile::ShuffleXor(largest, step);
    largest = other > largest ? other : largest;
  }
  if (tile::Lane() == 0 && largest != 0) tile::AtomicMax(to, largest);
}

// Blocks are numbered: tiles of k and v head by head, then tiles of q. Shared memory: 4 bytes.
template <int D>
SAGE_TILE void Statistics(const PrepassArguments& a, uint8_t* shared) {
  const Workspace& w = a.space;
  const int kv_blocks = a.kv_count * w.tiles, block = tile::BlockIndex();
  const int thread = tile::ThreadIndex(), d = thread % D;
  if (block >= kv_blocks) {
    const int head = (block - kv_blocks) / a.q_tiles,
              first = (block - kv_blocks) % a.q_tiles * kQTile;
    const int half = thread / D * (kQTile / 2);  // the two halves of the threads take 64 rows each
    const int rows = Least(kQTile / 2, a.q.tokens - first - half);
    uint32_t largest = 0;
    if (rows > 0) largest = LargestOf(ReadChannel(a.q, head, first + half, rows, d));
    MaxToMemory(largest, w.q_largest + head);
    return;
  }
  const int head = block / w.tiles, first = block % w.tiles * kTile;
  const bool is_v = thread >= D;
  const Source& x = is_v ? a.v : a.k;
  const ChannelStatistics s = ReadChannel(x, head, first, Least(kTile, x.tokens - first), d);
  const int64_t at = static_cast<int64_t>(block) * D + d;
  MaxToMemory(LargestOf(s), (is_v ? w.v_largest : w.k_largest) + head);
  if (!is_v) {
    w.k_sum[at] = s.sum;
    w.k_count[at] = s.count;
  } else {
    const float mean = a.smooth_v ? MeanOf(s.sum, s.count) : 0.0f;
    w.v_mean[at] = mean;
    // Subtraction rounds monotonically: the extremes of v give those of v - mean.
    if (s.count > 0) {
      const uint32_t high = Magnitude(s.high - mean), low = Magnitude(s.low - mean);
      tile::AtomicMax(w.channel_largest + static_cast<int64_t>(head) * D + d,
                      high > low ? high : low);
    }
  }

  uint32_t* last = reinterpret_cast<uint32_t*>(shared);
  tile::Fence();
  tile::SyncBlock();
  if (thread == 0)
    *last = tile::AtomicAdd(w.arrived + head, 1u) + 1 == static_cast<uint32_t>(w.tiles);
  tile::SyncBlock();
  if (*last == 0) return;
  tile::Fence();
  const int64_t channel = static_cast<int64_t>(head) * D + d;
  if (is_v) {
    float scale = 1.0f, inverse = 1.0f;
    if (a.fp8) {
      // docs/numerics.md 4.6, E4M3.
      const uint32_t bits = tile::LoadFresh(w.channel_largest + channel);
      scale = inverse = 0.0f;
      if (bits >= kTinyBits) {
        scale = BitsToFloat(bits) / 448.0f;
        inverse = 448.0f / BitsToFloat(bits);
      }
    } else if (a.head_exponent) {
      scale = tile::PowerOfTwo(-ExponentOf(tile::LoadFresh(w.v_largest + head)));
    }
    w.v_scale[channel] = scale;
    w.v_inverse[channel] = inverse;
    return;
  }
  double total = 0.0;
  int64_t count = 0;
  for (int t = 0; t < w.tiles; ++t) {
    const int64_t from = (static_cast<int64_t>(head) * w.tiles + t) * D + d;
    total += tile::LoadFresh(w.k_sum + from);
    count += tile::LoadFresh(w.k_count + from);
  }
  w.k_mean[channel] =
      a.smooth_k && count > 0 ? static_cast<float>(total / static_cast<double>(count)) : 0.0f;
}

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_STATISTICS_H_
