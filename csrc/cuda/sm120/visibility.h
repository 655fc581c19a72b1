// Which keys a query attends to (docs/numerics.md 1), and the rows that a value of k or v that is
// not finite spoils (docs/numerics.md 2).
#ifndef SAGE_CUDA_SM120_VISIBILITY_H_
#define SAGE_CUDA_SM120_VISIBILITY_H_

#include <cstdint>

#include "cuda/core/execution.h"
#include "cuda/sm120/workspace.h"
#include "sage/problem.h"

namespace sage {
namespace sm120 {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr uint32_t kInfinityBits = 0x7f800000;  // exponent all ones: not finite from here on

SAGE_TILE uint32_t Magnitude(float x) { return FloatToBits(x) & kFloatMagnitudeBits; }
SAGE_TILE bool IsFinite(float x) { return Magnitude(x) < kInfinityBits; }

struct Visibility {
  int q_len, kv_len, offset;      // query i stands opposite key i + offset
  int window_left, window_right;  // -1 = no limit
  int q_heads;
  MaskKind mask_kind;
  MaskStrides mask_strides;
  const void* mask;
};

// First key and one past the last that query i sees by causality and window.
SAGE_TILE int FirstKey(const Visibility& see, int i) {
  return see.window_left < 0 ? 0 : tile::Most(0, i + see.offset - see.window_left);
}
SAGE_TILE int EndKey(const Visibility& see, int i) {
  if (see.window_right < 0) return see.kv_len;
  return tile::Least(see.kv_len, tile::Most(0, i + see.offset + see.window_right + 1));
}
// Element of the mask for key 0 of a row.
SAGE_TILE int64_t MaskRow(const Visibility& see, int head, int i) {
  return head / see.q_heads * see.mask_strides.batch + head % see.q_heads * see.mask_strides.head +
         i * see.mask_strides.query;
}
// What the mask adds to a score of key j, log2 domain; -Infinity hides.
SAGE_TILE float MaskBias(const Visibility& see, int64_t row, int j) {
  const int64_t at = row + j * see.mask_strides.key;
  if (see.mask_kind == MaskKind::kAdditive) return static_cast<const float*>(see.mask)[at] * kLog2E;
  return static_cast<const uint8_t*>(see.mask)[at] != 0 ? 0.0f : -tile::kInfinity;
}
// Whether the mask lets the row attend to key j. (An additive value may overflow once it is in the
// log2 domain, so the value itself is asked.)
SAGE_TILE bool MaskAllows(const Visibility& see, int64_t row, int j) {
  if (see.mask_kind == MaskKind::kNone) return true;
  const int64_t at = row + j * see.mask_strides.key;
  if (see.mask_kind == MaskKind::kAdditive) {
    return !(static_cast<const float*>(see.mask)[at] == -tile::kInfinity);
  }
  return static_cast<const uint8_t*>(see.mask)[at] != 0;
}

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_VISIBILITY_H_
