// Scales of rows as attention finds them, against divisions, for every magnitude.
#ifndef SAGE_TEST_CUDA_SM90_SCALES_CUH_
#define SAGE_TEST_CUDA_SM90_SCALES_CUH_

#include <cstdint>
#include <cstdio>
#include <vector>

#include "cuda/sm90/source.cuh"
#include "test/cuda/sm90_device.h"

namespace sage_test {

static __global__ void CountOtherScales(uint32_t* others) {
  using namespace sage::sm90;
  uint32_t count = 0;
  for (uint32_t bits = blockIdx.x * blockDim.x + threadIdx.x; bits < kInfBits;
       bits += gridDim.x * blockDim.x) {
    const float2 x = Int8ScaleOf(bits), y = ScaleOf(bits, kInt8Top);
    count += __float_as_uint(x.x) != __float_as_uint(y.x) ||
             __float_as_uint(x.y) != __float_as_uint(y.y);
  }
  if (count != 0) atomicAdd(others, count);
}

inline bool CheckScales() {
  Device others(4);
  Upload(others, std::vector<uint32_t>{0});
  CountOtherScales<<<1056, 256>>>(others.as<uint32_t>());
  const uint32_t count = Download(others.as<uint32_t>(), 1)[0];
  std::printf("%s scales of all magnitudes: %u are not those of divisions\n",
              count == 0 ? "ok  " : "FAIL", count);
  return count == 0;
}

}  // namespace sage_test

#endif  // SAGE_TEST_CUDA_SM90_SCALES_CUH_
