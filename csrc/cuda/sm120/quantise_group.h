// A group of 16 numbers to NVFP4 (docs/numerics.md 4.5): codes of e2m1 and one scale, ue4m3.
//
//   sf    = ue4m3(amax / 6) or, of three, the one whose squared errors add up to the least: also
//           ue4m3(amax / 4) and ue4m3(amax f32(2/13))
//   code  = e2m1(x (1 / sf))
//   error = sum in order of f32(d d), d = f32(x - code sf)
//
// Each candidate is rounded once, for error and codes together. Natively by the device's
// conversions, there and back. Elsewhere by one addition: with t = min(|x| / sf, 6) in
// [2^e, 2^(e+1)) (e = 0 below 2) the neighbours in e2m1 lie as far apart as the floats above
// 2^(22+e), so t + 2^(22+e) is rounded as e2m1 asks; adding 2e of that distance more makes the
// lowest bits of the sum the code:
//
//   t       0  .5  1  1.5 | 2  3 | 4  6
//   low     0   1  2   3  | 2  3 | 2  3     bits of t + 2^(22+e)
//   code    0   1  2   3  | 4  5 | 6  7     = low + 2 e
#ifndef SAGE_CUDA_SM120_QUANTISE_GROUP_H_
#define SAGE_CUDA_SM120_QUANTISE_GROUP_H_

#include "cuda/core/convert.h"
#include "cuda/sm120/visibility.h"

namespace sage {
namespace sm120 {

struct Group {
  uint32_t low, high;  // codes 0..7 and 8..15
  uint32_t scale;      // ue4m3
};

// Codes under one scale, and their sum of squared errors.
struct Candidate {
  uint32_t low, high;
  float error;
};

SAGE_TILE Candidate RoundGroup(const float (&x)[16], float sf) {
  const float inverse = sf == 0.0f ? 0.0f : 1.0f / sf;
  uint32_t words[2] = {0, 0};
  float error = 0.0f;
  SAGE_UNROLL
  for (int half = 0; half < 2; ++half) {
#if SAGE_NATIVE_FP4
    float y[8];
    SAGE_UNROLL
    for (int i = 0; i < 8; ++i) y[i] = x[8 * half + i] * inverse;
    words[half] = tile::PackE2m1(y);
    tile::UnpackE2m1(words[half], y);
    SAGE_UNROLL
    for (int i = 0; i < 8; ++i) {
      // Six bits of mantissa: the product is exact.
      const float d = tile::Fma(-y[i], sf, x[8 * half + i]);
      error = error + d * d;
    }
#else
    uint32_t signs = 0;
    SAGE_UNROLL
    for (int i = 0; i < 8; ++i) {
      const float magnitude = fabsf(x[8 * half + i]);
      const float t = fminf(magnitude * inverse, 6.0f);
      // 2^(22+e) + 2e 2^(e-1), from the exponent field 127 + e.
      const uint32_t e = FloatToBits(tile::Max(t, 1.0f)) >> 23;
      const float m = BitsToFloat(e * 0x00800002u + (0x4a800000u - 127u * 0x00800002u));
      const float sum = t + m;
      // Signs agree, so magnitudes do; the product is exact.
      const float d = tile::Fma(-(sum - m), sf, magnitude);
      error = error + d * d;
      words[half] = words[half] >> 4 | FloatToBits(sum) << 28;
      signs = signs >> 4 | (FloatToBits(x[8 * half + i]) & kFloatSignBit);
    }
    words[half] |= signs;
#endif
  }
  return {words[0], words[1], error};
}

// amax / 6, rounded once where the quotient has a scale at all (from 2^-10 on): a quotient by the
// rounded reciprocal, corrected by its exact remainder.
SAGE_TILE float SixthOf(float amax) {
  constexpr float kSixth = 1.0f / 6.0f;
  const float quotient = amax * kSixth;
  return tile::Fma(tile::Fma(-6.0f, quotient, amax), kSixth, quotient);
}

// The nearest ue4m3 value, as bits of float32.
SAGE_TILE int32_t RoundScale(float x) {
  constexpr int32_t kLargestBits = 0x43e00000;  // 448
  return RoundMagnitude<3, -6>(MagnitudeBits(x), kLargestBits);
}

// amax times this is the scale of candidate k, 1 or 2.
SAGE_TILE float ScaleFactor(int k) { return k == 1 ? 1.0f / 4.0f : 2.0f / 13.0f; }

struct Values16 {
  float x[16];
};

// Rare: what overflowed on its way, so that something is not finite. By the formats' own functions.
SAGE_TILE_CALL Group QuantiseNotFinite(const Values16 values, bool four_six) {
  const float(&x)[16] = values.x;
  uint32_t largest = 0;
  for (int i = 0; i < 16; ++i) largest = Magnitude(x[i]) > largest ? Magnitude(x[i]) : largest;
  Group group = {0, 0, 0};
  float error = 0.0f;
  for (int k = 0; k < (four_six ? 3 : 1); ++k) {
    const float amax = BitsToFloat(largest);
    const uint32_t scale = EncodeUe4m3(k == 0 ? amax / 6.0f : amax * ScaleFactor(k));
    const float sf = DecodeUe4m3(static_cast<uint8_t>(scale));
    const float inverse = sf == 0.0f ? 0.0f : 1.0f / sf;
    uint32_t words[2] = {0, 0};
    float of_this = 0.0f;
    for (int i = 0; i < 16; ++i) {
      const uint8_t code = EncodeE2m1(x[i] * inverse);
      words[i / 8] |= static_cast<uint32_t>(code) << 4 * (i % 8);
      const float d = x[i] - DecodeE2m1(code) * sf;
      of_this = of_this + d * d;
    }
    if (k > 0 && !(of_this < error)) continue;
    group = {words[0], words[1], scale};
    error = of_this;
  }
  return group;
}

SAGE_TILE Group QuantiseGroup(const float (&x)[16], bool four_six) {
  float amax = 0.0f;
  SAGE_UNROLL
  for (int i = 0; i < 16; ++i) amax = tile::Max(amax, fabsf(x[i]));
  int32_t scale = RoundScale(SixthOf(amax));
  Candidate best = RoundGroup(x, BitsToFloat(static_cast<uint32_t>(scale)));
  // Also where the largest was NaN, which Max does not see.
  if (!(best.error < tile::kInfinity)) {
    Values16 values;
    SAGE_UNROLL
    for (int i = 0; i < 16; ++i) values.x[i] = x[i];
    return QuantiseNotFinite(values, four_six);
  }
  if (four_six) {
    SAGE_UNROLL
    for (int k = 1; k < 3; ++k) {
      const int32_t other_scale = RoundScale(amax * ScaleFactor(k));
      const Candidate other = RoundGroup(x, BitsToFloat(static_cast<uint32_t>(other_scale)));
      if (other.error < best.error) {
        best = other;
        scale = other_scale;
      }
    }
  }
  return {best.low, best.high, static_cast<uint32_t>(PackMagnitude<3, -6>(scale))};
}

}  // namespace sm120
}  // namespace sage

#endif  // SAGE_CUDA_SM120_QUANTISE_GROUP_H_
