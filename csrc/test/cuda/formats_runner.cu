// Every conversion of numbers that the CUDA kernels make, device against csrc/formats on the host
// (which equals src/numerics bit for bit): all fp16 values, all special values, and random float32
// of every exponent.
//
//   formats_runner [log2 of the random values, 24]      exit code 0 if no code differs
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "cuda/int8/products.cuh"
#include "cuda/int8/rows.cuh"
#include "formats/formats.h"
#include "test/cuda/sm90_device.h"

namespace {

using sage_test::Device;
using sage_test::Download;
using sage_test::Require;

constexpr const char* kNames[] = {"e4m3, instruction",
                                  "e4m3, of P in halves",
                                  "e4m3",
                                  "ue4m3",
                                  "e2m1",
                                  "e8m0",
                                  "e8m0 up",
                                  "fp16",
                                  "bf16",
                                  "int8 even",
                                  "int8 away",
                                  "int4 even",
                                  "int4 away"};
constexpr int kKinds = static_cast<int>(sizeof(kNames) / sizeof(kNames[0]));

// P lies in [0, 448].
__host__ __device__ float AsP(float x) {
  const float p = sage::BitsToFloat(static_cast<uint32_t>(sage::MagnitudeBits(x)));
  return p <= 448.0f ? p : 448.0f;
}

__global__ void Convert(const float* x, uint32_t* out, int count) {
  using namespace sage;
  const int n = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (n >= count) return;
  const float v = x[n];
  const auto put = [&](int kind, uint32_t bits) { out[kind * count + n] = bits; };
  put(0, cuda::int8::PackE4m3(v, v, v, v));
  put(1, __float_as_uint(cuda::int8::RoundToE4m3(AsP(v))));
  put(2, EncodeE4m3(v));
  put(3, EncodeUe4m3(v));
  put(4, EncodeE2m1(v));
  put(5, EncodeE8m0(v));
  put(6, EncodeE8m0RoundUp(v));
  put(7, __half_as_ushort(__float2half_rn(v)));
  put(8, __bfloat16_as_ushort(__float2bfloat16_rn(v)));
  put(9, static_cast<uint32_t>(cuda::int8::RoundCode(v, 1.0f, 127, false)));
  put(10, static_cast<uint32_t>(cuda::int8::RoundCode(v, 1.0f, 127, true)));
  put(11, static_cast<uint32_t>(cuda::int8::RoundCode(v, 1.0f, 7, false)));
  put(12, static_cast<uint32_t>(cuda::int8::RoundCode(v, 1.0f, 7, true)));
}

// The kernels never round a value that is not finite to an integer: NaN counts as 0 on both sides.
uint32_t Expected(int kind, float v) {
  using namespace sage;
  switch (kind) {
    case 0:
      return EncodeE4m3(v) * 0x01010101u;
    case 1:
      return FloatToBits(RoundE4m3(AsP(v)));
    case 2:
      return EncodeE4m3(v);
    case 3:
      return EncodeUe4m3(v);
    case 4:
      return EncodeE2m1(v);
    case 5:
      return EncodeE8m0(v);
    case 6:
      return EncodeE8m0RoundUp(v);
    case 7:
      return EncodeFp16(v);
    case 8:
      return EncodeBf16(v);
    case 9:
      return static_cast<uint32_t>(RoundToInt(v, 127));
    case 10:
      return static_cast<uint32_t>(RoundToIntHalfAway(v, 127));
    case 11:
      return static_cast<uint32_t>(RoundToInt(v, 7));
    default:
      return static_cast<uint32_t>(RoundToIntHalfAway(v, 7));
  }
}

// Differing codes of each kind, added to `wrong`.
void CheckValues(const std::vector<float>& values, std::vector<std::atomic<int64_t>>* wrong) {
  const int count = static_cast<int>(values.size());
  const Device x(values.size() * 4), out(values.size() * 4 * kKinds);
  sage_test::Upload(x, values);
  Convert<<<(count + 255) / 256, 256>>>(x.as<float>(), out.as<uint32_t>(), count);
  Require(cudaDeviceSynchronize(), "Convert");
  const std::vector<uint32_t> got = Download(out.as<uint32_t>(), values.size() * kKinds);
  std::vector<std::thread> pool;
  for (int kind = 0; kind < kKinds; ++kind) {
    pool.emplace_back([&, kind] {
      for (int n = 0; n < count; ++n) {
        if (got[static_cast<size_t>(kind) * count + n] == Expected(kind, values[n])) continue;
        if ((*wrong)[kind]++ < 3) {
          std::printf("%s of %a (%08x): %x, expected %x\n", kNames[kind], values[n],
                      sage::FloatToBits(values[n]), got[static_cast<size_t>(kind) * count + n],
                      Expected(kind, values[n]));
        }
      }
    });
  }
  for (std::thread& t : pool) t.join();
}

}  // namespace

int main(int argc, char** argv) {
  const int bits = argc > 1 ? std::atoi(argv[1]) : 24;
  std::vector<std::atomic<int64_t>> wrong(kKinds);
  std::vector<float> values;
  for (int code = 0; code < 65536; ++code)
    values.push_back(sage::DecodeFp16(static_cast<uint16_t>(code)));
  // Every power of two, its neighbours and the ties between them; zeros, infinities and NaN.
  for (uint32_t exponent = 0; exponent < 512; ++exponent) {
    for (const uint32_t mantissa :
         {0x0u, 0x1u, 0x7fffffu, 0x400000u, 0x400001u, 0x3fffffu, 0x600000u, 0x080000u, 0x180000u,
          0x07ffffu, 0x080001u, 0x7ff000u}) {
      values.push_back(sage::BitsToFloat(exponent << 23 | mantissa));
    }
  }
  // Halves and their neighbours, where the two roundings to integers part.
  for (int n = -300; n <= 300; ++n) {
    const uint32_t half = sage::FloatToBits(static_cast<float>(n) * 0.5f);
    for (const uint32_t near : {half - 1, half, half + 1})
      values.push_back(sage::BitsToFloat(near));
  }
  CheckValues(values, &wrong);
  int64_t total = static_cast<int64_t>(values.size());
  uint64_t state = 1;
  constexpr int64_t kAtOnce = int64_t{1} << 21;
  for (int64_t left = int64_t{1} << bits; left > 0; left -= kAtOnce) {
    values.resize(static_cast<size_t>(std::min(left, kAtOnce)));
    for (float& v : values) {
      uint64_t z = state += 0x9E3779B97F4A7C15ull;
      z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
      z = (z ^ z >> 27) * 0x94D049BB133111EBull;
      v = sage::BitsToFloat(static_cast<uint32_t>(z ^ z >> 31));
    }
    CheckValues(values, &wrong);
    total += static_cast<int64_t>(values.size());
  }
  int64_t all = 0;
  for (int kind = 0; kind < kKinds; ++kind) {
    std::printf("%-22s %ld of %ld codes differ\n", kNames[kind], wrong[kind].load(), total);
    all += wrong[kind];
  }
  return all == 0 ? 0 : 1;
}
