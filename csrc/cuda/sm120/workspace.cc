#include "cuda/sm120/workspace.h"

namespace sage {
namespace sm120 {
namespace {

// Hands out aligned pieces of the workspace.
struct Carver {
  uint8_t* base;
  int64_t used;
  template <class T>
  T* Take(int64_t count) {
    constexpr int64_t kAlignment = 256;  // bulk copies need 16
    T* piece = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return piece;
  }
};

}  // namespace

Workspace LayOut(const Problem& p, void* base) {
  Workspace w = {};
  const int64_t q_heads = p.batch * p.q_heads, kv_heads = p.batch * p.kv_heads;
  const bool fp8 = p.recipe.pv == PvFormat::kE4m3;
  const int64_t widest = p.qk_dim > p.v_dim ? p.qk_dim : p.v_dim;
  w.dim = widest <= 64 ? 64 : widest <= 128 ? 128 : 256;
  w.tiles = static_cast<int>((p.kv_len + kTile - 1) / kTile);
  w.mean_groups = (w.tiles + kMeanTiles - 1) / kMeanTiles;
  w.q_rows = static_cast<int>((p.q_len + RowsOf(w.dim) - 1) / RowsOf(w.dim) * RowsOf(w.dim));
  w.tile_bytes = TileBytesOf(w.dim, fp8).all;
  const bool q_means = p.recipe.smooth_q > 0;
  const int64_t tiles = kv_heads * w.tiles, channels = kv_heads * w.dim;
  const int64_t rows = q_heads * w.q_rows;
  Carver carver = {static_cast<uint8_t*>(base), 0};
  w.arrived = carver.Take<uint32_t>(kv_heads);
  w.not_finite = carver.Take<uint32_t>(kv_heads);
  w.q_largest = carver.Take<uint32_t>(q_heads);
  w.k_largest = carver.Take<uint32_t>(kv_heads);
  w.v_largest = carver.Take<uint32_t>(kv_heads);
  w.channel_largest = carver.Take<uint32_t>(channels);
  w.zeroed_bytes = carver.used;
  w.k_sum = carver.Take<double>(tiles * w.dim);
  w.k_count = carver.Take<int32_t>(tiles * w.dim);
  w.k_spread = carver.Take<float>(tiles * w.dim);
  w.q_spread = carver.Take<float>(rows / kQTile * w.dim);
  w.balance = carver.Take<float>(channels);
  w.q_block_mean = carver.Take<float>(q_means ? rows / p.recipe.smooth_q * w.dim : 0);
  w.k_mean = carver.Take<float>(channels);
  w.v_mean = carver.Take<float>(tiles * w.dim);
  w.v_scale = carver.Take<float>(channels);
  w.v_inverse = carver.Take<float>(channels);
  w.lse_shift = carver.Take<float>(p.want_lse ? rows : 0);
  w.mean_rows = carver.Take<float>(kv_heads * w.mean_groups * kMeanTiles * w.dim);
  w.q_scale = carver.Take<uint32_t>(rows * (w.dim / 64));
  w.q_mean = carver.Take<uint32_t>(
      q_means ? rows / RowsOf(w.dim) * MeanSetsOf(w.dim) * (w.dim / 16) * 64 : 0);
  w.k_half = carver.Take<uint32_t>(q_means ? tiles * kTile * (w.dim / 2) : 0);
  w.q_bad = carver.Take<uint8_t>(rows);
  w.marks = carver.Take<uint8_t>(tiles * kTile);
  w.q_codes = carver.Take<uint8_t>(rows * (w.dim / 2));
  w.tiles_image = carver.Take<uint8_t>(tiles * w.tile_bytes);
  w.bytes = carver.used;
  return w;
}

}  // namespace sm120
}  // namespace sage
