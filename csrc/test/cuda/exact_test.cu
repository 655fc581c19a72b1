// The CUDA kernels of the `exact` recipe against float64, without Node.
//
//   exact_test [--every n] [--seed n] [--random n]   correctness; exit code 0 if all cases hold
//   exact_test --capability 80 ...                   the kernels of older devices on a newer one
//   exact_test --large                               tensors of more than 2^31 elements
//   exact_test --bench [--length n] [--dim n]        medians by CUDA events, TFLOP/s of the full
//   count
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cuda/device.h"
#include "sage/cuda_attention.h"
#include "test/cuda/device_array.h"
#include "test/cuda/exact_bench.h"
#include "test/cuda/exact_cases.h"

namespace {

using sage::MaskKind;
using sage_test::Case;
using sage_test::Data;
using sage_test::DeviceArray;

// Relative L1 against float64: of o, and of the gradients; and the rounding noise allowed where the
// exact gradient cancels to (nearly) nothing, as for one key: that of a float32 dot product.
constexpr double kForward = 2e-6, kGradient = 1e-5, kNoise = 2e-6;
constexpr float kPoison = 1e30f;

struct Totals {
  int cases = 0, failures = 0;
  double worst_o = 0, worst_lse = 0, worst_gradient = 0;
};

std::string Describe(const Case& c) {
  char text[256];
  std::snprintf(text, sizeof(text),
                "%s [B%d H%d/%d N%d/%d D%d/%d causal %d window %d,%d mask %d %s %s%s%s%c]", c.name,
                int(c.batch), int(c.heads), int(c.kv_heads), int(c.q_len), int(c.kv_len),
                int(c.qk_dim), int(c.v_dim), int(c.causal), int(c.left), int(c.right), int(c.mask),
                c.mask_axes, c.tokens_first ? "NHD " : "HND ", c.d_lse ? "dLse " : "",
                c.poison != 0 ? "poison " : "", c.poison != 0 ? c.poison : ' ');
  return text;
}

class Checker {
 public:
  Checker(const Case& c, const Data& data, Totals* totals)
      : case_(c), data_(data), totals_(totals) {}

  void Fail(const char* what) {
    if (!failed_) ++totals_->failures;
    failed_ = true;
    std::printf("FAIL %s: %s\n", Describe(case_).c_str(), what);
  }

  // Relative L1; what is not finite must be so in the same places.
  template <typename Expected>
  void Compare(const char* what, const std::vector<float>& actual,
               const std::vector<Expected>& expected, double tolerance, double noise,
               double* worst) {
    double error = 0, total = 0;
    for (size_t n = 0; n < expected.size(); ++n) {
      const double x = actual[n], y = static_cast<double>(expected[n]);
      if (!std::isfinite(x) || !std::isfinite(y)) {
        const bool same = std::strcmp(what, "lse") == 0 && y == -INFINITY
                              ? x == y
                              : std::isfinite(x) == std::isfinite(y);
        if (same) continue;
        char text[160];
        std::snprintf(text, sizeof(text), "%s[%zu] = %g, expected %g", what, n, x, y);
        return Fail(text);
      }
      error += std::fabs(x - y);
      total += std::fabs(y);
    }
    // Where values that are not finite spoil the sum of magnitudes, those that remain are around 1.
    if (!std::isfinite(noise)) noise = kNoise * 10 * static_cast<double>(expected.size());
    const double allowed = tolerance * total + noise;
    if (error > 0 && total > 0 && total * 100 > noise / kNoise)
      *worst = std::max(*worst, error / total);
    if (!(error <= allowed)) {
      char text[160];
      std::snprintf(text, sizeof(text), "%s is off by %.3g of %.3g (%.2g), allowed %.3g", what,
                    error, total, error / total, allowed);
      Fail(text);
    }
  }

  template <typename T>
  static bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
  }

  void Run(int number) {
    ++totals_->cases;
    const sage::Problem& base = data_.p;
    const int64_t shift = number % 3 == 1 ? 1 : 0;  // some inputs are not 8-byte aligned
    DeviceArray<float> q(data_.q, shift), k(data_.k, shift), v(data_.v, shift);
    DeviceArray<float> mask_values(data_.mask_values, shift);
    DeviceArray<uint8_t> mask_bits(data_.mask_bits, shift);
    const void* mask = base.mask_kind == MaskKind::kNone ? nullptr
                       : base.mask_kind == MaskKind::kAdditive
                           ? static_cast<void*>(mask_values.data())
                           : mask_bits.data();
    sage::Problem p = base;
    p.want_lse = true;

    sage::ForwardBuffers forward = {};
    forward.q = q.data();
    forward.k = k.data();
    forward.v = v.data();
    forward.mask = mask;
    std::vector<float> first_o, first_lse;
    for (int repeat = 0; repeat < 2; ++repeat) {
      DeviceArray<float> o(data_.o.size(), shift), lse(data_.lse.size(), shift);
      DeviceArray<uint8_t> workspace(sage::CudaForwardWorkspace(p));
      o.FillAll(kPoison);
      lse.FillAll(kPoison);
      workspace.FillAll(0xff);  // NaN to whoever reads what nobody wrote
      forward.o = o.data();
      forward.lse = repeat == 0 ? lse.data() : nullptr;
      const sage::Status status = sage::CudaForward(p, forward, workspace.data(), nullptr);
      if (!status.ok()) return Fail(status.message);
      sage_test::Must(cudaDeviceSynchronize(), Describe(case_).c_str());
      if (!o.IsGuarded(kPoison) || !lse.IsGuarded(kPoison) || !workspace.IsGuarded(0xff))
        Fail("forward wrote outside");
      if (repeat == 0) {
        first_o = o.Read();
        first_lse = lse.Read();
      } else if (!SameBits(first_o, o.Read())) {
        Fail("a second forward gave other bits");
      }
    }
    if (number % 4 == 0) CheckMagnitudes(p, forward, first_o);
    Compare("o", first_o, data_.o, kForward, 1e-12, &totals_->worst_o);
    Compare("lse", first_lse, data_.lse, kForward, kForward * data_.lse.size() * 0.5,
            &totals_->worst_lse);
    RunBackward(p, forward, shift);
  }

 private:
  // Powers of two in q and out of k change nothing, in v only the outputs' exponents: to the bit.
  void CheckMagnitudes(const sage::Problem& p, sage::ForwardBuffers forward,
                       const std::vector<float>& expected) {
    constexpr float kUp = 0x1p70f, kDown = 0x1p-70f;
    const auto times = [](std::vector<float> x, float factor) {
      for (float& value : x) value *= factor;
      return x;
    };
    DeviceArray<float> q(times(data_.q, kUp), 0), k(times(data_.k, kDown), 0),
        v(times(data_.v, kDown), 0), o(data_.o.size());
    DeviceArray<uint8_t> workspace(sage::CudaForwardWorkspace(p));
    forward.q = q.data();
    forward.k = k.data();
    forward.v = v.data();
    forward.o = o.data();
    forward.lse = nullptr;
    const sage::Status status = sage::CudaForward(p, forward, workspace.data(), nullptr);
    if (!status.ok()) return Fail(status.message);
    const std::vector<float> got = times(o.Read(), kUp);
    for (size_t n = 0; n < got.size(); ++n) {
      if (got[n] == expected[n] || (std::isnan(got[n]) && std::isnan(expected[n]))) continue;
      return Fail("inputs of other magnitudes gave other digits");
    }

    if (case_.poison != 0) return;
    DeviceArray<float> zeros(std::vector<float>(data_.v.size(), 0.0f), 0);
    forward.v = zeros.data();
    o.FillAll(kPoison);
    const sage::Status again = sage::CudaForward(p, forward, workspace.data(), nullptr);
    if (!again.ok()) return Fail(again.message);
    for (const float x : o.Read()) {
      if (x != 0.0f) return Fail("v = 0 gave o that is not 0");
    }
  }

  void RunBackward(const sage::Problem& p, const sage::ForwardBuffers& inputs, int64_t shift) {
    DeviceArray<float> o(data_.o, shift), lse(data_.lse, shift), d_o(data_.d_o, shift),
        d_lse(data_.d_lse, shift);
    std::vector<float> first[4];
    const bool additive = p.mask_kind == MaskKind::kAdditive;
    for (int repeat = 0; repeat < 2; ++repeat) {
      DeviceArray<float> d_q(data_.q.size(), shift), d_k(data_.k.size(), shift),
          d_v(data_.v.size(), shift), d_mask(data_.mask_elements, shift);
      DeviceArray<uint8_t> workspace(sage::CudaBackwardWorkspace(p));
      workspace.FillAll(0xff);
      DeviceArray<float>* outputs[] = {&d_q, &d_k, &d_v, &d_mask};
      for (DeviceArray<float>* x : outputs) x->FillAll(kPoison);
      sage::BackwardBuffers b = {};
      b.q = inputs.q;
      b.k = inputs.k;
      b.v = inputs.v;
      b.mask = inputs.mask;
      b.o = o.data();
      b.lse = lse.data();
      b.d_o = d_o.data();
      b.d_lse = data_.d_lse.empty() ? nullptr : d_lse.data();
      b.d_q = d_q.data();
      b.d_k = d_k.data();
      b.d_v = d_v.data();
      b.d_mask = additive ? d_mask.data() : nullptr;
      const sage::Status status = sage::CudaBackward(p, b, workspace.data(), nullptr);
      if (!status.ok()) return Fail(status.message);
      sage_test::Must(cudaDeviceSynchronize(), Describe(case_).c_str());
      for (int n = 0; n < 4; ++n) {
        if (!outputs[n]->IsGuarded(kPoison)) Fail("backward wrote outside");
        std::vector<float> values = outputs[n]->Read();
        if (repeat == 0) {
          first[n] = std::move(values);
        } else if (!SameBits(first[n], values)) {
          Fail("a second backward gave other bits");
        }
      }
      if (!workspace.IsGuarded(0xff)) Fail("backward wrote outside its workspace");
    }
    double* worst = &totals_->worst_gradient;
    Compare("dQ", first[0], data_.d_q, kGradient, kNoise * data_.size_q, worst);
    Compare("dK", first[1], data_.d_k, kGradient, kNoise * data_.size_k, worst);
    Compare("dV", first[2], data_.d_v, kGradient, kNoise * data_.size_v, worst);
    if (additive && p.batch * p.q_len * p.kv_len > 0)
      Compare("dMask", first[3], data_.d_mask, kGradient, kNoise * data_.size_mask, worst);
  }

  const Case& case_;
  const Data& data_;
  Totals* totals_;
  bool failed_ = false;
};

// The expected values of the next cases are computed on all processors while the device runs.
int CheckAll(const std::vector<Case>& cases) {
  std::vector<std::unique_ptr<Data>> data(cases.size());
  std::vector<std::atomic<bool>> done(cases.size());
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (unsigned n = 0; n < std::max(1u, std::thread::hardware_concurrency()); ++n) {
    threads.emplace_back([&]() {
      for (size_t at; (at = next.fetch_add(1)) < cases.size();) {
        data[at] = std::make_unique<Data>(sage_test::MakeData(cases[at]));
        done[at].store(true);
      }
    });
  }
  Totals totals;
  for (size_t n = 0; n < cases.size(); ++n) {
    while (!done[n].load()) std::this_thread::yield();
    Checker(cases[n], *data[n], &totals).Run(static_cast<int>(n));
    data[n].reset();
  }
  for (std::thread& thread : threads) thread.join();
  std::printf("%d cases, %d failed; worst relative L1: o %.2g, lse %.2g, gradients %.2g\n",
              totals.cases, totals.failures, totals.worst_o, totals.worst_lse,
              totals.worst_gradient);
  return totals.failures == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const auto option = [&](const char* name, int64_t otherwise) {
    for (int n = 1; n < argc; ++n) {
      if (n + 1 < argc && std::strcmp(argv[n], name) == 0) return std::atoll(argv[n + 1]);
    }
    return static_cast<long long>(otherwise);
  };
  const auto has = [&](const char* name) {
    return std::any_of(argv + 1, argv + argc, [&](const char* x) { return !std::strcmp(x, name); });
  };
  const sage::CudaInfo& info = sage::DetectCuda();
  std::printf("%s; driver %d, runtime %d, %s, sm_%d, %d multiprocessors; built for %s\n",
              info.reason, info.driver_version, info.runtime_version, info.device_name,
              info.compute_capability, info.multiprocessors, info.architectures);
  if (!info.available) return 77;
  sage::cuda::LimitComputeCapability(static_cast<int>(option("--capability", 1000)));
  if (has("--bench")) return sage_test::Bench(option("--length", 0), option("--dim", 0));
  if (has("--large")) return sage_test::CheckLarge();

  std::vector<Case> cases = sage_test::Cases();
  for (const Case& c : sage_test::TileCases()) cases.push_back(c);
  for (const Case& c : sage_test::DecodeCases()) cases.push_back(c);
  for (const Case& c : sage_test::RandomCases(static_cast<int>(option("--random", 300)),
                                              static_cast<uint64_t>(option("--seed", 1))))
    cases.push_back(c);
  const int64_t every = option("--every", 1);
  std::vector<Case> chosen;
  for (size_t n = 0; n < cases.size(); n += every) chosen.push_back(cases[n]);
  return CheckAll(chosen);
}
