// QuantiseGroup of the FP4 kernels against docs/numerics.md 4.5 written with the formats' own
// functions, and its quotient by 6 against division.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "cuda/sm120/quantise_group.h"
#include "test/cuda/sm90_problem.h"

namespace {

using namespace sage;
using sage_test::Random;

sm120::Group Expected(const float (&x)[16], bool four_six) {
  uint32_t largest = 0;
  for (const float y : x) largest = std::max(largest, FloatToBits(y) & kFloatMagnitudeBits);
  sm120::Group best = {0, 0, 0};
  float error = 0.0f;
  const float amax = BitsToFloat(largest);
  const float wanted[] = {amax / 6.0f, amax / 4.0f, amax * (2.0f / 13.0f)};
  for (int k = 0; k < (four_six ? 3 : 1); ++k) {
    const uint8_t scale = EncodeUe4m3(wanted[k]);
    const float sf = DecodeUe4m3(scale), inverse = sf == 0.0f ? 0.0f : 1.0f / sf;
    uint64_t codes = 0;
    float sum = 0.0f;
    for (int i = 0; i < 16; ++i) {
      const uint8_t code = EncodeE2m1(x[i] * inverse);
      codes |= static_cast<uint64_t>(code) << 4 * i;
      const float product = DecodeE2m1(code) * sf, d = x[i] - product;
      sum = sum + d * d;
    }
    if (k > 0 && !(sum < error)) continue;
    best = {static_cast<uint32_t>(codes), static_cast<uint32_t>(codes >> 32), scale};
    error = sum;
  }
  return best;
}

bool Same(const sm120::Group& a, const sm120::Group& b) {
  return a.scale == b.scale && a.low == b.low && a.high == b.high;
}

void Fill(Random* random, int kind, float (&x)[16]) {
  const int exponent = static_cast<int>(random->Next() % 24) - 14;
  for (float& y : x) {
    const float normal = random->Normal();
    const int grid = static_cast<int>(random->Next() % 49) - 24;
    y = std::ldexp(kind == 0 ? normal : static_cast<float>(grid) * 0.25f, exponent);
    if (kind == 2 && random->Next() % 8 == 0) y = std::ldexp(normal, 100);
    if (kind == 3 && random->Next() % 8 == 0) y = random->Next() % 2 == 0 ? INFINITY : NAN;
    if (kind == 4) y = std::ldexp(normal, -12);
    if (kind == 5 && random->Next() % 4 != 0) y = random->Next() % 2 == 0 ? 0.0f : -0.0f;
  }
}

}  // namespace

int main() {
  int64_t wrong = 0;
  Random random(1);
  for (int n = 0; n < 600000; ++n) {
    float x[16];
    Fill(&random, n % 6, x);
    const bool four_six = n / 6 % 4 != 0;
    if (Same(sm120::QuantiseGroup(x, four_six), Expected(x, four_six))) continue;
    if (++wrong < 5) std::printf("FAIL group %d of kind %d\n", n, n % 6);
  }
  int64_t quotients = 0;
  for (const uint32_t exponent : {100u, 120u, 127u, 128u, 140u, 250u}) {
    for (uint32_t mantissa = 0; mantissa < 1u << 23; ++mantissa) {
      const float x = BitsToFloat(exponent << 23 | mantissa);
      quotients += FloatToBits(sm120::SixthOf(x)) != FloatToBits(x / 6.0f);
    }
  }
  std::printf("%ld groups and %ld quotients differ\n", static_cast<long>(wrong),
              static_cast<long>(quotients));
  return wrong == 0 && quotients == 0 ? 0 : 1;
}
