// Runner of the device cache without Node.
//
//   kv_cache_runner check [part of a case's name [n of [longest]]]
//                                                  codes, o and lse against the CPU cache and
//                                                  float64; exit code 0 if all hold. Which cases:
//                                                  chosen_cases.h
//   kv_cache_runner bench [milliseconds per point] [part of a case's name]
//
// Codes, scales and means must equal those of the CPU cache bit for bit; o and lse equal its up to
// sums in float32 and the rounding of P to 14 bits against w / T computed in another order.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cuda/device.h"
#include "sage/capabilities.h"
#include "sage/cuda_attention.h"
#include "sage/cuda_kv_cache.h"
#include "sage/kv_cache.h"
#include "test/cuda/chosen_cases.h"
#include "test/cuda/kv_cache_bench.cuh"
#include "test/cuda/kv_cache_forks.h"
#include "test/cuda/kv_cache_streams.h"
#include "test/cuda/sm90_device.h"
#include "test/cuda/sm90_problem.h"

namespace {

using sage::CacheCodes;
using sage::Causal;
using sage::CudaKvCache;
using sage::KvCache;
using sage::KvCacheShape;
using sage::MaskKind;
using sage::Status;
using sage_test::Case;
using sage_test::Data;
using sage_test::Device;
using sage_test::Download;
using sage_test::Problem;
using sage_test::Require;
using sage_test::Upload;

sage::EngineOptions Options() {
  return {sage::DetectIsa(), static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))};
}

void Must(const Status& status, const char* what) {
  if (status.ok()) return;
  std::printf("%s: %s\n", what, status.message);
  std::exit(2);
}

// Rows [first, first + count) of every head, without gaps.
std::vector<float> Piece(const std::vector<float>& x, const sage::TokenStrides& s, int64_t batch,
                         int64_t heads, int64_t first, int64_t count, int64_t dim) {
  std::vector<float> out;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t t = first; t < first + count; ++t)
        for (int64_t d = 0; d < dim; ++d)
          out.push_back(x[b * s.batch + h * s.head + t * s.token + d]);
  return out;
}

struct Outputs {
  std::vector<float> o, lse;
};

// What a case does beyond its problem.
struct Steps {
  std::vector<int64_t> pieces;  // tokens per append, repeated to the end; empty: all at once
  int64_t capacity = 0;
  bool detour = false;  // append twice the last piece and truncate it away
};

struct Caches {
  std::unique_ptr<KvCache> cpu;
  std::unique_ptr<CudaKvCache> gpu;
};

Caches Fill(const Data& data, const Steps& steps) {
  const Problem& p = data.p;
  const KvCacheShape shape = {p.batch, p.kv_heads, p.qk_dim, p.v_dim, sage::CacheForm::kInt8};
  Caches caches;
  Must(KvCache::Create(shape, 0, &caches.cpu), "KvCache::Create");
  Must(CudaKvCache::Create(shape, steps.capacity, nullptr, &caches.gpu), "CudaKvCache::Create");
  Device k(data.k.size() * 4), v(data.v.size() * 4);
  Upload(k, data.k);
  Upload(v, data.v);
  size_t next = 0;
  for (int64_t first = 0; first < p.kv_len;) {
    const int64_t piece =
        steps.pieces.empty() ? p.kv_len : steps.pieces[next++ % steps.pieces.size()];
    const int64_t count = std::min(piece, p.kv_len - first);
    const auto append_gpu = [&] {
      Must(caches.gpu->Append(k.as<float>() + first * p.k.token, p.k,
                              v.as<float>() + first * p.v.token, p.v, count, nullptr),
           "CudaKvCache::Append");
    };
    append_gpu();
    if (steps.detour && first > 0) {
      append_gpu();
      Must(caches.gpu->Truncate(first), "Truncate");
      append_gpu();
    }
    const std::vector<float> k_piece =
        Piece(data.k, p.k, p.batch, p.kv_heads, first, count, p.qk_dim);
    const std::vector<float> v_piece =
        Piece(data.v, p.v, p.batch, p.kv_heads, first, count, p.v_dim);
    Must(caches.cpu->Append(k_piece.data(), v_piece.data(), count, Options()), "KvCache::Append");
    first += count;
  }
  Require(cudaDeviceSynchronize(), "append");
  return caches;
}

// Differing codes, scales and means of all heads. The scale of a token of k with a value that is
// not finite is NaN on the device, and read by nobody.
int64_t Differences(const Caches& caches, const Problem& p) {
  int64_t count = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      std::vector<int16_t> k[2], v[2];
      std::vector<float> k_scale[2], v_scale[2], mean[2];
      for (int n = 0; n < 2; ++n) {
        k[n].resize(p.kv_len * p.qk_dim);
        v[n].resize(p.kv_len * p.v_dim);
        k_scale[n].resize(p.kv_len);
        v_scale[n].resize(p.kv_len);
        mean[n].resize(p.qk_dim);
        const CacheCodes codes = {k[n].data(), k_scale[n].data(), mean[n].data(), v[n].data(),
                                  v_scale[n].data()};
        Must(n == 0 ? caches.cpu->Inspect(b, h, codes) : caches.gpu->Inspect(b, h, codes),
             "Inspect");
      }
      for (size_t i = 0; i < k[0].size(); ++i) count += k[0][i] != k[1][i];
      for (size_t i = 0; i < v[0].size(); ++i) count += v[0][i] != v[1][i];
      for (int64_t i = 0; i < p.kv_len; ++i) {
        count += v_scale[0][i] != v_scale[1][i];
        count += k_scale[0][i] != k_scale[1][i] && !std::isnan(k_scale[1][i]);
      }
      for (int64_t i = 0; p.kv_len > 0 && i < p.qk_dim; ++i) count += mean[0][i] != mean[1][i];
    }
  }
  return count;
}

Outputs AttendGpu(const Data& data, CudaKvCache* cache) {
  const Problem& p = data.p;
  Device q(data.q.size() * 4), mask(data.mask_size());
  Upload(q, data.q);
  Upload(mask, data.mask_bytes);
  Upload(mask, data.mask_values);
  Outputs out;
  // Every element must be written, and nothing between rows.
  out.o.assign(data.o_elements(), 1e30f);
  out.lse.assign(p.batch * p.q_heads * p.q_len, 1e30f);
  Device o(out.o.size() * 4), lse(out.lse.size() * 4);
  Upload(o, out.o);
  Upload(lse, out.lse);
  const sage::ForwardBuffers buffers = {q.as<float>(),   nullptr,       nullptr,
                                        mask.as<void>(), o.as<float>(), lse.as<float>()};
  Must(cache->Attend(p, buffers, nullptr), "CudaKvCache::Attend");
  Require(cudaDeviceSynchronize(), "attend");
  out.o = Download(o.as<float>(), out.o.size());
  out.lse = Download(lse.as<float>(), out.lse.size());
  return out;
}

Outputs AttendCpu(const Data& data, const KvCache& cache) {
  const Problem& p = data.p;
  Outputs out;
  out.o.assign(data.o_elements(), 1e30f);
  out.lse.assign(p.batch * p.q_heads * p.q_len, 1e30f);
  const sage::ForwardBuffers buffers = {data.q.data(), nullptr,      nullptr,
                                        data.mask(),   out.o.data(), out.lse.data()};
  Must(cache.Attend(p, buffers, Options()), "KvCache::Attend");
  return out;
}

// Relative L1 of x to y over the elements of o, and how many are NaN, zero or infinite elsewhere.
struct Errors {
  double sum = 0, of = 0;
  int64_t wrong = 0;
  void Add(double x, double y) {
    if (std::isnan(x) != std::isnan(y) || (y == 0.0 && x != 0.0) || std::isinf(x)) {
      ++wrong;
    } else if (!std::isnan(x)) {
      sum += std::fabs(x - y);
      of += std::fabs(y);
    }
  }
  double Relative() const { return of > 0 ? sum / of : sum; }
};

bool Check(const Case& c, const Steps& steps, uint64_t seed) {
  const Data data = sage_test::MakeData(c, seed);
  const Problem& p = data.p;
  const Caches caches = Fill(data, steps);
  const int64_t codes = Differences(caches, p);
  const Outputs gpu = AttendGpu(data, caches.gpu.get()), cpu = AttendCpu(data, *caches.cpu);
  const Outputs again = AttendGpu(data, caches.gpu.get());
  Errors between, mine, theirs;
  double lse = 0.0;
  std::vector<double> exact;
  const int64_t rows = p.batch * p.q_heads * p.q_len, step = std::max<int64_t>(1, rows / 100) | 1;
  for (int64_t n = 0; n < rows; ++n) {
    const int64_t b = n / (p.q_heads * p.q_len), h = n / p.q_len % p.q_heads, i = n % p.q_len;
    const int64_t at = b * p.o.batch + h * p.o.head + i * p.o.token;
    for (int64_t d = 0; d < p.v_dim; ++d) between.Add(gpu.o[at + d], cpu.o[at + d]);
    const double x = gpu.lse[n], y = cpu.lse[n];
    if (std::isnan(x) != std::isnan(y) || std::isinf(x) != std::isinf(y)) {
      ++between.wrong;
    } else if (std::isfinite(y)) {
      lse = std::max(lse, std::fabs(x - y) / std::max(1.0, std::fabs(y)));
    }
    if (n % step != 0) continue;
    sage_test::ExactRow(data, b, h, i, &exact);
    for (int64_t d = 0; d < p.v_dim; ++d) {
      mine.Add(gpu.o[at + d], exact[d]);
      theirs.Add(cpu.o[at + d], exact[d]);
    }
  }
  int64_t touched = 0;
  if (c.padding > 0) {
    for (size_t i = 0; i < gpu.o.size(); ++i) {
      touched += static_cast<int64_t>(i) % (c.v_dim + c.padding) >= c.v_dim && gpu.o[i] != 1e30f;
    }
  }
  const bool same = std::memcmp(gpu.o.data(), again.o.data(), gpu.o.size() * 4) == 0 &&
                    std::memcmp(gpu.lse.data(), again.lse.data(), gpu.lse.size() * 4) == 0;
  const bool ok = codes == 0 && between.wrong == 0 && mine.wrong == 0 && touched == 0 && same &&
                  lse <= 1e-5 && between.Relative() <= 3e-5 &&
                  mine.Relative() <= 1.02 * theirs.Relative() + 1e-4;
  std::printf(
      "%s %-30s B%ld H%ld/%ld q %4ld kv %5ld d %3ld/%3ld  codes %ld wrong %ld/%ld touched %ld "
      "lse %.0e to cpu %.0e to exact %.5f cpu %.5f%s\n",
      ok ? "ok  " : "FAIL", c.name.c_str(), c.batch, c.heads, c.kv_heads, c.q_len, c.kv_len,
      c.qk_dim, c.v_dim, codes, between.wrong, mine.wrong, touched, lse, between.Relative(),
      mine.Relative(), theirs.Relative(), same ? "" : "  not deterministic");
  return ok;
}

struct Entry {
  Case c;
  Steps steps;
};

std::vector<Entry> Entries() {
  std::vector<Entry> entries;
  const auto with = [&](const char* name, auto change) {
    Entry e;
    e.c.name = name;
    e.c.causal = Causal::kBottomRight;
    e.c.heads = 4;
    e.c.kv_heads = 1;
    e.c.q_len = 1;
    e.c.qk_dim = e.c.v_dim = 128;
    e.c.kv_len = 700;
    change(e.c, e.steps);
    entries.push_back(e);
  };
  for (const int64_t n : {1, 17, 127, 128, 129, 1000, 5000}) {
    for (const int64_t d : {64, 128, 256}) {
      with("lengths", [&](Case& c, Steps&) { c.kv_len = n, c.qk_dim = c.v_dim = d; });
    }
  }
  for (const int64_t q : {1, 2, 3, 5, 16, 64, 200}) {
    for (const int64_t d : {64, 128, 256}) {
      with("queries", [&](Case& c, Steps&) {
        c.q_len = q, c.kv_len = 1300, c.qk_dim = c.v_dim = d, c.heads = 6, c.kv_heads = 2;
      });
    }
  }
  with("prompt", [](Case& c, Steps&) { c.q_len = c.kv_len = 1000, c.heads = 2; });
  with("more queries than keys", [](Case& c, Steps&) { c.q_len = 300, c.kv_len = 150; });
  with("top left", [](Case& c, Steps&) { c.q_len = 70, c.causal = Causal::kTopLeft; });
  with("not causal", [](Case& c, Steps&) { c.q_len = 9, c.causal = Causal::kNone; });
  with("many heads, whole units", [](Case& c, Steps&) {
    c.batch = 5, c.heads = 220, c.kv_heads = 110, c.kv_len = 300, c.qk_dim = c.v_dim = 32;
  });
  with("one head, many parts",
       [](Case& c, Steps&) { c.heads = 1, c.kv_len = 20000, c.qk_dim = c.v_dim = 64; });
  with("batch and groups of 8",
       [](Case& c, Steps&) { c.batch = 3, c.heads = 16, c.kv_heads = 2, c.kv_len = 2050; });
  with("groups of 3", [](Case& c, Steps&) { c.heads = 9, c.kv_heads = 3, c.q_len = 2; });
  for (const auto& dims :
       {std::pair<int, int>{1, 1}, {40, 24}, {33, 65}, {96, 17}, {64, 200}, {250, 130}, {3, 128}}) {
    with("other head_dim", [&](Case& c, Steps& s) {
      c.qk_dim = dims.first, c.v_dim = dims.second, c.tokens_first = true, c.q_len = 3;
      s.pieces = {65, 1, 2};
    });
  }
  with("token by token", [](Case& c, Steps& s) {
    c.kv_len = 150, s.pieces = {70, 1}, s.capacity = 10;
  });
  with("first append of one token", [](Case& c, Steps& s) { c.kv_len = 40, s.pieces = {1}; });
  with("pieces, growing", [](Case& c, Steps& s) {
    c.kv_len = 9000, c.batch = 2, s.pieces = {301, 33, 1, 700}, s.capacity = 200;
  });
  with("truncated", [](Case& c, Steps& s) {
    c.kv_len = 900, s.pieces = {150, 47, 5}, s.detour = true;
  });
  with("padded rows", [](Case& c, Steps& s) {
    c.padding = 3, c.tokens_first = true, c.q_len = 5, s.pieces = {200, 100};
  });
  with("window", [](Case& c, Steps&) { c.q_len = 30, c.kv_len = 2000, c.left = 300; });
  with("narrow window", [](Case& c, Steps&) { c.q_len = 3, c.kv_len = 2000, c.left = 4; });
  with("window beyond the keys", [](Case& c, Steps&) {
    c.q_len = 900, c.kv_len = 200, c.left = 20, c.right = 10, c.causal = Causal::kNone;
  });
  for (const char* axes : {"bhqk", "qk", "bk", ""}) {
    for (const MaskKind kind : {MaskKind::kBoolean, MaskKind::kAdditive}) {
      with(kind == MaskKind::kBoolean ? "boolean mask" : "additive mask", [&](Case& c, Steps&) {
        c.batch = 2, c.heads = 4, c.kv_heads = 2, c.q_len = 11, c.kv_len = 417;
        c.mask = kind, c.mask_axes = axes;
      });
    }
  }
  with("mask with NaN", [](Case& c, Steps&) {
    c.q_len = 13, c.mask = MaskKind::kAdditive, c.poison = 'm', c.causal = Causal::kNone;
  });
  for (const char which : {'q', 'k', 'v'}) {
    with("not finite", [&](Case& c, Steps& s) {
      c.batch = 2, c.q_len = 6, c.kv_len = 390, c.poison = which, s.pieces = {100, 50};
    });
    with("not finite, prompt",
         [&](Case& c, Steps&) { c.q_len = c.kv_len = 390, c.poison = which, c.left = 77; });
    with("not finite, mask", [&](Case& c, Steps&) {
      c.q_len = 20, c.kv_len = 290, c.poison = which, c.mask = MaskKind::kBoolean;
      c.mask_axes = "qk";
    });
    with("not finite, 256", [&](Case& c, Steps&) {
      c.q_len = 7, c.kv_len = 290, c.poison = which, c.qk_dim = c.v_dim = 256;
    });
  }
  with("negative scale", [](Case& c, Steps&) { c.scale = -0.2; });
  with("tiny scale", [](Case& c, Steps&) { c.scale = 1e-30; });
  with("steep scores", [](Case& c, Steps&) { c.kv_len = 3000, c.q_gain = 12.0f; });
  with("biased k and v",
       [](Case& c, Steps&) { c.kv_len = 3000, c.k_bias = 5.0f, c.v_bias = 1.0f; });
  with("constant v", [](Case& c, Steps&) { c.kv_len = 3000, c.constant_v = true; });
  with("no keys", [](Case& c, Steps&) { c.kv_len = 0, c.q_len = 3; });
  with("no batch", [](Case& c, Steps&) { c.batch = 0; });
  return entries;
}

int RunChecks(sage_test::ChosenCases chosen) {
  int failed = 0, seed = 30;
  for (const Entry& e : Entries()) {
    ++seed;
    if (chosen.Takes(e.c.name, std::max(e.c.q_len, e.c.kv_len))) {
      failed += !Check(e.c, e.steps, seed);
    }
  }
  if (chosen.Takes("forks", 9000)) failed += sage_test::CheckForks(77, AttendGpu) > 0;
  if (chosen.Takes("streams", 500)) failed += sage_test::CheckStreams(78, AttendGpu) > 0;
  // What is refused.
  const char* reason = nullptr;
  const KvCacheShape wide = {1, 1, 300, 64, sage::CacheForm::kInt8};
  const KvCacheShape floats = {1, 1, 64, 64, sage::CacheForm::kFloat32};
  std::unique_ptr<CudaKvCache> cache;
  if (sage::CudaKvCacheSupports(wide, &reason) || sage::CudaKvCacheSupports(floats, &reason) ||
      CudaKvCache::Create(wide, 0, nullptr, &cache).code != sage::StatusCode::kUnsupported) {
    std::printf("FAIL a shape that no kernel serves is accepted\n");
    ++failed;
  }
  const KvCacheShape plain = {1, 1, 64, 64, sage::CacheForm::kInt8};
  sage::cuda::LimitComputeCapability(75);  // as where a later device than the first is current
  if (sage::CudaKvCacheSupports(plain, &reason)) {
    std::printf("FAIL a device that no kernel serves is accepted\n");
    ++failed;
  }
  sage::cuda::LimitComputeCapability(1000);
  std::printf("%d of %d cases failed\n", failed, chosen.taken());
  return failed == 0 && chosen.taken() > 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  // Line by line, so that a run that is cut off tells how far it came.
  std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);
  const std::string what = argc > 1 ? argv[1] : "check";
  if (what == "check") return RunChecks(sage_test::ChosenCases(argc, argv, 2));
  if (what == "bench") {
    return sage_test::RunCacheBench(argc > 2 ? std::atof(argv[2]) : 40.0, argc > 3 ? argv[3] : "");
  }
  std::printf("usage: kv_cache_runner check [name] | bench [milliseconds] [name]\n");
  return 2;
}
