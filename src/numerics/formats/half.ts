/**
 * @file The 16-bit floats: IEEE binary16 (fp16) and bfloat16 (bf16), from and to float32.
 *
 * To nearest, ties to even; subnormals and -0 exact; NaN becomes the one code 0x7fff, as PTX
 * cvt.rn.{f16,bf16}.f32 gives. Overflow goes to Infinity (IEEE 754), or, in the saturating forms of
 * fp16 (cvt.rn.satfinite.f16.f32), to 65,504. Bit for bit the same as csrc/formats/half.h.
 */

import type {NumberFormat} from './number_format.js';

// As constants: looking a global up costs a hundred times the arithmetic where code runs in a vm
// context, as under test runners.
const {abs, min} = Math;
const INFINITY = Infinity;
const NOT_A_NUMBER = NaN;

const NAN_CODE = 0x7fff;
const FP16_MAX = 65504;
/** Half a unit above FP16_MAX: the first magnitude that IEEE rounding sends to Infinity. */
const FP16_OVERFLOW = 65520;
const FP16_MIN_NORMAL = 2 ** -14;
const FP16_MIN_SUBNORMAL = 2 ** -24;
/** float32 has 13 mantissa bits more, and its exponent bias is 112 larger. */
const FP16_DROPPED_BITS = 13;
const FP16_REBIAS = 112 << 10;
const BITS_OF_INFINITY = 0x7f800000;

const scratch = new Float32Array(1);
const scratchBits = new Int32Array(scratch.buffer);

/**
 * For each sign and exponent field of a float32, a power of two next to which float64 values lie as
 * far apart as fp16 values do there. Adding it makes the adder round to nearest even, subtracting it
 * again is exact. The spacing stops shrinking at 2^-24, which is gradual underflow.
 */
const FP16_ROUNDERS = Float64Array.from(
  {length: 512},
  (_, index) => 2 ** (Math.max((index & 0xff) - 127, -14) - 10 + 52),
);
/** 1 or -1 for each sign and exponent field: a factor costs less than a mispredicted branch. */
const SIGNS = Float64Array.from({length: 512}, (_, index) => (index < 256 ? 1 : -1));

/** The nearest fp16 value; from 65,520 on it is Infinity. */
export function roundFp16(x: number): number {
  scratch[0] = x;
  const index = scratchBits[0]! >>> 23;
  const magnitude = abs(scratch[0]!);
  const rounder = FP16_ROUNDERS[index]!;
  const rounded = (magnitude + rounder - rounder) * SIGNS[index]!;
  return magnitude < FP16_OVERFLOW ? rounded : rounded * INFINITY;
}

/** The nearest finite fp16 value, at most 65,504 in magnitude; NaN stays NaN. */
export function roundFp16Saturating(x: number): number {
  return roundFp16(x > FP16_MAX ? FP16_MAX : x < -FP16_MAX ? -FP16_MAX : x);
}

/** The code of an fp16 value. */
function packFp16(value: number): number {
  scratch[0] = value;
  const sign = (scratchBits[0]! >>> 16) & 0x8000;
  const magnitude = abs(value);
  if (magnitude !== magnitude) return NAN_CODE;
  // 65,536 packs to 0x7c00, the code of Infinity, because that is where the next binade would start.
  scratch[0] = min(magnitude, 65536);
  const code =
    magnitude < FP16_MIN_NORMAL
      ? magnitude / FP16_MIN_SUBNORMAL
      : (scratchBits[0]! >> FP16_DROPPED_BITS) - FP16_REBIAS;
  return code | sign;
}

/** The 16-bit code of `roundFp16(x)`; NaN gives 0x7fff. */
export function encodeFp16(x: number): number {
  return packFp16(roundFp16(x));
}

/** The 16-bit code of `roundFp16Saturating(x)`; NaN gives 0x7fff. */
export function encodeFp16Saturating(x: number): number {
  return packFp16(roundFp16Saturating(x));
}

export function decodeFp16(code: number): number {
  const magnitudeCode = code & 0x7fff;
  let magnitude: number;
  if (magnitudeCode >= 0x7c00) {
    magnitude = magnitudeCode === 0x7c00 ? INFINITY : NOT_A_NUMBER;
  } else if (magnitudeCode < 0x400) {
    magnitude = magnitudeCode * FP16_MIN_SUBNORMAL;
  } else {
    scratchBits[0] = (magnitudeCode + FP16_REBIAS) << FP16_DROPPED_BITS;
    magnitude = scratch[0]!;
  }
  return (code & 0x8000) !== 0 ? -magnitude : magnitude;
}

/** The float32 pattern `bits` rounded to its upper half, for anything but NaN. */
function roundToUpperHalf(bits: number): number {
  return (bits + (0x7fff + ((bits >>> 16) & 1))) & -0x10000;
}

/** The nearest bf16 value; beyond its largest, 3.39e38, Infinity. */
export function roundBf16(x: number): number {
  scratch[0] = x;
  // bf16 is the upper half of a float32, so integers round every range, subnormals included.
  scratchBits[0] = roundToUpperHalf(scratchBits[0]!);
  return x === x ? scratch[0]! : NOT_A_NUMBER;
}

/** The 16-bit code of `roundBf16(x)`; NaN gives 0x7fff. */
export function encodeBf16(x: number): number {
  scratch[0] = x;
  const bits = scratchBits[0]!;
  return (bits & 0x7fffffff) > BITS_OF_INFINITY ? NAN_CODE : roundToUpperHalf(bits) >>> 16;
}

export function decodeBf16(code: number): number {
  scratchBits[0] = code << 16;
  return scratch[0]!;
}

export const BF16: NumberFormat = {
  name: 'bf16',
  bits: 16,
  encode: encodeBf16,
  decode: decodeBf16,
  round: roundBf16,
  maxFinite: (2 - 2 ** -7) * 2 ** 127,
  minSubnormal: 2 ** -133,
};

/** IEEE binary16: overflow is Infinity. */
export const FP16: NumberFormat = {
  name: 'fp16',
  bits: 16,
  encode: encodeFp16,
  decode: decodeFp16,
  round: roundFp16,
  maxFinite: FP16_MAX,
  minSubnormal: FP16_MIN_SUBNORMAL,
};

/** The same codes, with overflow to 65,504. */
export const FP16_SATURATING: NumberFormat = {
  name: 'fp16_saturating',
  bits: 16,
  encode: encodeFp16Saturating,
  decode: decodeFp16,
  round: roundFp16Saturating,
  maxFinite: FP16_MAX,
  minSubnormal: FP16_MIN_SUBNORMAL,
};
