/** int8, int4, int8_pair and int16 codes of q and k: docs/numerics.md 4.1 to 4.4. */
import {quantizeK, quantizeQ} from '../../src/numerics/quantize';
import type {HeadSource, QuantizedK, QuantizedQ} from '../../src/numerics/quantize';
import {groupOfToken} from '../../src/numerics/quantize_integer';
import type {Granularity, Precision, Recipe} from '../../src/numerics/recipes';
import {normal, recipeOf, uniform} from './inputs';

const {abs, max, min} = Math;
const f32 = Math.fround;

function source(data: Float32Array, tokens: number, dim: number): HeadSource {
  return {data, offset: 0, tokenStride: dim, tokens, dim};
}

/** Nothing smoothed, so that codes can be compared with the input. */
function plain(precision: Precision, granularity?: Granularity): Recipe {
  return recipeOf(precision, {granularity, smoothK: false, smoothQ: false});
}

/** Token groups as SageAttention2 draws them: lists of tokens of the block that starts at 0. */
const THREAD32 = Array.from({length: 8}, (_, i) => [i, i + 8, i + 16, i + 24]);
const THREAD64 = Array.from({length: 4}, (_, j) =>
  Array.from({length: 8}, (_u, u) => [8 * u + 2 * j, 8 * u + 2 * j + 1]).flat(),
);

function blockOf(first: number, count: number): number[] {
  return Array.from({length: count}, (_, i) => first + i);
}

/** All groups that cover `tokens` tokens. */
function groupLists(granularity: Granularity, operand: 'q' | 'k', tokens: number): number[][] {
  const blocks: Record<Granularity, {q: number[][]; k: number[][]}> = {
    per_token: {q: [[0]], k: [[0]]},
    per_warp: {q: [blockOf(0, 32)], k: [blockOf(0, 64)]},
    per_thread: {q: THREAD32, k: THREAD64},
    per_block: {q: [blockOf(0, 128)], k: [blockOf(0, 64)]},
  };
  const groups = blocks[granularity][operand];
  const size = groups.flat().length;
  const lists: number[][] = [];
  for (let first = 0; first < tokens; first += size) {
    for (const group of groups) {
      const list = group.map((t) => t + first).filter((t) => t < tokens);
      if (list.length > 0) lists.push(list);
    }
  }
  return lists;
}

function magnitude(data: Float32Array, dim: number, tokens: number[]): number {
  let largest = 0;
  for (const t of tokens) {
    for (let d = 0; d < dim; d++) largest = max(largest, abs(data[t * dim + d]!));
  }
  return largest;
}

const GRANULARITIES: Granularity[] = ['per_token', 'per_warp', 'per_thread', 'per_block'];

describe.each(GRANULARITIES)('%s', (granularity) => {
  test.each([1, 17, 127, 129, 200])('%i tokens: int8 and int4 share scales in the groups', (n) => {
    const dim = 5;
    const data = normal(n * dim, n);
    for (const [precision, top] of [
      ['int8_fp8', 127],
      ['int4_fp8', 7],
    ] as const) {
      for (const operand of ['q', 'k'] as const) {
        const recipe = plain(precision, granularity);
        const head = source(data, n, dim);
        const {codes, scale, dims} =
          operand === 'q' ? quantizeQ(recipe, head) : quantizeK(recipe, head);
        expect(dims).toBe(dim);
        let wrong = 0;
        for (const group of groupLists(granularity, operand, n)) {
          const amax = magnitude(data, dim, group);
          let largest = 0;
          for (const t of group) {
            expect(scale[t]).toBe(f32(amax / top));
            for (let d = 0; d < dim; d++) {
              const code = codes[t * dim + d]!;
              largest = max(largest, abs(code));
              const error = abs(data[t * dim + d]! - code * scale[t]!);
              if (!Number.isInteger(code) || error > scale[t]! * 0.500001) wrong++;
            }
          }
          expect(largest).toBe(top);
        }
        expect(wrong).toBe(0);
      }
    }
  });
});

test('the tuned GPU recipes scale K by 32 consecutive tokens', () => {
  const data = normal(100, 4);
  const {scale} = quantizeK(plain('int8_fp8'), source(data, 100, 1));
  for (let t = 0; t < 100; t++) {
    const first = t - (t % 32);
    const group = blockOf(first, min(32, 100 - first));
    expect(scale[t]).toBe(f32(magnitude(data, 1, group) / 127));
  }
});

test('a group number is never above that of its first token', () => {
  for (const group of ['thread32', 'thread64', 'warp32', 'block128'] as const) {
    for (let t = 0; t < 300; t++) expect(groupOfToken(group, t)).toBeLessThanOrEqual(t);
  }
});

describe('rounding', () => {
  // amax = 127, so the inverse is 1 and codes are the rounded values themselves.
  const data = Float32Array.of(127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, -127);

  test('to nearest even', () => {
    const {codes} = quantizeQ(plain('int8_bf16'), source(data, 1, 9));
    expect(Array.from(codes)).toEqual([127, 0, 2, 2, 0, -2, -2, 0, -127]);
  });

  test('half away from zero in the published forms', () => {
    const recipe = recipeOf('int8_fp8', {variant: 'paper', smoothK: false});
    const {codes} = quantizeQ(recipe, source(data, 1, 9));
    expect(Array.from(codes)).toEqual([127, 1, 2, 3, -1, -2, -3, 0, -127]);
  });

  test('codes are x · (top / amax), each operation rounded to float32', () => {
    const row = normal(64, 9);
    const amax = magnitude(row, 64, [0]);
    const inverse = f32(127 / amax);
    const {codes} = quantizeQ(plain('int8_bf16'), source(row, 1, 64));
    row.forEach((x, d) => {
      const y = f32(x * inverse);
      // Away from ties every rounding agrees.
      expect(codes[d]).toBe(Math.round(y) + 0);
    });
  });
});

/** Rows that press against the bounds: equal, one-hot, pairs, lanes, heavy tails, alternating signs, ramps. */
function adversarialRows(dim: number): Float32Array[] {
  const rows: ((d: number) => number)[] = [
    () => 1,
    (d) => (d % 2 === 0 ? 1 : -1),
    (d) => (d === 0 ? 1 : 0),
    (d) => (d < 2 ? 1 : 0),
    (d) => (d % 4 < 2 ? 1 : 0),
    (d) => (d % 4 < 2 ? 1 : 1e-3),
    (d) => (d % 32 < 16 ? 0.999 : -0.5),
    (d) => (d + 1) / dim,
    (d) => 0.9 ** d,
    (d) => (d % 3 === 0 ? 1 : 0.4999),
    (d) => (d === dim - 1 ? 1 : 0.7071),
    (d) => (d % 2 === 0 ? 1 : 0.2016),
  ];
  const next = uniform(dim);
  return rows
    .map((row) => Float32Array.from({length: dim}, (_, d) => row(d)))
    .concat(
      Array.from({length: 30}, (_, n) =>
        Float32Array.from({length: dim}, () => (next() - 0.5) * (n % 2 ? next() ** 8 : 1)),
      ),
    );
}

function stack(rows: Float32Array[], dim: number): Float32Array {
  const data = new Float32Array(rows.length * dim);
  rows.forEach((row, t) => data.set(row, t * dim));
  return data;
}

function quantisePair(precision: Precision, rows: Float32Array[], dim: number) {
  const head = source(stack(rows, dim), rows.length, dim);
  const recipe = plain(precision);
  return {q: quantizeQ(recipe, head), k: quantizeK(recipe, head)};
}

/** What one 16-bit lane sums: dims 0, 1, 4, 5, 8, 9, .., 28, 29 of its segment, from where the lane starts. */
function laneSum(q: Float32Array, qAt: number, k: Float32Array, kAt: number): number {
  let sum = 0;
  for (let d = 0; d < 32; d += 4) {
    sum += q[qAt + d]! * k[kAt + d]! + q[qAt + d + 1]! * k[kAt + d + 1]!;
  }
  return sum;
}

describe('int8_pair', () => {
  test.each([1, 2, 7, 17, 32, 33, 64, 65, 127, 128, 511, 512])(
    'head_dim %i: |k| <= 107, |q0|+|q1| <= 153, 16-bit lanes',
    (dim) => {
      const rows = adversarialRows(dim);
      const {q, k} = quantisePair('int8_int16', rows, dim);
      expect(q.dims).toBe(Math.ceil(dim / 32) * 32);
      expect(k.dims).toBe(q.dims);
      let largestK = 0;
      let largestPair = 0;
      let largestLane = 0;
      let largestUnsigned = 0;
      for (let i = 0; i < rows.length; i++) {
        for (let d = 0; d < q.dims; d += 2) {
          const at = i * q.dims + d;
          largestK = max(largestK, abs(k.codes[at]!), abs(k.codes[at + 1]!));
          const sum = abs(q.codes[at]!) + abs(q.codes[at + 1]!);
          largestPair = max(largestPair, sum);
          largestUnsigned = max(largestUnsigned, sum * 214);
        }
        for (let j = 0; j < rows.length; j++) {
          for (let g = 0; g < q.dims; g += 32) {
            largestLane = max(
              largestLane,
              abs(laneSum(q.codes, i * q.dims + g, k.codes, j * q.dims + g)),
              abs(laneSum(q.codes, i * q.dims + g + 2, k.codes, j * q.dims + g + 2)),
            );
          }
        }
      }
      expect(largestK).toBeLessThanOrEqual(107);
      expect(largestPair).toBeLessThanOrEqual(153);
      expect(largestUnsigned).toBeLessThan(2 ** 15);
      expect(largestLane).toBeLessThan(2 ** 15);
      // The bounds are used, not only kept.
      expect(largestK).toBe(107);
      expect(largestPair).toBeGreaterThanOrEqual(dim === 1 ? 126 : 150);
      if (dim >= 32) expect(largestLane).toBeGreaterThan(30000);
    },
  );

  test('worked rows', () => {
    const one = Float32Array.from({length: 32}, (_, d) => (d === 5 ? -2 : 0));
    const two = Float32Array.from({length: 32}, (_, d) => (d === 6 || d === 7 ? 3 : 0));
    const all = new Float32Array(32).fill(0.25);
    const {q, k} = quantisePair('int8_int16', [one, two, all], 32);
    // One-hot: 126.5 ties to 126. A pair: 152 / 2. All equal: a lane's norm is 4, 178.9 / 4 = 44.7.
    expect([q.codes[5], q.codes[32 + 6], q.codes[64]]).toEqual([-126, 76, 45]);
    expect([k.codes[5], k.codes[32 + 6], k.codes[64]]).toEqual([-107, 107, 45]);
    expect(q.scale[0]).toBe(f32(2 / 126.5));
    expect(q.scale[1]).toBe(f32(3 / 76));
    expect(k.scale[1]).toBe(f32(3 / 107));
    expect(k.scale[2]).toBe(f32(0.25 / f32(f32(178.9) / 4)));
  });

  test('the norm is taken per lane: dims 0, 1, 4, 5, .. apart from dims 2, 3, 6, 7, ..', () => {
    const lane0 = Float32Array.from({length: 32}, (_, d) => (d % 4 < 2 ? 1 : 0));
    const {k} = quantisePair('int8_int16', [lane0, new Float32Array(32).fill(1)], 32);
    expect(k.codes[0]).toBe(45);
    expect(k.codes[32]).toBe(45);
    const half = Float32Array.from({length: 32}, (_, d) => (d < 16 ? 1 : 0));
    // 8 dims of each lane: 178.9 / sqrt(8) = 63.2.
    expect(quantisePair('int8_int16', [half], 32).k.codes[0]).toBe(63);
  });
});

describe('int16', () => {
  test.each([1, 3, 32, 33, 64, 129, 511, 512])('head_dim %i: dot products fit in int32', (dim) => {
    const rows = adversarialRows(dim);
    const {q, k} = quantisePair('int16', rows, dim);
    let largest = 0;
    for (let i = 0; i < rows.length; i++) {
      for (let j = 0; j < rows.length; j++) {
        let sum = 0;
        for (let d = 0; d < q.dims; d++) {
          sum += q.codes[i * q.dims + d]! * k.codes[j * q.dims + d]!;
        }
        largest = max(largest, abs(sum));
      }
    }
    expect(largest).toBeLessThan(2 ** 31);
    if (dim > 1) expect(largest).toBeGreaterThan(2 ** 30);
    expect(q.codes.every((code) => abs(code) <= 32767)).toBe(true);
  });

  test('worked rows', () => {
    const one = Float32Array.of(0, -4);
    const two = Float32Array.of(1, 1);
    const {q, k} = quantisePair('int16', [one, two], 2);
    expect(q.codes[1]).toBe(-32700);
    expect(q.scale[0]).toBe(f32(4 / 32700));
    // Norm sqrt(2): 46200 / 1.41421354 = 32668.3.
    expect(k.codes[32]).toBe(32668);
    expect(k.codes[32 + 2]).toBe(0);
  });
});

const INTEGER_RECIPES: Precision[] = ['int16', 'int8_int16', 'int8_bf16', 'int8', 'int4_fp8'];

describe.each(INTEGER_RECIPES)('%s', (precision) => {
  const top: Partial<Record<Precision, number>> = {int16: 3e-5, int4_fp8: 0.072};

  function both(data: Float32Array, tokens: number, dim: number): (QuantizedQ | QuantizedK)[] {
    const head = source(data, tokens, dim);
    const recipe = plain(precision);
    return [quantizeQ(recipe, head), quantizeK(recipe, head)];
  }

  test('all-zero tokens have scale 0 and codes 0', () => {
    for (const {codes, scale} of both(new Float32Array(6), 2, 3)) {
      expect(Array.from(scale)).toEqual([0, 0]);
      for (const code of codes) expect(Object.is(code, 0)).toBe(true);
    }
  });

  test.each([1e38, 3.4e38, 1e-30, 2 ** -110])(
    'groups around %d keep their relative accuracy',
    (size) => {
      const data = normal(40, 3).map((x) => min(1, max(-1, x / 3)) * size);
      data[0] = size;
      for (const {codes, scale, dims} of both(data, 1, 40)) {
        for (let d = 0; d < 40; d++) {
          expect(abs(codes[d]! * scale[0]! - data[d]!)).toBeLessThanOrEqual(
            (top[precision] ?? 0.012) * size,
          );
        }
        expect(dims).toBeGreaterThanOrEqual(40);
      }
    },
  );

  test('groups below 2^-110 are zero: the inverse of their scale would overflow', () => {
    for (const {codes, scale} of both(Float32Array.of(1e-38, -(2 ** -111), 0), 1, 3)) {
      expect(scale[0]).toBe(0);
      for (const code of codes) expect(code).toBe(0);
    }
  });

  test('NaN and Infinity are flagged, count as 0 and leave the scales alone', () => {
    const clean = normal(3 * 40, 8);
    clean[45] = 0;
    clean[47] = 0;
    const dirty = clean.slice();
    dirty[45] = NaN;
    dirty[47] = -Infinity;
    const expected = both(clean, 3, 40);
    both(dirty, 3, 40).forEach((actual, n) => {
      expect(actual.codes).toEqual(expected[n]!.codes);
      expect(actual.scale).toEqual(expected[n]!.scale);
      expect(Array.from(actual.notFinite)).toEqual([0, 1, 0]);
    });
  });

  test('strided heads give the codes of contiguous ones', () => {
    const tokens = 17;
    const dim = 9;
    const data = normal(tokens * dim, 12);
    const wide = new Float32Array(5 + tokens * 3 * dim).fill(1e9);
    for (let t = 0; t < tokens; t++) {
      wide.set(data.subarray(t * dim, (t + 1) * dim), 5 + t * 3 * dim);
    }
    const recipe = recipeOf(precision);
    const strided = {data: wide, offset: 5, tokenStride: 3 * dim, tokens, dim};
    expect(quantizeK(recipe, strided)).toEqual(quantizeK(recipe, source(data, tokens, dim)));
    expect(quantizeQ(recipe, strided)).toEqual(quantizeQ(recipe, source(data, tokens, dim)));
  });

  test('no tokens', () => {
    for (const {codes, scale} of both(new Float32Array(0), 0, 7)) {
      expect(codes.length).toBe(0);
      expect(scale.length).toBe(0);
    }
  });
});
