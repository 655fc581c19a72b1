/** The case table itself: names, coverage, and that seeds and layouts mean what they say. */
import {isRefusal, resolveRecipe} from '../src/numerics/recipes.js';
import {CASES, casesTagged, makeInputs, maskShape, problemOf, Random, shapesOf} from './cases.js';
import type {AttentionCase} from './cases.js';

const caseNamed = (name: string): AttentionCase => CASES.find((c) => c.name === name)!;

test('names are unique and every case has a tag', () => {
  expect(new Set(CASES.map((c) => c.name)).size).toBe(CASES.length);
  expect(CASES.every((c) => c.tags.length > 0)).toBe(true);
});

test('sizes that kernels trip over are covered', () => {
  const fast = casesTagged('fast');
  const lengths = new Set(fast.map((c) => c.qLen));
  for (const length of [0, 1, 17, 127, 129]) expect(lengths).toContain(length);
  const dims = new Set(fast.map((c) => c.headDim));
  for (const dim of [1, 3, 8, 31, 64, 80, 96, 128, 192, 256, 512]) expect(dims).toContain(dim);
  expect(fast.some((c) => c.qLen > c.kvLen && c.causal === 'bottom_right')).toBe(true);
  expect(fast.some((c) => c.batch === 0)).toBe(true);
  expect(casesTagged('accuracy').some((c) => c.qLen === 1000)).toBe(true);
});

test('a seed gives the same numbers again, another seed gives others', () => {
  const c = caseNamed('additive mask .HQK');
  expect(makeInputs(c, 3)).toEqual(makeInputs(c, 3));
  expect(makeInputs(c, 3).q).not.toEqual(makeInputs(c, 4).q);
});

test('normal numbers are normal', () => {
  const random = new Random(9);
  const count = 50_000;
  let sum = 0;
  let squares = 0;
  let beyondTwo = 0;
  for (let i = 0; i < count; i++) {
    const x = random.normal();
    sum += x;
    squares += x * x;
    if (Math.abs(x) > 2) beyondTwo++;
  }
  // Standard errors: 0.0045, 0.0063, 0.0009.
  expect(Math.abs(sum / count)).toBeLessThan(0.02);
  expect(Math.abs(squares / count - 1)).toBeLessThan(0.03);
  expect(Math.abs(beyondTwo / count - 0.0455)).toBeLessThan(0.005);
});

test('both layouts hold the same numbers at the same batch, head, token and channel', () => {
  const hnd: AttentionCase = {...caseNamed('grouped heads'), distribution: 'outlier_tokens'};
  const nhd: AttentionCase = {...hnd, layout: 'NHD'};
  const recipe = resolveRecipe('exact', {});
  if (isRefusal(recipe)) throw new Error('exact was refused');
  for (const name of ['q', 'k', 'v'] as const) {
    const a = makeInputs(hnd, 8)[name];
    const b = makeInputs(nhd, 8)[name];
    const aStrides = problemOf(hnd, recipe)[name];
    const bStrides = problemOf(nhd, recipe)[name];
    for (const [batch, head, token, d] of [
      [0, 0, 0, 0],
      [1, 1, 7, 3],
      [0, 1, 39, 15],
    ] as const) {
      const at = (s: typeof aStrides): number =>
        batch * s.batch + head * s.head + token * s.token + d;
      expect(a[at(aStrides)]).toBe(b[at(bStrides)]);
    }
    expect(a).toHaveLength(shapesOf(hnd)[name].reduce((x, y) => x * y));
    expect(a).not.toEqual(b);
  }
});

test('views start at a byte offset', () => {
  const {q, mask} = makeInputs({...caseNamed('NHD views')}, 1);
  expect(q.byteOffset).toBe(4);
  expect(mask!.byteOffset).toBe(4);
});

test('masks have the shape that their axes say', () => {
  const c = caseNamed('boolean mask B..K');
  expect(maskShape(c, c.mask!)).toEqual([2, 1, 1, 35]);
  expect(makeInputs(c, 1).mask).toHaveLength(70);
});

test('distributions differ from normal where they should', () => {
  const c = caseNamed('k_bias');
  const largestChannelMean = (k: Float32Array): number => {
    let largest = 0;
    for (let d = 0; d < c.headDim; d++) {
      let sum = 0;
      for (let t = 0; t < c.kvLen; t++) sum += k[t * c.headDim + d]!;
      largest = Math.max(largest, Math.abs(sum / c.kvLen));
    }
    return largest;
  };
  expect(largestChannelMean(makeInputs(c, 2).k)).toBeGreaterThan(5);
  expect(largestChannelMean(makeInputs({...c, distribution: 'normal'}, 2).k)).toBeLessThan(0.5);
  const zeros = makeInputs(caseNamed('zeros'), 2);
  expect(zeros.k.subarray(0, 32 * 64).every((x) => x === 0)).toBe(true);
  expect(zeros.k.subarray(32 * 64, 33 * 64).every((x) => x !== 0)).toBe(true);
});
