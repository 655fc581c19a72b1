// Bit patterns of float32 and the one rounding primitive that the short float formats share.
//
// Everything here is plain arithmetic without branches on data, so that loops over it vectorise,
// and it needs neither -ffast-math nor a particular FMA setting: no expression below multiplies and
// adds. It does need the default rounding mode (to nearest, ties to even) and strict float32
// evaluation, which every supported target has.
//
// All functions of csrc/formats are static: files that include them are compiled for different
// instruction sets and linked together, and one shared copy could be the one this processor lacks
// instructions for.
#ifndef SAGE_FORMATS_FLOAT_BITS_H_
#define SAGE_FORMATS_FLOAT_BITS_H_

#include <cstdint>
#include <cstring>

// Set for CUDA by its compiler: the same headers serve kernels and host.
#if defined(__CUDACC__)
#define SAGE_HOST_DEVICE __host__ __device__
#else
#define SAGE_HOST_DEVICE
#endif

namespace sage {

constexpr uint32_t kFloatSignBit = 0x80000000u;
constexpr uint32_t kFloatMagnitudeBits = 0x7fffffffu;
constexpr int32_t kFloatInfBits = 0x7f800000;  // +Inf; also the mask of the exponent field
constexpr int32_t kFloatNanBits = 0x7fc00000;  // the quiet NaN that every function here returns
constexpr int kFloatMantissaBits = 23;
constexpr int kFloatExponentBias = 127;

SAGE_HOST_DEVICE static inline uint32_t FloatToBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

SAGE_HOST_DEVICE static inline float BitsToFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// condition ? yes : no, both evaluated. Compilers that honour floating-point traps (the default)
// move float arithmetic behind a condition that only sometimes needs its result, and a loop with
// such a branch does not vectorise; a mask leaves them nothing to move.
SAGE_HOST_DEVICE static inline int32_t SelectBits(bool condition, int32_t yes, int32_t no) {
  const int32_t mask = -static_cast<int32_t>(condition);
  return no ^ ((yes ^ no) & mask);
}

// The pattern of |value|. Patterns of magnitudes are non-negative int32_t that order as the
// magnitudes do, NaN above Inf; the functions below compare them instead of the floats, for the
// same reason.
SAGE_HOST_DEVICE static inline int32_t MagnitudeBits(float value) {
  return static_cast<int32_t>(FloatToBits(value) & kFloatMagnitudeBits);
}

SAGE_HOST_DEVICE static inline bool IsNanMagnitude(int32_t magnitude_bits) {
  return magnitude_bits > kFloatInfBits;
}

// The float with this magnitude pattern and the sign bit of `sign_source`.
SAGE_HOST_DEVICE static inline float WithSignOf(int32_t magnitude_bits, float sign_source) {
  return BitsToFloat(static_cast<uint32_t>(magnitude_bits) |
                     (FloatToBits(sign_source) & kFloatSignBit));
}

// What a magnitude in a format with kMantissaBits explicit mantissa bits and smallest normal
// exponent kMinExponent needs: patterns of powers of two, all exact in float32.
template <int kMantissaBits, int kMinExponent>
struct FormatBits {
  static constexpr int kDropped = kFloatMantissaBits - kMantissaBits;
  static constexpr int32_t PowerOfTwo(int exponent) {
    return (exponent + kFloatExponentBias) << kFloatMantissaBits;
  }
  static constexpr int32_t kSmallestNormal = PowerOfTwo(kMinExponent);
  static constexpr int32_t kSmallestSubnormal = PowerOfTwo(kMinExponent - kMantissaBits);
  static constexpr int32_t kUnitSpacing = PowerOfTwo(kMinExponent + kDropped);
  // Difference of the exponent biases, in code units; a normal exponent field starts at 1.
  static constexpr int32_t kRebias = (kMinExponent + kFloatExponentBias - 1) << kMantissaBits;
};

// Rounds a magnitude of at most kLimitBits (the pattern of a format value; larger ones and NaN
// become it) to the nearest value of the format, ties to even; returns its pattern.
//
// For a magnitude in [2^e, 2^(e+1)) the neighbours lie 2^(e - kMantissaBits) apart, and so do the
// float32 values just above m = 2^(e - kMantissaBits + 23). Adding m therefore makes the adder do
// the rounding, and subtracting it again is exact. Below kMinExponent the spacing stops shrinking,
// which is what gradual underflow means. A multiple of the spacing is even exactly when its code
// is, so ties agree too.
template <int kMantissaBits, int kMinExponent>
SAGE_HOST_DEVICE static inline int32_t RoundMagnitude(int32_t magnitude_bits, int32_t limit_bits) {
  using Format = FormatBits<kMantissaBits, kMinExponent>;
  const int32_t bits = magnitude_bits < limit_bits ? magnitude_bits : limit_bits;
  const int32_t raised = bits < Format::kSmallestNormal ? Format::kSmallestNormal : bits;
  const int32_t m_bits = (raised & kFloatInfBits) + (Format::kDropped << kFloatMantissaBits);
  const float m = BitsToFloat(static_cast<uint32_t>(m_bits));
  const float magnitude = BitsToFloat(static_cast<uint32_t>(bits));
  return static_cast<int32_t>(FloatToBits((magnitude + m) - m));
}

// The code (exponent field and mantissa, no sign) of a magnitude that RoundMagnitude returned.
template <int kMantissaBits, int kMinExponent>
SAGE_HOST_DEVICE static inline int32_t PackMagnitude(int32_t magnitude_bits) {
  using Format = FormatBits<kMantissaBits, kMinExponent>;
  // Subnormals are counted in units of the smallest one: next to kUnitSpacing that is the spacing
  // of float32, so the sum holds the count in its lowest bits.
  const float shifted = BitsToFloat(static_cast<uint32_t>(magnitude_bits)) +
                        BitsToFloat(static_cast<uint32_t>(Format::kUnitSpacing));
  const int32_t subnormal_code = static_cast<int32_t>(FloatToBits(shifted)) - Format::kUnitSpacing;
  const int32_t normal_code = (magnitude_bits >> Format::kDropped) - Format::kRebias;
  return SelectBits(magnitude_bits >= Format::kSmallestNormal, normal_code, subnormal_code);
}

// The pattern of the finite value of a code without a sign: the inverse of PackMagnitude, exact.
// Reads no float32 subnormals, so it is safe where a caller has set flush-to-zero.
template <int kMantissaBits, int kMinExponent>
SAGE_HOST_DEVICE static inline int32_t UnpackMagnitude(int32_t code) {
  using Format = FormatBits<kMantissaBits, kMinExponent>;
  const float subnormal =
      static_cast<float>(code) * BitsToFloat(static_cast<uint32_t>(Format::kSmallestSubnormal));
  const int32_t subnormal_bits = static_cast<int32_t>(FloatToBits(subnormal));
  const int32_t normal_bits = (code + Format::kRebias) << Format::kDropped;
  return SelectBits((code >> kMantissaBits) != 0, normal_bits, subnormal_bits);
}

}  // namespace sage

#endif  // SAGE_FORMATS_FLOAT_BITS_H_
