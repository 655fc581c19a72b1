// Tensors of more than 2^31 elements on a device, without Node: k and v of 2.7e9 elements each, few
// queries. The last head, where an index of 32 bits would have wrapped, is compared with the CPU
// engine. Needs 60 GB of device memory.
//
//   long_runner [tokens]   kv_len, 524,288 unless told; exit code 0 if all hold
#include <cstdlib>
#include <string>

#include "sage/attention.h"
#include "sage/capabilities.h"
#include "sage/cuda_attention.h"
#include "test/cuda/int8_recipes.h"
#include "test/cuda/sm90_device.h"
#include "test/fp4_cases.h"

namespace {

using namespace sage_test;

constexpr int64_t kHeads = 40, kDim = 128, kQueries = 32;

// Element i of a tensor: uniform in [-gain, gain], from a hash of its 64-bit index.
__global__ void Fill(float* to, int64_t count, uint64_t seed, float gain) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    uint64_t x = static_cast<uint64_t>(i) + seed;
    x = (x ^ x >> 31) * 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9ull;
    to[i] = gain * (static_cast<float>(x >> 40) * 0x1p-23f - 1.0f);
  }
}

struct Layout {
  const char* name;
  int64_t batch, heads;
  bool tokens_first;
};

sage::TokenStrides StridesOf(const Layout& layout, int64_t tokens) {
  if (layout.tokens_first) {
    return {tokens * layout.heads * kDim, kDim, layout.heads * kDim};
  }
  return {layout.heads * tokens * kDim, tokens * kDim, kDim};
}

// The rows of the last head, one after the other.
std::vector<float> LastHead(const Device& from, const Layout& layout, int64_t tokens) {
  const sage::TokenStrides strides = StridesOf(layout, tokens);
  const float* at =
      from.as<float>() + (layout.batch - 1) * strides.batch + (layout.heads - 1) * strides.head;
  std::vector<float> rows(static_cast<size_t>(tokens * kDim));
  Require(cudaMemcpy2D(rows.data(), kDim * 4, at, static_cast<size_t>(strides.token) * 4, kDim * 4,
                       static_cast<size_t>(tokens), cudaMemcpyDeviceToHost),
          "download");
  return rows;
}

sage::Recipe ExactRecipe() {
  sage::Recipe r = {};
  r.precision = sage::Precision::kExact;
  return r;
}

bool Check(const char* name, const sage::Recipe& recipe, const Layout& layout, int64_t tokens,
           const Device& q, const Device& k, const Device& v) {
  Problem p = {};
  p.batch = layout.batch;
  p.q_heads = p.kv_heads = layout.heads;
  p.q_len = kQueries;
  p.kv_len = tokens;
  p.qk_dim = p.v_dim = kDim;
  p.scale = 1.0 / std::sqrt(static_cast<double>(kDim));
  p.window_left = p.window_right = -1;
  p.recipe = recipe;
  p.want_lse = true;
  p.q = p.o = StridesOf(layout, kQueries);
  p.k = p.v = StridesOf(layout, tokens);
  const char* reason = nullptr;
  if (!sage::CudaSupports(p, &reason)) {
    std::printf("skip %-9s %-13s %s\n", name, layout.name, reason);
    return true;
  }
  Device o(kHeads * kQueries * kDim * 4), lse(kHeads * kQueries * 4);
  Device workspace(static_cast<size_t>(sage::CudaForwardWorkspace(p)));
  const sage::ForwardBuffers buffers = {q.as<float>(), k.as<float>(), v.as<float>(),
                                        nullptr,       o.as<float>(), lse.as<float>()};
  const sage::Status status = sage::CudaForward(p, buffers, workspace.as<void>(), nullptr);
  if (!status.ok()) {
    std::printf("FAIL %-9s %-13s %s\n", name, layout.name, status.message);
    return false;
  }
  Require(cudaDeviceSynchronize(), name);
  const std::vector<float> mine = LastHead(o, layout, kQueries);
  const std::vector<float> all_lse = Download(lse.as<float>(), kHeads * kQueries);

  Problem last = p;
  last.batch = last.q_heads = last.kv_heads = 1;
  const Layout one = {"", 1, 1, false};
  last.q = last.o = StridesOf(one, kQueries);
  last.k = last.v = StridesOf(one, tokens);
  const std::vector<float> q1 = LastHead(q, layout, kQueries), k1 = LastHead(k, layout, tokens);
  const std::vector<float> v1 = LastHead(v, layout, tokens);
  std::vector<float> theirs(kQueries * kDim), lse1(kQueries);
  const sage::ForwardBuffers host = {q1.data(), k1.data(),     v1.data(),
                                     nullptr,   theirs.data(), lse1.data()};
  const sage::EngineOptions options = {
      sage::DetectIsa(), static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))};
  const sage::Status on_cpu = sage::AttentionForward(last, host, options);
  if (!on_cpu.ok()) {
    std::printf("FAIL %-9s %-13s CPU: %s\n", name, layout.name, on_cpu.message);
    return false;
  }
  double apart = 0, size = 0, lse_apart = 0;
  for (size_t i = 0; i < theirs.size(); ++i) {
    const double d = static_cast<double>(mine[i]) - theirs[i];
    apart += d * d;
    size += static_cast<double>(theirs[i]) * theirs[i];
  }
  for (int64_t i = 0; i < kQueries; ++i) {
    const double x = all_lse[(kHeads - 1) * kQueries + i];
    lse_apart = std::max(lse_apart, std::fabs(x - lse1[i]) / std::fabs(lse1[i]));
  }
  // Other rows of k and v would give outputs that have nothing to do with these: 1.4 apart.
  const double relative = std::sqrt(apart / size);
  const bool ok = relative < 0.2 && lse_apart < 2e-3;
  std::printf("%s %-9s %-13s %lld elements of k  o %.4f apart, lse %.1e\n", ok ? "ok  " : "FAIL",
              name, layout.name, static_cast<long long>(kHeads * tokens * kDim), relative,
              lse_apart);
  return ok;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t tokens = argc > 1 ? std::atol(argv[1]) : 524288;
  const int64_t elements = kHeads * tokens * kDim;
  Device q(kHeads * kQueries * kDim * 4), k(static_cast<size_t>(elements) * 4);
  Device v(static_cast<size_t>(elements) * 4);
  Fill<<<64, 256>>>(q.as<float>(), kHeads * kQueries * kDim, 1, 6.0f);
  Fill<<<1024, 256>>>(k.as<float>(), elements, 1ull << 40, 1.7f);
  Fill<<<1024, 256>>>(v.as<float>(), elements, 1ull << 41, 1.7f);
  Require(cudaDeviceSynchronize(), "fill");
  const Layout layouts[] = {{"heads first", 2, kHeads / 2, false},
                            {"tokens first", 1, kHeads, true}};
  const std::pair<const char*, sage::Recipe> recipes[] = {
      {"exact", ExactRecipe()},
      {"int8_fp16", TunedRecipe(sage::Precision::kInt8Fp16)},
      {"int8_fp8", TunedRecipe(sage::Precision::kInt8Fp8)},
      {"fp4", RecipeOf(Form::kFp4)},
      {"fp4_fp8", RecipeOf(Form::kFp4Fp8)}};
  int failed = 0;
  for (const Layout& layout : layouts) {
    for (const auto& [name, recipe] : recipes) {
      failed += !Check(name, recipe, layout, tokens, q, k, v);
    }
  }
  std::printf("%d failed\n", failed);
  return failed == 0 ? 0 : 1;
}
