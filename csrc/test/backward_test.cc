// The backward pass against float64, on every instruction set of this machine.
//
//   backward_test                       all checks; exit code 0 if all hold
//   backward_test quick                 a tenth of the cases, not on the portable path
//   backward_test time [isa] [threads]  GFLOP/s, counting 10·N²·D per head, under causality too
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
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
using sage_test::StridesOf;

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
        std::printf("  D %3d N %4d %-6s %8.2f ms %7.1f GFLOP/s\n", int(dim), int(n),
                    causal ? "causal" : "full", best * 1e3,
                    10.0 * double(c.heads) * double(n) * double(n) * double(dim) / best * 1e-9);
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
