// The pre-pass of fp4 and fp4_fp8: statistics, then quantisation, from float32, fp16 or bf16 in any
// strides. Codes and scales are those of docs/numerics.md 2 to 4, bit for bit; inputs are never
// written.
//
//   Statistics  (statistics.h)
//               block = 128 tokens of k and v of one head (thread = channel of one of them), or 128
//               rows of q: k: float64 sums over tokens in order; v: mean of the block, largest
//               |v - mean| per channel; q: means of blocks of rows; spreads of q's and k's
//               channels; largest magnitudes of all three. The last block of a key/value head, q's
//               of its group among them, adds up k's sums and the spreads of channels in block
//               order, and balances them.
//   Quantise    block = 128 tokens of k and v, or 128 rows of q. For q and k a thread owns one
//               group of 16 dims of one row, and D / 16 neighbouring threads a row, so that the
//               rotation's long steps are shuffles; for v it owns 16 tokens of one channel.
//
// Traffic per element: 4 bytes (or 2) read twice, .56 written, of k 2 more where q has means. No
// arithmetic here may be contracted: products and differences are rounded one by one, and Fma
// stands where the product is exact.
#ifndef SAGE_CUDA_SM120_PREPASS_H_
#define SAGE_CUDA_SM120_PREPASS_H_

#include "cuda/core/convert.h"
#include "cuda/core/warp.h"
#include "cuda/sm120/block.h"
#include "cuda/sm120/elements.h"
#include "cuda/sm120/quantise_group.h"
#include "cuda/sm120/statistics.h"

namespace sage {
namespace sm120 {

// The Walsh-Hadamard transform of a row of D / 16 neighbouring threads, 16 dims each.
template <int D>
SAGE_TILE void Rotate(float (&x)[16], int group, int rotation, float norm) {
  SAGE_UNROLL
  for (int h = 1; h < 16; h *= 2) {
    SAGE_UNROLL
    for (int i = 0; i < 16; ++i) {
      if ((i & h) != 0) continue;
      const float u = x[i], w = x[i + h];
      x[i] = u + w;
      x[i + h] = u - w;
    }
  }
  SAGE_UNROLL
  for (int h = 16; h < D; h *= 2) {
    if (h >= rotation) break;
    // The lower thread adds, the upper one subtracts its own: one operation, rounded once.
    const float sign = (group & (h / 16)) != 0 ? -1.0f : 1.0f;
    SAGE_UNROLL
    for (int i = 0; i < 16; ++i) x[i] = tile::Fma(x[i], sign, tile::ShuffleXor(x[i], h / 16));
  }
  SAGE_UNROLL
  for (int i = 0; i < 16; ++i) x[i] = x[i] * norm;
}

// Whether `flag` holds in any of the D / 16 threads of a row.
template <int D>
SAGE_TILE bool AnyOfRow(bool flag) {
  if (!tile::Any(flag)) return false;
  uint32_t bits = flag;
  SAGE_UNROLL
  for (int step = 1; step < D / 16; step *= 2) bits |= tile::ShuffleXor(bits, step);
  return bits != 0;
}

// 0 unless some x is not finite.
SAGE_TILE bool AllFinite(const float (&x)[16]) {
  float sum = 0.0f;
  SAGE_UNROLL
  for (int i = 0; i < 16; ++i) sum = tile::Fma(x[i], 0.0f, sum);
  return sum == 0.0f;
}

// Loads 16 dims from `d0` on of a row; zeros outside the tensor.
template <class E>
SAGE_TILE void LoadGroup(const Source& source, int head, int token, int d0, float (&x)[16]) {
  const bool inside = token < source.tokens;
  const typename E::Storage* row = inside ? RowOf<E>(source, head, token) + d0 : nullptr;
  if (inside && source.aligned && d0 + 16 <= source.dim) {
    // A thread's rows are 64 bytes: loads of 4 would touch each sector of memory eight times.
    constexpr int kTogether = 4 * E::kInWord;
    SAGE_UNROLL
    for (int i = 0; i < 16; i += kTogether) {
      const tile::Words4 four = tile::LoadConstant(reinterpret_cast<const tile::Words4*>(row + i));
      const uint32_t words[4] = {four.x, four.y, four.z, four.w};
      SAGE_UNROLL
      for (int j = 0; j < kTogether; ++j) x[i + j] = E::At(words[j / E::kInWord], j % E::kInWord);
    }
    return;
  }
  SAGE_UNROLL
  for (int i = 0; i < 16; ++i) x[i] = inside && d0 + i < source.dim ? E::At(row[i], 0) : 0.0f;
}

// 16 floats from `at` on, aligned to 16 bytes.
SAGE_TILE void LoadFloats(const float* at, float (&x)[16]) {
  SAGE_UNROLL
  for (int i = 0; i < 16; i += 4) {
    const tile::Words4 four = tile::LoadConstant(reinterpret_cast<const tile::Words4*>(at + i));
    x[i] = BitsToFloat(four.x);
    x[i + 1] = BitsToFloat(four.y);
    x[i + 2] = BitsToFloat(four.z);
    x[i + 3] = BitsToFloat(four.w);
  }
}

// x - mean where x is finite and inside the tensor, else 0. Neither rows past the end nor padding
// are smoothed.
SAGE_TILE void Smooth(const Source& source, int token, int d0, bool finite, const float (&mean)[16],
                      float (&x)[16]) {
  if (finite && token < source.tokens && d0 + 16 <= source.dim) {
    SAGE_UNROLL
    for (int i = 0; i < 16; ++i) x[i] = x[i] - mean[i];
    return;
  }
  SAGE_UNROLL
  for (int i = 0; i < 16; ++i) {
    const bool real = token < source.tokens && d0 + i < source.dim && IsFinite(x[i]);
    x[i] = real ? x[i] - mean[i] : 0.0f;
  }
}

// ---- k: one tile of 128 tokens ----

template <int D, class E>
SAGE_TILE void QuantiseK(const PrepassArguments& a, int head, int key_tile, uint8_t* marks) {
  constexpr int kGroups = D / 16, kSteps = D / 64;
  const Workspace& w = a.space;
  const int64_t block = static_cast<int64_t>(head) * w.tiles + key_tile;
  uint8_t* image = w.tiles_image + block * w.tile_bytes;
  uint32_t* codes = reinterpret_cast<uint32_t*>(image);
  uint8_t* scales = image + kTile * D / 2;
  uint32_t* halves = w.k_half + block * (kTile * D / 2);
  const int exponent = ExponentOf(w.k_largest[head]);
  const float half_power = tile::PowerOfTwo(exponent);
  const float power = a.head_exponent ? half_power : 1.0f;
  const int group = tile::ThreadIndex() % kGroups, d0 = group * 16;
  float mean[16], powers[16];
  LoadFloats(w.k_mean + static_cast<int64_t>(head) * D + d0, mean);
  LoadFloats(w.balance + static_cast<int64_t>(head) * D + d0, powers);
  SAGE_UNROLL
  for (int i = 0; i < 16; ++i) powers[i] = power / powers[i];
  SAGE_NO_UNROLL
  for (int n = tile::ThreadIndex(); n < kTile * kGroups; n += kQuantiseThreads) {
    const int t = n / kGroups, token = key_tile * kTile + t;
    float x[16];
    LoadGroup<E>(a.k, head, token, d0, x);
    const bool finite = AllFinite(x);
    Smooth(a.k, token, d0, finite, mean, x);
    const bool bad = AnyOfRow<D>(!finite);
    if (group == 0 && bad) marks[t] |= 1;
    // Key 32u + 8q + 2j + e.
    const int u = t / 32, q = t % 32 / 8, j = t % 8 / 2, e = t % 2;
    if (a.smooth_q > 0) {
      const int pair = 16 * u + 4 * j + q;
      uint32_t* to = halves + ((pair / 8 * kGroups + group) * 32 + pair % 8 * 4) * 4;
      SAGE_UNROLL
      for (int c = 0; c < 4; ++c) {
        to[c * 4 + e] = tile::PackHalves(x[2 * c] * half_power, x[2 * c + 1] * half_power);
        to[c * 4 + 2 + e] = tile::PackHalves(x[2 * c + 8] * half_power, x[2 * c + 9] * half_power);
      }
    }
    SAGE_UNROLL
    for (int i = 0; i < 16; ++i) x[i] = x[i] * powers[i];
    if (a.rotation > 0) Rotate<D>(x, group, a.rotation, a.rotation_norm);
    const Group out = QuantiseGroup(x, a.four_six);
    // Dims 64 s + 16 c ..: words of k 8q', q' = 2c and 2c + 1, below or above 32.
    const int s = group / 4, c = group % 4, column = 2 * q + e;
    uint32_t* to =
        codes + (((u * kSteps + s) * 2 + j / 2) * 32 + column * 4) * 4 + j % 2 * 2 + c / 2;
    to[(2 * (c % 2)) * 4] = out.low;
    to[(2 * (c % 2) + 1) * 4] = out.high;
    const int word = u * kSteps + s;
    scales[((word / 4 * 32 + column * 4 + j) * 4 + word % 4) * 4 + c] =
        static_cast<uint8_t>(out.scale);
  }
}

// ---- v: one tile of 128 tokens ----

// What the threads of a block know of the tile of v: thread t of channel t % D, which several have.
struct ChannelSum {
  float sum;  // of the values of codes
  int count;  // of finite values
};

template <int D, class E>
SAGE_TILE ChannelSum QuantiseV(const PrepassArguments& a, int head, int key_tile, uint8_t* marks) {
  static_assert(kQuantiseThreads % D == 0);  // so that a thread's channel is one
  const Workspace& w = a.space;
  const int64_t block = static_cast<int64_t>(head) * w.tiles + key_tile;
  constexpr int V = VChannelsOf(D);
  uint8_t* const images = w.tiles_image + block * w.tile_bytes + TileBytesOf(D, false).k;
  const int part_bytes = TileBytesOf(D, a.fp8).v;
  const float power =
      a.head_exponent && !a.fp8 ? tile::PowerOfTwo(ExponentOf(w.v_largest[head])) : 1.0f;
  const int d = tile::ThreadIndex() % D;
  const float mean = w.v_mean[block * D + d];
  const float inverse = w.v_inverse[static_cast<int64_t>(head) * D + d];
  ChannelSum total = {0.0f, 0};
  SAGE_NO_UNROLL
  for (int m = tile::ThreadIndex() / D; m < kTile / 16; m += kQuantiseThreads / D) {
    const int token0 = key_tile * kTile + 16 * m;
    const int inside = d < a.v.dim ? a.v.tokens - token0 : 0;  // how many of the tokens
    const typename E::Storage* at = inside > 0 ? RowOf<E>(a.v, head, token0) + d : nullptr;
    float x[16];
    SAGE_UNROLL
    for (int i = 0; i < 16; ++i) x[i] = i < inside ? E::At(at[i * a.v.strides.token], 0) : 0.0f;
    if (AllFinite(x) && inside >= 16) {
      SAGE_UNROLL
      for (int i = 0; i < 16; ++i) x[i] = x[i] - mean;
      total.count += 16;
    } else {
      SAGE_UNROLL
      for (int i = 0; i < 16; ++i) {
        const bool finite = IsFinite(x[i]);
        if (!finite) marks[kTile + 16 * m + i] = 2;  // any thread may: they write the same
        x[i] = i < inside && finite ? x[i] - mean : 0.0f;
        total.count += i < inside && finite;
      }
    }
    const int dv = d % V, pair = dv / 16, g = d % 8, second = d / 8 % 2;
    uint8_t* const image = images + d / V * part_bytes;
    uint32_t* const codes = reinterpret_cast<uint32_t*>(image);
    if (a.fp8) {
      SAGE_UNROLL
      for (int i = 0; i < 4; ++i) {
        // Tokens 32u + 8q + 4h ..
        const int t = 16 * m + 4 * i, u = t / 32, q = t % 32 / 8, h = t / 4 % 2;
        const uint32_t word = tile::PackE4m3(x[4 * i] * inverse, x[4 * i + 1] * inverse,
                                             x[4 * i + 2] * inverse, x[4 * i + 3] * inverse);
        codes[((u * (V / 16) + pair) * 32 + g * 4 + q) * 4 + second * 2 + h] = word;
        total.sum += tile::SumE4m3(word);
      }
      continue;
    }
    SAGE_UNROLL
    for (int i = 0; i < 16; ++i) x[i] = x[i] * power;
    const Group out = QuantiseGroup(x, a.four_six);
    const int s = m / 4, u = m % 4 / 2, q = m % 2 * 2;
    uint32_t* to = codes + ((s * (V / 16) + pair) * 32 + g * 4 + q) * 4 + second * 2 + u;
    to[0] = out.low;
    to[4] = out.high;
    const int word = s * (V / 32) + dv / 32;
    image[kTile * V / 2 + ((word / 4 * 32 + g * 4 + d / 8 % 4) * 4 + word % 4) * 4 + m % 4] =
        static_cast<uint8_t>(out.scale);
    total.sum += (tile::SumE2m1(out.low) + tile::SumE2m1(out.high)) *
                 DecodeUe4m3(static_cast<uint8_t>(out.scale));
  }
  return total;
}

// What is put back of one tile's means of v (docs/numerics.md 3), in units of its codes, for the
// product with row sums. Shared memory: 8 bytes for each thread.
template <int D>
SAGE_TILE void StoreMeans(const PrepassArguments& a, int head, int key_tile, const ChannelSum& mine,
                          ChannelSum* shared) {
  constexpr int V = VChannelsOf(D);
  const Workspace& w = a.space;
  const int d = tile::ThreadIndex();
  shared[d] = mine;
  tile::SyncBlock();
  if (d >= D) return;
  ChannelSum rounded = mine;
  SAGE_UNROLL
  for (int part = 1; part < kQuantiseThreads / D; ++part) {
    rounded.sum += shared[part * D + d].sum;
    rounded.count += shared[part * D + d].count;
  }
  const float scale = w.v_scale[static_cast<int64_t>(head) * D + d];
  const float mean = w.v_mean[(static_cast<int64_t>(head) * w.tiles + key_tile) * D + d];
  // A channel without a scale has codes 0, and means in units of 1.
  float units = mean / (scale == 0.0f ? 1.0f : scale);
  if (a.smooth_v && rounded.count > 0) {
    units = units - rounded.sum / static_cast<float>(rounded.count);
  }
  const float clamped = fmaxf(-3e38f, fminf(3e38f, units));
  float* rows = w.mean_rows + (static_cast<int64_t>(head) * w.mean_groups + key_tile / kMeanTiles) *
                                  (kMeanTiles * D);
  // Tiles past the end of the last group are zero.
  const int end = key_tile + 1 == w.tiles ? kMeanTiles : key_tile % kMeanTiles + 1;
  for (int q = key_tile % kMeanTiles; q < end; ++q) {
    rows[(d / V * 32 + d % 8 * 4 + q) * (V / 8) + d % V / 8] =
        q == key_tile % kMeanTiles ? tile::RoundTf32(clamped) : 0.0f;
  }
}

// ---- q: one tile of 128 rows ----

// The means of the warps' rows as operands; 4 of the warps of a block lie in this tile.
template <int D>
SAGE_TILE void StoreRowMeans(const PrepassArguments& a, int head, int first, float power) {
  const Workspace& w = a.space;
  constexpr int kRows = RowsOf(D), kColumns = 8 * MeanSetsOf(D), kGroups = D / 16;
  uint32_t* to = w.q_mean + (static_cast<int64_t>(head) * (w.q_rows / kRows) + first / kRows) *
                                (kColumns * (D / 2));
  const int column0 = first % kRows / kWarpRows;
  const float* means =
      w.q_block_mean + (static_cast<int64_t>(head) * w.q_rows + first) / a.smooth_q * D;
  // The last tile of a block fills what no warp uses.
  const int columns = column0 + 4 == WarpsOf(D) ? kColumns - column0 : 4;
  for (int n = tile::ThreadIndex(); n < columns * (D / 2); n += kQuantiseThreads) {
    const int part = n / (D / 2), d = n % (D / 2) * 2;
    const int column = column0 + part, c = d % 8 / 2, h = d / 8 % 2;
    uint32_t word = 0;
    if (part < 4) {
      const float* mean = means + part * kWarpRows / a.smooth_q * D + d;
      word = tile::PackHalves(mean[0] * power, mean[1] * power);
    }
    to[((column / 8 * kGroups + d / 16) * 32 + column % 8 * 4 + c) * 2 + h] = word;
  }
}

template <int D, class E>
SAGE_TILE void QuantiseQ(const PrepassArguments& a, int block) {
  constexpr int kGroups = D / 16, kSteps = D / 64;
  const Workspace& w = a.space;
  const int head = block / a.q_tiles, first = block % a.q_tiles * kQTile;
  const int kv_head = KvHead(a, head);
  const float half_power = tile::PowerOfTwo(ExponentOf(w.q_largest[head]));
  const float power = a.head_exponent ? half_power : 1.0f;
  if (a.smooth_q > 0) {
    StoreRowMeans<D>(a, head, first, a.negative ? -half_power : half_power);
  }
  const int thread = tile::ThreadIndex(), group = thread % kGroups, d0 = group * 16;
  float powers[16];
  LoadFloats(w.balance + static_cast<int64_t>(kv_head) * D + d0, powers);
  SAGE_UNROLL
  for (int i = 0; i < 16; ++i) powers[i] = powers[i] * power;
  SAGE_NO_UNROLL
  for (int n = thread; n < kQTile * kGroups; n += kQuantiseThreads) {
    const int t = n / kGroups, row = first + t;
    float x[16], mean[16];
    LoadGroup<E>(a.q, head, row, d0, x);
    const bool finite = AllFinite(x);
    const bool bad = AnyOfRow<D>(!finite);
    double shift = 0.0;
    if (a.want_lse) {
      LoadFloats(w.k_mean + static_cast<int64_t>(kv_head) * D + d0, mean);
      SAGE_UNROLL
      for (int i = 0; i < 16; ++i) {
        // Past the end x is 0, and past head_dim both.
        const float finite_x = IsFinite(x[i]) ? x[i] : 0.0f;
        shift += static_cast<double>(finite_x) * static_cast<double>(mean[i]);
      }
    }
    if (a.smooth_q > 0) {
      LoadFloats(
          w.q_block_mean + (static_cast<int64_t>(head) * w.q_rows + row) / a.smooth_q * D + d0,
          mean);
    } else {
      SAGE_UNROLL
      for (int i = 0; i < 16; ++i) mean[i] = 0.0f;
    }
    Smooth(a.q, row, d0, finite, mean, x);
    const int64_t at = static_cast<int64_t>(head) * w.q_rows + row;
    if (a.want_lse) {
      SAGE_UNROLL
      for (int step = 1; step < kGroups; step *= 2) shift += tile::ShuffleXor(shift, step);
      if (group == 0) w.lse_shift[at] = static_cast<float>(a.scale * shift);
    }
    if (group == 0) w.q_bad[at] = bad ? 1 : 0;
    SAGE_UNROLL
    for (int i = 0; i < 16; ++i) x[i] = x[i] * powers[i];
    if (a.rotation > 0) Rotate<D>(x, group, a.rotation, a.rotation_norm);
    Group out = QuantiseGroup(x, a.four_six);
    if (a.negative) {
      out.low ^= 0x88888888u;
      out.high ^= 0x88888888u;
    }
    const int64_t warp_block = at / kWarpRows;
    const int r = row % kWarpRows, g = r % 8, s = group / 4, c = group % 4;
    uint32_t* to = reinterpret_cast<uint32_t*>(w.q_codes) +
                   (((warp_block * kSteps + s) * 2 + r / 16) * 32 + g * 4) * 4 + r / 8 % 2 +
                   c / 2 * 2;
    to[(2 * (c % 2)) * 4] = out.low;
    to[(2 * (c % 2) + 1) * 4] = out.high;
    reinterpret_cast<uint8_t*>(
        w.q_scale)[((warp_block * kSteps + s) * 32 + g * 4 + r / 8) * 4 + c] =
        static_cast<uint8_t>(out.scale);
  }
}

// Shared memory of a tile of k and v: marks of tokens, then the channels' sums.
constexpr int kQuantiseShared = 2 * kTile + kQuantiseThreads * static_cast<int>(sizeof(ChannelSum));

// From the last block of Statistics back to its first: what was read last may still be in L2, and
// the tiles of k and v are the longer work.
template <int D, class E>
SAGE_TILE void Quantise(const PrepassArguments& a, uint8_t* shared) {
  const Workspace& w = a.space;
  const int from_first = tile::GridSize() - 1 - tile::BlockIndex();
  const int block = from_first - a.q_count * a.q_tiles;
  if (block < 0) {
    QuantiseQ<D, E>(a, from_first);
    return;
  }
  const int head = block / w.tiles, key_tile = block % w.tiles, thread = tile::ThreadIndex();
  for (int t = thread; t < 2 * kTile; t += kQuantiseThreads) shared[t] = 0;
  tile::SyncBlock();
  QuantiseK<D, E>(a, head, key_tile, shared);
  const ChannelSum rounded = QuantiseV<D, E>(a, head, key_tile, shared);
  StoreMeans<D>(a, head, key_tile, rounded, reinterpret_cast<ChannelSum*>(shared + 2 * kTile));
  tile::SyncBlock();
  for (int t = thread; t < kTile; t += kQuantiseThreads) {
    const uint32_t mark = static_cast<uint32_t>(shared[t]) | shared[kTile + t];
    w.marks[static_cast<int64_t>(block) * kTile + t] = static_cast<uint8_t>(mark);
    if (mark != 0) tile::AtomicOr(w.not_finite + head, mark);
  }
}

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_PREPASS_H_
