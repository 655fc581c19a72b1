// The end of a tile of work: sums to outputs and lse, and the rows that values which are not finite
// spoil (docs/numerics.md 2).
#ifndef SAGE_CUDA_SM120_FINISH_H_
#define SAGE_CUDA_SM120_FINISH_H_

#include "cuda/core/convert.h"
#include "cuda/core/warp.h"
#include "cuda/sm120/block.h"
#include "cuda/sm120/elements.h"

namespace sage {
namespace sm120 {

// Rare: writes NaN over what the row's attended tokens spoil, of channels d0 to d_end. The four
// threads of a quad share the keys; the row's results are already written.
SAGE_TILE_CALL void MarkRow(const AttendArguments& a, int head, int kv_head, int row, int d0,
                            int d_end, float* o, float* lse) {
  const int64_t mask = MaskRow(a.see, head, row);
  const uint8_t* marks = a.marks + static_cast<int64_t>(kv_head) * a.tiles * kTile;
  const int kv_heads = a.q_heads / a.group;
  const int64_t v = kv_head / kv_heads * a.v_strides.batch + kv_head % kv_heads * a.v_strides.head;
  const float nan = BitsToFloat(0x7fc00000u);
  for (int j = FirstKey(a.see, row) + (tile::Lane() & 3); j < EndKey(a.see, row); j += 4) {
    const uint8_t mark = marks[j];
    if (mark == 0 || !MaskAllows(a.see, mask, j)) continue;
    for (int d = d0; d < d_end; ++d) {
      const int64_t at = v + j * a.v_strides.token + d;
      if ((mark & 1) != 0 || !IsFiniteElement(a.v, a.v_input, at)) o[d] = nan;
    }
    if ((mark & 1) != 0 && lse != nullptr) *lse = nan;
  }
}

// `o` are a warp's sums as fragments, `m` start - offset and `l` this thread's sums of its four
// rows; l counts 2^log2_unit as 1. Offsets at `hidden_score` or near mean that a row saw only what
// was hidden from it.
template <int D, bool kFp8, bool kMasked>
SAGE_TILE void FinishRows(const AttendArguments& a, const Work& work, int kv_head, int row0,
                          float hidden_score, uint32_t mask_not_finite, float start,
                          float log2_unit, const float (&o)[2][VChannelsOf(D) / 32][4][4],
                          const float (&m)[4], const float (&l)[4]) {
  constexpr int V = VChannelsOf(D);
  const int lane = tile::Lane(), g = lane >> 2, q = lane & 3, head = work.head;
  const int d0 = work.part * V, d_end = tile::Least(d0 + V, a.v_dim);
  const bool any_not_finite = a.not_finite[kv_head] != 0;
  const float nan = BitsToFloat(0x7fc00000u);
  float* const out =
      a.o + head / a.q_heads * a.o_strides.batch + head % a.q_heads * a.o_strides.head;
  const float* units = a.v_scale + static_cast<int64_t>(kv_head) * D + d0 + 2 * q;
  SAGE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int row = row0 + 8 * i + g;
    const int64_t at = static_cast<int64_t>(head) * a.q_rows + row;
    float sum = l[i];
    sum += tile::ShuffleXor(sum, 1);
    sum += tile::ShuffleXor(sum, 2);
    uint32_t bad = mask_not_finite >> i & 1u;
    if constexpr (kMasked) {
      bad |= tile::ShuffleXor(bad, 1);
      bad |= tile::ShuffleXor(bad, 2);
    }
    const float offset = start - m[i];
    bool nothing = sum == 0.0f;
    if constexpr (!kMasked) nothing = nothing || offset <= 0.5f * hidden_score;
    const bool inside = row < a.see.q_len;
    if (inside && a.q_bad[at] != 0) bad |= 1u;
    const float inverse = 1.0f / sum;
    float* const o_row = out + static_cast<int64_t>(row) * a.o_strides.token;
    float* const lse = a.lse == nullptr || work.part != 0
                           ? nullptr
                           : a.lse + static_cast<int64_t>(head) * a.see.q_len + row;
    if (inside) {
      SAGE_UNROLL
      for (int t = 0; t < V / 8; ++t) {
        const int d = d0 + 8 * t + 2 * q;
        if (d >= d_end) continue;
        float unit0 = units[8 * t], unit1 = units[8 * t + 1];
        if constexpr (kFp8) {
          // Channels without a scale have codes 0, and means in units of 1.
          unit0 = unit0 == 0.0f ? 1.0f : unit0;
          unit1 = unit1 == 0.0f ? 1.0f : unit1;
        }
        float x = o[i / 2][t / 4][t % 4][i % 2 * 2] * inverse * unit0;
        float y = o[i / 2][t / 4][t % 4][i % 2 * 2 + 1] * inverse * unit1;
        if (nothing) {
          x = y = 0.0f;
        } else if (bad != 0) {
          x = y = nan;
        }
        if (a.o_pairs) {
          *reinterpret_cast<tile::Floats2*>(o_row + d) = {x, y};
        } else {
          o_row[d] = x;
          if (d + 1 < d_end) o_row[d + 1] = y;
        }
      }
      if (lse != nullptr && q == 0) {
        const double log2_sum =
            static_cast<double>(offset) + (tile::Log2(sum) - static_cast<double>(log2_unit));
        const float value = static_cast<float>(0.69314718055994531 * log2_sum +
                                               static_cast<double>(a.lse_shift[at]));
        *lse = nothing ? -tile::kInfinity : bad != 0 ? nan : value;
      }
    }
    tile::SyncWarp();
    if (any_not_finite && inside) MarkRow(a, head, kv_head, row, d0, d_end, o_row, lse);
  }
}

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_FINISH_H_
