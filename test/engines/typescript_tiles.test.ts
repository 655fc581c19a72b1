/** The inner loops of the TypeScript engine by themselves: the tile product and the exponential. */
import {exponentiate} from '../../src/engines/typescript/exponentiate.js';
import {channelRows} from '../../src/engines/typescript/head_operands.js';
import {addProduct} from '../../src/engines/typescript/tile_product.js';
import {Random} from '../cases.js';

function randomPanel(random: Random, rows: number, stride: number, offset: number) {
  const values = new Float64Array(offset + rows * stride).map(() => random.normal());
  return {values, offset, stride};
}

describe('addProduct', () => {
  const sizes = [1, 2, 3, 4, 5, 7, 8, 17].flatMap((rows) =>
    [1, 2, 3, 4, 5, 9, 16].flatMap((columns) =>
      [0, 1, 2, 31].map((length) => [rows, columns, length] as const),
    ),
  );
  test.each(sizes)('%i x %i over %i adds to C and to nothing else', (rows, columns, length) => {
    const random = new Random(rows * 1000 + columns * 50 + length);
    const a = randomPanel(random, rows, length + 2, 3);
    const b = randomPanel(random, columns, length + 1, 5);
    const c = randomPanel(random, rows, columns + 3, 2);
    const expected = c.values.slice();
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++) {
        let sum = 0;
        for (let d = 0; d < length; d++) {
          sum += a.values[3 + i * a.stride + d]! * b.values[5 + j * b.stride + d]!;
        }
        expected[2 + i * c.stride + j]! += sum;
      }
    }
    addProduct(a, rows, b, columns, length, c);
    expect(c.values).toEqual(expected);
  });
});

describe('exponentiate', () => {
  test('matches Math.exp to 1e-13 over its whole range', () => {
    const random = new Random(1);
    const y = new Float64Array(20000).map((_, i) => (i % 2 ? -700 : -20) * random.uniform());
    const values = y.slice();
    const sum = exponentiate(values, 0, values.length, 0);
    let largest = 0;
    let expectedSum = 0;
    for (let i = 0; i < y.length; i++) {
      const exact = Math.exp(y[i]!);
      expectedSum += exact;
      const error = Math.abs(values[i]! / exact - 1) / (1 + Math.abs(y[i]!) / 10);
      if (error > largest) largest = error;
    }
    expect(largest).toBeLessThan(2e-15);
    expect(Math.abs(sum / expectedSum - 1)).toBeLessThan(1e-13);
  });

  test('ends of the range', () => {
    const values = Float64Array.of(5, 5 - 700, 5 - 701, -Infinity, NaN, 7);
    const sum = exponentiate(values, 0, 4, 5);
    expect(values[0]).toBe(1);
    expect(values[1]! / Math.exp(-700)).toBeCloseTo(1, 10);
    expect([values[2], values[3]]).toEqual([0, 0]);
    expect(sum).toBe(1 + values[1]!);
    expect([values[4], values[5]]).toEqual([NaN, 7]);
    expect(exponentiate(values, 4, 5, 5)).toBeNaN();
    expect(exponentiate(values, 5, 6, 5)).toBe(Math.exp(2));
  });
});

test('channelRows puts channels next to each other within each tile, zeros past the end', () => {
  const tokens = 21;
  const dim = 3;
  const values = new Float32Array(tokens * dim).map((_, i) => i + 1);
  const tokenScale = new Float32Array(tokens).map((_, t) => (t < 16 ? 2 : 3));
  const rows = channelRows(values, tokenScale, tokens, dim, 16);
  expect(rows).toHaveLength(2 * dim * 16);
  for (let t = 0; t < 32; t++) {
    for (let d = 0; d < dim; d++) {
      const at = Math.floor(t / 16) * dim * 16 + d * 16 + (t % 16);
      expect(rows[at]).toBe(t < tokens ? values[t * dim + d]! * tokenScale[t]! : 0);
    }
  }
});
