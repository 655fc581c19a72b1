/** The rounding of P: docs/numerics.md 5. */
import {roundP} from '../../src/numerics/quantize';
import {recipeOf, uniform} from './inputs';

const f32 = Math.fround;

/** Rounds to `mantissaBits` bits after the leading one and no exponent below `minExponent`, ties to even. */
function roundBinary(x: number, mantissaBits: number, minExponent: number): number {
  if (x === 0) return 0;
  const exponent = Math.max(Math.floor(Math.log2(x)), minExponent);
  const unit = 2 ** (exponent - mantissaBits);
  const units = x / unit;
  const floor = Math.floor(units);
  const rest = units - floor;
  const up = rest > 0.5 || (rest === 0.5 && floor % 2 === 1);
  return (floor + (up ? 1 : 0)) * unit;
}

const e4m3 = (x: number) => Math.min(448, roundBinary(x, 3, -6));
const e2m1 = (x: number) => Math.min(6, roundBinary(x, 1, 0));

function probabilities(count: number, seed: number): Float32Array {
  const next = uniform(seed);
  return Float32Array.from({length: count}, (_, j) =>
    j % 7 === 6 ? 0 : Math.exp(-20 * next() ** 2),
  );
}

const cases = [
  ['int16', {}, (p: number) => Math.round(8192 * p)],
  ['int8', {}, (p: number) => Math.round(255 * p)],
  ['int8', {variant: 'paper'}, (p: number) => Math.round(127 * p)],
  ['int8_bf16', {}, (p: number) => roundBinary(p, 7, -126)],
  ['int8_fp16', {}, (p: number) => roundBinary(p, 10, -14)],
  ['int8_fp8', {}, (p: number) => e4m3(f32(448 * p))],
  ['fp4_fp8', {}, (p: number) => e4m3(f32(448 * p))],
  ['exact', {}, (p: number) => p],
] as const;

test.each(cases)('%s %p', (precision, choice, round) => {
  const recipe = recipeOf(precision, choice);
  for (const count of [1, 17, 127, 129]) {
    const p = probabilities(count, count);
    p[0] = 1;
    const rounded = p.slice();
    roundP(recipe, rounded, count);
    expect(Array.from(rounded)).toEqual(Array.from(p, round));
    expect(rounded[0]).toBe(recipe.pTop);
    const wide = Float64Array.from(p);
    roundP(recipe, wide, count);
    expect(Array.from(wide)).toEqual(Array.from(rounded));
  }
});

test('integers round to nearest even, in the published forms too', () => {
  for (const recipe of [recipeOf('int8'), recipeOf('int8', {variant: 'paper'})]) {
    const p = Float32Array.of(0.5, 0.5 / recipe.pTop, 1.5 / recipe.pTop, 2.5 / recipe.pTop);
    const expected = Array.from(p, (x) => {
      const y = f32(x * recipe.pTop);
      return y % 1 === 0.5 ? 2 * Math.round(y / 2) : Math.round(y);
    });
    roundP(recipe, p, 4);
    expect(Array.from(p)).toEqual(expected);
    expect(p[0]! % 2).toBe(0);
  }
});

test('only `count` probabilities are touched', () => {
  const p = new Float32Array(20).fill(0.3);
  roundP(recipeOf('int8'), p, 17);
  expect(p[16]).toBe(76);
  expect(p[17]).toBe(f32(0.3));
});

describe('nvfp4: two levels', () => {
  const recipe = recipeOf('fp4');

  test.each([1, 15, 16, 17, 127, 129])(
    '%i keys: groups of 16 divide by the unrounded scale',
    (count) => {
      const p = probabilities(count, 3 * count);
      const expected = new Float64Array(count);
      for (let first = 0; first < count; first += 16) {
        const x = Array.from(p.subarray(first, Math.min(count, first + 16)), (value) =>
          f32(2688 * value),
        );
        const g = f32(Math.max(...x) / 6);
        x.forEach((value, i) => {
          expected[first + i] = g === 0 ? 0 : e2m1(f32(value / g)) * e4m3(g);
        });
      }
      roundP(recipe, p, count);
      expect(Array.from(p)).toEqual(Array.from(expected));
    },
  );

  test('p = 1 is exact and means 2688', () => {
    const p = Float32Array.of(1, 0.5, 0, 1);
    roundP(recipe, p, 4);
    expect(Array.from(p)).toEqual([2688, 1344, 0, 2688]);
  });

  test('a group of small probabilities keeps its relative accuracy beside a group of large ones', () => {
    const p = new Float32Array(32).fill(1);
    for (let j = 16; j < 32; j++) p[j] = 1e-4 * (1 + (j % 3));
    const before = p.slice();
    roundP(recipe, p, 32);
    for (let j = 16; j < 32; j++) {
      expect(Math.abs(p[j]! / 2688 - before[j]!)).toBeLessThan(0.1 * before[j]!);
    }
  });

  test('all zero, and too small for the scale', () => {
    const p = new Float32Array(16);
    roundP(recipe, p, 16);
    expect(Array.from(p)).toEqual(new Array(16).fill(0));
    p.fill(1e-9);
    roundP(recipe, p, 16);
    expect(Array.from(p)).toEqual(new Array(16).fill(0));
    p.fill(1e-45);
    roundP(recipe, p, 16);
    expect(Array.from(p)).toEqual(new Array(16).fill(0));
  });
});
