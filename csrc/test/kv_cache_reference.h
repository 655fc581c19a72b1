// Attention in float64, and how far a result is from it.
#ifndef SAGE_TEST_KV_CACHE_REFERENCE_H_
#define SAGE_TEST_KV_CACHE_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "test/kv_cache_cases.h"

namespace sage_test {

// docs/numerics.md 1 and 2 in float64.
inline void Reference(const Data& data, std::vector<double>* o, std::vector<double>* lse) {
  const Problem& p = data.p;
  const auto finite = [](const float* x, int64_t n) {
    return std::all_of(x, x + n, [](float y) { return std::isfinite(y); });
  };
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.q_heads; ++h) {
      const int64_t kv_head = b * p.kv_heads + h / p.group();
      const float* k = data.k.data() + kv_head * p.kv_len * p.qk_dim;
      const float* v = data.v.data() + kv_head * p.kv_len * p.v_dim;
      for (int64_t i = 0; i < p.q_len; ++i) {
        const float* q = data.q.data() + ((b * p.q_heads + h) * p.q_len + i) * p.qk_dim;
        std::vector<double> s(static_cast<size_t>(p.kv_len), -INFINITY);
        std::vector<double> sums(static_cast<size_t>(p.v_dim));
        bool nan_row = !finite(q, p.qk_dim);
        double m = -INFINITY, l = 0;
        bool any = false;
        for (int64_t j = p.FirstKey(i); j < p.EndKey(i); ++j) {
          double add = 0;
          if (p.mask_kind == MaskKind::kBoolean && !data.boolean[i * p.kv_len + j]) continue;
          if (p.mask_kind == MaskKind::kAdditive) add = data.additive[i * p.kv_len + j];
          if (add == -INFINITY) continue;
          any = true;
          if (!finite(k + j * p.qk_dim, p.qk_dim)) nan_row = true;
          double dot = 0;
          for (int64_t d = 0; d < p.qk_dim; ++d)
            dot += static_cast<double>(q[d]) * static_cast<double>(k[j * p.qk_dim + d]);
          s[j] = dot * p.scale + add;
          m = std::max(m, s[j]);
        }
        for (int64_t j = 0; any && !nan_row && j < p.kv_len; ++j) {
          if (s[j] == -INFINITY) continue;
          const double e = std::exp(s[j] - m);
          l += e;
          for (int64_t d = 0; d < p.v_dim; ++d) {
            const float x = v[j * p.v_dim + d];
            sums[d] += std::isfinite(x) ? e * x : NAN;
          }
        }
        for (int64_t d = 0; d < p.v_dim; ++d) o->push_back(!any ? 0 : nan_row ? NAN : sums[d] / l);
        lse->push_back(!any ? -INFINITY : nan_row ? NAN : m + std::log(l));
      }
    }
  }
}

// Relative L1 over finite values; infinite where the two differ in what is finite.
inline double RelativeL1(const std::vector<float>& x, const std::vector<double>& y) {
  double error = 0, norm = 1e-30;
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(y[i]) || std::isinf(y[i])) {
      const bool same = std::isnan(y[i]) ? std::isnan(x[i]) : static_cast<double>(x[i]) == y[i];
      if (!same) return INFINITY;
      continue;
    }
    if (!std::isfinite(x[i])) return INFINITY;
    error += std::fabs(static_cast<double>(x[i]) - y[i]);
    norm += std::fabs(y[i]);
  }
  return error / norm;
}

}  // namespace sage_test

#endif  // SAGE_TEST_KV_CACHE_REFERENCE_H_
