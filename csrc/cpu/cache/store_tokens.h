// Appending: the frozen mean of k, and tokens to codes in their pages (docs/numerics.md 8).
#ifndef SAGE_CPU_CACHE_STORE_TOKENS_H_
#define SAGE_CPU_CACHE_STORE_TOKENS_H_

#include <string.h>

#include "cpu/cache/cache_functions.h"
#include "cpu/forward/integer_scale.h"

namespace sage {
namespace {

constexpr int32_t kNotFiniteBits = 0x7f800000;
constexpr int64_t kMeanBlock = 128;
constexpr int kMostDims = 512;

// float64 sums within 128 tokens in token order, then over those in order; finite values only.
SAGE_NOINLINE void FreezeMean(const KvCacheShape& shape, const NewTokens& tokens, float* mean) {
  const int64_t dim = shape.qk_dim;
  double total[kMostDims], sum[kMostDims], count[kMostDims];
  for (int64_t head = 0; head < shape.batch * shape.kv_heads; ++head) {
    const float* k = tokens.k + head * tokens.tokens * dim;
    for (int64_t d = 0; d < dim; ++d) total[d] = count[d] = 0.0;
    for (int64_t t0 = 0; t0 < tokens.tokens; t0 += kMeanBlock) {
      const int64_t end = t0 + kMeanBlock < tokens.tokens ? t0 + kMeanBlock : tokens.tokens;
      for (int64_t d = 0; d < dim; ++d) sum[d] = 0.0;
      for (int64_t t = t0; t < end; ++t) {
        for (int64_t d = 0; d < dim; ++d) {
          const float x = k[t * dim + d];
          const bool finite = MagnitudeBits(x) < kNotFiniteBits;
          sum[d] += finite ? static_cast<double>(x) : 0.0;
          count[d] += finite ? 1.0 : 0.0;
        }
      }
      for (int64_t d = 0; d < dim; ++d) total[d] += sum[d];
    }
    for (int64_t d = 0; d < dim; ++d) {
      mean[head * dim + d] = count[d] > 0.0 ? static_cast<float>(total[d] / count[d]) : 0.0f;
    }
  }
}

// x[d] = row[d] - mean[d] (mean may be null), 0 where row[d] is not finite; whether all were.
SAGE_INLINE bool CenterRow(const float* row, const float* mean, int dim, float* x) {
  int32_t most = 0;
  for (int d = 0; d < dim; ++d) {
    const int32_t bits = MagnitudeBits(row[d]);
    most = bits > most ? bits : most;
    x[d] = mean == nullptr ? row[d] : row[d] - mean[d];
  }
  if (most < kNotFiniteBits) return true;
  for (int d = 0; d < dim; ++d) {
    if (MagnitudeBits(row[d]) >= kNotFiniteBits) x[d] = 0.0f;
  }
  return false;
}

// Codes of one row as floats, clamped to the largest; returns the scale.
SAGE_INLINE float RoundToCodes(float* x, int dim, float top) {
  const ScalePair pair = ScaleOf(MaxBits(x, dim), top);
  for (int d = 0; d < dim; ++d) {
    const float code = RoundCode(x[d] * pair.inverse);
    x[d] = code > top ? top : code < -top ? -top : code;
  }
  return pair.scale;
}

// codes = 128 · (what they become) + low, low in -64 to 63.
SAGE_INLINE void SplitDigits(float* codes, int dim, float* low) {
  for (int d = 0; d < dim; ++d) {
    const int32_t code = static_cast<int32_t>(codes[d]);
    const int32_t high = (code + kHighDigit / 2) >> 7;
    codes[d] = static_cast<float>(high);
    low[d] = static_cast<float>(code - high * kHighDigit);
  }
}

SAGE_INLINE float TopOf(int planes) { return planes == 2 ? 127.0f * kHighDigit : 127.0f; }

// One plane of the codes of k, padded to k_dims, and its first sum.
SAGE_INLINE void StoreKeyCodes(uint8_t* part, const PageLayout& layout, int t, int plane,
                               const float* codes) {
  int32_t sum = 0;
  for (int d = 0; d < layout.k_dims; d += 4) {
    uint32_t word = 0;
    for (int e = 0; e < 4; ++e) {
      const int32_t code = static_cast<int32_t>(codes[d + e]);
      sum += code;
      word |= (static_cast<uint32_t>(code) & 255u) << (8 * e);
    }
    memcpy(part + plane * layout.k_plane + KCodeAt(layout, t, d), &word, 4);
  }
  reinterpret_cast<int32_t*>(part + layout.first_sum)[plane * kPageTokens + t] = -64 * sum;
}

// One plane of the codes of v, to where `part` says that V begins.
SAGE_INLINE void StoreValueCodes(uint8_t* part, const PageLayout& layout, int t, const float* codes,
                                 int dim) {
  for (int d0 = 0; d0 < layout.v_dims; d0 += kVectorDims) {
    uint8_t* out = part + VCodeAt(layout, t, d0);
    const int count = dim - d0 < kVectorDims ? dim - d0 : kVectorDims;
    for (int d = 0; d < count; ++d) {
      out[4 * d] = static_cast<uint8_t>(static_cast<int32_t>(codes[d0 + d]));
    }
    for (int d = count; d < kVectorDims; ++d) out[4 * d] = 0;
  }
}

SAGE_INLINE void StorePackedToken(const PageLayout& layout, uint8_t* part, int t, const float* k,
                                  const float* mean, int qk_dim, const float* v, int v_dim) {
  float x[kMostDims];
  uint8_t marks = CenterRow(k, mean, qk_dim, x) ? 0 : kKeyMark;
  reinterpret_cast<float*>(part + layout.k_scale)[t] =
      RoundToCodes(x, qk_dim, TopOf(layout.k_planes));
  for (int d = qk_dim; d < layout.k_dims; ++d) x[d] = 0.0f;
  float low[kMostDims];
  if (layout.k_planes == 2) {
    SplitDigits(x, layout.k_dims, low);
    StoreKeyCodes(part, layout, t, 1, low);
  }
  StoreKeyCodes(part, layout, t, 0, x);

  const bool finite = CenterRow(v, nullptr, v_dim, x);
  reinterpret_cast<float*>(part + layout.v_scale)[t] =
      RoundToCodes(x, v_dim, TopOf(layout.v_planes));
  if (layout.v_planes == 2) {
    SplitDigits(x, v_dim, low);
    StoreValueCodes(part + layout.v_plane, layout, t, low, v_dim);
  }
  StoreValueCodes(part, layout, t, x, v_dim);
  if (!finite) {
    marks |= kValueMark;
    for (int d = 0; d < v_dim; ++d) {
      if (MagnitudeBits(v[d]) >= kNotFiniteBits)
        part[VCodeAt(layout, t, d)] = static_cast<uint8_t>(kNotFiniteCode);
    }
  }
  part[layout.marks + t] = marks;
  // Set for good: after a truncation it costs a look at the marks, nothing else.
  if (marks != 0) part[layout.any_marks] = 1;
}

SAGE_NOINLINE void StoreTokens(const CacheView& cache, const NewTokens& tokens, int64_t head) {
  const KvCacheShape& shape = *cache.shape;
  const PageLayout layout = LayoutOf(shape);
  const float* k = tokens.k + head * tokens.tokens * shape.qk_dim;
  const float* v = tokens.v + head * tokens.tokens * shape.v_dim;
  const int qk_dim = static_cast<int>(shape.qk_dim), v_dim = static_cast<int>(shape.v_dim);
  for (int64_t n = 0; n < tokens.tokens; ++n) {
    const int64_t at = tokens.first + n;
    const int t = static_cast<int>(at % kPageTokens);
    uint8_t* part = cache.pages[at / kPageTokens] + head * layout.head_bytes;
    if (shape.form != CacheForm::kFloat32) {
      StorePackedToken(layout, part, t, k + n * qk_dim, cache.k_mean + head * qk_dim, qk_dim,
                       v + n * v_dim, v_dim);
    } else {
      memcpy(part + t * qk_dim * 4, k + n * qk_dim, static_cast<size_t>(qk_dim) * 4);
      memcpy(part + layout.v + t * v_dim * 4, v + n * v_dim, static_cast<size_t>(v_dim) * 4);
    }
  }
}

}  // namespace
}  // namespace sage

#endif  // SAGE_CPU_CACHE_STORE_TOKENS_H_
