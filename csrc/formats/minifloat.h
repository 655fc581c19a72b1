// The 4- and 8-bit float formats: e2m1 (FP4), e4m3, ue4m3 (the scales of NVFP4) and e5m2.
//
// Encodings: OCP Microscaling Formats (MX) 1.0 and OFP8 1.0. Conversions: PTX
// cvt.rn.satfinite.{e2m1x2,e4m3x2,e5m2x2}.f32, that is to nearest, ties to even; anything larger
// than the largest finite value, infinities included, becomes that value with its sign; -0 is
// kept; NaN becomes the format's NaN 0x7f, or 0x7 (+6) in e2m1, which has none.
// Bit for bit the same as src/numerics/formats.
#ifndef SAGE_FORMATS_MINIFLOAT_H_
#define SAGE_FORMATS_MINIFLOAT_H_

#include <cstdint>

#include "formats/float_bits.h"

namespace sage {

constexpr float kE2m1Max = 6.0f;
constexpr float kE4m3Max = 448.0f;
constexpr float kE5m2Max = 57344.0f;
constexpr float kE2m1MinSubnormal = 0x1p-1f;
constexpr float kE4m3MinSubnormal = 0x1p-9f;
constexpr float kE5m2MinSubnormal = 0x1p-16f;

constexpr int32_t kFp8NanCode = 0x7f;   // e4m3, ue4m3 and e5m2
constexpr int32_t kE5m2InfCode = 0x7c;  // decoded only: encoding saturates

namespace minifloat_internal {

// float32 patterns of the largest values.
constexpr int32_t kE2m1MaxBits = 0x40c00000;
constexpr int32_t kE4m3MaxBits = 0x43e00000;
constexpr int32_t kE5m2MaxBits = 0x47600000;

SAGE_HOST_DEVICE static inline int32_t RoundE4m3Magnitude(int32_t magnitude_bits) {
  const int32_t rounded = RoundMagnitude<3, -6>(magnitude_bits, kE4m3MaxBits);
  return SelectBits(IsNanMagnitude(magnitude_bits), kFloatNanBits, rounded);
}

SAGE_HOST_DEVICE static inline int32_t RoundE5m2Magnitude(int32_t magnitude_bits) {
  const int32_t rounded = RoundMagnitude<2, -14>(magnitude_bits, kE5m2MaxBits);
  return SelectBits(IsNanMagnitude(magnitude_bits), kFloatNanBits, rounded);
}

// Bit 7 of an 8-bit code from the sign of x.
SAGE_HOST_DEVICE static inline int32_t SignBit7(float x) {
  return static_cast<int32_t>((FloatToBits(x) >> 24) & 0x80u);
}

// A non-negative pattern with the sign that bit 7 of an 8-bit code asks for.
SAGE_HOST_DEVICE static inline float WithSignBit7(int32_t magnitude_bits, uint8_t code) {
  return BitsToFloat(static_cast<uint32_t>(magnitude_bits) |
                     ((static_cast<uint32_t>(code) & 0x80u) << 24));
}

// x as an unsigned format sees it: negative numbers, -0 and -Inf are 0, NaN of either sign stays.
SAGE_HOST_DEVICE static inline int32_t UnsignedMagnitudeBits(float x) {
  const int32_t magnitude_bits = MagnitudeBits(x);
  const bool negative = static_cast<int32_t>(FloatToBits(x)) < 0;
  const bool number = !IsNanMagnitude(magnitude_bits);
  return SelectBits(negative & number, 0, magnitude_bits);
}

}  // namespace minifloat_internal

// ---- e2m1: 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives; 4 bits, sign in bit 3 ----

// The nearest e2m1 value. NaN gives +6.
SAGE_HOST_DEVICE static inline float RoundE2m1(float x) {
  const int32_t magnitude_bits = MagnitudeBits(x);
  const int32_t rounded = RoundMagnitude<1, 0>(magnitude_bits, minifloat_internal::kE2m1MaxBits);
  const uint32_t sign = FloatToBits(x) & kFloatSignBit;
  return BitsToFloat(static_cast<uint32_t>(rounded) | (IsNanMagnitude(magnitude_bits) ? 0 : sign));
}

SAGE_HOST_DEVICE static inline uint8_t EncodeE2m1(float x) {
  const float rounded = RoundE2m1(x);
  const int32_t sign = static_cast<int32_t>((FloatToBits(rounded) >> 28) & 0x8u);
  return static_cast<uint8_t>(sign | PackMagnitude<1, 0>(MagnitudeBits(rounded)));
}

// The value of the low four bits of `code`.
SAGE_HOST_DEVICE static inline float DecodeE2m1(uint8_t code) {
  const uint32_t magnitude_bits = static_cast<uint32_t>(UnpackMagnitude<1, 0>(code & 0x7));
  return BitsToFloat(magnitude_bits | ((static_cast<uint32_t>(code) & 0x8u) << 28));
}

// ---- e4m3 (the "fn" encoding: no infinity, 0x7f and 0xff are NaN) ----

// The nearest e4m3 value, at most 448 in magnitude; NaN stays NaN.
SAGE_HOST_DEVICE static inline float RoundE4m3(float x) {
  return WithSignOf(minifloat_internal::RoundE4m3Magnitude(MagnitudeBits(x)), x);
}

SAGE_HOST_DEVICE static inline uint8_t EncodeE4m3(float x) {
  using namespace minifloat_internal;
  const int32_t magnitude_bits = MagnitudeBits(x);
  const int32_t code = PackMagnitude<3, -6>(RoundMagnitude<3, -6>(magnitude_bits, kE4m3MaxBits));
  return static_cast<uint8_t>(
      SelectBits(IsNanMagnitude(magnitude_bits), kFp8NanCode, code | SignBit7(x)));
}

SAGE_HOST_DEVICE static inline float DecodeE4m3(uint8_t code) {
  const int32_t magnitude_code = code & 0x7f;
  const int32_t finite = UnpackMagnitude<3, -6>(magnitude_code);
  return minifloat_internal::WithSignBit7(
      SelectBits(magnitude_code == kFp8NanCode, kFloatNanBits, finite), code);
}

// ---- ue4m3: e4m3 without a sign; 7 bits, 0x7f is NaN ----

// The nearest ue4m3 value: negative inputs, -0 and -Inf included, give +0; NaN stays NaN.
SAGE_HOST_DEVICE static inline float RoundUe4m3(float x) {
  using namespace minifloat_internal;
  return BitsToFloat(static_cast<uint32_t>(RoundE4m3Magnitude(UnsignedMagnitudeBits(x))));
}

SAGE_HOST_DEVICE static inline uint8_t EncodeUe4m3(float x) {
  const int32_t magnitude_bits = minifloat_internal::UnsignedMagnitudeBits(x);
  return EncodeE4m3(BitsToFloat(static_cast<uint32_t>(magnitude_bits)));
}

// The value of the low seven bits of `code`.
SAGE_HOST_DEVICE static inline float DecodeUe4m3(uint8_t code) { return DecodeE4m3(code & 0x7f); }

// ---- e5m2: 0x7c is Inf, 0x7d to 0x7f are NaN ----

// The nearest e5m2 value, at most 57,344 in magnitude; NaN stays NaN.
SAGE_HOST_DEVICE static inline float RoundE5m2(float x) {
  return WithSignOf(minifloat_internal::RoundE5m2Magnitude(MagnitudeBits(x)), x);
}

SAGE_HOST_DEVICE static inline uint8_t EncodeE5m2(float x) {
  using namespace minifloat_internal;
  const int32_t magnitude_bits = MagnitudeBits(x);
  const int32_t code = PackMagnitude<2, -14>(RoundMagnitude<2, -14>(magnitude_bits, kE5m2MaxBits));
  return static_cast<uint8_t>(
      SelectBits(IsNanMagnitude(magnitude_bits), kFp8NanCode, code | SignBit7(x)));
}

SAGE_HOST_DEVICE static inline float DecodeE5m2(uint8_t code) {
  const int32_t magnitude_code = code & 0x7f;
  const int32_t finite = UnpackMagnitude<2, -14>(magnitude_code);
  const int32_t special = magnitude_code == kE5m2InfCode ? kFloatInfBits : kFloatNanBits;
  return minifloat_internal::WithSignBit7(
      SelectBits(magnitude_code >= kE5m2InfCode, special, finite), code);
}

}  // namespace sage

#endif  // SAGE_FORMATS_MINIFLOAT_H_
