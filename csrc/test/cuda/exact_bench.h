// Times of the CUDA kernels, and problems too large for the host's reference: both are checked on
// sampled rows in float64.
#ifndef SAGE_TEST_CUDA_EXACT_BENCH_H_
#define SAGE_TEST_CUDA_EXACT_BENCH_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "sage/cuda_attention.h"
#include "test/backward_reference.h"
#include "test/cuda/device_array.h"

namespace sage_test {

// Element n of an input: normal deviates from a counter, the same on host and device.
__host__ __device__ inline float Element(uint64_t seed, int64_t n, float mean) {
  uint64_t z = seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(n) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  // The sum of four uniform deviates of 16 bits: near enough to normal, and exact everywhere.
  const int64_t sum =
      static_cast<int64_t>((z & 0xffff) + ((z >> 16) & 0xffff) + ((z >> 32) & 0xffff) + (z >> 48)) -
      131070;
  return mean + static_cast<float>(sum) * 2.6429e-5f;  // 4 / 12 of (2^16)^2 is the variance
}

__global__ void FillKernel(float* out, int64_t count, uint64_t seed, float mean) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; n < count;
       n += step)
    out[n] = Element(seed, n, mean);
}

struct Shape {
  int64_t batch, heads, kv_heads, q_len, kv_len, dim;
  bool causal;
  int64_t left = -1;
};

inline Problem ProblemOf(const Shape& s) {
  Problem p = {};
  p.batch = s.batch;
  p.q_heads = s.heads;
  p.kv_heads = s.kv_heads;
  p.q_len = s.q_len;
  p.kv_len = s.kv_len;
  p.qk_dim = p.v_dim = s.dim;
  p.q = p.o = StridesOf(false, s.heads, s.q_len, s.dim);
  p.k = p.v = StridesOf(false, s.kv_heads, s.kv_len, s.dim);
  p.scale = 1 / std::sqrt(static_cast<double>(s.dim));
  p.causal = s.causal ? Causal::kBottomRight : Causal::kNone;
  p.window_left = s.left;
  p.window_right = s.causal ? 0 : -1;
  p.want_lse = true;
  return p;
}

// Inputs and outputs of one shape on the device.
struct Arrays {
  static constexpr float kVMean = 1.0f;
  Problem p;
  DeviceArray<float> q, k, v, o, lse;
  DeviceArray<uint8_t> workspace;

  explicit Arrays(const Shape& s)
      : p(ProblemOf(s)),
        q(s.batch * s.heads * s.q_len * s.dim),
        k(s.batch * s.kv_heads * s.kv_len * s.dim),
        v(k.count()),
        o(q.count()),
        lse(s.batch * s.heads * s.q_len),
        workspace(sage::CudaForwardWorkspace(p)) {
    FillKernel<<<2048, 256>>>(q.data(), q.count(), 1, 0.0f);
    FillKernel<<<2048, 256>>>(k.data(), k.count(), 2, 0.0f);
    FillKernel<<<2048, 256>>>(v.data(), v.count(), 3, kVMean);
    FillKernel<<<2048, 256>>>(o.data(), o.count(), 4, 1e30f);
    Must(cudaGetLastError(), "fill");
  }
  sage::ForwardBuffers forward() {
    return {q.data(), k.data(), v.data(), nullptr, o.data(), lse.data()};
  }

  // Relative L1 of sampled rows of o.
  double Error(int samples) {
    double error = 0, total = 0;
    Random random{7};
    std::vector<double> s(p.kv_len), sum(p.v_dim);
    std::vector<float> got(p.v_dim);
    for (int n = 0; n < samples; ++n) {
      const int64_t head = n == 0 ? p.batch * p.q_heads - 1 : random.Next() % (p.batch * p.q_heads);
      const int64_t i = n == 0 ? p.q_len - 1 : random.Next() % p.q_len;
      const int64_t row = head * p.q_len + i, kv = head / p.group() * p.kv_len;
      double top = -1e300, weight = 0;
      for (int64_t j = p.FirstKey(i); j < p.EndKey(i); ++j) {
        s[j] = 0;
        for (int64_t d = 0; d < p.qk_dim; ++d)
          s[j] +=
              double(Element(1, row * p.qk_dim + d, 0)) * Element(2, (kv + j) * p.qk_dim + d, 0);
        s[j] *= p.scale;
        top = std::max(top, s[j]);
      }
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t j = p.FirstKey(i); j < p.EndKey(i); ++j) {
        const double e = std::exp(s[j] - top);
        weight += e;
        for (int64_t d = 0; d < p.v_dim; ++d)
          sum[d] += e * Element(3, (kv + j) * p.v_dim + d, kVMean);
      }
      Must(cudaMemcpy(got.data(), o.data() + row * p.v_dim, p.v_dim * 4, cudaMemcpyDeviceToHost),
           "rows");
      for (int64_t d = 0; d < p.v_dim; ++d) {
        error += std::fabs(got[d] - sum[d] / weight);
        total += std::fabs(sum[d] / weight);
      }
    }
    return error / total;
  }
};

// Milliseconds, the median of some 0.1 s of runs after 3 others.
template <typename Run>
double Median(const Run& run) {
  cudaEvent_t begin, end;
  Must(cudaEventCreate(&begin), "event");
  Must(cudaEventCreate(&end), "event");
  std::vector<float> times;
  float spent = 0;
  for (int n = 0; n < 3 || (n < 103 && (spent < 100 || n < 8)); ++n) {
    Must(cudaEventRecord(begin), "record");
    run();
    Must(cudaEventRecord(end), "record");
    Must(cudaEventSynchronize(end), "run");
    float ms = 0;
    Must(cudaEventElapsedTime(&ms, begin, end), "time");
    if (n < 3) continue;
    times.push_back(ms);
    spent += ms;
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

inline void MustBe(const sage::Status& status) {
  if (status.ok()) return;
  std::printf("FAIL %s\n", status.message);
  std::exit(2);
}

inline void BenchForward(const Shape& s) {
  Arrays a(s);
  const double ms =
      Median([&] { MustBe(sage::CudaForward(a.p, a.forward(), a.workspace.data(), nullptr)); });
  const double flops = 4.0 * s.batch * s.heads * s.q_len * s.kv_len * s.dim;
  const double bytes = 8.0 * s.batch * s.kv_heads * s.kv_len * s.dim;
  std::printf(
      "forward  B%d H%d/%d N%-5d/%-6d D%-3d %-6s %9.3f ms %7.1f TFLOP/s %6.0f GB/s of K, V  error "
      "%.2g\n",
      int(s.batch), int(s.heads), int(s.kv_heads), int(s.q_len), int(s.kv_len), int(s.dim),
      s.causal ? "causal" : "full", ms, flops / ms * 1e-9, bytes / ms * 1e-6, a.Error(8));
}

inline void BenchBackward(const Shape& s) {
  Arrays a(s);
  MustBe(sage::CudaForward(a.p, a.forward(), a.workspace.data(), nullptr));
  DeviceArray<float> d_o(a.o.count()), d_q(a.q.count()), d_k(a.k.count()), d_v(a.v.count());
  FillKernel<<<2048, 256>>>(d_o.data(), d_o.count(), 5, 0.0f);
  DeviceArray<uint8_t> workspace(sage::CudaBackwardWorkspace(a.p));
  sage::BackwardBuffers b = {};
  b.q = a.q.data();
  b.k = a.k.data();
  b.v = a.v.data();
  b.o = a.o.data();
  b.lse = a.lse.data();
  b.d_o = d_o.data();
  b.d_q = d_q.data();
  b.d_k = d_k.data();
  b.d_v = d_v.data();
  const double ms = Median([&] { MustBe(sage::CudaBackward(a.p, b, workspace.data(), nullptr)); });
  const double flops = 10.0 * s.batch * s.heads * s.q_len * s.kv_len * s.dim;
  std::printf("backward B%d H%d/%d N%-5d/%-6d D%-3d %-6s %9.3f ms %7.1f TFLOP/s\n", int(s.batch),
              int(s.heads), int(s.kv_heads), int(s.q_len), int(s.kv_len), int(s.dim),
              s.causal ? "causal" : "full", ms, flops / ms * 1e-9);
}

// All shapes, or those of one length of the keys and one head_dim (0 = any).
inline int Bench(int64_t length, int64_t only_dim) {
  const auto wanted = [&](int64_t n, int64_t dim) {
    return (length == 0 || n == length) && (only_dim == 0 || dim == only_dim);
  };
  for (const int64_t dim : {128, 64}) {
    for (const int64_t n : {512, 1024, 2048, 4096, 8192, 16384}) {
      for (const bool causal : {false, true}) {
        if (wanted(n, dim)) BenchForward({1, 32, 32, n, n, dim, causal});
      }
    }
  }
  for (const int64_t dim : {40, 80, 96, 256}) {
    if (wanted(4096, dim)) BenchForward({1, 32, 32, 4096, 4096, dim, false});
  }
  for (const int64_t n : {4095, 32767, 131071}) {
    if (!wanted(n, 128)) continue;
    BenchForward({1, 32, 8, 1, n, 128, true});
    BenchForward({8, 32, 8, 1, n, 128, true});
    BenchForward({1, 32, 8, 4, n, 128, true});
    BenchForward({1, 32, 8, 64, n, 128, true});
  }
  for (const int64_t dim : {128, 64}) {
    for (const int64_t n : {1024, 4096, 8192}) {
      for (const bool causal : {false, true}) {
        if (wanted(n, dim)) BenchBackward({1, 32, 32, n, n, dim, causal});
      }
    }
  }
  return 0;
}

// More than 2^31 elements in q, k, v and o, with a window to keep the work small.
inline int CheckLarge() {
  const Shape s = {1, 64, 64, 270000, 270000, 128, true, 500};
  Arrays a(s);
  MustBe(sage::CudaForward(a.p, a.forward(), a.workspace.data(), nullptr));
  Must(cudaDeviceSynchronize(), "large");
  const double error = a.Error(40);
  std::printf("%s %lld elements each, relative L1 of 40 rows %.2g\n",
              error <= 2e-6 ? "ok  " : "FAIL", static_cast<long long>(a.q.count()), error);
  return error <= 2e-6 ? 0 : 1;
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_EXACT_BENCH_H_
