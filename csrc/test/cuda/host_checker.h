// One problem through the CUDA engine on host arrays, forward and backward, against float64.
#ifndef SAGE_TEST_CUDA_HOST_CHECKER_H_
#define SAGE_TEST_CUDA_HOST_CHECKER_H_

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "sage/cuda_host.h"
#include "test/backward_cases.h"

namespace sage_test {

constexpr float kPoison = 1e30f;
// As in exact_test.cu.
constexpr double kForward = 2e-6, kGradient = 1e-5, kNoise = 2e-6;

struct Totals {
  int runs = 0, failures = 0, refused = 0;
};

// An operand of [B,H,N,D] as a strided view into a larger array, `gap` elements behind each token
// and in front of the first.
struct View {
  std::vector<float> values;
  TokenStrides strides;
  int64_t first;

  View(const TokenStrides& from, int64_t batch, int64_t heads, int64_t tokens, int64_t dim,
       int64_t gap, const float* source)
      : first(gap), from_(from), batch_(batch), heads_(heads), tokens_(tokens), dim_(dim) {
    const int64_t row = dim + gap;
    if (from.token > from.head) {
      strides = {tokens * heads * row, row, heads * row};
    } else {
      strides = {heads * tokens * row, tokens * row, row};
    }
    values.assign(static_cast<size_t>(gap + batch * heads * tokens * row + gap), kPoison);
    if (source == nullptr) return;
    ForEach([&](float* value, int64_t at) { *value = source[at]; });
  }
  float* data() { return values.data() + first; }

  template <typename Use>
  void ForEach(const Use& use) {
    for (int64_t b = 0; b < batch_; ++b)
      for (int64_t h = 0; h < heads_; ++h)
        for (int64_t t = 0; t < tokens_; ++t)
          for (int64_t d = 0; d < dim_; ++d) {
            use(data() + b * strides.batch + h * strides.head + t * strides.token + d,
                b * from_.batch + h * from_.head + t * from_.token + d);
          }
  }
  // In the order of the source; what lies between the rows must be as it was.
  std::vector<float> Read(bool* clean) {
    std::vector<float> dense(static_cast<size_t>(batch_ * heads_ * tokens_ * dim_));
    std::vector<float> rest = values;
    ForEach([&](float* value, int64_t at) {
      dense[static_cast<size_t>(at)] = *value;
      rest[static_cast<size_t>(value - values.data())] = kPoison;
    });
    for (const float x : rest) *clean = *clean && x == kPoison;
    return dense;
  }

 private:
  TokenStrides from_;
  int64_t batch_, heads_, tokens_, dim_;
};

struct Outputs {
  std::vector<float> o, lse, d_q, d_k, d_v, d_mask;
};

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline bool SameBits(const Outputs& a, const Outputs& b) {
  return SameBits(a.o, b.o) && SameBits(a.lse, b.lse) && SameBits(a.d_q, b.d_q) &&
         SameBits(a.d_k, b.d_k) && SameBits(a.d_v, b.d_v) && SameBits(a.d_mask, b.d_mask);
}

class HostChecker {
 public:
  HostChecker(const Case& c, const Data& data, Totals* totals)
      : case_(c), data_(data), totals_(totals) {}

  // Outputs of one run; those of a call that failed are empty and `status` tells why.
  Outputs Run(int64_t gap, const sage::CudaHostOptions& options, sage::Status* status) {
    ++totals_->runs;
    sage::Problem p = data_.p;
    p.want_lse = true;
    const auto view = [&](const TokenStrides& from, bool query, int64_t dim, const float* source) {
      return View(from, p.batch, query ? p.q_heads : p.kv_heads, query ? p.q_len : p.kv_len, dim,
                  gap, source);
    };
    View q = view(data_.p.q, true, p.qk_dim, data_.q.data());
    View k = view(data_.p.k, false, p.qk_dim, data_.k.data());
    View v = view(data_.p.v, false, p.v_dim, data_.v.data());
    View o = view(data_.p.o, true, p.v_dim, nullptr);
    View given_o = view(data_.p.o, true, p.v_dim, data_.o.data());
    View d_o = view(data_.p.o, true, p.v_dim, data_.d_o.data());
    View d_q = view(data_.p.q, true, p.qk_dim, nullptr);
    View d_k = view(data_.p.k, false, p.qk_dim, nullptr);
    View d_v = view(data_.p.v, false, p.v_dim, nullptr);
    p.q = q.strides;
    p.k = k.strides;
    p.v = v.strides;
    p.o = o.strides;
    Outputs out;
    out.lse.assign(data_.lse.size(), kPoison);
    out.d_mask.assign(static_cast<size_t>(data_.mask_elements), kPoison);
    const void* mask = p.mask_kind == MaskKind::kNone ? nullptr
                       : p.mask_kind == MaskKind::kAdditive
                           ? static_cast<const void*>(data_.mask_values.data())
                           : data_.mask_bits.data();
    *status = sage::CudaHostForward(
        p, {q.data(), k.data(), v.data(), mask, o.data(), out.lse.data()}, options);
    if (!status->ok()) return {};
    sage::BackwardBuffers b = {};
    b.q = q.data();
    b.k = k.data();
    b.v = v.data();
    b.mask = mask;
    b.o = given_o.data();
    b.lse = data_.lse.data();
    b.d_o = d_o.data();
    b.d_lse = data_.d_lse.empty() ? nullptr : data_.d_lse.data();
    b.d_q = d_q.data();
    b.d_k = d_k.data();
    b.d_v = d_v.data();
    const bool additive = p.mask_kind == MaskKind::kAdditive;
    b.d_mask = additive ? out.d_mask.data() : nullptr;
    if (!additive) out.d_mask.clear();
    *status = sage::CudaHostBackward(p, b, options);
    if (!status->ok()) return {};
    bool clean = true;
    out.o = o.Read(&clean);
    out.d_q = d_q.Read(&clean);
    out.d_k = d_k.Read(&clean);
    out.d_v = d_v.Read(&clean);
    if (!clean) Fail("wrote between rows");
    return out;
  }

  void Compare(const Outputs& out) {
    Near("o", out.o, data_.o, kForward, 1e-12);
    Near("lse", out.lse, data_.lse, kForward, kForward * 0.5 * data_.lse.size());
    Near("dQ", out.d_q, data_.d_q, kGradient, kNoise * data_.size_q);
    Near("dK", out.d_k, data_.d_k, kGradient, kNoise * data_.size_k);
    Near("dV", out.d_v, data_.d_v, kGradient, kNoise * data_.size_v);
    if (!out.d_mask.empty()) {
      Near("dMask", out.d_mask, data_.d_mask, kGradient, kNoise * data_.size_mask);
    }
  }

  void Fail(const std::string& what) {
    ++totals_->failures;
    std::printf("FAIL %s B%lld H%lld/%lld N%lld/%lld D%lld/%lld mask %s: %s\n", case_.name,
                static_cast<long long>(case_.batch), static_cast<long long>(case_.heads),
                static_cast<long long>(case_.kv_heads), static_cast<long long>(case_.q_len),
                static_cast<long long>(case_.kv_len), static_cast<long long>(case_.qk_dim),
                static_cast<long long>(case_.v_dim),
                case_.mask == MaskKind::kNone ? "-" : case_.mask_axes, what.c_str());
  }

 private:
  // Relative L1; what is not finite must be so in the same places.
  template <typename Expected>
  void Near(const char* what, const std::vector<float>& actual,
            const std::vector<Expected>& expected, double tolerance, double noise) {
    double error = 0, total = 0;
    for (size_t n = 0; n < expected.size(); ++n) {
      const double x = actual[n], y = static_cast<double>(expected[n]);
      if (!std::isfinite(x) || !std::isfinite(y)) {
        const bool same = y == -INFINITY && !std::strcmp(what, "lse")
                              ? x == y
                              : std::isfinite(x) == std::isfinite(y);
        if (!same) {
          return Fail(std::string(what) + " is not finite in other places, first at " +
                      std::to_string(n));
        }
        continue;
      }
      error += std::fabs(x - y);
      total += std::fabs(y);
    }
    if (!std::isfinite(noise)) noise = kNoise * 10 * static_cast<double>(expected.size());
    if (error <= tolerance * total + noise) return;
    char text[96];
    std::snprintf(text, sizeof(text), "%s is off by %.3g of %.3g", what, error, total);
    Fail(text);
  }

  const Case& case_;
  const Data& data_;
  Totals* totals_;
};

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_HOST_CHECKER_H_
