// Scores of keys that a row does not see, and the scale of scores.
#ifndef SAGE_CUDA_SM120_HIDE_H_
#define SAGE_CUDA_SM120_HIDE_H_

#include <cfloat>

#include "cuda/core/warp.h"
#include "cuda/sm120/block.h"

namespace sage {
namespace sm120 {

// What a warp knows of its tile of work.
struct WarpWork {
  int head, row0;
  float c;       // score to log2 domain
  float hidden;  // a power of two below every score: c times it is exact
};

SAGE_TILE WarpWork WarpWorkOf(const AttendArguments& a, const Work& work, int kv_head, int warp) {
  WarpWork mine;
  mine.head = work.head;
  mine.row0 = work.row0 + warp * kWarpRows;
  float c = a.factor;
  if (a.head_exponent) {
    // In two steps: the sum of the exponents may lie beyond a float's.
    c *= tile::PowerOfTwo(-ExponentOf(a.q_largest[work.head]));
    c *= tile::PowerOfTwo(-ExponentOf(a.k_largest[kv_head]));
  }
  // Scores stay below 2^31 (2688^2 * 128): beyond these limits they are all equal, or Infinity.
  c = tile::Max(0x1p-120f, fminf(0x1p86f, c));
  mine.c = tile::KeepOwn(c);
  const int e = 30 - (static_cast<int>(FloatToBits(c) >> 23) - 127);
  mine.hidden = -tile::PowerOfTwo(tile::Most(40, tile::Least(126, e)));
  return mine;
}

// Hides scores of 32 keys from `key0` on that causality, window or the end of the keys hide.
SAGE_TILE void HideKeys(const AttendArguments& a, const WarpWork& mine, int key0,
                        float (&s)[2][4][4]) {
  const int g = tile::Lane() >> 2, key = key0 + 8 * (tile::Lane() & 3);
  SAGE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int row = tile::Least(mine.row0 + 8 * i + g, a.see.q_len - 1);
    const int first = FirstKey(a.see, row);
    const unsigned count = static_cast<unsigned>(tile::Most(0, EndKey(a.see, row) - first));
    SAGE_UNROLL
    for (int j = 0; j < 8; ++j) {
      if (static_cast<unsigned>(key + j - first) >= count) {
        s[i / 2][j / 2][i % 2 * 2 + j % 2] = mine.hidden;
      }
    }
  }
}

// With a mask: scores of 32 keys to the log2 domain, -Infinity where hidden. Sets bit i where a
// value of the mask in row i is NaN or +Infinity.
SAGE_TILE uint32_t ApplyMask(const AttendArguments& a, const WarpWork& mine, int key0,
                             float (&s)[2][4][4]) {
  const int g = tile::Lane() >> 2, key = key0 + 8 * (tile::Lane() & 3);
  uint32_t not_finite = 0;
  SAGE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int row = tile::Least(mine.row0 + 8 * i + g, a.see.q_len - 1);
    const int first = FirstKey(a.see, row);
    const unsigned count = static_cast<unsigned>(tile::Most(0, EndKey(a.see, row) - first));
    const int64_t mask = MaskRow(a.see, mine.head, row);
    SAGE_UNROLL
    for (int j = 0; j < 8; ++j) {
      float& x = s[i / 2][j / 2][i % 2 * 2 + j % 2];
      if (static_cast<unsigned>(key + j - first) >= count || !MaskAllows(a.see, mask, key + j)) {
        x = -tile::kInfinity;
        continue;
      }
      const float bias = MaskBias(a.see, mask, key + j);
      if (bias != bias || bias == tile::kInfinity) not_finite |= 1u << i;
      // A finite value of the mask never hides, so neither does its overflow.
      x = tile::Max(tile::Fma(x, mine.c, bias), -FLT_MAX);
    }
  }
  return not_finite;
}

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_HIDE_H_
