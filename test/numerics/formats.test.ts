/** @file Number formats against their definitions in exact rationals: every code, 2^22 inputs. */

import {
  NUMBER_FORMATS,
  decodeE8m0,
  e8m0RoundUp,
  encodeE8m0RoundUp,
  roundHalfAway,
  roundHalfEven,
  roundToInt,
  roundToIntHalfAway,
} from '../../src/numerics/formats.js';
import {
  FORMAT_DEFINITIONS,
  exactNumber,
  formatInputs,
  midpointsOf,
  nearestByRationals,
  type FormatDefinition,
} from './format_oracle.js';

// As constants: in jest's vm context each look-up of a global costs 0.2 us, and there are 10^8 here.
const {abs, floor, min, max: larger} = Math;
const {is} = Object;

const INPUT_COUNT = 2 ** 22;
const MAX_REPORTED = 5;

const patterns = formatInputs(INPUT_COUNT);
const inputs = new Float32Array(patterns.buffer);
const describeInput = (i: number): string =>
  `${inputs[i]} (0x${patterns[i]!.toString(16).padStart(8, '0')})`;

/** The expected code of every input, by walking inputs and midpoints upwards together. */
function expectedCodes(definition: FormatDefinition): Uint16Array {
  const midpoints = midpointsOf(definition);
  const codes = new Uint16Array(INPUT_COUNT);
  let code = 0;
  for (let i = 0; i < INPUT_COUNT; i++) {
    const x = inputs[i]!;
    if (x !== x) {
      codes[i] = definition.nanCode;
      continue;
    }
    const magnitude = abs(x);
    while (code < midpoints.length && midpoints[code]! < magnitude) code++;
    // Here midpoint[code - 1] < magnitude <= midpoint[code]; equality is a tie, which goes to even.
    const nearest = magnitude === midpoints[code] && code % 2 === 1 ? code + 1 : code;
    codes[i] = definition.withSign(nearest, patterns[i]! > 0x7fffffff);
  }
  return codes;
}

/** All half-precision values as float32, for readers who look for them: they are in the inputs too. */
function fp16Values(): Float32Array {
  return Float32Array.from({length: 65536}, (_, code) => {
    const sign = code >= 0x8000 ? -1 : 1;
    const field = (code >> 10) & 31;
    const mantissa = code & 1023;
    if (field === 31) return mantissa === 0 ? sign * Infinity : NaN;
    return sign * (field === 0 ? mantissa : mantissa + 1024) * 2 ** (larger(field, 1) - 25);
  });
}

describe.each(FORMAT_DEFINITIONS.map((definition) => [definition.name, definition] as const))(
  '%s',
  (name, definition) => {
    const format = NUMBER_FORMATS[name];
    const {magnitudes, withSign, nanCode, bits} = definition;
    const signs = name === 'ue4m3' || name === 'e8m0' ? [false] : [false, true];

    test('describes itself', () => {
      expect(format.name).toBe(name);
      expect(format.bits).toBe(bits);
      expect(format.maxFinite).toBe(exactNumber(magnitudes.at(-1)!));
      const smallest = magnitudes.find(({num}) => num > 0n)!;
      expect(format.minSubnormal).toBe(exactNumber(smallest));
    });

    test('every code decodes to its exact value and encodes to itself', () => {
      const seen = new Set<number>();
      magnitudes.forEach((magnitude, unsigned) => {
        for (const negative of signs) {
          const code = withSign(unsigned, negative);
          const zeroHasNoSign = bits < 32 && name.startsWith('int');
          const value = exactNumber(magnitude) * (negative ? -1 : 1);
          const expected = value === 0 && zeroHasNoSign ? 0 : value;
          if (!is(format.decode(code), expected)) {
            throw new Error(`code ${code} decodes to ${format.decode(code)}, not ${expected}`);
          }
          if (format.encode(expected) !== code) {
            throw new Error(`${expected} encodes to ${format.encode(expected)}, not ${code}`);
          }
          seen.add(code);
        }
      });
      // What is left are the specials, and the one integer that has no opposite.
      for (let code = 0; code < 2 ** bits; code++) {
        if (seen.has(code)) continue;
        const value = format.decode(code);
        if (name.startsWith('int')) {
          expect(code).toBe(2 ** (bits - 1));
          expect(value).toBe(-(2 ** (bits - 1)));
          expect(format.encode(value)).toBe(code + 1);
        } else if (value !== value) {
          expect(format.encode(value)).toBe(nanCode);
        } else {
          expect(abs(value)).toBe(Infinity);
          expect(['e5m2', 'bf16', 'fp16', 'fp16_saturating']).toContain(name);
          const saturates = definition.above === 'saturate';
          expect(format.encode(value)).toBe(saturates ? code - 1 : code);
        }
      }
    });

    test('every fp16 value', () => {
      const midpoints = midpointsOf(definition);
      const wrong: string[] = [];
      for (const x of fp16Values()) {
        let expected = nanCode;
        if (x === x) {
          const magnitude = abs(x);
          let low = 0;
          let high = midpoints.length;
          while (low < high) {
            const at = (low + high) >> 1;
            if (midpoints[at]! < magnitude) low = at + 1;
            else high = at;
          }
          const nearest = midpoints[low] === magnitude && low % 2 === 1 ? low + 1 : low;
          expected = withSign(nearest, x < 0 || is(x, -0));
        }
        if (format.encode(x) !== expected) wrong.push(`${x}: ${format.encode(x)} not ${expected}`);
      }
      expect(wrong.slice(0, MAX_REPORTED)).toEqual([]);
    });

    test('2^22 random and boundary float32 inputs', () => {
      const expected = expectedCodes(definition);
      const {encode, decode, round} = format;
      const wrong: string[] = [];
      for (let i = 0; i < INPUT_COUNT; i++) {
        const x = inputs[i]!;
        const code = encode(x);
        if (code !== expected[i]) {
          wrong.push(`${describeInput(i)}: code ${code}, not ${expected[i]}`);
        } else if (!is(round(x), decode(code))) {
          wrong.push(`${describeInput(i)}: rounds to ${round(x)}, decodes to ${decode(code)}`);
        }
        if (wrong.length === MAX_REPORTED) break;
      }
      expect(wrong).toEqual([]);
    });
  },
);

test('the midpoint walk agrees with comparing distances to every value', () => {
  for (const definition of FORMAT_DEFINITIONS) {
    if (definition.bits > 8) continue; // 2^15 rationals an input are too many
    const expected = expectedCodes(definition);
    for (let i = 17; i < INPUT_COUNT; i += 40009) {
      const x = inputs[i]!;
      if (!Number.isFinite(x)) continue;
      const nearest = nearestByRationals(definition, abs(x));
      expect(definition.withSign(nearest, patterns[i]! > 0x7fffffff)).toBe(expected[i]);
    }
  }
});

test('the inputs hold what they promise', () => {
  expect(patterns.length).toBe(INPUT_COUNT);
  for (const bits of [
    0, 0x80000000, 1, 0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7fc00000,
  ]) {
    expect(patterns.includes(bits)).toBe(true);
  }
  const float = new Float32Array(1);
  const pattern = new Uint32Array(float.buffer);
  for (const x of [
    2.5,
    -2.5,
    5,
    0.25,
    464,
    0.5 - 2 ** -25,
    2 ** -10,
    65520,
    -65519.996,
    0.9375 * 2 ** -6,
  ]) {
    float[0] = x;
    expect(patterns.includes(pattern[0]!)).toBe(true);
  }
});

test('values that PTX documents for saturating conversions', () => {
  const {e2m1, e4m3, ue4m3, e5m2, fp16, fp16_saturating, bf16, e8m0, int8} = NUMBER_FORMATS;
  expect([NaN, Infinity, -Infinity, -0, 2.5, 5].map(e2m1.encode)).toEqual([7, 7, 15, 8, 4, 6]);
  expect([NaN, Infinity, -Infinity, 464, 1e9, -0].map(e4m3.encode)).toEqual([
    0x7f, 0x7e, 0xfe, 0x7e, 0x7e, 0x80,
  ]);
  expect([NaN, -Infinity, -1, -0, 500, 2 ** -10].map(ue4m3.encode)).toEqual([
    0x7f, 0, 0, 0, 0x7e, 0,
  ]);
  expect([NaN, Infinity, -Infinity, 65536].map(e5m2.encode)).toEqual([0x7f, 0x7b, 0xfb, 0x7b]);
  expect([NaN, 65519.996, 65520, -Infinity].map(fp16.encode)).toEqual([
    0x7fff, 0x7bff, 0x7c00, 0xfc00,
  ]);
  expect([NaN, 65520, -Infinity].map(fp16_saturating.encode)).toEqual([0x7fff, 0x7bff, 0xfbff]);
  expect([NaN, 3.4e38, -Infinity].map(bf16.encode)).toEqual([0x7fff, 0x7f80, 0xff80]);
  expect([NaN, 0, Infinity, -1, 1.5, 3, 6].map(e8m0.encode)).toEqual([
    255, 0, 254, 127, 128, 128, 130,
  ]);
  expect([NaN, 0.5, 1.5, -0.5, 1e9, -Infinity].map(int8.round)).toEqual([0, 0, 2, 0, 127, -127]);
});

test('numbers that are no float32 are rounded to float32 first', () => {
  // Just above the tie of 1 and 1.5 in float64, on it in float32, so the even neighbour 1 wins.
  const x = 1.25 + 2 ** -40;
  for (const name of ['e2m1'] as const) expect(NUMBER_FORMATS[name].encode(x)).toBe(2);
  expect(NUMBER_FORMATS.e4m3.round(1.0625 + 2 ** -40)).toBe(1);
  expect(NUMBER_FORMATS.fp16.round(1 + 2 ** -11 + 2 ** -40)).toBe(1);
  expect(NUMBER_FORMATS.bf16.round(1 + 2 ** -8 + 2 ** -40)).toBe(1);
});

test('e8m0RoundUp is the smallest power of two not below the magnitude', () => {
  const {magnitudes} = FORMAT_DEFINITIONS.find(({name}) => name === 'e8m0')!;
  const values = magnitudes.map(exactNumber);
  const wrong: string[] = [];
  let code = 0;
  for (let i = 0; i < INPUT_COUNT && wrong.length < MAX_REPORTED; i++) {
    const x = inputs[i]!;
    const magnitude = abs(x);
    while (code < values.length - 1 && values[code]! < magnitude) code++;
    const expected = x !== x ? 0xff : code;
    if (encodeE8m0RoundUp(x) !== expected || !is(e8m0RoundUp(x), decodeE8m0(expected))) {
      wrong.push(`${describeInput(i)}: ${encodeE8m0RoundUp(x)}, not ${expected}`);
    }
  }
  expect(wrong).toEqual([]);
});

test('roundHalfEven, roundHalfAway and the clamped integers', () => {
  const wrong: string[] = [];
  const clampTo = (value: number, max: number): number =>
    value !== value ? 0 : min(max, larger(-max, value)) + 0;
  for (let i = 0; i < INPUT_COUNT && wrong.length < MAX_REPORTED; i++) {
    const x = inputs[i]!;
    const magnitude = abs(x);
    const below = floor(magnitude);
    const fraction = magnitude - below; // exact: both are multiples of one unit of x
    const sign = patterns[i]! > 0x7fffffff ? -1 : 1;
    const up = fraction === fraction ? fraction : 0; // Infinity - Infinity
    const even = sign * (up > 0.5 || (up === 0.5 && below % 2 === 1) ? below + 1 : below);
    const away = sign * (up >= 0.5 ? below + 1 : below);
    if (!is(roundHalfEven(x), even)) wrong.push(`half even ${describeInput(i)}`);
    if (!is(roundHalfAway(x), away)) wrong.push(`half away ${describeInput(i)}`);
    for (const max of [7, 107, 127, 32767]) {
      if (!is(roundToInt(x, max), clampTo(even, max))) {
        wrong.push(`int ${max} ${describeInput(i)}: ${roundToInt(x, max)}`);
      }
      if (!is(roundToIntHalfAway(x, max), clampTo(away, max))) {
        wrong.push(`int away ${max} ${describeInput(i)}: ${roundToIntHalfAway(x, max)}`);
      }
    }
  }
  expect(wrong).toEqual([]);
});
