// The statistics of the pre-pass (prepass.h): float64 sums of k over tokens in order, means of
// blocks of q and v, largest magnitudes of q, k and v, and the balance of q's and k's channels.
#ifndef SAGE_CUDA_SM120_STATISTICS_H_
#define SAGE_CUDA_SM120_STATISTICS_H_

#include "cuda/core/convert.h"
#include "cuda/core/warp.h"
#include "cuda/sm120/block.h"
#include "cuda/sm120/elements.h"

namespace sage {
namespace sm120 {

using tile::Least;
using tile::Most;

constexpr uint32_t kTinyBits = (127 - 110) << 23;  // 2^-110 (docs/numerics.md 4)

template <class E>
SAGE_TILE const typename E::Storage* RowOf(const Source& x, int batch_head, int token) {
  const int64_t batch = batch_head / x.heads, head = batch_head % x.heads;
  return static_cast<const typename E::Storage*>(x.data) + batch * x.strides.batch +
         head * x.strides.head + token * x.strides.token;
}

SAGE_TILE float MeanOf(double sum, int count) {
  return count > 0 ? static_cast<float>(sum / static_cast<double>(count)) : 0.0f;
}

struct ChannelStatistics {
  double sum;
  int count;
  float low, high;
};

template <class E>
SAGE_TILE ChannelStatistics ReadChannel(const Source& x, int head, int first, int rows, int d) {
  constexpr int kBatch = 16;  // loads in flight per thread
  ChannelStatistics s = {0.0, 0, tile::kInfinity, -tile::kInfinity};
  if (d >= x.dim) return s;
  const typename E::Storage* at = RowOf<E>(x, head, first) + d;
  for (int t = 0; t < rows; t += kBatch) {
    float batch[kBatch];
    SAGE_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      batch[i] = t + i < rows ? E::At(at[(t + i) * x.strides.token], 0) : tile::kInfinity;
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

// How wide a channel is (docs/numerics.md 4.5): `centred` if its mean is taken out.
SAGE_TILE float SpreadOf(const ChannelStatistics& s, bool centred) {
  if (s.count == 0) return 0.0f;
  return centred ? s.high - s.low : BitsToFloat(LargestOf(s));
}

// Largest over the threads of a warp, into memory.
SAGE_TILE void MaxToMemory(uint32_t largest, uint32_t* to) {
  SAGE_UNROLL
  for (int step = 16; step > 0; step /= 2) {
    const uint32_t other = tile::ShuffleXor(largest, step);
    largest = other > largest ? other : largest;
  }
  if (tile::Lane() == 0 && largest != 0) tile::AtomicMax(to, largest);
}

// What the threads of a block tell each other.
template <int D>
struct StatisticsShared {
  uint32_t is_last, widest_k, widest_q;  // of the last block of a head
  float spread[D];
};

// ---- blocks ----

// 128 rows of q: means of blocks of rows, the widest of their spreads, and the largest magnitude.
template <int D, class E>
SAGE_TILE void RowStatistics(const PrepassArguments& a, int block, StatisticsShared<D>* shared) {
  const Workspace& w = a.space;
  const int d = tile::ThreadIndex() % D, half = tile::ThreadIndex() / D;
  const int head = block / a.q_tiles, tile_row = block % a.q_tiles * kQTile;
  // Means of 32 rows: the two halves of the threads take two each. Else sums run over all rows.
  const int part_rows = a.smooth_q > 0 ? a.smooth_q : kQTile;
  const int parts = Most(1, kQTile / part_rows / 2);
  uint32_t largest = 0;
  float spread = 0.0f;
  for (int part = half * parts; part < Least(half * parts + parts, kQTile / part_rows); ++part) {
    const int first = tile_row + part * part_rows;
    const int rows = Least(part_rows, a.q.tokens - first);
    float mean = 0.0f;
    if (rows > 0) {
      const ChannelStatistics s = ReadChannel<E>(a.q, head, first, rows, d);
      mean = MeanOf(s.sum, s.count);
      largest = LargestOf(s) > largest ? LargestOf(s) : largest;
      spread = tile::Max(spread, SpreadOf(s, a.smooth_q > 0));
    }
    if (a.smooth_q > 0) {
      w.q_block_mean[(static_cast<int64_t>(head) * w.q_rows + first) / part_rows * D + d] = mean;
    }
  }
  MaxToMemory(largest, w.q_largest + head);
  if (half == 1) shared->spread[d] = spread;
  tile::SyncBlock();
  if (half == 0) {
    w.q_spread[static_cast<int64_t>(block) * D + d] = tile::Max(spread, shared->spread[d]);
  }
}

// 128 tokens of k and v.
template <int D, class E>
SAGE_TILE void TokenStatistics(const PrepassArguments& a, int block) {
  const Workspace& w = a.space;
  const int d = tile::ThreadIndex() % D, head = block / w.tiles, first = block % w.tiles * kTile;
  const bool is_v = tile::ThreadIndex() >= D;
  const Source& x = is_v ? a.v : a.k;
  const ChannelStatistics s = ReadChannel<E>(x, head, first, Least(kTile, x.tokens - first), d);
  const int64_t at = static_cast<int64_t>(block) * D + d;
  MaxToMemory(LargestOf(s), (is_v ? w.v_largest : w.k_largest) + head);
  if (!is_v) {
    w.k_sum[at] = s.sum;
    w.k_count[at] = s.count;
    w.k_spread[at] = SpreadOf(s, a.smooth_k);
    return;
  }
  const float mean = a.smooth_v ? MeanOf(s.sum, s.count) : 0.0f;
  w.v_mean[at] = mean;
  // Subtraction rounds monotonically: the extremes of v give those of v - mean.
  if (s.count > 0) {
    const uint32_t high = Magnitude(s.high - mean), low = Magnitude(s.low - mean);
    tile::AtomicMax(w.channel_largest + static_cast<int64_t>(head) * D + d,
                    high > low ? high : low);
  }
}

// ---- the last block of a head ----

// The sum in order of `count` numbers that other blocks wrote, D apart.
template <int D, class T>
SAGE_TILE double SumOf(const T* at, int64_t count) {
  constexpr int kBatch = 8;  // loads in flight
  double sum = 0.0;
  for (int64_t t = 0; t < count; t += kBatch) {
    T batch[kBatch];
    SAGE_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      batch[i] = t + i < count ? tile::LoadFresh(at + (t + i) * D) : T(0);
    }
    SAGE_UNROLL
    for (int i = 0; i < kBatch; ++i) sum += static_cast<double>(batch[i]);
  }
  return sum;
}

// 2^e of a channel (docs/numerics.md 4.5), which q takes from k: x and y are the widths of k and q.
SAGE_TILE float BalanceOf(double x, double y) {
  const double most = static_cast<double>(tile::kInfinity);
  if (!(x > 0.0 && y > 0.0 && x < most && y < most)) return 1.0f;
  const double wide = x >= y ? x : y, narrow = x >= y ? y : x;
  const int e = (wide >= 2.0 * narrow) + (wide >= 8.0 * narrow) + (wide >= 32.0 * narrow);
  return tile::PowerOfTwo(x >= y ? e : -e);
}

// Scales of v's channels.
template <int D>
SAGE_TILE void ScaleV(const PrepassArguments& a, int head, int d) {
  const Workspace& w = a.space;
  const int64_t channel = static_cast<int64_t>(head) * D + d;
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
}

// What needs all blocks of a key/value head and of the query heads that read it.
template <int D>
SAGE_TILE void FinishStatistics(const PrepassArguments& a, int head, StatisticsShared<D>* shared) {
  const Workspace& w = a.space;
  const int d = tile::ThreadIndex() % D;
  const bool of_k = tile::ThreadIndex() < D;
  const int64_t channel = static_cast<int64_t>(head) * D + d;
  const int64_t tokens = static_cast<int64_t>(head) * w.tiles * D + d;
  float spread = 0.0f;
  if (of_k) {
    const double sum = SumOf<D>(w.k_sum + tokens, w.tiles);
    const double count = SumOf<D>(w.k_count + tokens, w.tiles);
    w.k_mean[channel] = a.smooth_k && count > 0.0 ? static_cast<float>(sum / count) : 0.0f;
    if (a.balance) spread = static_cast<float>(SumOf<D>(w.k_spread + tokens, w.tiles));
  } else {
    ScaleV<D>(a, head, d);
    if (a.balance) {
      // The query heads of a group lie one after the other.
      const int64_t tiles = static_cast<int64_t>(a.group) * a.q_tiles;
      spread = static_cast<float>(SumOf<D>(w.q_spread + head * tiles * D + d, tiles));
      shared->spread[d] = spread;
    }
  }
  if (!a.balance) {
    if (of_k) w.balance[channel] = 1.0f;
    return;
  }
  MaxToMemory(FloatToBits(spread), of_k ? &shared->widest_k : &shared->widest_q);
  tile::SyncBlock();
  if (!of_k) return;
  const double widest_k = static_cast<double>(BitsToFloat(shared->widest_k));
  const double widest_q = static_cast<double>(BitsToFloat(shared->widest_q));
  w.balance[channel] = BalanceOf(static_cast<double>(spread) * widest_q,
                                 static_cast<double>(shared->spread[d]) * widest_k);
}

// Blocks are numbered: tiles of q, then tiles of k and v head by head.
template <int D, class E>
SAGE_TILE void Statistics(const PrepassArguments& a, uint8_t* shared_memory) {
  const Workspace& w = a.space;
  StatisticsShared<D>* const shared = reinterpret_cast<StatisticsShared<D>*>(shared_memory);
  const int q_blocks = a.q_count * a.q_tiles, block = tile::BlockIndex();
  int head;
  if (block < q_blocks) {
    head = KvHead(a, block / a.q_tiles);
    RowStatistics<D, E>(a, block, shared);
  } else {
    head = (block - q_blocks) / w.tiles;
    TokenStatistics<D, E>(a, block - q_blocks);
  }
  tile::Fence();
  tile::SyncBlock();
  if (tile::ThreadIndex() == 0) {
    const uint32_t blocks = static_cast<uint32_t>(w.tiles + a.group * a.q_tiles);
    shared->is_last = tile::AtomicAdd(w.arrived + head, 1u) + 1 == blocks;
    shared->widest_k = shared->widest_q = 0;
  }
  tile::SyncBlock();
  if (shared->is_last == 0) return;
  tile::Fence();
  FinishStatistics<D>(a, head, shared);
}

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_STATISTICS_H_
