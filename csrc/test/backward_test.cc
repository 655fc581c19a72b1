// The backward pass against float64, on every instruction set of this machine.
//
//   backward_test                       all checks; exit code 0 if all hold
//   backward_test quick                 a tenth of the cases, not on the portable path
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "sage/attention.h"
#include "sage/capabilities.h"
#include "test/backward_cases.h"
#include "test/backward_reference.h"

namespace {

using sage::BackwardBuffers;
using sage::Causal;
using sage::Isa;
using sage::MaskKind;
using sage::Problem;
using sage_test::Case;
using sage_test::Data;
using sage_test::MakeData;
using sage_test::Random;

// Relative L1 asked for, and the rounding noise allowed where the exact gradient cancels to
// (nearly) nothing, as for one key.
constexpr double kTolerance = 1e-5;
constexpr double kNoise = 1e-6;

struct Gradients {
  std::vector<float> d_q, d_k, d_v, d_mask;
  bool operator==(const Gradients& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() &&
             (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
    };
    return same(d_q, other.d_q) && same(d_k, other.d_k) && same(d_v, other.d_v) &&
           same(d_mask, other.d_mask);
  }
};

sage::Status Run(const Data& data, Isa isa, int threads, Gradients* out,
                 const std::atomic<bool>* cancelled = nullptr) {
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
  buffers.mask =
      additive ? static_cast<const void*>(data.mask_values.data()) : data.mask_bits.data();
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

void Compare(const char* name, Isa isa, int threads, const char* what,
             const std::vector<float>& actual, const std::vector<double>& expected, double size) {
  double error = 0, total = 0;
  for (size_t n = 0; n < expected.size(); ++n) {
    if (!std::isfinite(expected[n]) || !std::isfinite(actual[n])) {
      if (std::isfinite(expected[n]) != std::isfinite(actual[n])) {
        std::printf("FAIL %s, %s, %d threads: %s[%zu] = %g, expected %g\n", name,
                    sage::IsaName(isa), threads, what, n, double(actual[n]), expected[n]);
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
    std::printf("FAIL %s, %s, %d threads: %s is off by %.3g, allowed %.3g of %.3g\n", name,
                sage::IsaName(isa), threads, what, error, allowed, total);
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
      // Nothing of the mask is touched, as nothing of it is read, when there are no queries or
      // keys.
      if (c.mask == MaskKind::kAdditive && c.batch * c.q_len * c.kv_len > 0) {
        Compare(c.name, isa, threads, "dMask", got.d_mask, data.d_mask, data.size_mask);
      }
      if (!Run(data, isa, threads, &again).ok() || !(got == again)) {
        Fail(c.name, isa, threads, "a second run gave other bits");
      }
    }
  }
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
          for (int64_t d = 0; d < p.qk_dim; ++d)
            s += double(data.q[data.Q(0, h, i) + d]) * data.k[data.K(0, g, j) + d];
          for (int64_t d = 0; d < p.v_dim; ++d)
            along += double(data.d_o[data.O(0, h, i) + d]) * data.v[data.V(0, g, j) + d];
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

// A problem whose row sums alone exceed any address space: told, not thrown. (Sanitizers end the
// process themselves.)
void CheckOutOfMemory(Isa isa) {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  Case c{"out of memory"};
  Data data = MakeData(c);
  data.p.batch = int64_t{1} << 50;
  Gradients got;
  if (Run(data, isa, 1, &got).code != sage::StatusCode::kOutOfMemory)
    Fail(c.name, isa, 1, "went on");
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

}  // namespace

int main(int argc, char** argv) {
  std::vector<Isa> isas;
  for (int n = 0; n < sage::kIsaCount; ++n) {
    const Isa isa = static_cast<Isa>(n);
    if (sage::CanRun(isa)) isas.push_back(isa);
  }
  const bool quick = argc > 1 && std::strcmp(argv[1], "quick") == 0;
  if (quick && isas.size() > 1) isas.erase(isas.begin());
  if (!quick) CheckReference();
  std::vector<Case> cases = sage_test::Cases();
  if (quick) {
    std::vector<Case> some;
    for (size_t n = 0; n < cases.size(); n += 10) some.push_back(cases[n]);
    cases.swap(some);
  }
  for (const Case& c : cases) Check(c, isas);
  for (const Isa isa : isas) {
    CheckCancelled(isa);
    CheckOutOfMemory(isa);
  }
  std::printf("%zu cases on %zu instruction sets: %d failures, worst relative L1 %.2g\n",
              cases.size(), isas.size(), failures, worst);
  return failures == 0 ? 0 : 1;
}
