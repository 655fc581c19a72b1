// The 16-bit floats: IEEE binary16 (fp16) and bfloat16 (bf16), from and to float32.
//
// To nearest, ties to even; subnormals and -0 exact; NaN becomes the one code 0x7fff, as PTX
// cvt.rn.{f16,bf16}.f32 gives. Overflow goes to Inf (IEEE 754), or, in the saturating forms of
// fp16 (cvt.rn.satfinite.f16.f32), to 65,504. Bit for bit the same as src/numerics/formats.
#ifndef SAGE_FORMATS_HALF_H_
#define SAGE_FORMATS_HALF_H_

#include <cstdint>

#include "formats/float_bits.h"

namespace sage {

constexpr float kFp16Max = 65504.0f;
constexpr float kFp16MinSubnormal = 0x1p-24f;
constexpr int32_t kHalfNanCode = 0x7fff;  // fp16 and bf16
constexpr int32_t kFp16InfCode = 0x7c00;

namespace half_internal {

// float32 patterns of 65,504 and of 65,536, the value that would follow it in the format.
constexpr int32_t kFp16MaxBits = 0x477fe000;
constexpr int32_t kFp16OverflowBits = 0x47800000;

// Bit 15 of a 16-bit code from the sign of x.
SAGE_HOST_DEVICE static inline int32_t SignBit15(float x) {
  return static_cast<int32_t>((FloatToBits(x) >> 16) & 0x8000u);
}

SAGE_HOST_DEVICE static inline uint16_t PackFp16(float x, int32_t limit_bits) {
  const int32_t magnitude_bits = MagnitudeBits(x);
  const int32_t code = PackMagnitude<10, -14>(RoundMagnitude<10, -14>(magnitude_bits, limit_bits));
  return static_cast<uint16_t>(
      SelectBits(IsNanMagnitude(magnitude_bits), kHalfNanCode, code | SignBit15(x)));
}

}  // namespace half_internal

// The nearest fp16 value; from 65,520 on it is Inf.
SAGE_HOST_DEVICE static inline float RoundFp16(float x) {
  using namespace half_internal;
  const int32_t magnitude_bits = MagnitudeBits(x);
  const int32_t rounded = RoundMagnitude<10, -14>(magnitude_bits, kFp16OverflowBits);
  const int32_t number = SelectBits(rounded == kFp16OverflowBits, kFloatInfBits, rounded);
  return WithSignOf(SelectBits(IsNanMagnitude(magnitude_bits), kFloatNanBits, number), x);
}

// The nearest finite fp16 value, at most 65,504 in magnitude; NaN stays NaN.
SAGE_HOST_DEVICE static inline float RoundFp16Saturating(float x) {
  const int32_t magnitude_bits = MagnitudeBits(x);
  const int32_t rounded = RoundMagnitude<10, -14>(magnitude_bits, half_internal::kFp16MaxBits);
  return WithSignOf(SelectBits(IsNanMagnitude(magnitude_bits), kFloatNanBits, rounded), x);
}

// 65,536 packs to 0x7c00, the code of Inf, because that is where the next binade would start.
SAGE_HOST_DEVICE static inline uint16_t EncodeFp16(float x) {
  return half_internal::PackFp16(x, half_internal::kFp16OverflowBits);
}

SAGE_HOST_DEVICE static inline uint16_t EncodeFp16Saturating(float x) {
  return half_internal::PackFp16(x, half_internal::kFp16MaxBits);
}

SAGE_HOST_DEVICE static inline float DecodeFp16(uint16_t code) {
  const int32_t magnitude_code = code & 0x7fff;
  const int32_t finite = UnpackMagnitude<10, -14>(magnitude_code);
  const int32_t special = magnitude_code == kFp16InfCode ? kFloatInfBits : kFloatNanBits;
  const int32_t magnitude_bits = SelectBits(magnitude_code >= kFp16InfCode, special, finite);
  return BitsToFloat(static_cast<uint32_t>(magnitude_bits) |
                     ((static_cast<uint32_t>(code) & 0x8000u) << 16));
}

// The nearest bf16 value; beyond its largest, 0x1.fep127, Inf. bf16 is the upper half of a float32,
// so that integer arithmetic on the pattern rounds every range, subnormals included, even where a
// caller has set flush-to-zero.
SAGE_HOST_DEVICE static inline float RoundBf16(float x) {
  const uint32_t bits = FloatToBits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  return BitsToFloat(IsNanMagnitude(MagnitudeBits(x)) ? static_cast<uint32_t>(kFloatNanBits)
                                                      : rounded);
}

SAGE_HOST_DEVICE static inline uint16_t EncodeBf16(float x) {
  const uint32_t bits = FloatToBits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(
      IsNanMagnitude(MagnitudeBits(x)) ? static_cast<uint32_t>(kHalfNanCode) : rounded);
}

SAGE_HOST_DEVICE static inline float DecodeBf16(uint16_t code) {
  return BitsToFloat(static_cast<uint32_t>(code) << 16);
}

}  // namespace sage

#endif  // SAGE_FORMATS_HALF_H_
