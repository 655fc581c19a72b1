// Problems as arguments of the kernels, and what they refuse.
#include "cuda/sm120/arguments.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace sage {
namespace sm120 {
namespace {

constexpr int64_t kLongest = int64_t{1} << 30;  // tokens; indices inside a head are 32-bit
// Windows beyond this see everything.
constexpr int64_t kNoLimit = kLongest;
constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();
// K and V of the heads that are worked on together under causality; the L2 of the largest GeForce
// Blackwell holds 96 MB, of the smallest 32 MB.
constexpr int64_t kWaveBytes = int64_t{16} << 20;

Source SourceOf(const void* data, InputType input, const TokenStrides& strides, int64_t heads,
                int64_t tokens, int64_t dim) {
  const int64_t together = input == InputType::kFloat32 ? 4 : 8;  // elements in 16 bytes
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
                       strides.batch % together == 0 && strides.head % together == 0 &&
                       strides.token % together == 0;
  return {data,   strides, static_cast<int>(heads), static_cast<int>(tokens), static_cast<int>(dim),
          aligned};
}

int Window(int64_t tokens) { return tokens >= kNoLimit ? -1 : static_cast<int>(tokens); }

// The largest power of two that divides the padded head_dim (docs/numerics.md 4.5).
int RotationOf(const Problem& p) {
  if (!p.recipe.rotate) return 0;
  const int padded = static_cast<int>((p.qk_dim + 15) / 16 * 16);
  return padded & -padded;
}

}  // namespace

const char* RefusalOf(const Problem& p) {
  const Recipe& r = p.recipe;
  if (r.qk != QkFormat::kNvfp4 || (r.pv != PvFormat::kNvfp4 && r.pv != PvFormat::kE4m3)) {
    return "the FP4 kernels compute the recipes fp4 and fp4_fp8";
  }
  if (r.pv_accumulator != PvAccumulator::kFp32Fp32 && r.pv_accumulator != PvAccumulator::kFp32) {
    return "the FP4 kernels accumulate P·V in float32 (fp32+fp32)";
  }
  if (p.qk_dim < 1 || p.qk_dim > 256 || p.v_dim < 1 || p.v_dim > 256) {
    return "the FP4 kernels serve head_dim 1 to 256";
  }
  if (p.q_len > kLongest || p.kv_len > kLongest) {
    return "the FP4 kernels serve at most 2^30 queries and keys";
  }
  const int64_t blocks = p.batch * p.q_heads * ((p.q_len / kQTile + RowsOf(64) / kQTile)) +
                         p.batch * p.kv_heads * ((p.kv_len + kTile - 1) / kTile);
  if (blocks > kMostBlocks) {
    return "too many heads and tokens for one launch of the FP4 kernels";
  }
  return nullptr;
}

PrepassArguments PlanPrepass(const Problem& p, const ForwardBuffers& buffers,
                             const Workspace& space) {
  PrepassArguments a = {};
  a.q = SourceOf(buffers.q, p.input, p.q, p.q_heads, p.q_len, p.qk_dim);
  a.k = SourceOf(buffers.k, p.input, p.k, p.kv_heads, p.kv_len, p.qk_dim);
  a.v = SourceOf(buffers.v, p.input, p.v, p.kv_heads, p.kv_len, p.v_dim);
  a.space = space;
  a.q_heads = static_cast<int>(p.q_heads);
  a.group = static_cast<int>(p.group());
  a.kv_count = static_cast<int>(p.batch * p.kv_heads);
  a.q_count = static_cast<int>(p.batch * p.q_heads);
  a.q_tiles = space.q_rows / kQTile;
  a.smooth_q = p.recipe.smooth_q;
  a.rotation = RotationOf(p);
  if (a.rotation > 0) {
    a.rotation_norm = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.rotation)));
  }
  a.smooth_k = p.recipe.smooth_k;
  a.smooth_v = p.recipe.smooth_v > 0;
  a.balance = p.recipe.balance;
  a.four_six = p.recipe.four_six;
  a.head_exponent = p.recipe.head_exponent;
  a.fp8 = p.recipe.pv == PvFormat::kE4m3;
  a.want_lse = p.want_lse;
  a.negative = p.scale < 0.0;
  a.scale = p.scale;
  return a;
}

AttendArguments PlanAttend(const Problem& p, const ForwardBuffers& buffers,
                           const Workspace& space) {
  AttendArguments a = {};
  a.q_codes = space.q_codes;
  a.tiles_image = space.tiles_image;
  a.q_bad = space.q_bad;
  a.marks = space.marks;
  a.q_scale = space.q_scale;
  a.q_mean = space.q_mean;
  a.k_half = space.k_half;
  a.not_finite = space.not_finite;
  a.q_largest = space.q_largest;
  a.k_largest = space.k_largest;
  a.mean_rows = space.mean_rows;
  a.v_scale = space.v_scale;
  a.lse_shift = space.lse_shift;
  a.see.q_len = static_cast<int>(p.q_len);
  a.see.kv_len = static_cast<int>(p.kv_len);
  a.see.offset = static_cast<int>(p.offset());
  a.see.window_left = Window(p.window_left);
  a.see.window_right = Window(p.window_right);
  a.see.q_heads = static_cast<int>(p.q_heads);
  a.see.mask_kind = p.mask_kind;
  a.see.mask_strides = p.mask;
  a.see.mask = buffers.mask;
  a.v = buffers.v;
  a.v_input = p.input;
  a.v_strides = p.v;
  a.o_strides = p.o;
  a.o = buffers.o;
  a.lse = p.want_lse ? buffers.lse : nullptr;
  a.factor = static_cast<float>(std::min(std::fabs(p.scale) * 1.44269504088896340736,
                                         static_cast<double>(std::numeric_limits<float>::max())));
  a.v_dim = static_cast<int>(p.v_dim);
  a.q_heads = static_cast<int>(p.q_heads);
  a.group = static_cast<int>(p.group());
  a.tiles = space.tiles;
  a.mean_groups = space.mean_groups;
  a.q_rows = space.q_rows;
  a.tile_bytes = space.tile_bytes;
  a.q_tiles = space.q_rows / RowsOf(space.dim);
  const int64_t heads = p.batch * p.q_heads;
  const int channels = VChannelsOf(space.dim);
  a.v_parts = static_cast<int>((p.v_dim + channels - 1) / channels);
  a.work = static_cast<int>(heads * a.q_tiles) * a.v_parts;
  // Tiles of work of one length go head by head, so that k and v are read from L2; of many lengths
  // the longest go first, across as many heads as L2 holds.
  a.longest_first = a.see.window_left >= 0 || a.see.window_right >= 0;
  const int64_t head_bytes = static_cast<int64_t>(space.tiles) * space.tile_bytes;
  a.heads_per_wave =
      a.longest_first
          ? static_cast<int>(std::min(
                heads,
                std::max<int64_t>(1, kWaveBytes / std::max<int64_t>(1, head_bytes)) * a.group))
          : 1;
  a.smooth_q = p.recipe.smooth_q > 0;
  a.head_exponent = p.recipe.head_exponent;
  a.o_pairs = p.v_dim % 2 == 0 && reinterpret_cast<uintptr_t>(buffers.o) % 8 == 0 &&
              p.o.batch % 2 == 0 && p.o.head % 2 == 0 && p.o.token % 2 == 0;
  return a;
}

}  // namespace sm120
}  // namespace sage
