/** Balanced channels: docs/numerics.md 4.5. */
import {balanceExponents, channelBalance} from '../../src/numerics/channel_balance';
import type {HeadSource} from '../../src/numerics/operands';
import {quantizeK, quantizeQ} from '../../src/numerics/quantize';
import type {Recipe} from '../../src/numerics/recipes';
import {normal, recipeOf} from './inputs';

const source = (data: Float32Array, tokens: number, dim: number): HeadSource => ({
  data,
  offset: 0,
  tokenStride: dim,
  tokens,
  dim,
});

const float32 = (...x: number[]): Float32Array => Float32Array.from(x);

describe('the exponent of a channel', () => {
  // The last channel is the widest of both, so that the others' ratios are those of the numbers.
  test.each([
    [1, 1, 0],
    [1.99, 1, 0],
    [2, 1, 1],
    [7.99, 1, 1],
    [8, 1, 2],
    [31.9, 1, 2],
    [32, 1, 3],
    [1e6, 1, 3],
    [1, 1.99, 0],
    [1, 2, -1],
    [1, 8, -2],
    [1, 32, -3],
    [1, 1e30, -3],
    [0, 1, 0],
    [1, 0, 0],
    [0, 0, 0],
  ])('spread %d in k, %d in q: %d', (k, q, e) => {
    expect(balanceExponents(float32(k, 1e30), float32(q, 1e30))[0]! + 0).toBe(e);
  });

  test('counts from the widest channel: q or k as a whole may be larger', () => {
    expect(Array.from(balanceExponents(float32(4, 1, 1), float32(300, 300, 75)))).toEqual([
      0, -1, 0,
    ]);
  });

  test('a spread beyond float32 balances nothing', () => {
    const spreads = float32(Infinity, 1, 4);
    expect(Array.from(balanceExponents(spreads, float32(1, 1, 1))).map((e) => e + 0)).toEqual([
      0, 0, 0,
    ]);
    expect(Array.from(balanceExponents(float32(1, 1, 1), spreads)).map((e) => e + 0)).toEqual([
      0, 0, 0,
    ]);
  });
});

/** A head whose q is 16 times as wide in channel 1, whose k is 40 times as wide in channel 2. */
function uneven(tokens: number, dim: number): {q: Float32Array; k: Float32Array} {
  const q = normal(tokens * dim, 1);
  const k = normal(tokens * dim, 2);
  for (let t = 0; t < tokens; t++) {
    q[t * dim + 1]! *= 16;
    k[t * dim + 2]! *= 40;
  }
  return {q, k};
}

function balanceOf(recipe: Recipe, k: Float32Array, queries: Float32Array[], dim: number) {
  return channelBalance(
    recipe,
    source(k, k.length / dim, dim),
    queries.map((q) => source(q, q.length / dim, dim)),
  );
}

const exponents = (powers: Float32Array): number[] => Array.from(powers, (x) => Math.log2(x) + 0);

test('only tuned fp4 and fp4_fp8 balance', () => {
  const {q, k} = uneven(64, 8);
  for (const precision of ['exact', 'int8', 'int8_fp8', 'int4_fp8'] as const) {
    expect(balanceOf(recipeOf(precision), k, [q], 8)).toBeNull();
  }
  expect(balanceOf(recipeOf('fp4', {variant: 'paper'}), k, [q], 8)).toBeNull();
  expect(balanceOf(recipeOf('fp4_fp8'), k, [q], 8)).not.toBeNull();
});

describe('spreads', () => {
  const recipe = recipeOf('fp4');
  const {q, k} = uneven(300, 8);
  const expected = [0, -2, 3, 0, 0, 0, 0, 0];

  test('the wide channels of q and k, in opposite directions, k with the inverse', () => {
    const {q: ofQ, k: ofK} = balanceOf(recipe, k, [q], 8)!;
    // Relative to channel 2 of k and channel 1 of q: all other channels have 16 / 40, which rounds to -1.
    const channels = exponents(ofQ);
    expect(channels[2]! - channels[0]!).toBe(expected[2]! - expected[0]!);
    expect(channels[1]! - channels[0]!).toBe(expected[1]! - expected[0]!);
    expect(exponents(ofK)).toEqual(channels.map((e) => -e + 0));
  });

  test('biases do not count where means are taken out, and do where they are not', () => {
    const biased = (x: Float32Array, bias: number): Float32Array =>
      x.map((value, i) => value + (i % 8 === 5 ? bias : 0));
    const plain = balanceOf(recipe, k, [q], 8)!;
    expect(balanceOf(recipe, biased(k, 4096), [biased(q, 4096)], 8)!).toEqual(plain);
    const kept = recipeOf('fp4', {smoothK: false});
    expect(balanceOf(kept, biased(k, 4096), [q], 8)!.q[5]).toBeGreaterThan(1);
  });

  test('a channel that drifts from block to block is not wide', () => {
    const drift = q.map((x, i) => x + (i % 8 === 6 ? Math.floor(i / 8 / 32) * 1024 : 0));
    expect(balanceOf(recipe, k, [drift], 8)).toEqual(balanceOf(recipe, k, [q], 8));
  });

  test('all query heads of the group count', () => {
    const even = normal(300 * 8, 9);
    const wide = even.map((x, i) => (i % 8 === 1 ? x * 60 : x));
    const plainK = normal(300 * 8, 10);
    const both = balanceOf(recipe, plainK, [even, wide], 8)!;
    expect(both.q[1]! / both.q[0]!).toBeLessThan(1);
    expect(balanceOf(recipe, plainK, [wide, even], 8)).toEqual(both);
    expect(exponents(balanceOf(recipe, plainK, [even], 8)!.q)).toEqual(Array(8).fill(0));
  });

  test('values that are not finite do not count; one row has no spread', () => {
    const dirty = k.slice();
    dirty[3] = Infinity;
    dirty[12] = NaN;
    const clean = balanceOf(recipe, k, [q], 8)!;
    expect(balanceOf(recipe, dirty, [q], 8)!.k).toEqual(clean.k);
    expect(exponents(balanceOf(recipe, k, [q.subarray(0, 8)], 8)!.q)).toEqual(Array(8).fill(0));
    const none = new Float32Array(16).fill(NaN);
    expect(exponents(balanceOf(recipe, none, [q], 8)!.q)).toEqual(Array(8).fill(0));
  });
});

test('scores are those of the smoothed operands, and nearer to them than without', () => {
  const [tokens, dim] = [96, 64];
  const {q, k} = uneven(tokens, dim);
  const recipe = recipeOf('fp4');
  const error = (balanced: boolean): number => {
    const balance = balanced ? balanceOf(recipe, k, [q], dim) : null;
    const a = quantizeQ(recipe, source(q, tokens, dim), balance);
    const b = quantizeK(recipe, source(k, tokens, dim), balance);
    let sum = 0;
    for (let i = 0; i < tokens; i++) {
      for (let j = 0; j < tokens; j++) {
        let [rounded, exact] = [0, 0];
        for (let d = 0; d < a.dims; d++) {
          rounded += a.codes[i * a.dims + d]! * b.codes[j * b.dims + d]!;
        }
        for (let d = 0; d < dim; d++) {
          const mean = a.mean![Math.floor(i / 32) * dim + d]!;
          exact += (q[i * dim + d]! - mean) * b.smoothed![j * dim + d]!;
        }
        sum += (rounded * a.scale[i]! * b.scale[j]! - exact) ** 2;
      }
    }
    return Math.sqrt(sum) / tokens;
  };
  const plain = error(false);
  expect(error(true)).toBeLessThan(0.6 * plain);
});
