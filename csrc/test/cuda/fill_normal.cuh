// Inputs of benchmarks, made on the device.
#ifndef SAGE_TEST_CUDA_FILL_NORMAL_CUH_
#define SAGE_TEST_CUDA_FILL_NORMAL_CUH_

#include <cstddef>
#include <cstdint>

namespace sage_test {

// N(0, 1); another seed, other numbers.
static __global__ void FillNormal(float* x, size_t count, uint64_t seed) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count;
       i += step) {
    uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    const float u = (static_cast<uint32_t>(z) + 1.0f) * 2.3283064e-10f;
    const float v = static_cast<uint32_t>(z >> 32) * 2.3283064e-10f;
    x[i] = sqrtf(-2.0f * logf(fminf(u, 1.0f))) * cospif(2.0f * v);
  }
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_FILL_NORMAL_CUH_
