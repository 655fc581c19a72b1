// Problems, data and float64 attention for the runner of the Hopper kernels.
#ifndef SAGE_TEST_CUDA_SM90_PROBLEM_H_
#define SAGE_TEST_CUDA_SM90_PROBLEM_H_

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "formats/half.h"
#include "sage/problem.h"

namespace sage_test {

using sage::Causal;
using sage::MaskKind;
using sage::Problem;

// The tuned form of int8_fp8 (src/numerics/recipes.ts).
inline sage::Recipe TunedInt8Fp8() {
  sage::Recipe r = {};
  r.precision = sage::Precision::kInt8Fp8;
  r.variant = sage::Variant::kTuned;
  r.qk = sage::QkFormat::kInt8;
  r.pv = sage::PvFormat::kE4m3;
  r.smooth_k = true;
  r.smooth_q = 0;
  r.smooth_v = 128;
  r.q_group = sage::TokenGroup::kToken;
  r.k_group = sage::TokenGroup::kConsecutive32;
  r.v_scale = sage::VScale::kChannel;
  r.rounding = sage::Rounding::kEven;
  r.row_sum = sage::RowSum::kExact;
  r.p_top = 448.0f;
  r.v_top = 448.0f;
  r.pv_accumulator = sage::PvAccumulator::kFp32Fp32;
  return r;
}

struct Case {
  std::string name;
  int64_t batch = 1, heads = 2, kv_heads = 2, q_len = 129, kv_len = 129, qk_dim = 64, v_dim = 64;
  bool tokens_first = false;  // [B,N,H,D] instead of [B,H,N,D]
  int64_t padding = 0;        // elements between rows: strides and pointers off the widest loads
  Causal causal = Causal::kNone;
  int64_t left = -1, right = -1;
  MaskKind mask = MaskKind::kNone;
  std::string mask_axes = "bhqk";  // axes that are not broadcast
  double scale = 0.0;              // 0: 1 / sqrt(qk_dim)
  bool smooth_k = true, smooth_v = true;
  char poison = 0;  // q, k, v or m: some values are not finite
  float k_bias = 0.0f, v_bias = 0.0f, q_gain = 1.0f;
  bool constant_v = false;
  // Of all rows: key `heavy_key` has the score `heavy_score` (nats), and its v is this much larger.
  int64_t heavy_key = -1;
  float heavy_score = 0.0f, heavy_v = 1.0f;
  double slack = 1.5e-3;  // of the error, in which the recipe's may be passed beside chance
  sage::InputType input = sage::InputType::kFloat32;
};

// Uniform and normal numbers that depend on the seed only.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}
  uint64_t Next() {
    uint64_t x = state_ += 0x9E3779B97F4A7C15ull;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
  }
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }
  float Normal() {
    const double u = 1.0 - Uniform(), v = Uniform();
    return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v));
  }

 private:
  uint64_t state_;
};

// `x` rounded to the nearest value of the type, and its bits.
inline uint16_t RoundTo(sage::InputType type, float* x) {
  if (type == sage::InputType::kFloat16) {
    const uint16_t code = sage::EncodeFp16(*x);
    *x = sage::DecodeFp16(code);
    return code;
  }
  const uint16_t code = sage::EncodeBf16(*x);
  *x = sage::DecodeBf16(code);
  return code;
}

struct Data {
  Problem p;  // input: float32, whatever the case's
  std::vector<float> q, k, v, mask_values;
  // The same values in 16 bits, where the case has a 16-bit input type.
  sage::InputType narrow = sage::InputType::kFloat32;
  std::vector<uint16_t> q16, k16, v16;
  std::vector<uint8_t> mask_bytes;
  const void* mask() const {
    return p.mask_kind == MaskKind::kBoolean    ? static_cast<const void*>(mask_bytes.data())
           : p.mask_kind == MaskKind::kAdditive ? mask_values.data()
                                                : nullptr;
  }
  size_t mask_size() const { return mask_bytes.size() + mask_values.size() * sizeof(float); }
  int64_t o_elements() const {
    return sage::RequiredElements(p.o, p.batch, p.q_heads, p.q_len, p.v_dim);
  }
};

inline sage::TokenStrides StridesOf(const Case& c, int64_t heads, int64_t tokens, int64_t dim) {
  const int64_t row = dim + c.padding;
  if (c.tokens_first) return {tokens * heads * row, row, heads * row};
  return {heads * tokens * row, tokens * row, row};
}

inline Data MakeData(const Case& c, uint64_t seed) {
  Data data;
  Problem& p = data.p;
  p = {};
  p.batch = c.batch;
  p.q_heads = c.heads;
  p.kv_heads = c.kv_heads;
  p.q_len = c.q_len;
  p.kv_len = c.kv_len;
  p.qk_dim = c.qk_dim;
  p.v_dim = c.v_dim;
  p.q = StridesOf(c, c.heads, c.q_len, c.qk_dim);
  p.k = StridesOf(c, c.kv_heads, c.kv_len, c.qk_dim);
  p.v = StridesOf(c, c.kv_heads, c.kv_len, c.v_dim);
  p.o = StridesOf(c, c.heads, c.q_len, c.v_dim);
  p.scale = c.scale != 0.0 ? c.scale : 1.0 / std::sqrt(static_cast<double>(c.qk_dim));
  p.causal = c.causal;
  p.window_left = c.left;
  p.window_right = c.causal != Causal::kNone ? 0 : c.right;
  p.mask_kind = c.mask;
  p.want_lse = true;
  p.recipe = TunedInt8Fp8();
  p.recipe.smooth_k = c.smooth_k;
  p.recipe.smooth_v = c.smooth_v ? 128 : 0;
  Random random(seed);
  const auto fill = [&](std::vector<float>* x, const sage::TokenStrides& s, int64_t heads,
                        int64_t tokens, int64_t dim, float gain, float bias, char name) {
    x->assign(sage::RequiredElements(s, c.batch, heads, tokens, dim), 0.0f);
    std::vector<float> channel(dim);
    for (float& b : channel) b = bias * random.Normal();
    for (float& y : *x) y = gain * random.Normal();
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t t = 0; t < tokens; ++t)
          for (int64_t d = 0; d < dim; ++d) {
            float& y = (*x)[b * s.batch + h * s.head + t * s.token + d];
            y += channel[d];
            if (name == 'v' && c.constant_v) y = 1.0f + 0.01f * static_cast<float>(d);
          }
    if (c.poison != name || x->empty()) return;
    for (int n = 0; n < 3; ++n) {
      const int64_t t = static_cast<int64_t>(random.Next() % tokens);
      const int64_t at = random.Next() % c.batch * s.batch + random.Next() % heads * s.head +
                         t * s.token + static_cast<int64_t>(random.Next() % dim);
      (*x)[at] = n == 0 ? NAN : n == 1 ? INFINITY : -INFINITY;
    }
  };
  fill(&data.q, p.q, c.heads, c.q_len, c.qk_dim, c.q_gain, 0.0f, 'q');
  fill(&data.k, p.k, c.kv_heads, c.kv_len, c.qk_dim, 1.0f, c.k_bias, 'k');
  fill(&data.v, p.v, c.kv_heads, c.kv_len, c.v_dim, 1.0f, c.v_bias, 'v');
  if (c.heavy_key >= 0) {
    constexpr float kQuery = 4.0f;  // channel 0 of q, which k of that key has alone
    for (int64_t n = 0; n < c.batch * c.heads * c.q_len; ++n) {
      const int64_t head = n / c.q_len;
      data.q[head / c.heads * p.q.batch + head % c.heads * p.q.head + n % c.q_len * p.q.token] =
          kQuery;
    }
    for (int64_t n = 0; n < c.batch * c.kv_heads; ++n) {
      const auto row = [&](const sage::TokenStrides& s) {
        return n / c.kv_heads * s.batch + n % c.kv_heads * s.head + c.heavy_key * s.token;
      };
      for (int64_t d = 0; d < c.qk_dim; ++d) data.k[row(p.k) + d] = 0.0f;
      data.k[row(p.k)] = c.heavy_score / (kQuery * static_cast<float>(p.scale));
      for (int64_t d = 0; d < c.v_dim; ++d) data.v[row(p.v) + d] *= c.heavy_v;
    }
  }
  if (c.input != sage::InputType::kFloat32) {
    data.narrow = c.input;
    const auto round = [&](std::vector<float>* x, std::vector<uint16_t>* bits) {
      for (float& y : *x) bits->push_back(RoundTo(c.input, &y));
    };
    round(&data.q, &data.q16);
    round(&data.k, &data.k16);
    round(&data.v, &data.v16);
  }
  if (c.mask == MaskKind::kNone) return data;
  const auto has = [&](char axis) { return c.mask_axes.find(axis) != std::string::npos; };
  int64_t size = 1;
  const auto axis = [&](char name, int64_t length) {
    const int64_t stride = has(name) ? size : 0;
    if (has(name)) size *= length;
    return stride;
  };
  p.mask.key = axis('k', c.kv_len);
  p.mask.query = axis('q', c.q_len);
  p.mask.head = axis('h', c.heads);
  p.mask.batch = axis('b', c.batch);
  if (c.mask == MaskKind::kBoolean) {
    data.mask_bytes.resize(size);
    for (uint8_t& x : data.mask_bytes) x = random.Uniform() < 0.6 ? 1 : 0;
    // Some rows see nothing.
    if (p.mask.query != 0) {
      for (int64_t j = 0; j < c.kv_len; ++j)
        data.mask_bytes[c.q_len / 2 * p.mask.query + j * p.mask.key] = 0;
    }
  } else {
    data.mask_values.resize(size);
    for (float& x : data.mask_values) {
      x = random.Uniform() < 0.3 ? -std::numeric_limits<float>::infinity() : 2.0f * random.Normal();
    }
    if (c.poison == 'm') {
      data.mask_values[random.Next() % size] = NAN;
      data.mask_values[random.Next() % size] = INFINITY;
    }
  }
  return data;
}

// One row of exact attention in float64 (docs/numerics.md 1 and 2); returns lse.
inline double ExactRow(const Data& data, int64_t b, int64_t h, int64_t i, std::vector<double>* o) {
  const Problem& p = data.p;
  const int64_t kv = h / p.group(), dim = p.qk_dim;
  const float* q = data.q.data() + b * p.q.batch + h * p.q.head + i * p.q.token;
  const float* k = data.k.data() + b * p.k.batch + kv * p.k.head;
  const float* v = data.v.data() + b * p.v.batch + kv * p.v.head;
  const int64_t mask = b * p.mask.batch + h * p.mask.head + i * p.mask.query;
  std::vector<int64_t> keys;
  std::vector<double> score;
  double most = -INFINITY;
  for (int64_t j = p.FirstKey(i); j < p.EndKey(i); ++j) {
    double bias = 0.0;
    if (p.mask_kind == MaskKind::kBoolean && data.mask_bytes[mask + j * p.mask.key] == 0) continue;
    if (p.mask_kind == MaskKind::kAdditive) bias = data.mask_values[mask + j * p.mask.key];
    if (bias == -INFINITY) continue;
    double dot = 0.0;
    for (int64_t d = 0; d < dim; ++d) dot += static_cast<double>(q[d]) * k[j * p.k.token + d];
    const double s = std::isfinite(dot) ? p.scale * dot + bias : NAN;
    keys.push_back(j);
    score.push_back(s);
    most = s > most ? s : most;
  }
  o->assign(p.v_dim, 0.0);
  double sum = 0.0;
  for (size_t n = 0; n < keys.size(); ++n) {
    const double e = std::exp(score[n] - most);
    sum += e;
    for (int64_t d = 0; d < p.v_dim; ++d) {
      const double x = v[keys[n] * p.v.token + d];
      (*o)[d] += std::isfinite(x) ? e * x : NAN;
    }
  }
  if (keys.empty()) return -INFINITY;
  for (double& x : *o) x = std::isnan(sum) || std::isinf(most) ? NAN : x / sum;
  return std::isnan(sum) || std::isinf(most) ? NAN : most + std::log(sum);
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_SM90_PROBLEM_H_
