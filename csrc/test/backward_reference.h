// Inputs and expected gradients of the backward pass, in float64 by docs/numerics.md sections 1
// and 2.
//
// Only visible pairs are visited, so what is not finite goes exactly where IEEE arithmetic on the
// definition takes it.
#ifndef SAGE_TEST_BACKWARD_REFERENCE_H_
#define SAGE_TEST_BACKWARD_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "sage/problem.h"

namespace sage_test {

using sage::Causal;
using sage::MaskKind;
using sage::Problem;
using sage::TokenStrides;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Random {
  uint64_t state;
  uint64_t Next() {  // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double Uniform() { return (static_cast<double>(Next() >> 11) + 0.5) / 9007199254740992.0; }
  float Normal() {
    const double radius = std::sqrt(-2 * std::log(Uniform()));
    return static_cast<float>(radius * std::cos(6.283185307179586 * Uniform()));
  }
};

struct Case {
  const char* name;
  int64_t batch = 1, heads = 1, kv_heads = 1, q_len = 17, kv_len = 17, qk_dim = 8, v_dim = 8;
  Causal causal = Causal::kNone;
  int64_t left = -1, right = -1;
  MaskKind mask = MaskKind::kNone;
  const char* mask_axes = "bhqk";  // axes that the mask has; the others are broadcast
  bool tokens_first = false;       // [B,N,H,D]
  bool d_lse = false;
  double scale = 0;  // 0 = 1/sqrt(qk_dim)
  char poison = 0;   // 'q', 'k', 'v' or 'o' (of dO): some values are not finite
};

inline TokenStrides StridesOf(bool tokens_first, int64_t heads, int64_t tokens, int64_t dim) {
  if (tokens_first) return {tokens * heads * dim, dim, heads * dim};
  return {heads * tokens * dim, tokens * dim, dim};
}

struct Data {
  Problem p = {};
  std::vector<float> q, k, v, o, lse, d_o, d_lse, mask_values;
  std::vector<uint8_t> mask_bits;
  int64_t mask_elements = 0;
  // What is expected, and the sums of magnitudes that rounding errors are measured by.
  std::vector<double> d_q, d_k, d_v, d_mask;
  double size_q = 0, size_k = 0, size_v = 0, size_mask = 0;

  int64_t Q(int64_t b, int64_t h, int64_t i) const {
    return b * p.q.batch + h * p.q.head + i * p.q.token;
  }
  int64_t K(int64_t b, int64_t h, int64_t j) const {
    return b * p.k.batch + h * p.k.head + j * p.k.token;
  }
  int64_t V(int64_t b, int64_t h, int64_t j) const {
    return b * p.v.batch + h * p.v.head + j * p.v.token;
  }
  int64_t O(int64_t b, int64_t h, int64_t i) const {
    return b * p.o.batch + h * p.o.head + i * p.o.token;
  }
  int64_t Mask(int64_t b, int64_t h, int64_t i, int64_t j) const {
    return b * p.mask.batch + h * p.mask.head + i * p.mask.query + j * p.mask.key;
  }
  bool Sees(int64_t b, int64_t h, int64_t i, int64_t j) const {
    if (j < p.FirstKey(i) || j >= p.EndKey(i)) return false;
    if (p.mask_kind == MaskKind::kBoolean) return mask_bits[Mask(b, h, i, j)] != 0;
    if (p.mask_kind == MaskKind::kAdditive) return mask_values[Mask(b, h, i, j)] != -INFINITY;
    return true;
  }
};

inline bool Finite(const float* x, int64_t count) {
  for (int64_t d = 0; d < count; ++d) {
    if (!std::isfinite(x[d])) return false;
  }
  return true;
}

inline void Poison(const Case& c, Data* data) {
  const Problem& p = data->p;
  std::vector<float>& x = c.poison == 'q'   ? data->q
                          : c.poison == 'k' ? data->k
                          : c.poison == 'v' ? data->v
                                            : data->d_o;
  const int64_t at = c.poison == 'q'   ? data->Q(0, 0, p.q_len / 2)
                     : c.poison == 'k' ? data->K(0, 0, p.kv_len / 2)
                     : c.poison == 'v' ? data->V(0, 0, p.kv_len / 2)
                                       : data->O(0, 0, p.q_len / 2);
  x[at] = NAN;
  x[at + 1] = INFINITY;
}

// Fills inputs; o, lse and the expected gradients follow in float64 (docs/numerics.md sections 1
// and 2).
inline Data MakeData(const Case& c) {
  Data data;
  Problem& p = data.p;
  p.batch = c.batch;
  p.q_heads = c.heads;
  p.kv_heads = c.kv_heads;
  p.q_len = c.q_len;
  p.kv_len = c.kv_len;
  p.qk_dim = c.qk_dim;
  p.v_dim = c.v_dim;
  p.q = StridesOf(c.tokens_first, c.heads, c.q_len, c.qk_dim);
  p.k = StridesOf(c.tokens_first, c.kv_heads, c.kv_len, c.qk_dim);
  p.v = StridesOf(c.tokens_first, c.kv_heads, c.kv_len, c.v_dim);
  p.o = StridesOf(c.tokens_first, c.heads, c.q_len, c.v_dim);
  p.scale = c.scale == 0 ? 1 / std::sqrt(static_cast<double>(c.qk_dim)) : c.scale;
  p.causal = c.causal;
  p.window_left = c.left;
  p.window_right = c.causal == Causal::kNone ? c.right : 0;
  p.mask_kind = c.mask;

  Random random{static_cast<uint64_t>(c.q_len * 131 + c.kv_len * 17 + c.qk_dim)};
  const auto fill = [&](std::vector<float>* x, int64_t count) {
    x->resize(count);
    for (float& value : *x) value = random.Normal();
  };
  fill(&data.q, p.batch * p.q_heads * p.q_len * p.qk_dim);
  fill(&data.k, p.batch * p.kv_heads * p.kv_len * p.qk_dim);
  fill(&data.v, p.batch * p.kv_heads * p.kv_len * p.v_dim);
  fill(&data.d_o, p.batch * p.q_heads * p.q_len * p.v_dim);
  if (c.d_lse) fill(&data.d_lse, p.batch * p.q_heads * p.q_len);
  if (c.mask != MaskKind::kNone) {
    const int64_t extents[4] = {p.batch, p.q_heads, p.q_len, p.kv_len};
    int64_t* strides[4] = {&p.mask.batch, &p.mask.head, &p.mask.query, &p.mask.key};
    data.mask_elements = 1;
    for (int axis = 3; axis >= 0; --axis) {
      const bool has = std::strchr(c.mask_axes, "bhqk"[axis]) != nullptr;
      *strides[axis] = has ? data.mask_elements : 0;
      if (has) data.mask_elements *= extents[axis];
    }
    fill(&data.mask_values, data.mask_elements);
    data.mask_bits.resize(data.mask_elements);
    for (int64_t n = 0; n < data.mask_elements; ++n) {
      data.mask_bits[n] = random.Uniform() < 0.6;
      if (random.Uniform() < 0.2) data.mask_values[n] = -INFINITY;
    }
    if (p.mask.query != 0 && p.mask.key != 0 && p.q_len > 2) {  // rows that attend to nothing
      for (int64_t n = 0; n < data.mask_elements; ++n) {
        const int64_t i = n / p.mask.query % p.q_len;
        if (i % 5 == 2) {
          data.mask_bits[n] = 0;
          data.mask_values[n] = -INFINITY;
        }
      }
    }
  }
  if (c.poison != 0) Poison(c, &data);

  data.o.assign(data.d_o.size(), 0.0f);
  data.lse.assign(p.batch * p.q_heads * p.q_len, 0.0f);
  data.d_q.assign(data.q.size(), 0.0);
  data.d_k.assign(data.k.size(), 0.0);
  data.d_v.assign(data.v.size(), 0.0);
  data.d_mask.assign(data.mask_elements, 0.0);
  std::vector<double> s(p.kv_len), o(p.v_dim);
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.q_heads; ++h) {
      const int64_t g = h / p.group();
      for (int64_t i = 0; i < p.q_len; ++i) {
        const int64_t row = (b * p.q_heads + h) * p.q_len + i;
        const float* q = &data.q[data.Q(b, h, i)];
        const float* d_o = &data.d_o[data.O(b, h, i)];
        double top = -kInfinity;
        bool attends = false, bad = !Finite(q, p.qk_dim);
        for (int64_t j = 0; j < p.kv_len; ++j) {
          s[j] = -kInfinity;
          if (!data.Sees(b, h, i, j)) continue;
          const float* k = &data.k[data.K(b, g, j)];
          attends = true;
          bad = bad || !Finite(k, p.qk_dim);
          double dot = 0;
          for (int64_t d = 0; d < p.qk_dim; ++d) dot += double(q[d]) * k[d];
          s[j] = p.scale * dot;
          if (p.mask_kind == MaskKind::kAdditive) s[j] += data.mask_values[data.Mask(b, h, i, j)];
          top = std::max(top, s[j]);
        }
        if (!attends) {
          data.lse[row] = -INFINITY;
          continue;
        }
        double sum = 0;
        std::fill(o.begin(), o.end(), 0.0);
        for (int64_t j = 0; j < p.kv_len; ++j) {
          if (!data.Sees(b, h, i, j)) continue;
          const double weight = std::exp(s[j] - top);
          sum += weight;
          for (int64_t d = 0; d < p.v_dim; ++d) o[d] += weight * data.v[data.V(b, g, j) + d];
        }
        const double lse = bad ? kNaN : top + std::log(sum);
        data.lse[row] = static_cast<float>(lse);
        double delta = c.d_lse ? -data.d_lse[row] : 0.0;
        for (int64_t d = 0; d < p.v_dim; ++d) {
          o[d] = bad || !std::isfinite(o[d]) ? kNaN : o[d] / sum;
          data.o[data.O(b, h, i) + d] = static_cast<float>(o[d]);
          delta += o[d] * d_o[d];
        }
        for (int64_t j = 0; j < p.kv_len; ++j) {
          if (!data.Sees(b, h, i, j)) continue;
          const float* k = &data.k[data.K(b, g, j)];
          const float* v = &data.v[data.V(b, g, j)];
          const double weight = std::exp(s[j] - lse);
          double d_p = 0;
          for (int64_t d = 0; d < p.v_dim; ++d) d_p += double(d_o[d]) * v[d];
          const double d_s = weight * (d_p - delta);
          const double size = weight * (std::fabs(d_p) + std::fabs(delta));
          for (int64_t d = 0; d < p.qk_dim; ++d) {
            data.d_q[data.Q(b, h, i) + d] += p.scale * d_s * k[d];
            data.d_k[data.K(b, g, j) + d] += p.scale * d_s * q[d];
            data.size_q += std::fabs(p.scale) * size * std::fabs(k[d]);
            data.size_k += std::fabs(p.scale) * size * std::fabs(q[d]);
          }
          for (int64_t d = 0; d < p.v_dim; ++d) {
            data.d_v[data.V(b, g, j) + d] += weight * d_o[d];
            data.size_v += weight * std::fabs(d_o[d]);
          }
          if (p.mask_kind == MaskKind::kAdditive) {
            data.d_mask[data.Mask(b, h, i, j)] += d_s;
            data.size_mask += size;
          }
        }
      }
    }
  }
  return data;
}

}  // namespace sage_test

#endif  // SAGE_TEST_BACKWARD_REFERENCE_H_
