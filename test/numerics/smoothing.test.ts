/** Means of tokens and their removal: docs/numerics.md 3. */
import {readHead} from '../../src/numerics/operands';
import {blockMeans, subtractMeans, tokenMean} from '../../src/numerics/smoothing';
import {normal} from './inputs';

const f = Math.fround;

function head(data: Float32Array, tokens: number, dim: number) {
  return readHead({data, offset: 0, tokenStride: dim, tokens, dim});
}

describe('blockMeans', () => {
  test.each([
    [1, 32],
    [17, 32],
    [127, 128],
    [129, 128],
    [129, 32],
    [300, 128],
  ])('%i tokens, %i per mean: the last block divides by its own length', (tokens, rows) => {
    const dim = 3;
    const data = normal(tokens * dim, tokens);
    const means = blockMeans(head(data, tokens, dim), rows);
    expect(means.length).toBe(Math.ceil(tokens / rows) * dim);
    for (let block = 0; block * rows < tokens; block++) {
      for (let d = 0; d < dim; d++) {
        let sum = 0;
        let count = 0;
        for (let t = block * rows; t < Math.min(tokens, (block + 1) * rows); t++) {
          sum += data[t * dim + d]!;
          count++;
        }
        expect(means[block * dim + d]).toBeCloseTo(sum / count, 6);
      }
    }
  });

  test('means of all tokens add sums of 128 tokens, in float64', () => {
    // 2^-30 is lost beside 2^24 in float64; the sum of a block of them is not.
    const tokens = 384;
    const data = new Float32Array(tokens).fill(2 ** -30);
    data[0] = 2 ** 24;
    data[tokens - 1] = -(2 ** 24);
    const blocks = [0, 1, 2].map((block) =>
      data.subarray(block * 128, (block + 1) * 128).reduce((sum, x) => sum + x, 0),
    );
    const expected = f((blocks[0]! + blocks[1]! + blocks[2]!) / tokens);
    expect(tokenMean(head(data, tokens, 1))[0]).toBe(expected);
    const oneByOne = data.reduce((sum, x) => sum + x, 0);
    expect(f(oneByOne / tokens)).not.toBe(expected);
  });

  test('values that are not finite are left out of the sum and of the count', () => {
    const data = Float32Array.of(1, NaN, 3, Infinity, 5, -Infinity);
    expect(Array.from(tokenMean(head(data, 3, 2)))).toEqual([3, 0]);
    data[1] = 7;
    expect(Array.from(tokenMean(head(data, 3, 2)))).toEqual([3, 7]);
  });

  test('the largest float32 numbers do not overflow a mean', () => {
    const data = new Float32Array(400).fill(3.4e38);
    expect(tokenMean(head(data, 400, 1))[0]).toBe(Math.fround(3.4e38));
  });

  test('no tokens', () => {
    expect(Array.from(tokenMean(head(new Float32Array(0), 0, 2)))).toEqual([0, 0]);
    expect(blockMeans(head(new Float32Array(0), 0, 2), 128).length).toBe(0);
  });
});

describe('subtractMeans', () => {
  test('rounds each difference to float32 and leaves elements that are not finite at 0', () => {
    const data = Float32Array.of(1, 2, NaN, 4, 0.1, 0.2);
    const values = head(data, 3, 2);
    subtractMeans(values, Float32Array.of(0.7, 1, 0.5, 3), 2);
    expect(Array.from(values.values)).toEqual([
      f(1 - f(0.7)),
      1,
      0,
      3,
      f(f(0.1) - 0.5),
      f(f(0.2) - 3),
    ]);
    expect(Array.from(data)).toEqual([1, 2, NaN, 4, f(0.1), f(0.2)]);
  });
});

describe('readHead', () => {
  test('reads by offset and stride and flags what is not finite', () => {
    const data = Float32Array.of(9, 9, 1, 2, 9, 9, Infinity, 4, 9, 9, 5, -Infinity);
    const read = readHead({data, offset: 2, tokenStride: 4, tokens: 3, dim: 2});
    expect(Array.from(read.values)).toEqual([1, 2, 0, 4, 5, 0]);
    expect(Array.from(read.notFiniteTokens)).toEqual([0, 1, 1]);
    expect(Array.from(read.notFinite!)).toEqual([0, 0, 1, 0, 0, 1]);
    expect(readHead({data, offset: 2, tokenStride: 1, tokens: 1, dim: 2}).notFinite).toBeNull();
  });
});
