// Runner of the FP4 kernels without Node.
//
//   fp4_runner check [part [n of [longest]]]            the case table of test/fp4_cases.h on the
//       device: codes and scales equal to the CPU engine's, errors against float64, the same bits
//       twice (where the case has 16-bit inputs: from those), and the same bits as the simulation
//       unless the device computes FP4 natively; exit code 0 if all hold. Which cases:
//       chosen_cases.h
//   fp4_runner accuracy [tokens]                        fp4 and fp4_fp8 against the published form
//   fp4_runner bench                                    time of the pre-pass and of attention
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "cuda/device.h"
#include "cuda/sm120/forward.h"
#include "sage/capabilities.h"
#include "simulate/fp4_forward.h"
#include "test/cuda/chosen_cases.h"
#include "test/cuda/sm90_device.h"
#include "test/fp4_cases.h"

namespace {

using namespace sage_test;

// Device copies of a problem's arrays.
struct OnDevice {
  OnDevice(const Data& data, sage::InputType input)
      : q(data.q.size() * 4),
        k(data.k.size() * 4),
        v(data.v.size() * 4),
        mask(data.mask_size()),
        o(data.o_elements() * 4),
        lse(data.p.batch * data.p.q_heads * data.p.q_len * 4),
        workspace(sage::Fp4Workspace(data.p)) {
    const bool wide = input == sage::InputType::kFloat32;
    wide ? Upload(q, data.q) : Upload(q, data.q16);
    wide ? Upload(k, data.k) : Upload(k, data.k16);
    wide ? Upload(v, data.v) : Upload(v, data.v16);
    Upload(mask, data.mask_bytes);
    Upload(mask, data.mask_values);
    buffers = {q.as<float>(),   k.as<float>(), v.as<float>(),
               mask.as<void>(), o.as<float>(), lse.as<float>()};
  }
  Device q, k, v, mask, o, lse, workspace;
  sage::ForwardBuffers buffers;
};

Outputs RunGpu(const Data& data, sage::InputType input, Operands* operands) {
  Problem p = data.p;
  p.input = input;
  OnDevice device(data, input);
  Outputs out;
  // Every element must be written, and nothing between rows.
  out.o.assign(data.o_elements(), 1e30f);
  out.lse.assign(p.batch * p.q_heads * p.q_len, 1e30f);
  Upload(device.o, out.o);
  Upload(device.lse, out.lse);
  Poison(device.workspace, sage::Fp4Workspace(p));
  const sage::Status status =
      sage::Fp4Forward(p, device.buffers, device.workspace.as<void>(), nullptr);
  if (!status.ok()) {
    std::printf("Fp4Forward: %s\n", status.message);
    std::exit(2);
  }
  Require(cudaDeviceSynchronize(), "attention");
  out.o = Download(device.o.as<float>(), out.o.size());
  out.lse = Download(device.lse.as<float>(), out.lse.size());
  if (operands != nullptr) {
    *operands = Unpack(p, sage::sm120::LayOut(p, device.workspace.as<void>()),
                       [](const uint8_t* from, int64_t count) { return Download(from, count); });
  }
  return out;
}

Outputs RunSimulation(const Data& data) {
  const Problem& p = data.p;
  Outputs out;
  out.o.assign(data.o_elements(), 1e30f);
  out.lse.assign(p.batch * p.q_heads * p.q_len, 1e30f);
  sage::simulate::SimulatedWorkspace space;
  const sage::Status status =
      sage::simulate::Fp4Forward(p, HostBuffers(data, p, out.o.data(), out.lse.data()), 3, &space);
  if (!status.ok()) std::exit(2);
  return out;
}

uint32_t Hash(const Outputs& out) {
  uint32_t hash = 2166136261u;
  for (const std::vector<float>* x : {&out.o, &out.lse}) {
    for (const float value : *x) {
      hash = (hash ^ (std::isnan(value) ? 0x7fc00000u : sage::FloatToBits(value))) * 16777619u;
    }
  }
  return hash;
}

int RunChecks(ChosenCases chosen) {
  int failed = 0, same = 0, seed = 100;
  const bool native = sage::cuda::ComputeCapability() >= 120;
  for (const Fp4Case& c : Fp4Cases()) {
    ++seed;
    if (!chosen.Takes(c.shape.name, std::max(c.shape.q_len, c.shape.kv_len))) continue;
    const Data data = MakeData(c, static_cast<uint64_t>(seed));
    Operands operands;
    const Outputs out = RunGpu(data, sage::InputType::kFloat32, &operands);
    Operands of_again;
    const Outputs again = RunGpu(data, data.narrow, &of_again);
    bool ok = Judge(c, data, out, operands);
    const bool repeats = Differences(operands, of_again) == 0 && SameBits(out.o, again.o) &&
                         SameBits(out.lse, again.lse);
    if (!repeats) std::printf("     not the same bits twice, or from 16 bits\n");
    ok = ok && repeats;
    if (!native) {
      const Outputs simulated = RunSimulation(data);
      const bool equal = SameBits(out.o, simulated.o) && SameBits(out.lse, simulated.lse);
      if (!equal) {
        double o = 0, lse = 0;
        Distances(data, out, simulated, &o, &lse);
        std::printf("     device %08x, simulation %08x, apart %.1e lse %.1e\n", Hash(out),
                    Hash(simulated), o, lse);
      }
      ok = ok && equal;
      same += equal;
    }
    failed += !ok;
  }
  std::printf("%d of %d cases failed; bits of the simulation in %d\n", failed, chosen.taken(),
              same);
  return failed == 0 && chosen.taken() > 0 ? 0 : 1;
}

// Relative L2 against float64 of one head, all forms on the same data.
void PrintAccuracy(const char* name, const Case& c, const Data& data) {
  double error[3] = {}, cpu[3] = {};
  const Form forms[] = {Form::kFp4Paper, Form::kFp4, Form::kFp4Fp8};
  for (int f = 0; f < 3; ++f) {
    Data of_form = data;
    of_form.p.recipe = RecipeOf(forms[f]);
    Operands operands;
    const Outputs out = RunGpu(of_form, sage::InputType::kFloat32, nullptr),
                  theirs = RunCpu(of_form, &operands);
    const std::vector<Errors> errors = Compare(of_form, {&out, &theirs}, 512);
    error[f] = errors[0].RelativeL2();
    cpu[f] = errors[1].RelativeL2();
  }
  std::printf(
      "%-34s D %3ld N %5ld  paper %.4f (cpu %.4f)  fp4 %.4f (%.4f) %.3fx  fp4_fp8 %.4f (%.4f)\n",
      name, static_cast<long>(c.qk_dim), static_cast<long>(c.kv_len), error[0], cpu[0], error[1],
      cpu[1], error[1] / error[0], error[2], cpu[2]);
}

int RunAccuracy(int64_t tokens) {
  for (const int64_t d : {64, 128}) {
    Case c;
    c.heads = c.kv_heads = 1;
    c.q_len = c.kv_len = tokens;
    c.qk_dim = c.v_dim = d;
    PrintAccuracy("N(0,1)", c, MakeData(c, 1));
    c.k_bias = 5.0f;
    PrintAccuracy("K bias 5", c, MakeData(c, 2));
    c.v_bias = 1.0f;
    Data data = MakeData(c, 3);
    Random random(4);
    std::vector<float> bias(static_cast<size_t>(d));
    for (float& b : bias) b = 2.0f * random.Normal();
    for (size_t i = 0; i < data.q.size(); ++i) {
      const size_t channel = i % static_cast<size_t>(d);
      data.q[i] = (data.q[i] + bias[channel]) * (channel % 37 == 0 ? 6.0f : 1.0f);
    }
    PrintAccuracy("K bias 5, Q and V bias, outliers", c, data);
    Case peaky;
    peaky.heads = peaky.kv_heads = 1;
    peaky.q_len = peaky.kv_len = tokens;
    peaky.qk_dim = peaky.v_dim = d;
    peaky.q_gain = 4.0f;
    PrintAccuracy("Q x4", peaky, MakeData(peaky, 5));
  }
  return 0;
}

template <class Work>
float Milliseconds(Work work) {
  cudaEvent_t begin, end;
  Require(cudaEventCreate(&begin), "event");
  Require(cudaEventCreate(&end), "event");
  std::vector<float> times;
  work();
  for (int i = 0; i < 5; ++i) {
    Require(cudaEventRecord(begin), "record");
    work();
    Require(cudaEventRecord(end), "record");
    Require(cudaEventSynchronize(end), "wait");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[2];
}

int RunBench() {
  for (const Form form : {Form::kFp4, Form::kFp4Fp8}) {
    for (const int64_t d : {64, 128}) {
      for (const int64_t n : {1024, 4096}) {
        Fp4Case c;
        c.form = form;
        c.shape.heads = c.shape.kv_heads = 32;
        c.shape.q_len = c.shape.kv_len = n;
        c.shape.qk_dim = c.shape.v_dim = d;
        const Data data = MakeData(c, 7);
        OnDevice device(data, sage::InputType::kFloat32);
        const sage::sm120::Workspace space =
            sage::sm120::LayOut(data.p, device.workspace.as<void>());
        const float before = Milliseconds([&] {
          Require(sage::sm120::Prepass(data.p, device.buffers, space, nullptr), "pre-pass");
        });
        const float attention = Milliseconds([&] {
          Require(sage::sm120::Attend(data.p, device.buffers, space, nullptr), "attention");
        });
        const double gigabytes = 3.0 * 32 * static_cast<double>(n * d) * 4 / 1e9;
        std::printf(
            "%-9s D %3ld N %5ld H32  pre-pass %.3f ms (%.0f GB/s of q, k, v)  attention %.2f ms, "
            "%.1f TOPS\n",
            NameOf(form), static_cast<long>(d), static_cast<long>(n), before,
            gigabytes / before * 1e3, attention,
            4.0 * 32 * static_cast<double>(n) * static_cast<double>(n * d) / attention / 1e9);
      }
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "check";
  if (what == "check") return RunChecks(ChosenCases(argc, argv, 2));
  if (what == "accuracy") return RunAccuracy(argc > 2 ? std::atol(argv[2]) : 2048);
  if (what == "bench") return RunBench();
  std::printf("usage: fp4_runner check | accuracy | bench\n");
  return 2;
}
