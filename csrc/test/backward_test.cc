// The backward pass against float64, on every instruction set of this machine.
//
//   backward_test                     all checks; exit code 0 if all hold
//   backward_test time [isa] [threads]  GFLOP/s, counting 10·N²·D per head also under causality
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "sage/attention.h"
#include "sage/capabilities.h"

namespace {

using sage::BackwardBuffers;
using sage::Causal;
using sage::Isa;
using sage::MaskKind;
using sage::Problem;
using sage::TokenStrides;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
// Relative L1 asked for, and the rounding noise allowed where the exact gradient cancels to (nearly) nothing, as for one key.
constexpr double kTolerance = 1e-5;
constexpr double kNoise = 1e-6;

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

TokenStrides StridesOf(bool tokens_first, int64_t heads, int64_t tokens, int64_t dim) {
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

  int64_t Q(int64_t b, int64_t h, int64_t i) const { return b * p.q.batch + h * p.q.head + i * p.q.token; }
  int64_t K(int64_t b, int64_t h, int64_t j) const { return b * p.k.batch + h * p.k.head + j * p.k.token; }
  int64_t V(int64_t b, int64_t h, int64_t j) const { return b * p.v.batch + h * p.v.head + j * p.v.token; }
  int64_t O(int64_t b, int64_t h, int64_t i) const { return b * p.o.batch + h * p.o.head + i * p.o.token; }
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

bool Finite(const float* x, int64_t count) {
  for (int64_t d = 0; d < count; ++d) {
    if (!std::isfinite(x[d])) return false;
  }
  return true;
}

void Poison(const Case& c, Data* data) {
  const Problem& p = data->p;
  std::vector<float>& x = c.poison == 'q' ? data->q : c.poison == 'k' ? data->k : c.poison == 'v' ? data->v : data->d_o;
  const int64_t at = c.poison == 'q'   ? data->Q(0, 0, p.q_len / 2)
                     : c.poison == 'k' ? data->K(0, 0, p.kv_len / 2)
                     : c.poison == 'v' ? data->V(0, 0, p.kv_len / 2)
                                       : data->O(0, 0, p.q_len / 2);
  x[at] = NAN;
  x[at + 1] = INFINITY;
}

// Fills inputs; o, lse and the expected gradients follow in float64 (docs/numerics.md sections 1 and 2).
Data MakeData(const Case& c) {
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

struct Gradients {
  std::vector<float> d_q, d_k, d_v, d_mask;
  bool operator==(const Gradients& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
    };
    return same(d_q, other.d_q) && same(d_k, other.d_k) && same(d_v, other.d_v) && same(d_mask, other.d_mask);
  }
};

sage::Status Run(const Data& data, Isa isa, int threads, Gradients* out, const std::atomic<bool>* cancelled = nullptr) {
  // Every element must be written: what stays is seen.
  out->d_q.assign(data.q.size(), 1e30f);
  out->d_k.assign(data.k.size(), 1e30f);
  out->d_v.assign(data.v.size(), 1e30f);
  out->d_mask.assign(data.mask_elements, 1e30f);
  const bool additive = data.p.mask_kind == MaskKind::kAdditive;
  BackwardBuffers buffers = {};
  buffers.q = data.q.data();
  buffers.k = data.k.data();
  buffers.v = data.v.data();
  buffers.mask = additive ? static_cast<const void*>(data.mask_values.data()) : data.mask_bits.data();
  buffers.o = data.o.data();
  buffers.lse = data.lse.data();
  buffers.d_o = data.d_o.data();
  buffers.d_lse = data.d_lse.empty() ? nullptr : data.d_lse.data();
  buffers.d_q = out->d_q.data();
  buffers.d_k = out->d_k.data();
  buffers.d_v = out->d_v.data();
  buffers.d_mask = additive ? out->d_mask.data() : nullptr;
  return AttentionBackward(data.p, buffers, {isa, threads, cancelled});
}

int failures = 0;
double worst = 0;

void Fail(const char* name, Isa isa, int threads, const char* what) {
  std::printf("FAIL %s, %s, %d threads: %s\n", name, sage::IsaName(isa), threads, what);
  ++failures;
}

void Compare(const char* name, Isa isa, int threads, const char* what, const std::vector<float>& actual,
             const std::vector<double>& expected, double size) {
  double error = 0, total = 0;
  for (size_t n = 0; n < expected.size(); ++n) {
    if (!std::isfinite(expected[n]) || !std::isfinite(actual[n])) {
      if (std::isfinite(expected[n]) != std::isfinite(actual[n])) {
        std::printf("FAIL %s, %s, %d threads: %s[%zu] = %g, expected %g\n", name, sage::IsaName(isa), threads, what, n,
                    double(actual[n]), expected[n]);
        ++failures;
        return;
      }
      continue;
    }
    error += std::fabs(actual[n] - expected[n]);
    total += std::fabs(expected[n]);
  }
  const double allowed = kTolerance * total + (std::isfinite(size) ? kNoise * size : 0);
  if (error > 0 && total > 0.01 * size) worst = std::max(worst, error / total);
  if (!(error <= allowed)) {
    std::printf("FAIL %s, %s, %d threads: %s is off by %.3g, allowed %.3g of %.3g\n", name, sage::IsaName(isa), threads,
                what, error, allowed, total);
    ++failures;
  }
}

void Check(const Case& c, const std::vector<Isa>& isas) {
  const Data data = MakeData(c);
  for (const Isa isa : isas) {
    for (const int threads : {1, 2, 5}) {
      Gradients got, again;
      if (!Run(data, isa, threads, &got).ok()) Fail(c.name, isa, threads, "returned an error");
      Compare(c.name, isa, threads, "dQ", got.d_q, data.d_q, data.size_q);
      Compare(c.name, isa, threads, "dK", got.d_k, data.d_k, data.size_k);
      Compare(c.name, isa, threads, "dV", got.d_v, data.d_v, data.size_v);
      // Nothing of the mask is touched, as nothing of it is read, when there are no queries or keys.
      if (c.mask == MaskKind::kAdditive && c.batch * c.q_len * c.kv_len > 0) {
        Compare(c.name, isa, threads, "dMask", got.d_mask, data.d_mask, data.size_mask);
      }
      if (!Run(data, isa, threads, &again).ok() || !(got == again)) {
        Fail(c.name, isa, threads, "a second run gave other bits");
      }
    }
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  const auto add = [&](Case c) { cases.push_back(c); };
  for (const int64_t n : {1, 17, 127, 129, 257}) {
    for (const int64_t d : {1, 3, 8, 31, 64, 80, 128, 192}) {
      if (n == 257 && d != 64 && d != 31) continue;
      Case c{"square"};
      c.q_len = c.kv_len = n;
      c.qk_dim = c.v_dim = d;
      add(c);
      c.name = "square causal";
      c.causal = Causal::kTopLeft;
      c.tokens_first = true;
      c.heads = 2;
      add(c);
    }
  }
  for (const bool bottom : {false, true}) {
    for (const auto& [q_len, kv_len] : {std::pair<int, int>{33, 210}, {210, 33}, {1, 257}, {257, 1}, {300, 420}}) {
      Case c{bottom ? "bottom right" : "top left"};
      c.q_len = q_len;
      c.kv_len = kv_len;
      c.causal = bottom ? Causal::kBottomRight : Causal::kTopLeft;
      c.qk_dim = 40;
      c.v_dim = 24;
      c.d_lse = true;
      add(c);
    }
  }
  for (const auto& [left, right] : {std::pair<int, int>{0, 0}, {5, 3}, {-1, 7}, {40, -1}, {150, 20}, {3, 500}}) {
    Case c{"window"};
    c.left = left;
    c.right = right;
    c.q_len = 270;
    c.kv_len = 230;
    c.qk_dim = c.v_dim = 32;
    add(c);
    c.name = "causal window";
    c.causal = Causal::kBottomRight;
    add(c);
  }
  for (const int64_t kv_heads : {1, 2, 6}) {
    Case c{"grouped heads"};
    c.batch = 2;
    c.heads = 6;
    c.kv_heads = kv_heads;
    c.q_len = 65;
    c.kv_len = 97;
    c.qk_dim = 64;
    c.v_dim = 33;
    c.tokens_first = kv_heads == 2;
    c.d_lse = true;
    add(c);
  }
  for (const char* axes : {"bhqk", "hqk", "bqk", "qk", "bhk", "bk", "k", "bhq", "q", "hq", "h", "", "bh"}) {
    for (const MaskKind kind : {MaskKind::kBoolean, MaskKind::kAdditive}) {
      Case c{kind == MaskKind::kBoolean ? "boolean mask" : "additive mask"};
      c.batch = 2;
      c.heads = 4;
      c.kv_heads = 2;
      c.q_len = 103;
      c.kv_len = 217;
      c.qk_dim = 16;
      c.v_dim = 20;
      c.mask = kind;
      c.mask_axes = axes;
      c.d_lse = true;
      add(c);
      c.name = kind == MaskKind::kBoolean ? "boolean mask, causal" : "additive mask, causal";
      c.causal = Causal::kBottomRight;
      c.left = 50;
      add(c);
    }
  }
  for (const char which : {'q', 'k', 'v', 'o'}) {
    Case c{"not finite"};
    c.q_len = 205;
    c.kv_len = 215;
    c.heads = 2;
    c.qk_dim = c.v_dim = 24;
    c.poison = which;
    add(c);
    c.name = "not finite, causal";
    c.causal = Causal::kTopLeft;
    add(c);
    c.name = "not finite, window";
    c.causal = Causal::kNone;
    c.left = 9;
    c.right = 30;
    add(c);
    c.name = "not finite, mask";
    c.mask = MaskKind::kBoolean;
    add(c);
  }
  Case large{"head_dim 512"};
  large.q_len = 40;
  large.kv_len = 50;
  large.qk_dim = 512;
  large.v_dim = 320;
  add(large);
  Case negative{"negative scale, large scores"};
  negative.scale = -3;
  negative.qk_dim = 16;
  negative.q_len = negative.kv_len = 129;
  add(negative);
  for (const auto& [batch, q_len, kv_len] : {std::tuple<int, int, int>{0, 5, 5}, {1, 0, 5}, {1, 5, 0}, {2, 0, 0}}) {
    Case c{"empty"};
    c.batch = batch;
    c.q_len = q_len;
    c.kv_len = kv_len;
    c.mask = MaskKind::kAdditive;
    c.mask_axes = "k";
    add(c);
  }
  return cases;
}

// The reference itself: its gradients against central differences of sum(o·dO) + sum(lse·dLse).
void CheckReference() {
  Case c{"central differences"};
  c.q_len = 5;
  c.kv_len = 7;
  c.heads = 2;
  c.qk_dim = 4;
  c.v_dim = 3;
  c.mask = MaskKind::kAdditive;
  c.mask_axes = "qk";
  c.causal = Causal::kBottomRight;
  c.d_lse = true;
  Data data = MakeData(c);
  const Problem& p = data.p;
  const auto loss = [&]() {
    double total = 0;
    for (int64_t h = 0; h < p.q_heads; ++h) {
      const int64_t g = h / p.group();
      for (int64_t i = 0; i < p.q_len; ++i) {
        double sum = 0, weighted = 0;
        for (int64_t j = 0; j < p.kv_len; ++j) {
          if (!data.Sees(0, h, i, j)) continue;
          double s = 0, along = 0;
          for (int64_t d = 0; d < p.qk_dim; ++d) s += double(data.q[data.Q(0, h, i) + d]) * data.k[data.K(0, g, j) + d];
          for (int64_t d = 0; d < p.v_dim; ++d) along += double(data.d_o[data.O(0, h, i) + d]) * data.v[data.V(0, g, j) + d];
          const double weight = std::exp(p.scale * s + data.mask_values[data.Mask(0, h, i, j)]);
          sum += weight;
          weighted += weight * along;
        }
        if (sum > 0) total += weighted / sum + data.d_lse[h * p.q_len + i] * std::log(sum);
      }
    }
    return total;
  };
  const auto check = [&](std::vector<float>* x, const std::vector<double>& gradient) {
    for (size_t n = 0; n < x->size(); ++n) {
      const float at = (*x)[n];
      if (!std::isfinite(at)) continue;
      const float above = at + 0.001f, below = at - 0.001f;
      (*x)[n] = above;
      const double up = loss();
      (*x)[n] = below;
      const double down = loss();
      (*x)[n] = at;
      if (std::fabs((up - down) / (double(above) - below) - gradient[n]) > 1e-5) {
        return Fail(c.name, Isa::kPortable, 1, "the reference disagrees");
      }
    }
  };
  check(&data.q, data.d_q);
  check(&data.k, data.d_k);
  check(&data.v, data.d_v);
  check(&data.mask_values, data.d_mask);
}

// A problem whose row sums alone exceed any address space: told, not thrown. (Sanitizers end the process themselves.)
void CheckOutOfMemory(Isa isa) {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  Case c{"out of memory"};
  Data data = MakeData(c);
  data.p.batch = int64_t{1} << 50;
  Gradients got;
  if (Run(data, isa, 1, &got).code != sage::StatusCode::kOutOfMemory) Fail(c.name, isa, 1, "went on");
#else
  (void)isa;
#endif
}

void CheckCancelled(Isa isa) {
  Case c{"cancelled"};
  c.q_len = c.kv_len = 200;
  const std::atomic<bool> cancelled{true};
  Gradients got;
  if (Run(MakeData(c), isa, 2, &got, &cancelled).code != sage::StatusCode::kCancelled) {
    Fail(c.name, isa, 2, "went on");
  }
}

// Processor time for one thread, so that other work on the machine counts less; wall time for more.
double Seconds(int threads) {
  if (threads == 1) return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Time(Isa isa, int threads) {
  std::printf("%s, %d threads\n", sage::IsaName(isa), threads);
  for (const int64_t dim : {64, 128}) {
    for (const int64_t n : {512, 1024, 2048}) {
      for (const bool causal : {false, true}) {
        Case c{"time"};
        c.heads = c.kv_heads = 2;
        c.qk_dim = c.v_dim = dim;
        c.q_len = c.kv_len = 1;
        Data data = MakeData(c);
        Problem& p = data.p;
        p.q_len = p.kv_len = n;
        p.q = p.k = p.v = p.o = StridesOf(false, c.heads, n, dim);
        p.causal = causal ? Causal::kTopLeft : Causal::kNone;
        p.window_right = causal ? 0 : -1;
        Random random{1};
        for (std::vector<float>* x : {&data.q, &data.k, &data.v, &data.o, &data.d_o}) {
          x->resize(c.heads * n * dim);
          for (float& value : *x) value = random.Normal();
        }
        data.lse.assign(c.heads * n, std::log(static_cast<float>(n)));
        Gradients got;
        double best = 1e9;
        double spent = 0;
        for (int repeat = 0; repeat < 5 || (repeat < 50 && spent < 0.6); ++repeat) {
          const double begin = Seconds(threads);
          Run(data, isa, threads, &got);
          const double seconds = Seconds(threads) - begin;
          best = std::min(best, seconds);
          spent += seconds;
        }
        std::printf("  D %3d N %4d %-6s %8.2f ms %7.1f GFLOP/s\n", int(dim), int(n), causal ? "causal" : "full",
                    best * 1e3, 10.0 * double(c.heads) * double(n) * double(n) * double(dim) / best * 1e-9);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<Isa> isas;
  for (int n = 0; n < sage::kIsaCount; ++n) {
    const Isa isa = static_cast<Isa>(n);
    if (sage::CanRun(isa)) isas.push_back(isa);
  }
  if (argc > 1 && std::strcmp(argv[1], "time") == 0) {
    Isa only;
    const bool one = argc > 2 && sage::ParseIsa(argv[2], &only);
    for (const Isa isa : isas) {
      if (!one || isa == only) Time(isa, argc > 3 ? std::atoi(argv[3]) : 1);
    }
    return 0;
  }
  CheckReference();
  const std::vector<Case> cases = Cases();
  for (const Case& c : cases) Check(c, isas);
  for (const Isa isa : isas) {
    CheckCancelled(isa);
    CheckOutOfMemory(isa);
  }
  std::printf("%zu cases on %zu instruction sets: %d failures, worst relative L1 %.2g\n", cases.size(), isas.size(),
              failures, worst);
  return failures == 0 ? 0 : 1;
}
