// Runner of the Hopper kernels without Node.
//
//   sm90_runner check [part of a case's name [n of [longest]]]
//                                              codes, scales, o and lse over the option space;
//                                              exit code 0 if all hold. Which cases:
//                                              chosen_cases.h
//   sm90_runner accuracy [heavy]               errors against float64 (docs/kernels_hopper.md);
//                                              where one key has much of the weight
//   sm90_runner sums                           what the e4m3 tensor core keeps of a sum
//   sm90_runner bench [kernel|codes|all] [milliseconds per point] [head_dim] [N] [deviation]
//                                              codes: attention over codes of q; 0 for all
//                                              head_dims or N; standard deviation of scores: 1
//   sm90_runner few [milliseconds per point]   few queries: parts of the keys against none, the
//                                              pre-pass, and the exact kernels
//
// Codes and scales must equal those of the CPU engine, which is bit-exact with src/numerics; what
// is put back for v equals its formula, and lse the engine's, up to float32 sums; the error of o
// against float64 must be that of the recipe.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "cuda/sm90/forward.h"
#include "cuda/sm90/launch.h"
#include "sage/capabilities.h"
#include "sage/cuda_attention.h"
#include "sage/quantize.h"
#include "test/cuda/chosen_cases.h"
#include "test/cuda/sm90_bench.cuh"
#include "test/cuda/sm90_cases.h"
#include "test/cuda/sm90_device.h"
#include "test/cuda/sm90_operands.h"
#include "test/cuda/sm90_problem.h"
#include "test/cuda/sm90_scales.cuh"
#include "test/cuda/sm90_sums.cuh"

namespace {

using sage::MaskKind;
using sage_test::Case;
using sage_test::Data;
using sage_test::Device;
using sage_test::Download;
using sage_test::Operands;
using sage_test::Problem;
using sage_test::Require;
using sage_test::Upload;

struct Outputs {
  std::vector<float> o, lse;
};

// One way to compute a problem.
struct Way {
  const char* name;
  sage::sm90::PartsPlan plan;
  bool narrow;  // from 16-bit inputs
  bool bare;    // without lse: attention rounds q, where the way with lse has it from the pre-pass
};

Outputs RunGpu(const Data& data, Operands* operands, const Way& way) {
  Problem p = data.p;
  if (way.narrow) p.input = data.narrow;
  if (way.bare) p.want_lse = false;
  Device q(data.q.size() * 4), k(data.k.size() * 4), v(data.v.size() * 4), mask(data.mask_size());
  if (way.narrow) {
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
  const int64_t bytes = sage::sm90::LayOut(p, nullptr, way.plan).bytes;
  Device workspace(bytes);
  sage_test::Poison(workspace, bytes);
  const sage::ForwardBuffers buffers = {q.as<float>(),   k.as<float>(), v.as<float>(),
                                        mask.as<void>(), o.as<float>(), lse.as<float>()};
  const sage::sm90::Workspace w = sage::sm90::LayOut(p, workspace.as<void>(), way.plan);
  const sage::sm90::PartsPlan usual = sage::sm90::PlanParts(p);
  if (p.kv_len == 0 ||
      (usual.parts == way.plan.parts && usual.shared_rows == way.plan.shared_rows)) {
    const sage::Status status = sage::Sm90Forward(p, buffers, workspace.as<void>(), nullptr);
    if (!status.ok()) {
      std::printf("Sm90Forward: %s\n", status.message);
      std::exit(2);
    }
  } else {
    Require(sage::sm90::Prepass(p, buffers, w, nullptr), "Prepass");
    Require(sage::sm90::Attend(p, buffers, w, nullptr), "Attend");
  }
  Require(cudaDeviceSynchronize(), "attention");
  out.o = Download(o.as<float>(), out.o.size());
  out.lse = Download(lse.as<float>(), out.lse.size());
  if (operands != nullptr && p.kv_len > 0) sage_test::UnpackOperands(p, w, operands);
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
  const sage::EngineOptions options = {
      sage::DetectIsa(), static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))};
  const sage::Status status = sage::InspectForward(p, buffers, inspect, options);
  if (!status.ok()) {
    std::printf("InspectForward: %s\n", status.message);
    std::exit(2);
  }
  return out;
}

// Differing elements; NaN marks rows of q that are not finite, whose scale nobody reads.
int64_t Differences(const std::vector<float>& gpu, const std::vector<float>& cpu) {
  if (gpu.size() != cpu.size()) return -1;
  int64_t count = 0;
  for (size_t i = 0; i < gpu.size(); ++i) count += !(gpu[i] == cpu[i] || std::isnan(gpu[i]));
  return count;
}

// Means that are not those of docs/numerics.md 3 with the recipe's codes and scales of v.
int64_t MeanDifferences(const Data& data, const std::vector<float>& means, const Operands& cpu) {
  const Problem& p = data.p;
  if (p.recipe.smooth_v == 0) return 0;
  constexpr double kTf32 = 0x1.02p-11, kSums = 1e-5;  // relative; of the largest magnitude
  const int64_t tiles = (p.kv_len + 127) / 128;
  int64_t count = 0;
  for (int64_t n = 0; n < p.batch * p.kv_heads * tiles * p.v_dim; ++n) {
    const int64_t d = n % p.v_dim, tile = n / p.v_dim % tiles, head = n / p.v_dim / tiles;
    const float* v = data.v.data() + head / p.kv_heads * p.v.batch + head % p.kv_heads * p.v.head;
    const double scale = cpu.v_scale[head * p.v_dim + d];
    double sum = 0.0, codes = 0.0;
    int64_t finite = 0;
    for (int64_t t = 128 * tile; t < std::min(128 * tile + 128, p.kv_len); ++t) {
      const float x = v[t * p.v.token + d];
      codes += cpu.v_codes[(head * p.kv_len + t) * p.v_dim + d];
      if (!std::isfinite(x)) continue;
      sum += x;
      ++finite;
    }
    double mean = 0.0;
    if (finite > 0) mean = static_cast<float>(sum / finite) - codes * scale / finite;
    count += !(std::fabs(means[n] - mean) <= kTf32 * std::fabs(mean) + kSums * 448.0 * scale);
  }
  return count;
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

template <class Visit>
void ForRows(const Problem& p, int64_t most, Visit visit) {
  const int64_t rows = p.batch * p.q_heads * p.q_len, step = std::max<int64_t>(1, rows / most) | 1;
  for (int64_t n = 0; n < rows; n += step) {
    visit(n / (p.q_heads * p.q_len), n / p.q_len % p.q_heads, n % p.q_len);
  }
}

// Errors of each of `outputs`, in their order, over about `most_rows` rows.
std::vector<Errors> Compare(const Data& data, const std::vector<const Outputs*>& outputs,
                            int64_t most_rows) {
  const Problem& p = data.p;
  std::vector<Errors> all(outputs.size());
  std::vector<double> exact;
  ForRows(p, most_rows, [&](int64_t b, int64_t h, int64_t i) {
    const double lse = ExactRow(data, b, h, i, &exact);
    for (size_t n = 0; n < outputs.size(); ++n) {
      const float* o = outputs[n]->o.data() + b * p.o.batch + h * p.o.head + i * p.o.token;
      for (int64_t d = 0; d < p.v_dim; ++d) all[n].Add(o[d], exact[d]);
      const float mine = outputs[n]->lse[(b * p.q_heads + h) * p.q_len + i];
      if (std::isnan(lse) != std::isnan(mine) || (lse == -INFINITY) != (mine == -INFINITY)) {
        ++all[n].wrong;
      }
    }
  });
  return all;
}

bool SameBits(const Outputs& a, const Outputs& b) {
  return std::memcmp(a.o.data(), b.o.data(), a.o.size() * 4) == 0 &&
         std::memcmp(a.lse.data(), b.lse.data(), a.lse.size() * 4) == 0;
}

// The ways to compute a case: as it is done, and by the kernels that it is not done by.
std::vector<Way> WaysOf(const Case& c, const Problem& p) {
  using sage::sm90::PartsPlan;
  const PartsPlan usual = sage::sm90::PlanParts(p);
  std::vector<Way> ways = {{usual.parts > 0 ? "parts" : "", usual, false, false}};
  const bool narrow = c.input != sage::InputType::kFloat32;
  if (narrow) ways.push_back({"16 bits", usual, true, false});
  if (c.qk_dim <= 128 && c.v_dim <= 128) {
    ways.push_back(usual.parts > 0 ? Way{"no parts", PartsPlan{}, false, false}
                                   : Way{"3 parts", PartsPlan{3, false}, false, false});
    ways.push_back({"no lse", PartsPlan{}, false, true});
    if (narrow) ways.push_back({"no lse16", PartsPlan{}, true, true});
  }
  if (usual.parts > 1 || c.qk_dim > 128) {
    ways.push_back({"1 part", PartsPlan{1, false}, false, false});
  }
  if (p.q_len <= sage::sm90::kSharedRows) {
    ways.push_back({"2 x 2", PartsPlan{2, true}, false, false});
  }
  return ways;
}

bool Check(const Case& c, uint64_t seed) {
  const Data data = MakeData(c, seed);
  Operands cpu;
  const Outputs b = RunCpu(data, &cpu);
  const std::vector<Way> ways = WaysOf(c, data.p);
  std::vector<Outputs> outputs;
  std::vector<int64_t> codes;
  std::vector<bool> same;
  for (const Way& way : ways) {
    Operands gpu;
    outputs.push_back(RunGpu(data, &gpu, way));
    codes.push_back(0);
    if (c.kv_len > 0) {
      if (!way.bare) {
        codes.back() = std::abs(Differences(gpu.q_codes, cpu.q_codes)) +
                       std::abs(Differences(gpu.q_scale, cpu.q_scale));
      }
      codes.back() += std::abs(Differences(gpu.k_codes, cpu.k_codes)) +
                      std::abs(Differences(gpu.k_scale, cpu.k_scale)) +
                      std::abs(Differences(gpu.v_codes, cpu.v_codes)) +
                      std::abs(Differences(gpu.v_scale, cpu.v_scale)) +
                      MeanDifferences(data, gpu.v_means, cpu);
    }
    // The same bits again; from 16 bits, those of the same values in float32; without lse, those of
    // the same kernel with it, whose codes of q were compared.
    same.push_back(SameBits(outputs.back(), RunGpu(data, nullptr, way)));
    if (way.bare) {
      size_t like = 0;
      while (ways[like].plan.parts != 0) ++like;
      outputs.back().lse = outputs[like].lse;
      same.back() = same.back() && SameBits(outputs.back(), outputs[like]);
    } else if (way.narrow) {
      same.back() = same.back() && SameBits(outputs.back(), outputs[0]);
    }
  }
  std::vector<const Outputs*> all = {&b};
  for (const Outputs& a : outputs) all.push_back(&a);
  const std::vector<Errors> errors = Compare(data, all, 400);
  bool all_ok = true;
  for (size_t n = 0; n < ways.size(); ++n) {
    const Outputs& a = outputs[n];
    const Errors &mine = errors[n + 1], &theirs = errors[0];
    double lse = 0.0;
    for (size_t i = 0; i < a.lse.size(); ++i) {
      if (!std::isfinite(a.lse[i]) || !std::isfinite(b.lse[i])) continue;
      lse = std::max(lse, std::fabs(static_cast<double>(a.lse[i]) - b.lse[i]) /
                              std::max(1.0, std::fabs(static_cast<double>(b.lse[i]))));
    }
    // Rows are dim + padding long: what lies between stays.
    int64_t touched = 0;
    if (c.padding > 0) {
      for (size_t i = 0; i < a.o.size(); ++i) {
        touched += static_cast<int64_t>(i) % (c.v_dim + c.padding) >= c.v_dim && a.o[i] != 1e30f;
      }
    }
    // Both round P to e4m3 against different maxima: the errors agree but for chance, of which
    // there is more where there are few rows.
    const double chance = c.batch * c.heads * c.q_len < 100 ? 1.5 : 1.12;
    const bool accurate = mine.RelativeL1() <= chance * theirs.RelativeL1() + c.slack;
    const bool ok =
        codes[n] == 0 && mine.wrong == 0 && lse <= 2e-5 && touched == 0 && same[n] && accurate;
    std::printf(
        "%s %-28s %-8s q %5ld kv %5ld d %3ld/%3ld  codes %ld wrong %ld touched %ld lse %.1e  "
        "relL1 %.5f cpu %.5f%s\n",
        ok ? "ok  " : "FAIL", c.name.c_str(), ways[n].name, c.q_len, c.kv_len, c.qk_dim, c.v_dim,
        codes[n], mine.wrong, touched, lse, mine.RelativeL1(), theirs.RelativeL1(),
        same[n] ? "" : "  not the same bits");
    all_ok &= ok;
  }
  return all_ok;
}

// What takes float32 alone says so of 16 bits, in words.
bool CheckRefusals() {
  Problem p = MakeData(Case(), 1).p;
  const char* reason = "";
  bool ok = sage::CudaSupports(p, &reason);
  p.input = sage::InputType::kBfloat16;
  const sage::EngineOptions options = {sage::DetectIsa(), 1};
  const auto refused = [](const sage::Status& status) {
    return status.code == sage::StatusCode::kUnsupported &&
           std::strcmp(status.message, sage::kFloat32InputOnly) == 0;
  };
  ok = ok && sage::CudaSupports(p, &reason);
  ok = ok && refused(sage::AttentionForward(p, {}, options));
  ok = ok && refused(sage::AttentionBackward(p, {}, options));
  ok = ok && refused(sage::CudaBackward(p, {}, nullptr, nullptr));
  p.recipe.precision = sage::Precision::kExact;
  ok = ok && !sage::CudaSupports(p, &reason) && std::strcmp(reason, sage::kFloat32InputOnly) == 0;
  ok = ok && refused(sage::CudaForward(p, {}, nullptr, nullptr));
  std::printf("%s refusals of 16-bit inputs\n", ok ? "ok  " : "FAIL");
  return ok;
}

int RunChecks(sage_test::ChosenCases chosen) {
  int failed = (CheckRefusals() ? 0 : 1) + (sage_test::CheckScales() ? 0 : 1), seed = 16;
  for (const Case& c : sage_test::Cases()) {
    ++seed;
    if (chosen.Takes(c.name, std::max(c.q_len, c.kv_len))) failed += !Check(c, seed);
  }
  std::printf("%d of %d cases failed\n", failed, chosen.taken());
  return failed == 0 && chosen.taken() > 0 ? 0 : 1;
}

void PrintAccuracy(const char* name, const Case& c, Data data, int64_t rows) {
  data.p.want_lse = true;
  Operands operands;
  const Outputs recipe = RunCpu(data, &operands);
  // Where keys would be cut into parts, that is the second line.
  const sage::sm90::PartsPlan usual = sage::sm90::PlanParts(data.p);
  std::vector<Outputs> outputs = {RunGpu(data, nullptr, {"", {}, false, false})};
  if (usual.parts > 0) outputs.push_back(RunGpu(data, nullptr, {"", usual, false, false}));
  std::vector<const Outputs*> all = {&recipe};
  for (const Outputs& out : outputs) all.push_back(&out);
  const std::vector<Errors> errors = Compare(data, all, rows);
  for (size_t n = 1; n < errors.size(); ++n) {
    const Errors& e = errors[n];
    std::printf(
        "%-36s N %6ld %s  cosine %.6f  relL1 %.5f  relL2 %.5f  rmse %.2e  wrong %ld  cpu relL1 "
        "%.5f\n",
        name, c.kv_len, n == 1 ? "whole" : "parts", e.dot / std::sqrt(e.l2_of * e.of_o),
        e.RelativeL1(), e.RelativeL2(),
        std::sqrt(e.l2 / std::max<double>(1.0, 1.0 * rows * c.v_dim)), e.wrong,
        errors[0].RelativeL1());
  }
  std::fflush(stdout);
}

// One key of large weight; keys are walked from the last on.
int RunHeavyAccuracy() {
  Case w;
  w.q_len = 256;
  w.qk_dim = w.v_dim = 128;
  for (const int64_t n : {8192, 32768}) {
    w.kv_len = n;
    const float all_others = std::log(static_cast<float>(n)) + 0.56f;
    for (const float weight : {0.02f, 0.1f, 0.5f, 0.9f}) {
      for (const int64_t key : {int64_t{0}, int64_t{2000}, n - 2000, n - 1}) {
        if (weight != 0.5f && (key != n - 1 || n == 8192)) continue;
        for (const float v : {1.0f, 10.0f}) {
          w.heavy_key = key, w.heavy_v = v;
          w.heavy_score = all_others + std::log(weight / (1.0f - weight));
          char name[64];
          std::snprintf(name, sizeof(name), "key %ld weighs %.2f, V x%.0f", key, weight, v);
          PrintAccuracy(name, w, MakeData(w, 11), 64);
        }
      }
    }
  }
  return 0;
}

int RunAccuracy() {
  Case c;
  c.heads = c.kv_heads = 8;
  c.q_len = c.kv_len = 4096;
  c.qk_dim = c.v_dim = 128;
  PrintAccuracy("N(0,1)", c, MakeData(c, 1), 256);
  c.k_bias = 5.0f;
  PrintAccuracy("K + channel bias 5", c, MakeData(c, 2), 256);
  c.v_bias = 1.0f;
  Data data = MakeData(c, 3);
  sage_test::Random random(4);
  std::vector<float> bias(128);
  for (float& b : bias) b = 2.0f * random.Normal();
  for (size_t i = 0; i < data.q.size(); ++i) {
    data.q[i] = (data.q[i] + bias[i % 128]) * (i % 128 % 37 == 0 ? 6.0f : 1.0f);
  }
  PrintAccuracy("and Q bias 2, outliers x6, V bias 1", c, data, 256);
  // Long sums in the tensor core: what they lose shows as the difference to the CPU engine.
  Case w;
  w.heads = w.kv_heads = 8;
  w.q_len = 256;
  w.kv_len = 32768;
  w.qk_dim = w.v_dim = 128;
  PrintAccuracy("long, N(0,1)", w, MakeData(w, 7), 256);
  Data drifting = MakeData(w, 8);
  for (size_t i = 0; i < drifting.v.size(); ++i) {
    const double token = static_cast<double>(i / 128 % 32768);
    drifting.v[i] = drifting.v[i] * (i % 128 % 37 == 0 ? 20.0f : 1.0f) +
                    2.0f * static_cast<float>(std::sin(token / 3000.0 + i % 128));
  }
  PrintAccuracy("long, means of V drift, outliers x20", w, drifting, 256);
  w.q_gain = 4.0f;
  PrintAccuracy("long, q x4", w, MakeData(w, 9), 256);
  w.q_gain = 12.0f;
  PrintAccuracy("long, q x12", w, MakeData(w, 10), 256);
  for (const int64_t n : {8192, 32768}) {
    Case m;
    m.heads = m.kv_heads = 2;
    m.q_len = m.kv_len = n;
    m.qk_dim = m.v_dim = 128;
    Data mean = MakeData(m, 5);
    for (float& x : mean.v) x += 1.0f;
    PrintAccuracy("V with mean 1", m, mean, 48);
    m.constant_v = true;
    PrintAccuracy("V constant per channel", m, MakeData(m, 6), 48);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  // Line by line, so that a run that is cut off tells how far it came.
  std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);
  const std::string what = argc > 1 ? argv[1] : "check";
  if (what == "check") return RunChecks(sage_test::ChosenCases(argc, argv, 2));
  if (what == "accuracy") {
    return argc > 2 && std::string(argv[2]) == "heavy" ? RunHeavyAccuracy() : RunAccuracy();
  }
  if (what == "sums") return sage_test::RunSums();
  if (what == "few") return sage_test::RunFew(argc > 2 ? std::atof(argv[2]) : 20.0);
  if (what == "bench") {
    return sage_test::RunBench(
        argc > 2 && std::string(argv[2]) == "all", argc > 2 && std::string(argv[2]) == "codes",
        argc > 3 ? std::atof(argv[3]) : 100.0, argc > 4 ? std::atol(argv[4]) : 0,
        argc > 5 ? std::atol(argv[5]) : 0, argc > 6 ? std::atof(argv[6]) : 1.0);
  }
  std::printf(
      "usage: sm90_runner check | accuracy | sums | bench [kernel|codes|all] [ms] | few [ms]\n");
  return 2;
}
