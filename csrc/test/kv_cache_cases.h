// The problems that caches and decoding are checked on, their data, and outputs to compare.
#ifndef SAGE_TEST_KV_CACHE_CASES_H_
#define SAGE_TEST_KV_CACHE_CASES_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "sage/attention.h"

namespace sage_test {

using sage::Causal;
using sage::MaskKind;
using sage::Problem;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Random {
  uint64_t state;
  double Uniform() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state >> 11) / 9007199254740992.0;
  }
  float Normal() {
    // Near enough: variance 1, bell-shaped, one step of the generator.
    const double u = Uniform();
    const double a = u * 65536.0, b = (a - std::floor(a)) * 65536.0, c = b - std::floor(b);
    return static_cast<float>((std::floor(a) / 65536.0 + std::floor(b) / 65536.0 + c - 1.5) * 2.0);
  }
};

struct Case {
  const char* name;
  int64_t batch, q_heads, kv_heads, q_len, kv_len, qk_dim, v_dim;
  Causal causal = Causal::kBottomRight;
  int64_t window_left = -1;
  MaskKind mask = MaskKind::kNone;
  double scale = 0;  // 0: 1 / sqrt(D)
  bool odd = false;  // NaN and Infinity in q, k and v
  bool infinite =
      false;            // one key is -Infinity where every q is positive: its scores are -Infinity
  bool hidden = false;  // the mask hides every key of some rows
};

const Case kCases[] = {
    {"one key", 1, 1, 1, 1, 1, 64, 64},
    {"17", 1, 2, 2, 1, 17, 64, 64},
    {"D 1", 1, 2, 1, 2, 33, 1, 3},
    {"127, odd dims", 2, 3, 3, 1, 127, 17, 80},
    {"129", 1, 4, 2, 2, 129, 80, 17},
    {"1000, group 4", 1, 8, 2, 1, 1000, 128, 128},
    {"1000, 3 rows", 1, 3, 1, 1, 1000, 64, 64},
    {"2050, 5 queries", 1, 2, 2, 5, 2050, 64, 32},
    {"1500, 16 queries, group 3", 1, 3, 1, 16, 1500, 40, 48},
    {"6 rows of a group, odd dims", 2, 12, 2, 1, 700, 21, 35},
    {"9 rows", 1, 3, 1, 3, 520, 33, 47},
    {"13 rows", 1, 1, 1, 13, 300, 24, 72},
    {"33 rows of a group", 1, 6, 2, 11, 400, 40, 16},
    {"one row", 1, 4, 4, 1, 1100, 128, 128},
    {"one row, boolean mask", 1, 2, 2, 1, 613, 96, 256, Causal::kNone, -1, MaskKind::kBoolean},
    {"one row, window", 1, 2, 2, 1, 1300, 256, 96, Causal::kBottomRight, 200},
    {"one row, other v_dim", 2, 1, 1, 1, 1031, 64, 40},
    {"one row, not finite", 1, 4, 4, 1, 700, 64, 128, Causal::kBottomRight, -1, MaskKind::kBoolean,
     0, true},
    {"2 rows, panels", 1, 2, 1, 1, 905, 128, 128},
    {"2 rows, D 256", 1, 2, 2, 2, 415, 256, 256},
    {"2 rows, other v_dim", 1, 1, 1, 2, 300, 128, 64},
    {"3 rows, panels", 1, 3, 1, 1, 700, 96, 96},
    {"3 rows, window", 1, 1, 1, 3, 903, 128, 256, Causal::kBottomRight, 300},
    {"4 rows, D 96", 1, 4, 1, 1, 277, 96, 64},
    {"4 rows, boolean mask", 1, 4, 2, 2, 650, 256, 128, Causal::kNone, -1, MaskKind::kBoolean},
    {"5 rows", 1, 5, 1, 1, 700, 64, 64},
    {"5 rows, panels", 2, 1, 1, 5, 333, 96, 128},
    {"6 rows, D 256", 1, 6, 2, 2, 400, 256, 256},
    {"6 rows, not finite", 1, 6, 1, 1, 700, 128, 96, Causal::kBottomRight, -1, MaskKind::kBoolean,
     0, true},
    {"5 rows, infinite key", 1, 1, 1, 5, 300, 64, 64, Causal::kBottomRight, -1, MaskKind::kNone, 0,
     false, true},
    {"100 rows, odd dims", 1, 2, 1, 50, 700, 19, 21},
    {"128 rows", 1, 8, 2, 32, 2100, 128, 64},
    {"40 rows, boolean mask", 1, 2, 1, 20, 600, 64, 64, Causal::kNone, -1, MaskKind::kBoolean},
    {"60 rows, window", 1, 2, 1, 30, 900, 64, 64, Causal::kBottomRight, 100},
    {"chunk of 130", 1, 4, 2, 130, 700, 64, 64},
    {"130 queries alone", 1, 2, 1, 130, 130, 64, 100},
    {"more queries than keys", 1, 2, 2, 20, 7, 32, 32},
    {"D 512", 1, 1, 1, 3, 260, 512, 512},
    {"window", 1, 2, 2, 3, 1300, 64, 64, Causal::kBottomRight, 200},
    {"window of itself", 1, 2, 1, 9, 300, 64, 64, Causal::kBottomRight, 0},
    {"not causal", 2, 2, 1, 4, 300, 64, 64, Causal::kNone},
    {"top left", 1, 2, 1, 40, 300, 64, 64, Causal::kTopLeft},
    {"boolean mask", 2, 4, 2, 3, 1100, 64, 64, Causal::kBottomRight, -1, MaskKind::kBoolean},
    {"additive mask", 1, 4, 2, 7, 400, 64, 64, Causal::kNone, -1, MaskKind::kAdditive},
    {"hidden rows", 1, 2, 1, 4, 1100, 64, 64, Causal::kNone, -1, MaskKind::kBoolean, 0, false,
     false, true},
    {"negative scale", 1, 2, 1, 2, 300, 64, 64, Causal::kBottomRight, -1, MaskKind::kNone, -0.2},
    {"not finite", 2, 4, 2, 3, 1100, 64, 64, Causal::kBottomRight, -1, MaskKind::kBoolean, 0, true},
    {"not finite, 24 rows", 1, 4, 2, 12, 700, 64, 64, Causal::kBottomRight, -1, MaskKind::kBoolean,
     0, true},
    {"infinite key", 1, 2, 1, 2, 300, 64, 64, Causal::kBottomRight, -1, MaskKind::kNone, 0, false,
     true},
    {"one row, infinite key", 1, 2, 2, 1, 300, 64, 64, Causal::kBottomRight, -1, MaskKind::kNone, 0,
     false, true},
    {"not finite, chunk", 1, 2, 1, 70, 300, 48, 24, Causal::kBottomRight, -1, MaskKind::kNone, 0,
     true},
};

struct Data {
  Problem p = {};
  std::vector<float> q, k, v, additive;
  std::vector<uint8_t> boolean;
  const void* mask() const {
    if (p.mask_kind == MaskKind::kBoolean) return boolean.data();
    return p.mask_kind == MaskKind::kAdditive ? additive.data() : nullptr;
  }
};

inline sage::TokenStrides Strides(int64_t heads, int64_t tokens, int64_t dim) {
  return {heads * tokens * dim, tokens * dim, dim};
}

inline Data MakeData(const Case& c) {
  Data data;
  Problem& p = data.p;
  p.batch = c.batch;
  p.q_heads = c.q_heads;
  p.kv_heads = c.kv_heads;
  p.q_len = c.q_len;
  p.kv_len = c.kv_len;
  p.qk_dim = c.qk_dim;
  p.v_dim = c.v_dim;
  p.q = Strides(c.q_heads, c.q_len, c.qk_dim);
  p.k = Strides(c.kv_heads, c.kv_len, c.qk_dim);
  p.v = Strides(c.kv_heads, c.kv_len, c.v_dim);
  p.o = Strides(c.q_heads, c.q_len, c.v_dim);
  p.scale = c.scale != 0 ? c.scale : 1.0 / std::sqrt(static_cast<double>(c.qk_dim));
  p.causal = c.causal;
  p.window_left = c.window_left;
  p.window_right = c.causal == Causal::kNone ? -1 : 0;
  p.mask_kind = c.mask;
  p.mask = {0, 0, 0, 0};
  p.want_lse = true;
  p.recipe.precision = sage::Precision::kExact;
  p.recipe.p_top = 1.0f;
  Random random{static_cast<uint64_t>(c.kv_len * 131 + c.qk_dim)};
  const auto fill = [&](std::vector<float>* x, int64_t count, float shift) {
    x->resize(static_cast<size_t>(count));
    for (size_t i = 0; i < x->size(); ++i) (*x)[i] = random.Normal() + shift * ((i & 7) == 3);
  };
  fill(&data.q, c.batch * c.q_heads * c.q_len * c.qk_dim, 0);
  fill(&data.k, c.batch * c.kv_heads * c.kv_len * c.qk_dim, 5);  // some channels far from 0
  fill(&data.v, c.batch * c.kv_heads * c.kv_len * c.v_dim, 0);
  if (c.mask != MaskKind::kNone) {
    p.mask = {0, 0, c.kv_len, 1};
    for (int64_t n = 0; n < c.q_len * c.kv_len; ++n) {
      const bool hide = random.Uniform() < 0.2 || (c.hidden && n / c.kv_len % 2 == 1);
      data.boolean.push_back(!hide);
      data.additive.push_back(hide ? -kInf : random.Normal());
    }
  }
  if (c.infinite) {
    data.k[static_cast<size_t>(7 * c.qk_dim + 2)] = -kInf;
    for (int64_t row = 0; row < c.q_heads * c.q_len; ++row) {
      float& x = data.q[static_cast<size_t>(row * c.qk_dim + 2)];
      x = std::fabs(x);
    }
  }
  if (c.odd) {
    data.q[static_cast<size_t>(c.qk_dim + 1)] = kNan;
    data.k[static_cast<size_t>(7 * c.qk_dim)] = -kInf;
    data.k[static_cast<size_t>((c.kv_len - 2) * c.qk_dim + 2)] = kNan;
    data.v[static_cast<size_t>(9 * c.v_dim + 1)] = kInf;
    data.v[static_cast<size_t>(40 * c.v_dim + 5)] = kNan;
    if (!data.boolean.empty()) {
      // Query 0 hides both keys that are not finite, query 1 sees the Infinity alone.
      data.boolean[7] = data.boolean[static_cast<size_t>(c.kv_len - 2)] = 0;
      if (c.q_len > 1) {
        data.boolean[static_cast<size_t>(c.kv_len + 7)] = 1;
        data.boolean[static_cast<size_t>(2 * c.kv_len - 2)] = 0;
      }
    }
  }
  return data;
}

struct Outputs {
  std::vector<float> o, lse;
  explicit Outputs(const Problem& p)
      : o(static_cast<size_t>(p.batch * p.q_heads * p.q_len * p.v_dim), 1e30f),
        lse(static_cast<size_t>(p.batch * p.q_heads * p.q_len), 1e30f) {}
  bool operator==(const Outputs& other) const {
    return o.size() == other.o.size() &&
           std::memcmp(o.data(), other.o.data(), o.size() * sizeof(float)) == 0 &&
           std::memcmp(lse.data(), other.lse.data(), lse.size() * sizeof(float)) == 0;
  }
};

inline sage::ForwardBuffers BuffersOf(const Data& data, Outputs* out) {
  return {data.q.data(), data.k.data(), data.v.data(), data.mask(), out->o.data(), out->lse.data()};
}

// The first `length` tokens as a case of its own.
inline Data Shortened(const Case& c, int64_t length) {
  const Data all = MakeData(c);
  Data data = all;
  Problem& p = data.p;
  p.kv_len = length;
  p.k = Strides(p.kv_heads, length, p.qk_dim);
  p.v = Strides(p.kv_heads, length, p.v_dim);
  data.k.clear();
  data.v.clear();
  for (int64_t h = 0; h < p.batch * p.kv_heads; ++h) {
    const float* k = all.k.data() + h * all.p.kv_len * p.qk_dim;
    const float* v = all.v.data() + h * all.p.kv_len * p.v_dim;
    data.k.insert(data.k.end(), k, k + length * p.qk_dim);
    data.v.insert(data.v.end(), v, v + length * p.v_dim);
  }
  return data;
}

}  // namespace sage_test

#endif  // SAGE_TEST_KV_CACHE_CASES_H_
