/**
 * @file An independent derivation of every number format, and the float32 inputs to judge it with.
 *
 * Values are exact rationals made from the definition of each format; which value is nearest follows
 * from comparing the input with the rational midpoint of two neighbours. Nothing here looks at the
 * bits of a float32 beyond splitting it into sign, exponent and mantissa, and nothing is shared with
 * src/numerics/formats.
 */

import type {NumberFormatName} from '../../src/numerics/formats.js';

/** num / den, den > 0. */
export interface Rational {
  readonly num: bigint;
  readonly den: bigint;
}

export function compareRationals(a: Rational, b: Rational): number {
  const difference = a.num * b.den - b.num * a.den;
  return difference < 0n ? -1 : difference > 0n ? 1 : 0;
}

function powerOfTwo(exponent: number): Rational {
  return exponent >= 0
    ? {num: 1n << BigInt(exponent), den: 1n}
    : {num: 1n, den: 1n << BigInt(-exponent)};
}

function times(a: Rational, factor: number): Rational {
  return {num: a.num * BigInt(factor), den: a.den};
}

function middle(a: Rational, b: Rational): Rational {
  return {num: a.num * b.den + b.num * a.den, den: 2n * a.den * b.den};
}

const view = new DataView(new ArrayBuffer(8));

/** The exact value of a finite float64. */
export function rationalOf(x: number): Rational {
  view.setFloat64(0, x);
  const bits = view.getBigUint64(0);
  const field = Number((bits >> 52n) & 0x7ffn);
  const fraction = bits & 0xfffffffffffffn;
  const mantissa = field === 0 ? fraction : fraction | 0x10000000000000n;
  const unit = powerOfTwo(Math.max(field, 1) - 1075);
  return {num: (bits >> 63n === 1n ? -1n : 1n) * mantissa * unit.num, den: unit.den};
}

/** The float64 with exactly this value. @throws if there is none. */
export function exactNumber(value: Rational): number {
  const result = Number(value.num) / Number(value.den);
  if (compareRationals(rationalOf(result), value) !== 0) throw new Error('not a float64');
  return result;
}

/** A format by its definition: the magnitudes in ascending order, the code of the i-th is i. */
export interface FormatDefinition {
  readonly name: NumberFormatName;
  readonly bits: number;
  readonly magnitudes: readonly Rational[];
  /** The code of the nearest magnitude `code` when the input is negative (-0 included) or not. */
  readonly withSign: (code: number, negative: boolean) => number;
  readonly nanCode: number;
  /**
   * What code magnitudes above the largest get: `saturate`, that of the largest; `overflow`, that of
   * the next step, as though the format went on, so from half a unit above the largest.
   */
  readonly above: 'saturate' | 'overflow';
}

function binaryMagnitudes(mantissaBits: number, bias: number, count: number): Rational[] {
  return Array.from({length: count}, (_, code) => {
    const exponent = Math.floor(code / 2 ** mantissaBits);
    const fraction = code % 2 ** mantissaBits;
    // (-1)^s * 2^(E - bias) * 1.M, or 2^(1 - bias) * 0.M where E = 0.
    return exponent === 0
      ? times(powerOfTwo(1 - bias - mantissaBits), fraction)
      : times(powerOfTwo(exponent - bias - mantissaBits), 2 ** mantissaBits + fraction);
  });
}

const signBit =
  (bits: number) =>
  (code: number, negative: boolean): number =>
    code + (negative ? 2 ** (bits - 1) : 0);

function integerDefinition(name: NumberFormatName, bits: number): FormatDefinition {
  return {
    name,
    bits,
    magnitudes: Array.from({length: 2 ** (bits - 1)}, (_, value) => ({
      num: BigInt(value),
      den: 1n,
    })),
    withSign: (code, negative) => (negative && code > 0 ? 2 ** bits - code : code),
    nanCode: 0,
    above: 'saturate',
  };
}

/** All formats. `count` of magnitudes: the codes up to the largest finite value. */
export const FORMAT_DEFINITIONS: readonly FormatDefinition[] = [
  {
    name: 'e2m1',
    bits: 4,
    magnitudes: binaryMagnitudes(1, 1, 8),
    withSign: signBit(4),
    nanCode: 0x7,
    above: 'saturate',
  },
  {
    name: 'e4m3',
    bits: 8,
    magnitudes: binaryMagnitudes(3, 7, 0x7f),
    withSign: signBit(8),
    nanCode: 0x7f,
    above: 'saturate',
  },
  {
    name: 'ue4m3',
    bits: 7,
    magnitudes: binaryMagnitudes(3, 7, 0x7f),
    withSign: (code, negative) => (negative ? 0 : code),
    nanCode: 0x7f,
    above: 'saturate',
  },
  {
    name: 'e5m2',
    bits: 8,
    magnitudes: binaryMagnitudes(2, 15, 0x7c),
    withSign: signBit(8),
    nanCode: 0x7f,
    above: 'saturate',
  },
  {
    name: 'e8m0',
    bits: 8,
    magnitudes: Array.from({length: 0xff}, (_, code) => powerOfTwo(code - 127)),
    withSign: (code) => code,
    nanCode: 0xff,
    above: 'saturate',
  },
  {
    name: 'bf16',
    bits: 16,
    magnitudes: binaryMagnitudes(7, 127, 0x7f80),
    withSign: signBit(16),
    nanCode: 0x7fff,
    above: 'overflow',
  },
  {
    name: 'fp16',
    bits: 16,
    magnitudes: binaryMagnitudes(10, 15, 0x7c00),
    withSign: signBit(16),
    nanCode: 0x7fff,
    above: 'overflow',
  },
  {
    name: 'fp16_saturating',
    bits: 16,
    magnitudes: binaryMagnitudes(10, 15, 0x7c00),
    withSign: signBit(16),
    nanCode: 0x7fff,
    above: 'saturate',
  },
  integerDefinition('int4', 4),
  integerDefinition('int8', 8),
  integerDefinition('int16', 16),
];

const knownMidpoints = new Map<FormatDefinition, Float64Array>();

/**
 * The midpoint of each magnitude and the next as a float64 that is exactly that rational. For
 * formats that overflow the last one is half a step above the largest value.
 */
export function midpointsOf(definition: FormatDefinition): Float64Array {
  const known = knownMidpoints.get(definition);
  if (known !== undefined) return known;
  const {magnitudes, above} = definition;
  const midpoints: number[] = [];
  for (let code = 0; code + 1 < magnitudes.length; code++) {
    midpoints.push(exactNumber(middle(magnitudes[code]!, magnitudes[code + 1]!)));
  }
  if (above === 'overflow') {
    const last = magnitudes.at(-1)!;
    const step = {num: last.num * 2n - magnitudes.at(-2)!.num, den: last.den};
    midpoints.push(exactNumber(middle(last, step)));
  }
  const result = Float64Array.from(midpoints);
  knownMidpoints.set(definition, result);
  return result;
}

/** The nearest magnitude's code by comparing rationals one by one: slow, assumes nothing. */
export function nearestByRationals(definition: FormatDefinition, magnitude: number): number {
  const x = rationalOf(magnitude);
  const {magnitudes} = definition;
  const distance = (code: number): Rational => {
    const value = magnitudes[code]!;
    const difference = value.num * x.den - x.num * value.den;
    return {num: difference < 0n ? -difference : difference, den: value.den * x.den};
  };
  let best = 0;
  for (let code = 1; code < magnitudes.length; code++) {
    const order = compareRationals(distance(code), distance(best));
    if (order < 0 || (order === 0 && code % 2 === 0)) best = code;
  }
  return best;
}

/** xorshift32: a fixed sequence of patterns, so that a failure can be repeated. */
function patternSource(seed: number): () => number {
  let state = seed;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}

/** Zero, the ends and middle of the subnormals, the ends of the normals, Infinity, NaNs of all kinds. */
const SPECIAL_PATTERNS = [
  0, 1, 2, 0x3fffff, 0x400000, 0x400001, 0x5fffff, 0x600000, 0x600001, 0x7fffff, 0x800000,
  0x7f7fffff, 0x7f800000, 0x7f800001, 0x7fa00000, 0x7fc00000, 0x7fc00001, 0x7fffffff,
];

/**
 * `count` float32 patterns in ascending order of magnitude: all fp16 values, all values and midpoints
 * of every format with their float32 neighbours, the ends of the float32 ranges, NaNs, and for the
 * rest random ones, half of them over all patterns and half within the range of the short formats.
 */
export function formatInputs(count: number): Uint32Array {
  const rotated = new Uint32Array(count);
  let filled = 0;
  // Rotated by one, the sign stands below the magnitude, so that sorting orders by magnitude.
  const add = (bits: number): void => {
    if (filled < count) rotated[filled++] = ((bits << 1) | (bits >>> 31)) >>> 0;
  };
  const float = new Float32Array(1);
  const pattern = new Uint32Array(float.buffer);
  const addAround = (value: number, reach: number): void => {
    float[0] = value;
    const bits = pattern[0]!;
    for (let step = -reach; step <= reach; step++) {
      const near = bits + step;
      if (near < 0 || near > 0x7fffffff) continue;
      add(near);
      add(near + 0x80000000);
    }
  };

  for (const bits of SPECIAL_PATTERNS) {
    add(bits);
    add(bits + 0x80000000);
  }
  for (const definition of FORMAT_DEFINITIONS) {
    const reach = definition.bits > 8 ? 1 : 3;
    for (const midpoint of midpointsOf(definition)) addAround(midpoint, reach);
    if (definition.name === 'fp16_saturating') continue; // the values of fp16
    for (const magnitude of definition.magnitudes) {
      addAround(exactNumber(magnitude), definition.bits > 8 ? 0 : 3);
    }
  }
  if (filled * 2 > count) throw new Error(`${filled} boundary inputs leave too few random ones`);
  const next = patternSource(0x9e3779b9);
  while (filled < count) {
    const bits = next();
    // Odd turns: exponents 97 to 144, which is 2^-30 to 2^18, the range of everything but bf16.
    add(filled % 2 === 0 ? bits : ((bits & 0x807fffff) | ((97 + (next() % 48)) << 23)) >>> 0);
  }
  rotated.sort();
  return rotated.map((bits) => ((bits >>> 1) | (bits << 31)) >>> 0);
}
