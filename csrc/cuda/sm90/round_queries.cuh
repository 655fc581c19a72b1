// Rows of q to codes in the attention kernel's shared memory, by warps that do not compute: while
// one tile of work is attended to, the next is read from memory as it was given, and rounded.
//
//   scale[i] = max_d |q[i,d]| / 127,  code[i,d] = round(q[i,d] 127 / max_d |q[i,d]|)
//
// Codes and scales as the pre-pass makes them (quantise.cuh), bit for bit: sign of the scale in the
// codes, rows past the end zero, rows with a value that is not finite under a scale of NaN. Each
// element of q is read once, its code never leaves the multiprocessor.
//
// Warp = kRowsAhead rows at a time, lane = D / 32 channels of each; lane i also has the scale of
// row i. What these warps issue, those that compute cannot: about 35 instructions a row. Rows come
// by bulk copies, two batches ahead, into a piece of shared memory of each warp's own, for which 32
// registers a thread would not suffice.
#ifndef SAGE_CUDA_SM90_ROUND_QUERIES_CUH_
#define SAGE_CUDA_SM90_ROUND_QUERIES_CUH_

#include "cuda/sm90/block.cuh"
#include "cuda/sm90/hopper.cuh"
#include "cuda/sm90/source.cuh"
#include "cuda/sm90/work.cuh"

namespace sage {
namespace sm90 {

// Where a tile of work and its rounded rows lie.
struct RoundedTile {
  int head, row0;
  uint32_t codes, scales;  // in shared memory
};

template <int D, bool kMasked>
SAGE_DEVICE RoundedTile PlaceOf(uint32_t shared, int slot, int head, int row0) {
  using Map = SharedMap<D, kMasked>;
  return {head, row0, shared + slot * Map::kQBytes,
          shared + Map::kQScale + slot * Map::kQScaleBytes};
}

// Largest magnitude of a lane's channels; above kInfBits where one is NaN.
template <int kChannels>
SAGE_DEVICE uint32_t LargestOrNaN(const float (&x)[kChannels]) {
  float most = fabsf(x[0]);
#pragma unroll
  for (int c = 1; c < kChannels; ++c) most = MaxOrNaN(most, fabsf(x[c]));
  return __float_as_uint(most);
}

// Rounds rows [r, r + kRows) of a tile of work, r a multiple of kRows.
template <int D, int kRows, int kChannels>
SAGE_DEVICE void RoundBatch(float sign, const RoundedTile& tile, int r, int lane,
                            float (&x)[kRows][kChannels]) {
  uint32_t mine = 0;  // the largest magnitude of row `lane`
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const uint32_t most = __reduce_max_sync(~0u, LargestOrNaN(x[i]));
    mine = lane == i ? most : mine;
  }
  const bool finite = mine < kInfBits;
  if (!__all_sync(~0u, finite)) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) x[i][c] = Finite(x[i][c]) ? x[i][c] : 0.0f;
      const uint32_t most = __reduce_max_sync(~0u, LargestOrNaN(x[i]));
      mine = lane == i ? most : mine;
    }
  }
  const float2 pair = Int8ScaleOf(mine);
  if (lane < kRows) {
    StoreSharedFloat(tile.scales + 4 * (r + lane), finite ? pair.x : __uint_as_float(0x7fc00000u));
  }
  const float inverse = sign * pair.y;
  // Chunks of 16 bytes are exchanged within the rows that a swizzle repeats after, which batches
  // divide: row r + i differs from row r by i where r has zeros.
  static_assert((kRows == 4 && D == 128) || (kRows == 8 && D == 64), "rows of a batch");
  const uint32_t first = tile.codes + OperandByte<D, kQueryBlock>(r, lane * kChannels);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    uint32_t word[1];
    RoundToCodes(x[i], __shfl_sync(~0u, inverse, i), word);
    const uint32_t at = (first ^ (D == 128 ? i : i / 2) << 4) + i * D;
    if constexpr (kChannels == 2) {
      StoreSharedHalfword(at, static_cast<uint16_t>(word[0]));
    } else {
      StoreSharedInt(at, static_cast<int>(word[0]));
    }
  }
}

// The block's first tile of work, by all its warps, before they part. What follows it meets at a
// barrier of the block.
template <int D, bool kMasked>
SAGE_DEVICE void RoundFirst(const AttendArguments& a, uint32_t shared) {
  // Read for itself: kept for later, it would take a register.
  if (!Anew(a.rounds_queries)) return;
  using Role = Roles<D, kMasked>;
  constexpr int kRows = kRowsAhead<D>, kChannels = D / 32, kStep = Role::kThreads / 32 * kRows;
  const Work work = WorkOf<Role::kRows>(a, blockIdx.x);
  const RoundedTile tile = PlaceOf<D, kMasked>(shared, 0, work.head, work.row0);
  const int lane = ThreadAnew() & 31, channel = lane * kChannels;
  // All rows are on their way before the first is rounded.
  constexpr int kBatches = (Role::kRows + kStep - 1) / kStep;
  const int first = static_cast<int>(ThreadAnew() / 32) * kRows;
  float x[kBatches][kRows][kChannels];
  const auto load = [&](auto element) {
    using E = decltype(element);
    const typename E::Storage* at = a.q.Row<E>(tile.head, tile.row0 + first) + channel;
#pragma unroll
    for (int n = 0; n < kBatches * kRows; ++n) {
      const int i = n % kRows, row = tile.row0 + first + n / kRows * kStep + i;
      float(&y)[kChannels] = x[n / kRows][i];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) y[c] = 0.0f;
      if (row < a.q.tokens && channel < a.q.dim) {
        LoadElements<E>(at + (n / kRows * kStep + i) * a.q.strides.token, y);
      }
    }
  };
  if (a.v.input == InputType::kFloat32) {
    load(Float32());
  } else if (a.v.input == InputType::kFloat16) {
    load(Float16());
  } else {
    load(BFloat16());
  }
#pragma unroll
  for (int n = 0; n < kBatches; ++n) {
    const int r = first + n * kStep;
    if (r < Role::kRows) RoundBatch<D>(a.sign, tile, r, lane, x[n]);
  }
  ProxyFence();
}

// Rows of q on their way to a rounding warp: batches in turn through two places.
template <int D>
struct QueryStage {
  uint32_t base, barriers;
  SAGE_DEVICE uint32_t At(uint32_t n) const { return base + (n & 1) * kStagedBytes<D>; }
  SAGE_DEVICE uint32_t Full(uint32_t n) const { return barriers + (n & 1) * 8; }
  SAGE_DEVICE uint32_t Parity(uint32_t n) const { return n >> 1 & 1; }
};

// Batches `first`, `first` + step, ... of a tile of work; `n` counts this warp's batches.
template <int D, int kTileRows>
SAGE_DEVICE void RoundTile(const AttendArguments& a, const RoundedTile& tile, int first,
                           const QueryStage<D>& stage, uint32_t& n) {
  constexpr int kRows = kRowsAhead<D>, kChannels = D / 32, kStep = kRoundingWarps * kRows;
  const bool wide = a.v.input == InputType::kFloat32;
  const int bytes = a.q.dim * (wide ? 4 : 2);
  const uint32_t pitch = D * (wide ? 4 : 2);
  const int64_t stride = a.q.strides.token * (wide ? 4 : 2);
  // Lane i copies row i of a batch, or lane 0 all of them.
  const int my_row = tile.row0 + first + static_cast<int>(ThreadAnew() & 31);
  const uint8_t* from = wide
                            ? reinterpret_cast<const uint8_t*>(a.q.Row<Float32>(tile.head, my_row))
                            : reinterpret_cast<const uint8_t*>(a.q.Row<Float16>(tile.head, my_row));
  const auto copy = [&](uint32_t to, int r) {
    const int rows = max(0, min(kRows, a.q.tokens - tile.row0 - r)), lane = ThreadAnew() & 31;
    if (lane == 0) BarrierExpect(stage.Full(to), rows * bytes);
    __syncwarp();
    if (a.q.dense) {
      if (lane == 0 && rows > 0) BulkCopy(stage.At(to), from, rows * pitch, stage.Full(to));
    } else if (lane < rows) {
      BulkCopy(stage.At(to) + lane * pitch, from, bytes, stage.Full(to));
    }
    from += kStep * stride;
  };
  copy(n, first);
  copy(n + 1, first + kStep);
#pragma unroll 1
  for (int r = first; r < kTileRows; r += kStep, ++n) {
    float x[kRows][kChannels];
    BarrierWait(stage.Full(n), stage.Parity(n));
    const int lane = ThreadAnew() & 31;
    const uint32_t at = stage.At(n) + lane * kChannels * (wide ? 4 : 2);
    if (wide) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) LoadShared(at + i * pitch, x[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        uint32_t words[kChannels / 2];
        LoadShared(at + i * pitch, words);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          x[i][c] = a.v.input == InputType::kFloat16 ? Float16::At(words[c / 2], c % 2)
                                                     : BFloat16::At(words[c / 2], c % 2);
        }
      }
    }
    const int rows = a.q.tokens - tile.row0 - r;
    if (rows < kRows) {  // what is there is of an earlier batch
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int c = 0; c < kChannels; ++c) x[i][c] = i < rows ? x[i][c] : 0.0f;
      }
    }
    __syncwarp();
    if (r + 2 * kStep < kTileRows) copy(n, r + 2 * kStep);
    RoundBatch<D>(a.sign, tile, r, lane, x);
  }
}

// Warps 1 to 3 of the copying warpgroup: the first of them draws tiles of work; they round the rows
// of each as soon as its place is free, that is when the tile before the last one is done, and
// bring the scales of v.
template <int D, bool kMasked>
SAGE_DEVICE void RoundQueries(const AttendArguments& a, uint32_t shared,
                              const Barriers<SharedMap<D, kMasked>::kStages>& bar, int warp) {
  using Map = SharedMap<D, kMasked>;
  constexpr int kRows = Roles<D, kMasked>::kRows;
  const int lane = ThreadAnew() & 31;
  const QueryStage<D> stage = {shared + Map::kStaged + (warp - 1) * 2 * kStagedBytes<D>,
                               bar.Staged(warp - 1)};
  // Channels past the last are never copied.
  for (int at = 16 * lane; at < 2 * kStagedBytes<D>; at += 16 * 32) {
    StoreShared4(stage.base + at, 0.0f, 0.0f, 0.0f, 0.0f);
  }
  __syncwarp();
  uint32_t batches = 0;
  for (uint32_t round = 0;; ++round) {
    const int slot = round & 1;
    const uint32_t parity = round >> 1 & 1, at = shared + Map::kWork + slot * kWorkBytes;
    BarrierWait(bar.QEmpty(slot), parity ^ 1);
    if (warp == 1) {
      int index = blockIdx.x;
      if (round > 0) {
        if (lane == 0) index = static_cast<int>(gridDim.x + atomicAdd(a.schedule, 1u));
        index = __shfl_sync(~0u, index, 0);
      }
      Work work = {-1, 0, 0, 0};
      if (index < a.work) work = WorkOf<kRows>(a, index);
      if (lane == 0) StoreWork(at, work, index < a.work ? KvHead(a, work.head) : 0);
      WarpArrive(bar.Drawn(slot), lane);
    } else {
      BarrierWait(bar.Drawn(slot), parity);
    }
    __syncwarp();
    // From one lane: equal across the warp, which leaves registers to the rows.
    const int head = __shfl_sync(~0u, LoadSharedInt(at), 0);
    const int row0 = __shfl_sync(~0u, LoadSharedInt(at + 4), 0);
    if (head < 0) {
      WarpArrive(bar.QFull(slot), lane);
      break;
    }
    const RoundedTile tile = PlaceOf<D, kMasked>(shared, slot, head, row0);
    if (warp == 1) {
      const int d = (ThreadAnew() & 31) * (D / 32);
      const float* scales = a.v_scale + static_cast<int64_t>(LoadSharedInt(at + 16)) * D + d;
      const uint32_t to = shared + Map::kVScale + slot * Map::kVScaleBytes + 4 * d;
      if constexpr (D == 128) {
        const float4 x = LoadGlobal4(scales);
        StoreShared4(to, x.x, x.y, x.z, x.w);
      } else {
        const float2 x = LoadGlobal2(scales);
        StoreShared2(to, x.x, x.y);
      }
    }
    if (!a.rounds_queries) {
      if (ThreadAnew() == 32) {
        const int64_t row = static_cast<int64_t>(head) * a.q_rows + row0;
        BarrierExpectOnly(bar.QFull(slot), Map::kQBytes + Map::kQScaleBytes);
        BulkCopy(tile.codes, a.q_codes + row * D, Map::kQBytes, bar.QFull(slot));
        BulkCopy(tile.scales, a.q_scale + row, Map::kQScaleBytes, bar.QFull(slot));
      }
    } else if (round > 0) {
      RoundTile<D, kRows>(a, tile, (warp - 1) * kRowsAhead<D>, stage, batches);
      ProxyFence();
    }
    WarpArrive(bar.QFull(slot), lane);
  }
  if (warp != 1 || lane != 0) return;
  // The last block to finish leaves the counter ready for another pass.
  if (atomicAdd(a.schedule + 1, 1u) == gridDim.x - 1) {
    a.schedule[0] = 0;
    a.schedule[1] = 0;
  }
}

}  // namespace sm90
}  // namespace sage

#endif  // SAGE_CUDA_SM90_ROUND_QUERIES_CUH_
