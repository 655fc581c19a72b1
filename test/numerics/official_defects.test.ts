/**
 * Defects of the published SageAttention kernels (1.x, 2.1 and 3) that no recipe here may repeat: one test each, named after
 * the defect, for every recipe in its tuned and its published form.
 */
import {quantizeK, quantizeQ, quantizeV} from '../../src/numerics/quantize';
import {PRECISIONS, PUBLISHED_FORMS} from '../../src/numerics/recipes';
import type {Recipe} from '../../src/numerics/recipes';
import {exactAttention, referenceAttention} from '../../src/numerics/reference';
import type {AttentionProblem} from '../../src/problem';
import {maxAbsDifference, normal, normalInputs, problemOf, recipeOf, relativeL1} from './inputs';

const RECIPES: [string, Recipe][] = PRECISIONS.flatMap((precision) => {
  const tuned: [string, Recipe] = [precision, recipeOf(precision)];
  if (!PUBLISHED_FORMS[precision]) return [tuned];
  return [tuned, [`${precision} as published`, recipeOf(precision, {variant: 'paper'})]];
});

const CAUSAL = {causal: 'top_left', windowRight: 0} as const;
const ADDITIVE_ROW = {
  maskKind: 'additive',
  mask: {batch: 0, head: 0, query: 0, key: 1},
} as const;

/** What 4-bit operands may differ from float64; the other recipes lie far below. */
const FOUR_BITS = 0.35;

describe.each(RECIPES)('%s', (_name, recipe) => {
  test('causal drops a block: the tile left of the diagonal counts (SageAttention 3)', () => {
    const problem = problemOf(recipe, {qLen: 384, qkDim: 64}, CAUSAL);
    const {q, k, v} = normalInputs(problem, 1);
    const rows = [127, 128, 140, 255, 256, 257, 300, 383];
    const {o} = referenceAttention(problem, q, k, v, null, rows);
    const expected = exactAttention(problem, q, k, v, null, rows);
    for (const i of rows) {
      const row = [i * 64, (i + 1) * 64] as const;
      expect(relativeL1(o.subarray(...row), expected.o.subarray(...row))).toBeLessThan(FOUR_BITS);
    }
  });

  test.each([1, 17, 50, 127, 129])(
    'masks compare permuted columns: %i tokens, row i sees exactly keys 0 to i (SageAttention 3)',
    (tokens) => {
      // Equal scores and one-hot values: o[i, j] is the weight of key j.
      const {precision, variant} = recipe;
      const unsmoothed = recipeOf(precision, {variant, smoothV: false});
      const problem = problemOf(unsmoothed, {qLen: tokens, qkDim: 16, vDim: tokens}, CAUSAL);
      const q = new Float32Array(tokens * 16);
      const k = normal(tokens * 16, 2);
      const v = new Float32Array(tokens * tokens);
      for (let j = 0; j < tokens; j++) v[j * tokens + j] = 1;
      const rows = [0, 1, 7, 8, 15, 16, 31, 40, 63, 64, 100, 126, 128].filter((i) => i < tokens);
      const {o, lse} = referenceAttention(problem, q, k, v, null, rows);
      for (const i of rows) {
        expect(lse[i]).toBeCloseTo(Math.log(i + 1), 5);
        const weights = Array.from(o.subarray(i * tokens, (i + 1) * tokens));
        const expected = weights.map((_, j) => (j <= i ? 1 / (i + 1) : 0));
        expect(maxAbsDifference(weights, expected)).toBeLessThan(0.13 / (i + 1));
      }
    },
  );

  test('first-tile group maximum starts at 0: scores that are all negative keep their precision (SageAttention 3)', () => {
    const problem = problemOf(recipe, {qLen: 20, kvLen: 200, qkDim: 32}, ADDITIVE_ROW);
    const {q, k, v} = normalInputs(problem, 3);
    const none = referenceAttention(problem, q, k, v, new Float32Array(200));
    const low = referenceAttention(problem, q, k, v, new Float32Array(200).fill(-40));
    expect(maxAbsDifference(low.o, none.o)).toBeLessThan(1e-3);
    expect(
      maxAbsDifference(
        low.lse.map((x) => x + 40),
        none.lse,
      ),
    ).toBeLessThan(1e-5);
  });

  test('a finite sentinel for masked scores: rows far below -5e6 are rows like any other (SageAttention 2)', () => {
    const problem = problemOf(recipe, {qLen: 3, kvLen: 70, qkDim: 8}, ADDITIVE_ROW);
    const v = normal(70 * 8, 4);
    const zeros = new Float32Array(70 * 8);
    const mask = new Float32Array(70).fill(-1e7);
    const {o, lse} = referenceAttention(problem, zeros, zeros, v, mask);
    const expected = exactAttention(problem, zeros, zeros, v, mask);
    expect(maxAbsDifference(o, expected.o)).toBeLessThan(0.1);
    expect(maxAbsDifference(lse, expected.lse)).toBeLessThan(1e-3);
  });

  test('additive mask not times log2(e): a mask of ln 3 makes a key three times as heavy (SageAttention 1)', () => {
    const problem = problemOf(recipe, {qLen: 1, kvLen: 4, qkDim: 16}, ADDITIVE_ROW);
    const q = new Float32Array(16);
    const k = normal(64, 5);
    const v = new Float32Array(64);
    for (let j = 0; j < 4; j++) v[j * 16 + j] = 1;
    const mask = Float32Array.of(Math.log(3), 0, 0, 0);
    const {o, lse} = referenceAttention(problem, q, k, v, mask);
    expect(Math.abs(o[0]! - 0.5)).toBeLessThan(0.04);
    expect(Math.abs(o[1]! - 1 / 6)).toBeLessThan(0.02);
    // The sum of the rounded P is the denominator of the integer recipes, so their lse holds its rounding.
    expect(lse[0]).toBeCloseTo(Math.log(6), recipe.rowSum === 'quantized' ? 2 : 6);
  });

  test('a zero V channel gives NaN: it is 0 (SageAttention 2)', () => {
    const problem = problemOf(recipe, {qLen: 17, qkDim: 16});
    const {q, k, v} = normalInputs(problem, 6);
    for (let j = 0; j < 17; j++) v[j * 16 + 3] = 0;
    const {o} = referenceAttention(problem, q, k, v, null);
    for (let i = 0; i < 17; i++) expect(o[i * 16 + 3]).toBe(0);
    expect(o.every(Number.isFinite)).toBe(true);
    const zero = referenceAttention(problem, q, k, new Float32Array(v.length), null);
    expect(zero.o.every((x) => x === 0)).toBe(true);
  });

  test('an all-zero block divides 0 by 0: zero q or k means equal weights (SageAttention 1)', () => {
    const problem = problemOf(recipe, {qLen: 130, kvLen: 129, qkDim: 8});
    const {q, k, v} = normalInputs(problem, 7);
    const mean = new Float64Array(8);
    for (let j = 0; j < 129; j++) for (let d = 0; d < 8; d++) mean[d]! += v[j * 8 + d]! / 129;
    const zeros = new Float32Array(130 * 8);
    for (const [a, b] of [
      [zeros, k],
      [q, zeros.subarray(0, 129 * 8)],
      // All tokens alike: nothing is left when K's mean is out.
      [q, new Float32Array(129 * 8).fill(0.7)],
    ] as const) {
      const {o} = referenceAttention(problem, a, b, v, null);
      for (const i of [0, 31, 129]) {
        for (let d = 0; d < 8; d++) expect(Math.abs(o[i * 8 + d]! - mean[d]!)).toBeLessThan(0.03);
      }
    }
  });

  test('lse without the K-mean term: shards with different means of K merge (SageAttention 3)', () => {
    const [tokens, dim] = [96, 32];
    const whole = problemOf(recipe, {qLen: 10, kvLen: 2 * tokens, qkDim: dim});
    const shard = problemOf(recipe, {qLen: 10, kvLen: tokens, qkDim: dim});
    const {q, k, v} = normalInputs(whole, 8);
    for (let j = 0; j < 2 * tokens; j++) k[j * dim + 1]! += j < tokens ? 3 : -4;
    const expected = exactAttention(whole, q, k, v, null);
    const parts = [0, tokens * dim].map((at) =>
      referenceAttention(
        shard,
        q,
        k.subarray(at, at + tokens * dim),
        v.subarray(at, at + tokens * dim),
        null,
      ),
    );
    const [first, second] = [parts[0]!, parts[1]!];
    const merged = new Float64Array(10 * dim);
    for (let i = 0; i < 10; i++) {
      const lse = Math.log(Math.exp(first.lse[i]!) + Math.exp(second.lse[i]!));
      expect(Math.abs(lse - expected.lse[i]!)).toBeLessThan(0.15);
      const [a, b] = [Math.exp(first.lse[i]! - lse), Math.exp(second.lse[i]! - lse)];
      for (let d = 0; d < dim; d++) {
        merged[i * dim + d] = a * first.o[i * dim + d]! + b * second.o[i * dim + d]!;
      }
    }
    expect(relativeL1(merged, expected.o)).toBeLessThan(FOUR_BITS);
  });

  test('inputs changed in place: q, k, v and mask keep every bit (SageAttention 3)', () => {
    const problem = problemOf(recipe, {qHeads: 2, kvHeads: 1, qLen: 35, qkDim: 20}, ADDITIVE_ROW);
    const {q, k, v} = normalInputs(problem, 9);
    k[3] = NaN;
    v[40] = Infinity;
    const mask = normal(35, 10);
    const before = [q, k, v, mask].map((x) => x.slice());
    referenceAttention(problem, q, k, v, mask);
    for (const [n, x] of [q, k, v, mask].entries()) expect(x).toEqual(before[n]);
    const head = {data: k, offset: 0, tokenStride: 20, tokens: 35, dim: 20};
    for (const codes of [
      quantizeQ(recipe, head),
      quantizeK(recipe, head),
      quantizeV(recipe, head),
    ]) {
      codes.codes.fill(7);
    }
    expect(k).toEqual(before[1]);
  });

  describe('causal with q_len != kv_len (SageAttention 2)', () => {
    function weights(changes: Partial<AttentionProblem>, qLen: number, kvLen: number): number[][] {
      const problem = problemOf(recipe, {qLen, kvLen, qkDim: 16, vDim: kvLen}, changes);
      const v = new Float32Array(kvLen * kvLen);
      for (let j = 0; j < kvLen; j++) v[j * kvLen + j] = 1;
      const k = normal(kvLen * 16, 1);
      const {o, lse} = referenceAttention(problem, new Float32Array(qLen * 16), k, v, null);
      return Array.from({length: qLen}, (_, i) => {
        const row = Array.from(o.subarray(i * kvLen, (i + 1) * kvLen));
        if (lse[i] === -Infinity) {
          expect(row.every((x) => x === 0)).toBe(true);
          return [];
        }
        const seen = Math.round(Math.exp(lse[i]!));
        return row.flatMap((x, j) => (x > 0.6 / seen ? [j] : []));
      });
    }
    const below = (count: number) => Array.from({length: count}, (_, j) => j);

    test('bottom-right: the last query sees all keys', () => {
      const seen = weights({causal: 'bottom_right', windowRight: 0}, 3, 10);
      expect(seen).toEqual([below(8), below(9), below(10)]);
    });

    test('top-left: the first query sees one key', () => {
      expect(weights(CAUSAL, 3, 10)).toEqual([below(1), below(2), below(3)]);
    });

    test('more queries than keys: rows above the diagonal are empty, bottom-right', () => {
      const seen = weights({causal: 'bottom_right', windowRight: 0}, 5, 3);
      expect(seen).toEqual([[], [], below(1), below(2), below(3)]);
    });
  });

  test('tail padding influences means and scales: they are those of the tokens that exist (SageAttention 3)', () => {
    const dim = 20;
    for (const tokens of [1, 17, 129]) {
      const data = normal(tokens * dim, tokens).map((x) => x + 5);
      const buffer = new Float32Array((tokens + 64) * dim).fill(1e6);
      buffer.set(data);
      const exactly = {data, offset: 0, tokenStride: dim, tokens, dim};
      const within = {...exactly, data: buffer};
      for (const quantise of [quantizeQ, quantizeK, quantizeV]) {
        expect(quantise(recipe, within)).toEqual(quantise(recipe, exactly));
      }
      // Means divided by a padded length would be too small by the share of the padding.
      const q = quantizeQ(recipe, exactly);
      const means = [q.mean, quantizeK(recipe, exactly).mean, quantizeV(recipe, exactly).mean];
      for (const mean of means) {
        for (const x of mean ?? []) expect(Math.abs(x - 5)).toBeLessThan(4);
      }
    }
  });

  test('rows without any key: o is 0 and lse is -Infinity, boolean or additive mask (SageAttention 1)', () => {
    const changes = {mask: {batch: 0, head: 0, query: 70, key: 1}} as const;
    const sizes = {qLen: 3, kvLen: 70, qkDim: 8};
    const boolean = new Uint8Array(210).fill(1).fill(0, 70, 140);
    const additive = Float32Array.from(boolean, (x) => (x ? 0 : -Infinity));
    const {q, k, v} = normalInputs(problemOf(recipe, sizes), 12);
    const unmasked = referenceAttention(problemOf(recipe, sizes), q, k, v, null);
    for (const [maskKind, mask] of [
      ['boolean', boolean],
      ['additive', additive],
    ] as const) {
      const problem = problemOf(recipe, sizes, {...changes, maskKind});
      const {o, lse} = referenceAttention(problem, q, k, v, mask);
      expect(Array.from(o.subarray(8, 16))).toEqual(new Array(8).fill(0));
      expect(lse[1]).toBe(-Infinity);
      expect(o.subarray(0, 8)).toEqual(unmasked.o.subarray(0, 8));
      expect(o.subarray(16, 24)).toEqual(unmasked.o.subarray(16, 24));
    }
  });

  test('an additive mask of -Infinity over the whole first tile gives NaN: the other keys share the row (SageAttention 1)', () => {
    const problem = problemOf(recipe, {qLen: 20, kvLen: 200, qkDim: 16}, ADDITIVE_ROW);
    const {q, k, v} = normalInputs(problem, 13);
    const mask = new Float32Array(200).fill(-Infinity, 0, 128);
    const {o, lse} = referenceAttention(problem, q, k, v, mask);
    const expected = exactAttention(problem, q, k, v, mask);
    expect(relativeL1(o, expected.o)).toBeLessThan(FOUR_BITS);
    expect(maxAbsDifference(lse, expected.lse)).toBeLessThan(0.3);
  });

  test('fp16 scores of the Q mean overflow: large means of Q and K stay finite (SageAttention 3)', () => {
    // mean · k' reaches 64 · 300 · 60, far beyond 65,504.
    const dim = 64;
    const problem = problemOf(recipe, {qLen: 40, qkDim: dim}, {scale: 1e-5});
    const {q, k, v} = normalInputs(problem, 14);
    for (let n = 0; n < q.length; n++) {
      q[n]! += 300;
      k[n]! += n < 20 * dim ? 60 : -60;
    }
    const {o} = referenceAttention(problem, q, k, v, null);
    const expected = exactAttention(problem, q, k, v, null);
    expect(relativeL1(o, expected.o)).toBeLessThan(FOUR_BITS);
  });
});

// The published fp16 accumulators and the published nvfp4, which has no exponent per head, cannot hold such values.
const LARGE_V = RECIPES.filter(
  ([, {pv, pvAccumulator, headExponent}]) =>
    pvAccumulator !== 'fp16+fp32' && (pv !== 'nvfp4' || headExponent),
);

test.each(LARGE_V)('fp16 V overflows: %s holds values beyond 65,504', (_name, recipe) => {
  const problem = problemOf(recipe, {qLen: 17, qkDim: 16});
  const {q, k, v} = normalInputs(problem, 15);
  for (let n = 0; n < v.length; n++) v[n]! *= 1e6;
  const {o} = referenceAttention(problem, q, k, v, null);
  const expected = exactAttention(problem, q, k, v, null);
  expect(o.every(Number.isFinite)).toBe(true);
  expect(relativeL1(o, expected.o)).toBeLessThan(FOUR_BITS);
});

test('V not smoothed: the tuned fp4 keeps a bias of V that the published form rounds (SageAttention 3)', () => {
  const error = (recipe: Recipe) => {
    const problem = problemOf(recipe, {qLen: 64, kvLen: 256, qkDim: 32});
    const {q, k, v} = normalInputs(problem, 16);
    for (let n = 0; n < v.length; n++) v[n]! += 3;
    const {o} = referenceAttention(problem, q, k, v, null);
    const expected = exactAttention(problem, q, k, v, null);
    return relativeL1(o, expected.o);
  };
  expect(error(recipeOf('fp4'))).toBeLessThan(0.3 * error(recipeOf('fp4', {variant: 'paper'})));
});
