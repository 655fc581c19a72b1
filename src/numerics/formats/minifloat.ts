/**
 * @file The 4- and 8-bit floats: e2m1 (FP4), e4m3, ue4m3 (the scales of NVFP4) and e5m2.
 *
 * Encodings: OCP Microscaling Formats (MX) 1.0 and OFP8 1.0. Conversions: PTX
 * cvt.rn.satfinite.{e2m1x2,e4m3x2,e5m2x2}.f32, that is to nearest, ties to even; anything larger
 * than the largest finite value, infinities included, becomes that value with its sign; -0 is kept;
 * NaN becomes the format's NaN 0x7f, or 0x7 (+6) in e2m1, which has none.
 * Bit for bit the same as csrc/formats/minifloat.h.
 *
 * The result depends on few bits of a float32: sign, exponent, the mantissa bits that the format
 * keeps, the next one (half a unit) and whether anything follows. Those index tables of results, so
 * that a rounding is two loads without a branch; they run hundreds of millions of times a call.
 */

import type {NumberFormat} from './number_format.js';

const scratch = new Float32Array(1);
const scratchBits = new Int32Array(scratch.buffer);

interface Layout {
  readonly bits: number;
  readonly mantissaBits: number;
  readonly exponentBias: number;
  readonly maxFinite: number;
  /** What codes of magnitudes above that of `maxFinite` mean. */
  readonly special: (magnitudeCode: number) => number;
  /** The code of NaN. */
  readonly nanCode: number;
}

interface Tables {
  /** Value of each code. */
  readonly values: Float32Array;
  /** Code for each index made of float32 bits. */
  readonly codes: Uint8Array;
  /** `values[codes[index]]`, in one load. */
  readonly rounded: Float32Array;
}

/** The value of code bits without a sign, by the definition of a binary float. */
function magnitudeOf(code: number, {mantissaBits, exponentBias}: Layout): number {
  const field = code >> mantissaBits;
  const mantissa = code - (field << mantissaBits);
  const units = field === 0 ? mantissa : mantissa + (1 << mantissaBits);
  return units * 2 ** (Math.max(field, 1) - exponentBias - mantissaBits);
}

function buildTables(layout: Layout): Tables {
  const {bits, mantissaBits, maxFinite, special, nanCode} = layout;
  const signCode = 1 << (bits - 1);
  const values = new Float32Array(2 * signCode);
  let maxCode = 0;
  for (let code = 0; code < signCode; code++) {
    const magnitude = magnitudeOf(code, layout);
    if (magnitude <= maxFinite) maxCode = code;
    values[code] = magnitude <= maxFinite ? magnitude : special(code);
    values[code + signCode] = -values[code]!;
  }

  const droppedBits = 22 - mantissaBits;
  const half = 1 << (32 - droppedBits);
  const codes = new Uint8Array(2 * half);
  const rounded = new Float32Array(2 * half);
  let nearest = 0;
  for (let index = 0; index < half; index++) {
    // Any float32 of this class stands for all: only "something follows" matters, not what.
    scratchBits[0] = ((index >> 1) << droppedBits) | (index & 1);
    const magnitude = scratch[0]!;
    // Magnitudes ascend with the index, so the nearest code does too. A tie goes to the even code.
    while (nearest < maxCode) {
      const midpoint = (values[nearest]! + values[nearest + 1]!) / 2;
      const isOdd = (nearest & 1) === 1;
      if (magnitude > midpoint || (magnitude === midpoint && isOdd)) nearest++;
      else break;
    }
    const isNan = magnitude !== magnitude;
    codes[index] = isNan ? nanCode : nearest;
    codes[index + half] = isNan ? nanCode : nearest + signCode;
    rounded[index] = values[codes[index]!]!;
    rounded[index + half] = values[codes[index + half]!]!;
  }
  return {values, codes, rounded};
}

const E2M1_TABLES = buildTables({
  bits: 4,
  mantissaBits: 1,
  exponentBias: 1,
  maxFinite: 6,
  special: () => NaN, // no such codes
  nanCode: 0x7,
});

const E4M3_TABLES = buildTables({
  bits: 8,
  mantissaBits: 3,
  exponentBias: 7,
  maxFinite: 448,
  special: () => NaN,
  nanCode: 0x7f,
});

const E5M2_TABLES = buildTables({
  bits: 8,
  mantissaBits: 2,
  exponentBias: 15,
  maxFinite: 57344,
  special: (code) => (code === 0x7c ? Infinity : NaN),
  nanCode: 0x7f,
});

// Named apart so that hot loops read a constant, not a property.
const E2M1_VALUES = E2M1_TABLES.values;
const E2M1_CODES = E2M1_TABLES.codes;
const E2M1_ROUNDED = E2M1_TABLES.rounded;
const E4M3_VALUES = E4M3_TABLES.values;
const E4M3_CODES = E4M3_TABLES.codes;
const E4M3_ROUNDED = E4M3_TABLES.rounded;
const E5M2_VALUES = E5M2_TABLES.values;
const E5M2_CODES = E5M2_TABLES.codes;
const E5M2_ROUNDED = E5M2_TABLES.rounded;

// The index functions differ in their constants only: 22 - mantissaBits dropped bits. Written out,
// since a shift by a variable costs more than the table load.

function indexE2m1(x: number): number {
  scratch[0] = x;
  const bits = scratchBits[0]!;
  return ((bits >>> 21) << 1) | ((bits & 0x1fffff) !== 0 ? 1 : 0);
}

function indexE4m3(x: number): number {
  scratch[0] = x;
  const bits = scratchBits[0]!;
  return ((bits >>> 19) << 1) | ((bits & 0x7ffff) !== 0 ? 1 : 0);
}

function indexE5m2(x: number): number {
  scratch[0] = x;
  const bits = scratchBits[0]!;
  return ((bits >>> 20) << 1) | ((bits & 0xfffff) !== 0 ? 1 : 0);
}

/** The nearest of 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives; NaN gives 6. */
export function roundE2m1(x: number): number {
  return E2M1_ROUNDED[indexE2m1(x)]!;
}

/** The 4-bit code of `roundE2m1(x)`, sign in bit 3. */
export function encodeE2m1(x: number): number {
  return E2M1_CODES[indexE2m1(x)]!;
}

export function decodeE2m1(code: number): number {
  return E2M1_VALUES[code & 0xf]!;
}

/** The nearest e4m3 value, at most 448 in magnitude; NaN stays NaN. */
export function roundE4m3(x: number): number {
  return E4M3_ROUNDED[indexE4m3(x)]!;
}

/** The 8-bit code of `roundE4m3(x)`; NaN gives 0x7f. */
export function encodeE4m3(x: number): number {
  return E4M3_CODES[indexE4m3(x)]!;
}

export function decodeE4m3(code: number): number {
  return E4M3_VALUES[code & 0xff]!;
}

/** The nearest unsigned e4m3 value: negative numbers and -0 give 0; NaN stays NaN. */
export function roundUe4m3(x: number): number {
  return x <= 0 ? 0 : E4M3_ROUNDED[indexE4m3(x)]!;
}

/** The 7-bit code of `roundUe4m3(x)`; NaN gives 0x7f. */
export function encodeUe4m3(x: number): number {
  return x <= 0 ? 0 : E4M3_CODES[indexE4m3(x)]!;
}

export function decodeUe4m3(code: number): number {
  return E4M3_VALUES[code & 0x7f]!;
}

/** The nearest e5m2 value, at most 57,344 in magnitude; NaN stays NaN. */
export function roundE5m2(x: number): number {
  return E5M2_ROUNDED[indexE5m2(x)]!;
}

/** The 8-bit code of `roundE5m2(x)`; NaN gives 0x7f. Never 0x7c, the infinity that decodes. */
export function encodeE5m2(x: number): number {
  return E5M2_CODES[indexE5m2(x)]!;
}

export function decodeE5m2(code: number): number {
  return E5M2_VALUES[code & 0xff]!;
}

export const E2M1: NumberFormat = {
  name: 'e2m1',
  bits: 4,
  encode: encodeE2m1,
  decode: decodeE2m1,
  round: roundE2m1,
  maxFinite: 6,
  minSubnormal: 0.5,
};

export const E4M3: NumberFormat = {
  name: 'e4m3',
  bits: 8,
  encode: encodeE4m3,
  decode: decodeE4m3,
  round: roundE4m3,
  maxFinite: 448,
  minSubnormal: 2 ** -9,
};

export const UE4M3: NumberFormat = {
  name: 'ue4m3',
  bits: 7,
  encode: encodeUe4m3,
  decode: decodeUe4m3,
  round: roundUe4m3,
  maxFinite: 448,
  minSubnormal: 2 ** -9,
};

export const E5M2: NumberFormat = {
  name: 'e5m2',
  bits: 8,
  encode: encodeE5m2,
  decode: decodeE5m2,
  round: roundE5m2,
  maxFinite: 57344,
  minSubnormal: 2 ** -16,
};
