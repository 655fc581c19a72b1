// Runner of the int8 kernels without Node.
//
//   int8_runner check [part of a recipe's name] [part of a case's name] [threads] [every] [most]
//                          codes, scales, o and lse over the option space; exit code 0 if all hold;
//                          `every` 3: a third of the cases, another one for each recipe; `most`:
//                          lengths above it become it, for tools that slow the device down
//   int8_runner accuracy   errors against float64 (docs/kernels_int8.md)
//   int8_runner bench [recipe|all] [milliseconds per point] [head_dim] [N] [full]
//
// Codes and scales must equal those of the CPU engine, which is bit-exact with src/numerics, and
// 16-bit inputs give the bits of the same values in float32; lse equals its up to float32 sums; o
// differs from its by the rounding of P, and its error against float64 is that of the recipe.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>

#include "cuda/device.h"
#include "cuda/int8/forward.h"
#include "sage/capabilities.h"
#include "sage/quantize.h"
#include "test/cuda/int8_bench.h"
#include "test/cuda/int8_cases.h"
#include "test/cuda/int8_operands.h"
#include "test/cuda/int8_recipes.h"

namespace {

using namespace sage_test;  // NOLINT: the file is its test

struct Outputs {
  std::vector<float> o, lse;
};

// `narrow`: from the same values in 16 bits.
Outputs RunGpu(const Data& data, Operands* operands, bool narrow = false) {
  Problem p = data.p;
  if (narrow) p.input = data.narrow;
  Device q(data.q.size() * 4), k(data.k.size() * 4), v(data.v.size() * 4), mask(data.mask_size());
  if (narrow) {
    Upload(q, data.q16);
    Upload(k, data.k16);
    Upload(v, data.v16);
  } else {
    Upload(q, data.q);
    Upload(k, data.k);
    Upload(v, data.v);
  }
  Upload(mask, data.mask_bytes);
  Upload(mask, data.mask_values);
  Outputs out;
  // Every element must be written, and nothing between rows.
  out.o.assign(data.o_elements(), 1e30f);
  out.lse.assign(p.batch * p.q_heads * p.q_len, 1e30f);
  Device o(out.o.size() * 4), lse(out.lse.size() * 4);
  Upload(o, out.o);
  Upload(lse, out.lse);
  const int64_t bytes = sage::cuda::Int8Workspace(p);
  Device workspace(bytes);
  Poison(workspace, bytes);
  const sage::ForwardBuffers buffers = {q.as<float>(),   k.as<float>(), v.as<float>(),
                                        mask.as<void>(), o.as<float>(), lse.as<float>()};
  const sage::Status status = sage::cuda::Int8Forward(p, buffers, workspace.as<void>(), nullptr);
  if (!status.ok()) {
    std::printf("Int8Forward: %s\n", status.message);
    std::exit(2);
  }
  Require(cudaDeviceSynchronize(), "attention");
  out.o = Download(o.as<float>(), out.o.size());
  out.lse = Download(lse.as<float>(), out.lse.size());
  if (operands != nullptr && p.kv_len > 0) {
    const sage::cuda::int8::Form form = sage::cuda::int8::FormOf(p);
    UnpackOperands(p, form, sage::cuda::int8::LayOut(p, form, workspace.as<void>()), operands);
  }
  return out;
}

Outputs RunCpu(const Data& data, Operands* operands) {
  const Problem& p = data.p;
  Outputs out;
  out.o.assign(data.o_elements(), 1e30f);
  out.lse.assign(p.batch * p.q_heads * p.q_len, 1e30f);
  const sage::ForwardBuffers buffers = {data.q.data(), data.k.data(), data.v.data(),
                                        data.mask(),   out.o.data(),  out.lse.data()};
  const int64_t q_rows = p.batch * p.q_heads * p.q_len, kv_rows = p.batch * p.kv_heads * p.kv_len;
  operands->q_codes.resize(q_rows * p.qk_dim);
  operands->q_scale.resize(q_rows);
  operands->k_codes.resize(kv_rows * p.qk_dim);
  operands->k_scale.resize(kv_rows);
  operands->v_codes.resize(kv_rows * p.v_dim);
  operands->v_scale.resize(p.batch * p.kv_heads * p.v_dim);
  const sage::InspectionBuffers inspect = {operands->q_codes.data(), operands->q_scale.data(),
                                           operands->k_codes.data(), operands->k_scale.data(),
                                           operands->v_codes.data(), operands->v_scale.data()};
  const sage::Status status =
      sage::InspectForward(p, buffers, inspect, sage::EngineOptions{sage::DetectIsa(), 1});
  if (!status.ok()) {
    std::printf("InspectForward: %s\n", status.message);
    std::exit(2);
  }
  return out;
}

struct Errors {
  double l1 = 0, l1_of = 0, l2 = 0, l2_of = 0, dot = 0, of_o = 0;
  int64_t wrong = 0;  // NaN, zeros or infinities in other places
  void Add(double x, double y) {
    if (std::isnan(x) != std::isnan(y) || (y == 0.0 && x != 0.0) || std::isinf(x)) {
      ++wrong;
    } else if (!std::isnan(x)) {
      l1 += std::fabs(x - y);
      l1_of += std::fabs(y);
      l2 += (x - y) * (x - y);
      l2_of += y * y;
      dot += x * y;
      of_o += x * x;
    }
  }
  double RelativeL1() const { return l1_of > 0 ? l1 / l1_of : l1; }
  double RelativeL2() const { return l2_of > 0 ? std::sqrt(l2 / l2_of) : std::sqrt(l2); }
};

// Errors against float64 over about `most_rows` rows: of the device, of the CPU engine, and of the
// device against the CPU engine.
struct Comparison {
  Errors gpu, cpu, between;
};
Comparison Compare(const Data& data, const Outputs& gpu, const Outputs& cpu, int64_t most_rows) {
  const Problem& p = data.p;
  Comparison all;
  std::vector<double> exact;
  const int64_t rows = p.batch * p.q_heads * p.q_len;
  const int64_t step = std::max<int64_t>(1, rows / most_rows) | 1;
  for (int64_t n = 0; n < rows; n += step) {
    const int64_t b = n / (p.q_heads * p.q_len), h = n / p.q_len % p.q_heads, i = n % p.q_len;
    const double lse = ExactRow(data, b, h, i, &exact);
    const int64_t at = b * p.o.batch + h * p.o.head + i * p.o.token;
    for (int64_t d = 0; d < p.v_dim; ++d) {
      all.gpu.Add(gpu.o[at + d], exact[d]);
      all.cpu.Add(cpu.o[at + d], exact[d]);
      all.between.Add(gpu.o[at + d], cpu.o[at + d]);
    }
    const float mine = gpu.lse[n];
    if (std::isnan(lse) != std::isnan(mine) || (lse == -INFINITY) != (mine == -INFINITY)) {
      ++all.gpu.wrong;
    }
  }
  return all;
}

// How far o may be from the CPU engine's, relative L2: P is rounded against other maxima.
double Allowed(const sage::Recipe& r) {
  if (r.pv == sage::PvFormat::kE4m3) return 0.06;
  return r.pv_accumulator == sage::PvAccumulator::kFp32   ? 5e-4
         : r.pv_accumulator == sage::PvAccumulator::kFp16 ? 1.5e-2
                                                          : 4e-3;
}

// Rows of multiples of 1/2 whose largest value is the largest code: quantising them meets ties,
// where the two roundings part.
void MakeTies(float top, std::vector<float>* x, int64_t dim) {
  for (size_t n = 0; n < x->size(); ++n) {
    float& y = (*x)[n];
    y = std::fmax(-top, std::fmin(top, 0.5f * std::nearbyint(0.5f * top * y)));
    if (static_cast<int64_t>(n) % dim == 0) y = top;
  }
}

bool SameBits(const Outputs& a, const Outputs& b) {
  return std::memcmp(a.o.data(), b.o.data(), a.o.size() * 4) == 0 &&
         std::memcmp(a.lse.data(), b.lse.data(), a.lse.size() * 4) == 0;
}

bool Check(const NamedRecipe& recipe, const Case& c, uint64_t seed) {
  Data data = MakeData(c, seed);
  data.p.recipe = recipe.recipe;
  data.p.recipe.smooth_k = c.smooth_k;
  if (!c.smooth_v) data.p.recipe.smooth_v = 0;
  if (c.name == kTies) {
    const float top = recipe.recipe.qk == sage::QkFormat::kInt4 ? 7.0f : 127.0f;
    data.p.recipe.smooth_q = 0;
    data.p.scale *= 1e-3;
    MakeTies(top, &data.q, c.qk_dim);
    MakeTies(top, &data.k, c.qk_dim);
  }
  Operands gpu, cpu;
  const Outputs a = RunGpu(data, &gpu), b = RunCpu(data, &cpu);
  const Outputs again = RunGpu(data, nullptr);
  bool same = SameBits(a, again);
  int64_t codes = c.kv_len > 0 ? Differences(gpu, cpu) : 0;
  if (c.input != sage::InputType::kFloat32) {
    Operands narrow;
    same = same && SameBits(a, RunGpu(data, &narrow, true));
    if (c.kv_len > 0) codes += Differences(narrow, cpu);
  }
  const double back = c.kv_len > 0 ? ErrorOfMeansBack(data, gpu, cpu) : 0.0;
  const Comparison errors = Compare(data, a, b, 300);
  const Errors &mine = errors.gpu, &theirs = errors.cpu;
  double lse = 0.0;
  for (size_t i = 0; i < a.lse.size(); ++i) {
    if (!std::isfinite(a.lse[i]) || !std::isfinite(b.lse[i])) continue;
    lse = std::max(lse, std::fabs(static_cast<double>(a.lse[i]) - b.lse[i]) /
                            std::max(1.0, std::fabs(static_cast<double>(b.lse[i]))));
  }
  int64_t touched = 0;
  if (c.padding > 0) {
    for (size_t i = 0; i < a.o.size(); ++i) {
      touched += static_cast<int64_t>(i) % (c.v_dim + c.padding) >= c.v_dim && a.o[i] != 1e30f;
    }
  }
  const bool accurate = mine.RelativeL1() <= 1.12 * theirs.RelativeL1() + 1.5e-3;
  const double between = errors.between.RelativeL2();
  const bool ok = codes == 0 && mine.wrong == 0 && lse <= 2e-5 && touched == 0 && same &&
                  back <= 2e-6 && accurate && between <= Allowed(recipe.recipe);
  static std::mutex printing;
  const std::lock_guard<std::mutex> lock(printing);
  if (!ok || std::getenv("SAGE_TEST_VERBOSE") != nullptr) {
    std::printf(
        "%s %-24s %-24s q %5ld kv %5ld d %3ld/%3ld  codes %ld wrong %ld touched %ld lse %.1e "
        "relL1 %.5f cpu %.5f between %.5f back %.1e%s\n",
        ok ? "ok  " : "FAIL", recipe.name.c_str(), c.name.c_str(), c.q_len, c.kv_len, c.qk_dim,
        c.v_dim, codes, mine.wrong, touched, lse, mine.RelativeL1(), theirs.RelativeL1(), between,
        back, same ? "" : "  not the same bits");
    std::fflush(stdout);
  }
  return ok;
}

int RunChecks(const std::string& recipe_part, const std::string& case_part, int threads, int every,
              int64_t most) {
  int failed = 0, count = 0, number = 0;
  std::vector<Case> cases = Int8Cases();
  for (Case& c : cases) c.q_len = std::min(c.q_len, most), c.kv_len = std::min(c.kv_len, most);
  for (const NamedRecipe& recipe : AllRecipes()) {
    if (recipe.name.find(recipe_part) == std::string::npos) continue;
    sage::cuda::LimitComputeCapability(recipe.capability);
    const int turn = number++ % every;
    std::atomic<int> next{0}, wrong{0}, done{0};
    const auto work = [&] {
      for (int n = next++; n < static_cast<int>(cases.size()); n = next++) {
        if (n % every != turn || cases[n].name.find(case_part) == std::string::npos) continue;
        wrong += !Check(recipe, cases[n], 17 + n);
        ++done;
      }
    };
    std::vector<std::thread> pool;
    for (int t = 1; t < threads; ++t) pool.emplace_back(work);
    work();
    for (std::thread& t : pool) t.join();
    std::printf("%-36s %d of %d cases failed\n", recipe.name.c_str(), wrong.load(), done.load());
    std::fflush(stdout);
    failed += wrong;
    count += done;
  }
  std::printf("%d of %d cases failed\n", failed, count);
  return failed == 0 && count > 0 ? 0 : 1;
}

int RunAccuracy() {
  for (const NamedRecipe& recipe : AllRecipes()) {
    sage::cuda::LimitComputeCapability(recipe.capability);
    Case c;
    c.heads = c.kv_heads = 2;
    c.q_len = c.kv_len = 2048;
    c.qk_dim = c.v_dim = 128;
    std::printf("%-36s relative L1, device/cpu:", recipe.name.c_str());
    for (int kind = 0; kind < 4; ++kind) {
      c.k_bias = kind == 1 || kind == 2 ? 5.0f : 0.0f;
      c.v_bias = kind == 2 ? 1.0f : 0.0f;
      c.q_gain = kind == 3 ? 4.0f : 1.0f;
      Data data = MakeData(c, 1 + kind);
      data.p.recipe = recipe.recipe;
      if (kind == 2) {
        for (size_t i = 0; i < data.q.size(); ++i) {
          data.q[i] = (data.q[i] + 2.0f) * (i % 128 % 37 == 0 ? 6.0f : 1.0f);
        }
      }
      Operands operands;
      const Comparison e = Compare(data, RunGpu(data, nullptr), RunCpu(data, &operands), 128);
      std::printf("  %.5f/%.5f", e.gpu.RelativeL1(), e.cpu.RelativeL1());
    }
    std::printf("\n");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const auto text = [&](int n, const char* otherwise) {
    return std::string(argc > n ? argv[n] : otherwise);
  };
  const std::string what = text(1, "check");
  if (what == "check") {
    return RunChecks(text(2, ""), text(3, ""), std::max(1, std::atoi(text(4, "8").c_str())),
                     std::max(1, std::atoi(text(5, "1").c_str())),
                     std::max(1L, std::atol(text(6, "1000000").c_str())));
  }
  if (what == "accuracy") return RunAccuracy();
  if (what == "bench") {
    BenchChoice choice;
    choice.recipe = text(2, "int8_fp16");
    choice.budget = std::atof(text(3, "60").c_str());
    choice.dim = std::atol(text(4, "0").c_str());
    choice.n = std::atol(text(5, "0").c_str());
    choice.full_only = text(6, "") == "full";
    return RunInt8Bench(choice);
  }
  std::printf("usage: int8_runner check | accuracy | bench\n");
  return 2;
}
