// Benchmark of the device cache: decoding from memory that no cache of the device holds, beside a
// plain read of as many bytes in the same run.
#ifndef SAGE_TEST_CUDA_KV_CACHE_BENCH_CUH_
#define SAGE_TEST_CUDA_KV_CACHE_BENCH_CUH_

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "sage/cuda_kv_cache.h"
#include "test/cuda/sm90_bench.cuh"
#include "test/cuda/sm90_device.h"

namespace sage_test {

// Reads everything, 8 loads of 16 bytes in flight per thread, and keeps nothing.
static __global__ void __launch_bounds__(512) ReadAll(const uint4* x, int64_t count, uint4* out) {
  constexpr int kLoads = 8;
  uint4 sum = make_uint4(0, 0, 0, 0);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * kLoads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x * kLoads + threadIdx.x; i < count;
       i += step) {
    uint4 y[kLoads];
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      const int64_t at = i + n * static_cast<int64_t>(blockDim.x);
      y[n] = at < count ? __ldg(x + at) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      sum.x ^= y[n].x, sum.y ^= y[n].y, sum.z ^= y[n].z, sum.w ^= y[n].w;
    }
  }
  if (sum.x == 0x12345678u && sum.y == 0x9abcdef0u) *out = sum;
}

struct CachePoint {
  const char* name;
  int64_t batch, heads, kv_heads, q_len, kv_len, dim;
};

inline int RunCacheBench(double budget, const std::string& part) {
  constexpr CachePoint kPoints[] = {
      {"goal", 8, 32, 8, 1, 32768, 128},        {"B1", 1, 32, 8, 1, 32768, 128},
      {"B8 4K", 8, 32, 8, 1, 4096, 128},        {"B1 4K", 1, 32, 8, 1, 4096, 128},
      {"B1 128K", 1, 32, 8, 1, 131072, 128},    {"no groups", 8, 8, 8, 1, 32768, 128},
      {"groups of 8", 8, 64, 8, 1, 32768, 128}, {"q 4", 8, 32, 8, 4, 32768, 128},
      {"q 16", 8, 32, 8, 16, 32768, 128},       {"q 64", 8, 32, 8, 64, 32768, 128},
      {"hd64", 8, 32, 8, 1, 32768, 64},         {"hd256", 8, 32, 8, 1, 16384, 256},
      {"prompt 4K", 1, 32, 8, 4096, 4096, 128},
  };
  constexpr int64_t kL2 = int64_t{50} << 20;
  const int64_t most = int64_t{2} << 30;
  Device source(most), sink(16);
  FillNormal<<<1056, 256>>>(source.as<float>(), most / 4, 7);
  const int64_t read_bytes = int64_t{1} << 30;
  int offset = 0;
  const double read_ms = MedianTime(budget, [&] {
    ReadAll<<<132 * 4, 512>>>(source.as<uint4>() + (offset ^= 1) * (read_bytes / 16),
                              read_bytes / 16, sink.as<uint4>());
  });
  const double read_rate = read_bytes / read_ms * 1e-6;
  std::printf("plain read of 1 GiB: %.1f GB/s\n", read_rate);
  std::printf("%-12s %10s %10s %8s %8s %10s %12s\n", "case", "attend us", "GB/s", "of read", "TOPS",
              "append 1", "append all");
  for (const CachePoint& point : kPoints) {
    if (std::string(point.name).find(part) == std::string::npos) continue;
    const sage::KvCacheShape shape = {point.batch, point.kv_heads, point.dim, point.dim,
                                      sage::CacheForm::kInt8};
    const int64_t bytes = point.batch * point.kv_heads * point.kv_len * (2 * point.dim + 8);
    // More than L2 lies between two uses of the same bytes.
    const int copies =
        static_cast<int>(std::min<int64_t>(16, std::max<int64_t>(2, 3 * kL2 / bytes + 1)));
    std::vector<std::unique_ptr<sage::CudaKvCache>> caches(copies);
    const sage::TokenStrides dense = {point.kv_heads * 1024 * point.dim, 1024 * point.dim,
                                      point.dim};
    double append_ms = 0.0;
    for (auto& cache : caches) {
      sage::Status status = sage::CudaKvCache::Create(shape, point.kv_len + 1024, nullptr, &cache);
      for (int64_t at = 0; at < point.kv_len && status.ok(); at += 1024) {
        const float* from = source.as<float>() + at % 4096 * 16;
        status = cache->Append(from, dense, from + 128, dense, 1024, nullptr);
      }
      if (!status.ok()) {
        std::printf("%s: %s\n", point.name, status.message);
        return 2;
      }
    }
    Require(cudaDeviceSynchronize(), "append");
    sage::Problem p = {};
    p.batch = point.batch;
    p.q_heads = point.heads;
    p.kv_heads = point.kv_heads;
    p.q_len = point.q_len;
    p.kv_len = point.kv_len;
    p.qk_dim = p.v_dim = point.dim;
    p.q = {point.heads * point.q_len * point.dim, point.q_len * point.dim, point.dim};
    p.o = p.q;
    p.scale = 1.0 / std::sqrt(static_cast<double>(point.dim));
    p.causal = sage::Causal::kBottomRight;
    p.window_left = -1;
    p.window_right = 0;
    Device o(point.batch * p.q.batch * 4);
    const sage::ForwardBuffers buffers = {source.as<float>(), nullptr, nullptr, nullptr,
                                          o.as<float>(),      nullptr};
    int turn = 0;
    const double ms = MedianTime(budget, [&] {
      const sage::Status status = caches[++turn % copies]->Attend(p, buffers, nullptr);
      if (!status.ok()) Require(cudaErrorUnknown, status.message);
    });
    const double one_ms = MedianTime(budget / 4, [&] {
      sage::CudaKvCache& cache = *caches[++turn % copies];
      (void)cache.Append(source.as<float>(), dense, source.as<float>() + 128, dense, 1, nullptr);
      (void)cache.Truncate(point.kv_len);
    });
    append_ms = MedianTime(budget / 4, [&] {
      sage::CudaKvCache& cache = *caches[++turn % copies];
      (void)cache.Append(source.as<float>(), dense, source.as<float>() + 128, dense, 1024, nullptr);
      (void)cache.Truncate(point.kv_len);
    });
    const double rate = bytes / ms * 1e-6;
    const double pairs = point.q_len == point.kv_len ? 0.5 : 1.0;
    const double operations =
        4.0 * point.batch * point.heads * point.q_len * point.kv_len * point.dim * pairs * 1e-9;
    const double append_rate =
        point.batch * point.kv_heads * 1024 * 10.0 * point.dim / append_ms * 1e-6;
    std::printf("%-12s %10.1f %10.1f %7.1f%% %8.1f %7.1f us %7.0f GB/s\n", point.name, ms * 1e3,
                rate, 100.0 * rate / read_rate, operations / ms, one_ms * 1e3, append_rate);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_KV_CACHE_BENCH_CUH_
