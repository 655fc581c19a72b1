/**
 * @file e8m0, the power-of-two scale of the MX formats: code c stands for 2^(c - 127), 0xff is NaN;
 * there is no sign, no zero and no infinity (OCP Microscaling Formats 1.0, section 5.4.1).
 *
 * The sign of an input is dropped, zero gives the smallest scale 2^-127, and magnitudes above 2^127
 * (Infinity included) saturate to it, as PTX cvt.rp.satfinite.ue8m0x2.f32 does. That instruction
 * only rounds up (or down); rounding to the nearest scale is defined here in the same spirit:
 * nearest in value, so the boundary between 2^e and 2^(e+1) is 1.5 * 2^e, a tie to the even code.
 * Bit for bit the same as csrc/formats/e8m0.h.
 */

import type {NumberFormat} from './number_format.js';

const NAN_CODE = 0xff;
const MAX_CODE = 0xfe;

// float32 patterns around the smallest scales, where float32 has no implicit bit.
const BITS_OF_2_TO_MINUS_127 = 0x400000;
const BITS_OF_TIE_ABOVE_IT = 0x600000;
const BITS_OF_2_TO_MINUS_126 = 0x800000;
const BITS_OF_INFINITY = 0x7f800000;

const VALUES = Float32Array.from({length: 256}, (_, code) =>
  code === NAN_CODE ? NaN : 2 ** (code - 127),
);

const scratch = new Float32Array(1);
const scratchBits = new Int32Array(scratch.buffer);

function magnitudeBits(x: number): number {
  scratch[0] = x;
  return scratchBits[0]! & 0x7fffffff;
}

function saturate(code: number): number {
  return code < MAX_CODE ? code : MAX_CODE;
}

/** The code of the scale nearest to |x|, ties to the even code; NaN gives 0xff. */
export function encodeE8m0(x: number): number {
  const bits = magnitudeBits(x);
  if (bits > BITS_OF_INFINITY) return NAN_CODE;
  if (bits < BITS_OF_2_TO_MINUS_126) return bits > BITS_OF_TIE_ABOVE_IT ? 1 : 0;
  return saturate((bits + 0x3fffff + ((bits >>> 23) & 1)) >>> 23);
}

/** The code of the smallest scale that is not below |x|; NaN gives 0xff. */
export function encodeE8m0RoundUp(x: number): number {
  const bits = magnitudeBits(x);
  if (bits > BITS_OF_INFINITY) return NAN_CODE;
  if (bits < BITS_OF_2_TO_MINUS_126) return bits > BITS_OF_2_TO_MINUS_127 ? 1 : 0;
  return saturate((bits + 0x7fffff) >>> 23);
}

export function decodeE8m0(code: number): number {
  return VALUES[code & 0xff]!;
}

/** The scale nearest to |x|. */
export function roundE8m0(x: number): number {
  return decodeE8m0(encodeE8m0(x));
}

/** The smallest scale that is not below |x|, so that a block divided by it never overflows. */
export function e8m0RoundUp(x: number): number {
  return decodeE8m0(encodeE8m0RoundUp(x));
}

export const E8M0: NumberFormat = {
  name: 'e8m0',
  bits: 8,
  encode: encodeE8m0,
  decode: decodeE8m0,
  round: roundE8m0,
  maxFinite: 2 ** 127,
  minSubnormal: 2 ** -127,
};
