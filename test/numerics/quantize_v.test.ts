/** Codes of v: docs/numerics.md 4.6. */
import {roundE4m3} from '../../src/numerics/formats';
import {quantizeV} from '../../src/numerics/quantize';
import type {HeadSource, QuantizedV} from '../../src/numerics/quantize';
import {PRECISIONS, PUBLISHED_FORMS} from '../../src/numerics/recipes';
import type {Precision, Recipe} from '../../src/numerics/recipes';
import {normal, recipeOf, relativeL1} from './inputs';

const f32 = Math.fround;

function source(data: Float32Array, tokens: number, dim: number): HeadSource {
  return {data, offset: 0, tokenStride: dim, tokens, dim};
}

/** v as the codes mean it. */
function restore(v: QuantizedV, tokens: number, dim: number): Float64Array {
  const out = new Float64Array(tokens * dim);
  for (let t = 0; t < tokens; t++) {
    for (let d = 0; d < dim; d++) {
      const scale = v.channelScale[d]! * (v.tokenScale ? v.tokenScale[t]! : 1);
      const mean = v.mean ? v.mean[Math.floor(t / 128) * dim + d]! : 0;
      out[t * dim + d] = v.codes[t * dim + d]! * scale + mean;
    }
  }
  return out;
}

const RECIPES: [string, Recipe, number][] = [];
const ACCURACY: Record<Precision, number> = {
  exact: 0,
  int16: 6e-4,
  int8_int16: 6e-4,
  int8_bf16: 2e-3,
  int8_fp16: 2.5e-4,
  int8_fp8: 0.03,
  int8: 0.012,
  int4_fp8: 0.03,
  fp4: 0.1,
  fp4_fp8: 0.03,
};
for (const precision of PRECISIONS) {
  RECIPES.push([precision, recipeOf(precision), ACCURACY[precision]]);
  if (!PUBLISHED_FORMS[precision] || precision === 'exact') continue;
  RECIPES.push([
    `${precision} as published`,
    recipeOf(precision, {variant: 'paper'}),
    ACCURACY[precision],
  ]);
}

describe.each(RECIPES)('%s', (_name, recipe, accuracy) => {
  test.each([
    [1, 1],
    [17, 5],
    [127, 33],
    [129, 3],
    [300, 64],
  ])('%i tokens of %i channels come back', (tokens, dim) => {
    const data = normal(tokens * dim, tokens + dim);
    const v = quantizeV(recipe, source(data, tokens, dim));
    expect(relativeL1(restore(v, tokens, dim), data)).toBeLessThanOrEqual(accuracy * 1.5);
    expect(v.notFinite).toBeNull();
    expect(v.mean === null).toBe(recipe.smoothV === 0);
  });

  test('an all-zero channel has codes 0', () => {
    const data = normal(20 * 3, 4);
    for (let t = 0; t < 20; t++) data[t * 3 + 1] = 0;
    const v = quantizeV(recipe, source(data, 20, 3));
    for (let t = 0; t < 20; t++) expect(v.codes[t * 3 + 1]! + 0).toBe(0);
    expect(Number.isFinite(v.channelScale[1])).toBe(true);
  });

  test('an element that is not finite is flagged and changes no other code', () => {
    const clean = normal(40 * 3, 6);
    // Where a mean is taken out, leaving an element out is not the same as a 0.
    const choice = {smoothV: false, variant: recipe.variant};
    const unsmoothed = recipeOf(recipe.precision, choice);
    clean[31] = 0;
    const dirty = clean.slice();
    dirty[31] = NaN;
    const v = quantizeV(unsmoothed, source(dirty, 40, 3));
    expect(v.codes).toEqual(quantizeV(unsmoothed, source(clean, 40, 3)).codes);
    expect(v.notFinite!.reduce((sum, x) => sum + x, 0)).toBe(1);
    expect(v.notFinite![31]).toBe(1);
    expect(quantizeV(recipe, source(dirty, 40, 3)).codes.every(Number.isFinite)).toBe(true);
  });

  test('no tokens', () => {
    const v = quantizeV(recipe, source(new Float32Array(0), 0, 4));
    expect(v.codes.length).toBe(0);
    expect(v.channelScale.length).toBe(4);
  });
});

test.each([
  ['int16', 2047],
  ['int8_int16', 2047],
  ['int8', 127],
  ['int8_fp8', 448],
] as const)('%s: one scale per channel, amax / %i over all tokens', (precision, top) => {
  const dim = 4;
  const data = normal(200 * dim, 9);
  const v = quantizeV(recipeOf(precision, {smoothV: false}), source(data, 200, dim));
  for (let d = 0; d < dim; d++) {
    let amax = 0;
    for (let t = 0; t < 200; t++) amax = Math.max(amax, Math.abs(data[t * dim + d]!));
    expect(v.channelScale[d]).toBe(f32(amax / top));
    const inverse = f32(top / amax);
    for (let t = 0; t < 200; t++) {
      const x = f32(data[t * dim + d]! * inverse);
      const code = precision === 'int8_fp8' ? roundE4m3(x) : Math.round(x);
      if (v.codes[t * dim + d] !== code + 0) throw new Error(`token ${t} channel ${d}`);
    }
  }
});

test('fp16 accumulators scale v to 2.25', () => {
  const data = normal(300, 2);
  const recipe = recipeOf('int8_fp8', {pvAccumulator: 'fp32+fp16'});
  const {codes} = quantizeV(recipe, source(data, 100, 3));
  let largest = 0;
  for (const code of codes) largest = Math.max(largest, Math.abs(code));
  expect(largest).toBe(2.25);
});

test('the published int8 scales blocks of 64 tokens over all channels', () => {
  const dim = 3;
  const data = normal(150 * dim, 1);
  data[70 * dim] = 50;
  const v = quantizeV(recipeOf('int8', {variant: 'paper'}), source(data, 150, dim));
  expect(Array.from(v.channelScale)).toEqual([1, 1, 1]);
  for (const [first, last] of [
    [0, 64],
    [64, 128],
    [128, 150],
  ] as const) {
    let amax = 0;
    for (let i = first * dim; i < last * dim; i++) amax = Math.max(amax, Math.abs(data[i]!));
    for (let t = first; t < last; t++) expect(v.tokenScale![t]).toBe(f32(amax / 127));
  }
});

describe('fp16', () => {
  const recipe = recipeOf('int8_fp16');

  test.each([
    [65504, 1],
    [65505, 2],
    [131008, 2],
    [1e6, 16],
    [3e38, 2 ** 112],
  ])('largest magnitude %d: channel scale %d', (largest, scale) => {
    const v = quantizeV(recipe, source(Float32Array.of(largest, 1, -largest / 3, 2), 2, 2));
    expect(Array.from(v.channelScale)).toEqual([scale, 1]);
    expect(Math.abs(v.codes[0]! * scale - largest) / largest).toBeLessThan(5e-4);
    expect(v.codes[0]).toBeLessThanOrEqual(65504);
  });
});

test('smoothing takes the mean of each 128 tokens out of v', () => {
  const data = normal(300 * 2, 3).map((x) => x * 0.01 + 7);
  const v = quantizeV(recipeOf('int8_fp8'), source(data, 300, 2));
  expect(v.mean!.length).toBe(3 * 2);
  for (const mean of v.mean!) expect(mean).toBeCloseTo(7, 2);
  expect(relativeL1(restore(v, 300, 2), data)).toBeLessThan(1e-4);
});

test.each(['int8_fp8', 'int4_fp8', 'fp4', 'fp4_fp8', 'int16', 'int8_bf16', 'int8'] as const)(
  '%s, smoothed: what comes back of 128 tokens has the mean of v',
  (precision) => {
    const [tokens, dim] = [300, 5];
    const data = normal(tokens * dim, 12).map((x, i) => x + (i % dim));
    // Elements that are not finite belong to no mean.
    data[7 * dim + 2] = NaN;
    data[280 * dim + 1] = Infinity;
    const recipe = recipeOf(precision, {smoothV: true});
    const v = quantizeV(recipe, source(data, tokens, dim));
    const back = restore(v, tokens, dim);
    for (let first = 0; first < tokens; first += 128) {
      for (let d = 0; d < dim; d++) {
        let [error, rounding, count] = [0, 0, 0];
        for (let t = first; t < Math.min(tokens, first + 128); t++) {
          const at = t * dim + d;
          if (!Number.isFinite(data[at]!)) continue;
          error += back[at]! - data[at]!;
          rounding += Math.abs(back[at]! - data[at]!);
          count++;
        }
        expect(rounding / count).toBeGreaterThan(1e-5);
        expect(Math.abs(error / count)).toBeLessThan(1e-6);
      }
    }
  },
);
