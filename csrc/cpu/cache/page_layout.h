// Where things lie in a page of a key/value cache: 128 tokens of every head, head after head, so
// that what one head reads is contiguous. The same for every instruction set.
//
//   int8        K [tile of 64 tokens][dims / 4][64][4]   V [panel of <= 64 dims][tokens /
//   4][dims][4]
//               then per token: K scale, first sum (below), V scale, marks
//   int8_int16  the same with two planes of V one after the other: code = 128 · high + low, low in
//               -64 to 63, so that a plane is multiplied as the codes of int8 are
//   int16       two planes of K and of the first sums too
//   float32     K [token][dim]   V [token][dim]
//
// A row of q is multiplied in two unsigned digits (digits.h), which adds 8192 · sum(k codes) to a
// product; `first_sum` is what the sum of the high digits starts from to take it away.
#ifndef SAGE_CPU_CACHE_PAGE_LAYOUT_H_
#define SAGE_CPU_CACHE_PAGE_LAYOUT_H_

#include <cstdint>

#include "sage/kv_cache.h"

namespace sage {
namespace {

constexpr int kPageTokens = 128;
constexpr int kTileTokens = 64;
constexpr int kPanelDims = 64;
constexpr int kVectorDims = 16;

// Bits of a token's marks: k or v holds a NaN or an Infinity.
constexpr uint8_t kKeyMark = 1;
constexpr uint8_t kValueMark = 2;
// The code of such a value of v; its high digit in 16 bits.
constexpr int8_t kNotFiniteCode = -128;
// What the high digit of a code of 16 bits counts; the largest codes are 127 and 127 · 128.
constexpr int kHighDigit = 128;

struct PageLayout {
  int k_dims, v_dims;  // padded: to 4, to 16
  int k_planes, v_planes;
  int64_t k_plane, v_plane;  // bytes of one plane
  int64_t v;                 // offsets in a head's part, bytes
  int64_t k_scale, first_sum, v_scale, marks, any_marks;
  int64_t head_bytes, page_bytes;
};

static inline int64_t RoundUpTo(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

static inline PageLayout LayoutOf(const KvCacheShape& shape) {
  PageLayout layout = {};
  const bool packed = shape.form != CacheForm::kFloat32;
  layout.k_dims = static_cast<int>(packed ? RoundUpTo(shape.qk_dim, 4) : shape.qk_dim);
  layout.v_dims = static_cast<int>(packed ? RoundUpTo(shape.v_dim, kVectorDims) : shape.v_dim);
  const int64_t bytes = packed ? 1 : 4;
  layout.k_planes = shape.form == CacheForm::kInt16 ? 2 : 1;
  layout.k_plane = RoundUpTo(kPageTokens * layout.k_dims * bytes, 64);
  layout.v = layout.k_planes * layout.k_plane;
  const bool wide_v = shape.form == CacheForm::kInt8Int16 || shape.form == CacheForm::kInt16;
  layout.v_planes = wide_v ? 2 : 1;
  layout.v_plane = kPageTokens * layout.v_dims * bytes;
  int64_t at = RoundUpTo(layout.v + layout.v_planes * layout.v_plane, 64);
  if (packed) {
    layout.k_scale = at;
    layout.first_sum = layout.k_scale + kPageTokens * 4;
    layout.v_scale = layout.first_sum + layout.k_planes * kPageTokens * 4;
    layout.marks = layout.v_scale + kPageTokens * 4;
    layout.any_marks = layout.marks + kPageTokens;
    at = layout.any_marks + 64;
  }
  layout.head_bytes = at;
  layout.page_bytes = at * shape.batch * shape.kv_heads;
  return layout;
}

// Byte of element d of the K codes of token t, and of V; of the first planes.
static inline int64_t KCodeAt(const PageLayout& layout, int t, int d) {
  const int64_t tile = int64_t{t / kTileTokens} * kTileTokens * layout.k_dims;
  return tile + (d / 4) * kTileTokens * 4 + (t % kTileTokens) * 4 + d % 4;
}
static inline int64_t VCodeAt(const PageLayout& layout, int t, int d) {
  const int panel = d / kPanelDims * kPanelDims;
  const int width = layout.v_dims - panel < kPanelDims ? layout.v_dims - panel : kPanelDims;
  return layout.v + int64_t{panel} * kPageTokens + t / 4 * width * 4 + (d - panel) * 4 + t % 4;
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_PAGE_LAYOUT_H_
