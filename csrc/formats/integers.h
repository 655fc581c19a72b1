// Rounding of float32 to integers, and the symmetric INT4, INT8 and INT16 codes.
//
// Codes are clamped to +-7, +-127 and +-32,767, so that -x always has a code when x has one; NaN
// becomes 0 (cvt.rni.s32.f32 does the same). -0 keeps its sign through the Round functions.
// Bit for bit the same as src/numerics/formats.
#ifndef SAGE_FORMATS_INTEGERS_H_
#define SAGE_FORMATS_INTEGERS_H_

#include <cstdint>

#include "formats/float_bits.h"

namespace sage {

constexpr int32_t kInt4Max = 7;
constexpr int32_t kInt8Max = 127;
constexpr int32_t kInt16Max = 32767;

namespace integers_internal {

// 2^23: from here on every float32 is an integer, and just above it they are all the integers.
constexpr float kAllIntegers = 0x1p23f;
constexpr int32_t kAllIntegersBits = 0x4b000000;

// x clamped to [-max, max], NaN to 0.
SAGE_HOST_DEVICE static inline float Clamp(float x, int32_t max) {
  const int32_t magnitude_bits = MagnitudeBits(x);
  const int32_t max_bits = static_cast<int32_t>(FloatToBits(static_cast<float>(max)));
  const int32_t clamped = magnitude_bits < max_bits ? magnitude_bits : max_bits;
  return WithSignOf(IsNanMagnitude(magnitude_bits) ? 0 : clamped, x);
}

}  // namespace integers_internal

// The nearest integer, ties to even: IEEE roundToIntegralTiesToEven; Inf unchanged, NaN stays NaN.
// Adding 2^23 makes the adder round, because there the float32 values are the integers.
SAGE_HOST_DEVICE static inline float RoundHalfEven(float x) {
  using namespace integers_internal;
  const int32_t magnitude_bits = MagnitudeBits(x);
  const float magnitude = BitsToFloat(static_cast<uint32_t>(magnitude_bits));
  const float rounded = (magnitude + kAllIntegers) - kAllIntegers;
  const int32_t rounded_bits = static_cast<int32_t>(FloatToBits(rounded));
  return WithSignOf(SelectBits(magnitude_bits < kAllIntegersBits, rounded_bits, magnitude_bits), x);
}

// The nearest integer, ties away from zero, as the published Triton kernels of SageAttention round.
// They add 0.5 in float32 and truncate; adding the float32 just below 0.5 gives the true result for
// every input, where 0.5 would send the one value 0.5 - 2^-25 to 1.
SAGE_HOST_DEVICE static inline float RoundHalfAway(float x) {
  using namespace integers_internal;
  const int32_t magnitude_bits = MagnitudeBits(x);
  const bool small = magnitude_bits < kAllIntegersBits;
  // The select comes first: converting a larger float to int32_t is undefined.
  const float number = BitsToFloat(static_cast<uint32_t>(SelectBits(small, magnitude_bits, 0)));
  const float rounded = static_cast<float>(static_cast<int32_t>(number + 0x1.fffffep-2f));
  const int32_t rounded_bits = static_cast<int32_t>(FloatToBits(rounded));
  return WithSignOf(SelectBits(small, rounded_bits, magnitude_bits), x);
}

// The nearest integer in [-max, max], ties to even; NaN gives 0. `max` is below 2^23.
SAGE_HOST_DEVICE static inline int32_t RoundToInt(float x, int32_t max) {
  const float clamped = integers_internal::Clamp(x, max);
  const int32_t magnitude_bits = MagnitudeBits(clamped);
  // The integer stands in the low mantissa bits of 2^23 + magnitude.
  const float shifted =
      BitsToFloat(static_cast<uint32_t>(magnitude_bits)) + integers_internal::kAllIntegers;
  const int32_t rounded =
      static_cast<int32_t>(FloatToBits(shifted)) - integers_internal::kAllIntegersBits;
  const int32_t sign = static_cast<int32_t>(FloatToBits(clamped)) >> 31;  // 0 or -1
  return (rounded ^ sign) - sign;
}

// The same with ties away from zero.
SAGE_HOST_DEVICE static inline int32_t RoundToIntHalfAway(float x, int32_t max) {
  return static_cast<int32_t>(RoundHalfAway(integers_internal::Clamp(x, max)));
}

SAGE_HOST_DEVICE static inline int8_t EncodeInt8(float x) {
  return static_cast<int8_t>(RoundToInt(x, kInt8Max));
}
SAGE_HOST_DEVICE static inline int8_t EncodeInt4(float x) {
  return static_cast<int8_t>(RoundToInt(x, kInt4Max));
}
SAGE_HOST_DEVICE static inline int16_t EncodeInt16(float x) {
  return static_cast<int16_t>(RoundToInt(x, kInt16Max));
}

}  // namespace sage

#endif  // SAGE_FORMATS_INTEGERS_H_
