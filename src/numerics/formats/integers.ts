/**
 * @file Rounding to integers, and the symmetric INT4, INT8 and INT16 codes.
 *
 * Codes are clamped to +-7, +-127 and +-32,767, so that -x always has a code when x has one; NaN
 * becomes 0 (PTX cvt.rni.s32.f32 does the same). -0 keeps its sign through the round functions.
 * Bit for bit the same as csrc/formats/integers.h for float32 inputs.
 */

import type {NumberFormat, NumberFormatName} from './number_format.js';

// As constants: looking a global up costs a hundred times the arithmetic where code runs in a vm
// context, as under test runners.
const {abs, fround, trunc} = Math;

export const INT4_MAX = 7;
export const INT8_MAX = 127;
export const INT16_MAX = 32767;

/** From 2^23 on every float32 is an integer. */
const ALL_INTEGERS = 2 ** 23;

/**
 * 1.5 * 2^52: float64 values next to it are the integers, on both sides, so that adding it makes
 * the adder round to nearest even and subtracting it again is exact.
 */
const ROUNDER = 1.5 * 2 ** 52;

/** The nearest integer, ties to even (IEEE roundToIntegralTiesToEven) of a float32. */
export function roundHalfEven(x: number): number {
  if (!(abs(x) < ALL_INTEGERS)) return x;
  const rounded = x + ROUNDER - ROUNDER;
  return rounded === 0 ? x * 0 : rounded; // the sum loses the sign of zero
}

/** The nearest integer, ties away from zero, as the published Triton kernels of SageAttention round. */
export function roundHalfAway(x: number): number {
  if (!(abs(x) < ALL_INTEGERS) || x === 0) return x;
  // Twice the fraction reaches 1 exactly from a half on. Exact in float64, without a branch on sign.
  const towardsZero = trunc(x);
  return towardsZero + trunc((x - towardsZero) * 2);
}

/**
 * The nearest integer in [-max, max], ties to even; NaN gives 0.
 *
 * @param max the largest code, an integer below 2^31.
 */
export function roundToInt(x: number, max: number): number {
  const rounded = x + ROUNDER - ROUNDER;
  return rounded > max ? max : rounded < -max ? -max : rounded | 0;
}

/** The same with ties away from zero. */
export function roundToIntHalfAway(x: number, max: number): number {
  const rounded = roundHalfAway(x);
  return rounded > max ? max : rounded < -max ? -max : rounded | 0;
}

function integerFormat(name: NumberFormatName, bits: number, max: number): NumberFormat {
  const mask = 2 ** bits - 1;
  const unusedBits = 32 - bits;
  return {
    name,
    bits,
    encode: (x) => roundToInt(fround(x), max) & mask,
    decode: (code) => (code << unusedBits) >> unusedBits,
    round: (x) => roundToInt(fround(x), max),
    maxFinite: max,
    minSubnormal: 1,
  };
}

export const INT4 = integerFormat('int4', 4, INT4_MAX);
export const INT8 = integerFormat('int8', 8, INT8_MAX);
export const INT16 = integerFormat('int16', 16, INT16_MAX);
