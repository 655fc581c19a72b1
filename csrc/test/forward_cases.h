// Inputs and references for tests and benchmarks of the forward pass in C++.
#ifndef SAGE_TEST_FORWARD_CASES_H_
#define SAGE_TEST_FORWARD_CASES_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "sage/attention.h"
#include "sage/problem.h"

namespace sage_test {

// The tuned forms of the recipes that CPUs have kernels for (src/numerics/recipes.ts).
inline sage::Recipe RecipeOf(sage::Precision precision) {
  sage::Recipe r = {};
  r.precision = precision;
  r.variant = sage::Variant::kTuned;
  r.q_group = r.k_group = sage::TokenGroup::kToken;
  r.rounding = sage::Rounding::kEven;
  r.pv_accumulator = sage::PvAccumulator::kFp32;
  r.p_top = 1.0f;
  if (precision == sage::Precision::kExact) return r;
  r.qk = sage::QkFormat::kInt8;
  r.smooth_k = true;
  if (precision == sage::Precision::kInt16 || precision == sage::Precision::kInt8Int16) {
    const bool words = precision == sage::Precision::kInt16;
    r.qk = words ? sage::QkFormat::kInt16 : sage::QkFormat::kInt8Pair;
    r.pv = sage::PvFormat::kInt16;
    r.v_scale = sage::VScale::kChannel;
    r.row_sum = sage::RowSum::kQuantized;
    r.p_top = 8192.0f;
    r.v_top = 2047.0f;
  } else if (precision == sage::Precision::kInt8) {
    r.pv = sage::PvFormat::kInt8;
    r.v_scale = sage::VScale::kChannel;
    r.row_sum = sage::RowSum::kQuantized;
    r.p_top = 255.0f;
    r.v_top = 127.0f;
  } else {
    r.pv = sage::PvFormat::kBf16;
    r.v_scale = sage::VScale::kNone;
    r.row_sum = sage::RowSum::kExact;
  }
  return r;
}

struct ForwardCase {
  std::string name;
  int64_t batch = 1, heads = 2, kv_heads = 2, q_len = 64, kv_len = 64, dim = 64, v_dim = 64;
  sage::Causal causal = sage::Causal::kNone;
  int64_t left = -1, right = -1;
  sage::MaskKind mask = sage::MaskKind::kNone;
  bool token_major = false;  // [B,N,H,D] with gaps between rows instead of [B,H,N,D]
  bool smooth_v = false, negative_scale = false, lse = true;
  bool not_finite = false;  // some NaN and Infinity in q, k and v
  bool mask_nan = false;    // one NaN in an additive mask
  bool peaky = false;       // large scores: maxima move and most p are 0
  double steep = 1.0;       // multiplies scores
};

struct ForwardData {
  sage::Problem p = {};
  std::vector<float> q, k, v, additive;
  std::vector<uint8_t> allowed;
  const void* mask() const {
    if (!allowed.empty()) return allowed.data();
    return additive.empty() ? nullptr : static_cast<const void*>(additive.data());
  }
  size_t o_elements() const {
    return static_cast<size_t>(p.batch * p.q_heads * p.q_len * (p.v_dim + 3));
  }
};

inline sage::TokenStrides StridesOf(bool token_major, int64_t heads, int64_t tokens, int64_t dim) {
  // Three elements lie between rows, so that a read or write beyond one shows.
  const int64_t row = dim + 3;
  if (token_major) return {tokens * heads * row, row, heads * row};
  return {heads * tokens * row, tokens * row, row};
}

inline ForwardData MakeData(const ForwardCase& c, sage::Precision precision, uint32_t seed) {
  ForwardData d;
  sage::Problem& p = d.p;
  p.batch = c.batch;
  p.q_heads = c.heads;
  p.kv_heads = c.kv_heads;
  p.q_len = c.q_len;
  p.kv_len = c.kv_len;
  p.qk_dim = c.dim;
  p.v_dim = c.v_dim;
  p.q = StridesOf(c.token_major, c.heads, c.q_len, c.dim);
  p.k = StridesOf(c.token_major, c.kv_heads, c.kv_len, c.dim);
  p.v = StridesOf(c.token_major, c.kv_heads, c.kv_len, c.v_dim);
  p.o = StridesOf(c.token_major, c.heads, c.q_len, c.v_dim);
  p.scale = (c.negative_scale ? -1.0 : 1.0) * (c.peaky ? 6.0 : 1.0) * c.steep /
            std::sqrt(static_cast<double>(c.dim));
  p.causal = c.causal;
  p.window_left = c.left;
  p.window_right = c.causal == sage::Causal::kNone ? c.right : 0;
  p.mask_kind = c.mask;
  p.want_lse = c.lse;
  p.recipe = RecipeOf(precision);
  if (c.smooth_v) p.recipe.smooth_v = 128;

  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const auto fill = [&](std::vector<float>* x, int64_t heads, int64_t tokens, int64_t dim) {
    x->resize(static_cast<size_t>(c.batch * heads * tokens * (dim + 3)));
    // Large inputs repeat themselves: drawing them would take longer than what is timed.
    constexpr size_t kDrawn = 1000003;
    for (size_t i = 0; i < x->size(); ++i) {
      (*x)[i] = i < kDrawn ? normal(random) : (*x)[i - kDrawn];
    }
  };
  fill(&d.q, c.heads, c.q_len, c.dim);
  fill(&d.k, c.kv_heads, c.kv_len, c.dim);
  fill(&d.v, c.kv_heads, c.kv_len, c.v_dim);
  // A bias per channel, as trained models have it: what smoothing is for.
  for (size_t i = 0; i < d.k.size(); ++i) {
    if (i % static_cast<size_t>(c.dim + 3) % 8 == 3) d.k[i] += 4.0f;
  }
  if (c.not_finite) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float inf = std::numeric_limits<float>::infinity();
    const auto put = [&](std::vector<float>* x, const sage::TokenStrides& at, int64_t token,
                         float value) { (*x)[static_cast<size_t>(token * at.token + 5)] = value; };
    put(&d.q, p.q, c.q_len / 3, nan);
    put(&d.k, p.k, c.kv_len - 2, inf);
    put(&d.v, p.v, c.kv_len / 2, -inf);
  }
  if (c.mask == sage::MaskKind::kNone) return d;
  // Shared by batches, one per head.
  p.mask = {0, c.q_len * c.kv_len, c.kv_len, 1};
  const size_t count = static_cast<size_t>(c.heads * c.q_len * c.kv_len);
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  if (c.mask == sage::MaskKind::kBoolean) {
    d.allowed.resize(count);
    for (uint8_t& x : d.allowed) x = uniform(random) < 0.6f;
    // Rows that attend to nothing.
    for (int64_t i = 0; i < c.q_len; i += 5) {
      std::memset(d.allowed.data() + i * c.kv_len, 0, static_cast<size_t>(c.kv_len));
    }
  } else {
    d.additive.resize(count);
    for (float& x : d.additive) {
      x = uniform(random) < 0.2f ? -std::numeric_limits<float>::infinity() : normal(random);
    }
    if (c.mask_nan) d.additive[0] = std::numeric_limits<float>::quiet_NaN();
  }
  return d;
}

struct ForwardResult {
  std::vector<float> o, lse;
};

// Whether query i may see key j, by causality, window and mask; *added is the mask's value.
inline bool Sees(const ForwardData& d, int64_t h, int64_t i, int64_t j, double* added) {
  const sage::Problem& p = d.p;
  *added = 0.0;
  if (j < p.FirstKey(i) || j >= p.EndKey(i)) return false;
  const size_t at = static_cast<size_t>(h * p.mask.head + i * p.mask.query + j * p.mask.key);
  if (p.mask_kind == sage::MaskKind::kBoolean) return d.allowed[at] != 0;
  if (p.mask_kind == sage::MaskKind::kAdditive) *added = static_cast<double>(d.additive[at]);
  return *added != -std::numeric_limits<double>::infinity();
}

// Attention in float64, o with the strides of the problem; only for finite inputs.
inline std::vector<double> Reference(const ForwardData& d, std::vector<double>* lse) {
  const sage::Problem& p = d.p;
  std::vector<double> o(d.o_elements(), 0.0), s(static_cast<size_t>(p.kv_len));
  lse->assign(static_cast<size_t>(p.batch * p.q_heads * p.q_len), 0.0);
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.q_heads; ++h) {
      const int64_t kv = h / p.group();
      for (int64_t i = 0; i < p.q_len; ++i) {
        const float* q = d.q.data() + b * p.q.batch + h * p.q.head + i * p.q.token;
        double most = -std::numeric_limits<double>::infinity(), sum = 0.0;
        for (int64_t j = 0; j < p.kv_len; ++j) {
          const float* k = d.k.data() + b * p.k.batch + kv * p.k.head + j * p.k.token;
          double added, dot = 0.0;
          if (!Sees(d, h, i, j, &added)) {
            s[static_cast<size_t>(j)] = -std::numeric_limits<double>::infinity();
            continue;
          }
          for (int64_t x = 0; x < p.qk_dim; ++x) {
            dot += static_cast<double>(q[x]) * static_cast<double>(k[x]);
          }
          s[static_cast<size_t>(j)] = dot * p.scale + added;
          most = std::max(most, s[static_cast<size_t>(j)]);
        }
        double* out = o.data() + b * p.o.batch + h * p.o.head + i * p.o.token;
        double* row_lse = lse->data() + (b * p.q_heads + h) * p.q_len + i;
        *row_lse = most;
        if (most == -std::numeric_limits<double>::infinity()) continue;
        for (int64_t j = 0; j < p.kv_len; ++j) {
          const double weight = std::exp(s[static_cast<size_t>(j)] - most);
          if (weight == 0.0) continue;
          sum += weight;
          const float* v = d.v.data() + b * p.v.batch + kv * p.v.head + j * p.v.token;
          for (int64_t x = 0; x < p.v_dim; ++x) out[x] += weight * static_cast<double>(v[x]);
        }
        for (int64_t x = 0; x < p.v_dim; ++x) out[x] /= sum;
        *row_lse = most + std::log(sum);
      }
    }
  }
  return o;
}

}  // namespace sage_test

#endif  // SAGE_TEST_FORWARD_CASES_H_
