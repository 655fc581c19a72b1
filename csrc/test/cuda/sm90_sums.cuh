// What the e4m3 tensor core keeps of a sum: 32 equal products a b are added to t.
#ifndef SAGE_TEST_CUDA_SM90_SUMS_CUH_
#define SAGE_TEST_CUDA_SM90_SUMS_CUH_

#include <cuda_fp8.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "cuda/sm90/hopper.cuh"
#include "test/cuda/sm90_device.h"

namespace sage_test {

struct EqualProducts {
  float t, a, b, sum;
};

// One warpgroup; all elements of the product are the same, whatever the layout of its operands.
static __global__ void AddEqualProducts(EqualProducts* cases, int count) {
  using namespace sage::sm90;
  __shared__ alignas(1024) uint8_t v[128 * 128];
  for (int n = 0; n < count; ++n) {
    const uint8_t b = __nv_fp8_e4m3(cases[n].b).__x;
    for (int j = threadIdx.x; j < 128 * 128; j += 128) v[j] = b;
    asm volatile("fence.proxy.async;" ::: "memory");
    __syncthreads();
    float t[64];
    for (float& x : t) x = cases[n].t;
    const uint32_t a = __nv_fp8_e4m3(cases[n].a).__x * 0x01010101u;
    const uint32_t p[4] = {a, a, a, a};
    WgmmaFence();
    WgmmaOutputs(t, p, OperandLow(SharedAddress(v)));
    WgmmaCommit();
    WgmmaWait<0>();
    if (threadIdx.x == 0) cases[n].sum = t[0];
    __syncthreads();
  }
}

// Prints sums beside those of the rule: products are cut, towards zero, at 2^-13 of the largest
// power of two among t and them, and 14 bits of the sum are kept.
inline int RunSums() {
  std::vector<EqualProducts> cases;
  for (const float sign : {1.0f, -1.0f}) {
    for (const float f : {0.25f, 0.5f, 0.875f, 1.0f, 1.25f, 1.75f, 3.5f, 7.5f}) {
      cases.push_back({64.0f, sign * f, 0x1p-7f, 0.0f});
      cases.push_back({96.0f, sign * f, 0x1p-7f, 0.0f});
    }
    for (int k = 12; k <= 16; ++k)
      cases.push_back({sign * 64.0f * (1 + std::ldexp(1.0f, -k)), 0.0f, 1.0f, 0.0f});
    for (int k = 8; k <= 14; ++k) cases.push_back({sign * std::ldexp(1.0f, -k), 1.0f, 1.0f, 0.0f});
  }
  Device device(cases.size() * sizeof(EqualProducts));
  Upload(device, cases);
  AddEqualProducts<<<1, 128>>>(device.as<EqualProducts>(), static_cast<int>(cases.size()));
  Require(cudaDeviceSynchronize(), "products");
  const std::vector<EqualProducts> done = Download(device.as<EqualProducts>(), cases.size());
  const auto cut = [](double x, double largest) {
    const double unit = std::ldexp(1.0, std::ilogb(largest) - 13);
    return std::trunc(x / unit) * unit;
  };
  int wrong = 0;
  for (const EqualProducts& c : done) {
    const double product = static_cast<double>(c.a) * c.b,
                 largest = std::fmax(std::fabs(c.t), std::fabs(product));
    double rule = cut(c.t, largest) + 32 * cut(product, largest);
    if (rule != 0.0) rule = cut(rule, rule);
    wrong += rule != c.sum;
    std::printf("%s %.9g + 32 x %.9g = %.9g, by the rule %.9g, exactly %.9g\n",
                rule == c.sum ? "ok  " : "FAIL", c.t, product, c.sum, rule, c.t + 32 * product);
  }
  return wrong == 0 ? 0 : 1;
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_SM90_SUMS_CUH_
