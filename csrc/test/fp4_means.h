// What the FP4 kernels put back of V's means (docs/numerics.md 3), against the same from float64
// and the codes that were stored.
#ifndef SAGE_TEST_FP4_MEANS_H_
#define SAGE_TEST_FP4_MEANS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cuda/sm120/workspace.h"
#include "test/cuda/sm90_problem.h"

namespace sage_test {

// [B, Hkv, tiles, v_dim], in units of the codes of v; tiles past the end of a group must be 0.
struct StoredMeans {
  std::vector<float> units;
  int64_t not_zero = 0;
};

// Those that a workspace holds; `read` copies device (or host) memory to a vector of bytes.
template <class Read>
StoredMeans UnpackMeans(const Problem& p, const sage::sm120::Workspace& w, Read read) {
  StoredMeans out;
  const int D = w.dim, V = sage::sm120::VChannelsOf(D), kTiles = sage::sm120::kMeanTiles;
  const int64_t kv_heads = p.batch * p.kv_heads;
  const auto bytes = read(reinterpret_cast<const uint8_t*>(w.mean_rows),
                          kv_heads * w.mean_groups * kTiles * D * 4);
  for (int64_t h = 0; h < kv_heads; ++h) {
    for (int64_t t = 0; t < w.mean_groups * kTiles; ++t) {
      for (int64_t d = 0; d < p.v_dim; ++d) {
        const int64_t group = (h * w.mean_groups + t / kTiles) * kTiles * D;
        const int64_t at = group + (d / V * 32 + d % 8 * 4 + t % kTiles) * (V / 8) + d % V / 8;
        float x;
        std::memcpy(&x, bytes.data() + at * 4, 4);
        if (t < w.tiles) out.units.push_back(x);
        if (t >= w.tiles && x != 0.0f) ++out.not_zero;
      }
    }
  }
  return out;
}

// How many of the stored means are wrong. `codes` are those of v, [B, Hkv, Nk, v_dim], and `scales`
// what they are worth, [B, Hkv, v_dim].
inline int64_t WrongMeans(const Data& data, const StoredMeans& stored,
                          const std::vector<float>& codes, const std::vector<float>& scales) {
  const Problem& p = data.p;
  int64_t wrong = stored.not_zero;
  size_t at = 0;
  for (int64_t h = 0; h < p.batch * p.kv_heads; ++h) {
    const float* v = data.v.data() + h / p.kv_heads * p.v.batch + h % p.kv_heads * p.v.head;
    for (int64_t first = 0; first < p.kv_len; first += 128) {
      for (int64_t d = 0; d < p.v_dim; ++d, ++at) {
        double sum = 0, rounded = 0, largest = 0;
        int64_t count = 0;
        for (int64_t j = first; j < std::min(p.kv_len, first + 128); ++j) {
          const float x = v[j * p.v.token + d];
          if (!std::isfinite(x)) continue;
          const double code = codes[(h * p.kv_len + j) * p.v_dim + d];
          sum += x;
          rounded += code;
          largest = std::max(largest, std::fabs(code));
          ++count;
        }
        double expected = 0;
        if (p.recipe.smooth_v > 0 && count > 0) {
          const float scale = scales[h * p.v_dim + d];
          const float mean = static_cast<float>(sum / static_cast<double>(count));
          // A channel without a scale has codes 0, and means in units of 1.
          expected = mean / (scale == 0.0f ? 1.0 : scale) - rounded / static_cast<double>(count);
        }
        // The kernels round what they put back to 10 mantissa bits.
        const double allowed = std::fabs(expected) * 0x1p-11 + largest * 1e-5;
        wrong += !(std::fabs(stored.units[at] - expected) <= allowed);
      }
    }
  }
  return wrong;
}

}  // namespace sage_test

#endif  // SAGE_TEST_FP4_MEANS_H_
