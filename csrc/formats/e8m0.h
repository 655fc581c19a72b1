// e8m0: the power-of-two scale of the MX formats. Code c stands for 2^(c - 127), 0xff is NaN; there
// is no sign, no zero and no infinity (OCP Microscaling Formats 1.0, section 5.4.1).
//
// The sign of an input is dropped, zero gives the smallest scale 2^-127, and magnitudes of more
// than 2^127 (Inf included) saturate to it, as PTX cvt.rp.satfinite.ue8m0x2.f32 does. That
// instruction only rounds up (or down); rounding to the nearest scale is defined here in the same
// spirit: nearest in value, so the boundary between 2^e and 2^(e+1) is 1.5 * 2^e, and a tie goes to
// the even code.
#ifndef SAGE_FORMATS_E8M0_H_
#define SAGE_FORMATS_E8M0_H_

#include <cstdint>

#include "formats/float_bits.h"

namespace sage {

constexpr int32_t kE8m0NanCode = 0xff;
constexpr int32_t kE8m0MaxCode = 0xfe;  // 2^127

namespace e8m0_internal {

SAGE_HOST_DEVICE static inline uint8_t Finish(int32_t code, int32_t magnitude_bits) {
  const int32_t saturated = code < kE8m0MaxCode ? code : kE8m0MaxCode;
  return static_cast<uint8_t>(IsNanMagnitude(magnitude_bits) ? kE8m0NanCode : saturated);
}

}  // namespace e8m0_internal

// The nearest scale, ties to the even code.
SAGE_HOST_DEVICE static inline uint8_t EncodeE8m0(float x) {
  const int32_t bits = MagnitudeBits(x);
  const int32_t odd = (bits >> kFloatMantissaBits) & 1;
  const int32_t nearest = static_cast<int32_t>(
      (static_cast<uint32_t>(bits) + 0x3fffffu + static_cast<uint32_t>(odd)) >> kFloatMantissaBits);
  // Below 2^-126 float32 has no implicit bit: 2^-127 is 0x400000, the tie with 2^-126 is 0x600000.
  const int32_t lowest = bits > 0x600000 ? 1 : 0;
  return e8m0_internal::Finish(bits < 0x800000 ? lowest : nearest, bits);
}

// The smallest scale that is not below the magnitude of x: a scale that never lets a block
// overflow.
SAGE_HOST_DEVICE static inline uint8_t EncodeE8m0RoundUp(float x) {
  const int32_t bits = MagnitudeBits(x);
  const int32_t up =
      static_cast<int32_t>((static_cast<uint32_t>(bits) + 0x7fffffu) >> kFloatMantissaBits);
  const int32_t lowest = bits > 0x400000 ? 1 : 0;
  return e8m0_internal::Finish(bits < 0x800000 ? lowest : up, bits);
}

// 2^(code - 127). Code 0 is a float32 subnormal: arithmetic that flushes those loses it.
SAGE_HOST_DEVICE static inline float DecodeE8m0(uint8_t code) {
  const int32_t normal = static_cast<int32_t>(static_cast<uint32_t>(code) << kFloatMantissaBits);
  const int32_t finite = code == 0 ? 0x400000 : normal;
  return BitsToFloat(static_cast<uint32_t>(code == kE8m0NanCode ? kFloatNanBits : finite));
}

// The scale itself instead of its code.
SAGE_HOST_DEVICE static inline float RoundE8m0(float x) { return DecodeE8m0(EncodeE8m0(x)); }
SAGE_HOST_DEVICE static inline float E8m0RoundUp(float x) {
  return DecodeE8m0(EncodeE8m0RoundUp(x));
}

}  // namespace sage

#endif  // SAGE_FORMATS_E8M0_H_
