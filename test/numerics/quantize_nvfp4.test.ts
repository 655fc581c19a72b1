/** NVFP4 groups, the head exponent and the rotation: docs/numerics.md 4.5. */
import {roundE2m1, roundUe4m3} from '../../src/numerics/formats';
import {readHead} from '../../src/numerics/operands';
import {quantizeK, quantizeQ, quantizeV} from '../../src/numerics/quantize';
import type {HeadSource} from '../../src/numerics/quantize';
import {
  headExponent,
  quantizeChannelsNvfp4,
  quantizeTokensNvfp4,
  rotateRow,
} from '../../src/numerics/quantize_nvfp4';
import {normal, recipeOf, relativeL1} from './inputs';

const f32 = Math.fround;

function source(data: Float32Array, tokens: number, dim: number): HeadSource {
  return {data, offset: 0, tokenStride: dim, tokens, dim};
}

/** One group with the scale next to `wanted`, with its error; no scratch, no tables. */
function groupBy(x: number[], wanted: number): {values: number[]; error: number} {
  const scale = roundUe4m3(wanted);
  const values = x.map((value) =>
    scale === 0 ? 0 : roundE2m1(f32(value * f32(1 / scale))) * scale,
  );
  let error = 0;
  x.forEach((value, i) => {
    const difference = f32(value - f32(values[i]!));
    error = f32(error + f32(difference * difference));
  });
  return {values: values.map((value) => value + 0), error};
}

function group(x: number[], fourSix: boolean): number[] {
  const amax = Math.max(...x.map(Math.abs));
  let best = groupBy(x, f32(amax / 6));
  if (!fourSix) return best.values;
  for (const wanted of [f32(amax / 4), f32(amax * f32(2 / 13))]) {
    const other = groupBy(x, wanted);
    if (other.error < best.error) best = other;
  }
  return best.values;
}

describe('groups of 16', () => {
  test.each([
    [1, 1],
    [17, 15],
    [5, 17],
    [127, 33],
    [129, 64],
    [3, 511],
  ])('%i tokens of %i dims: along head_dim for q and k', (tokens, dim) => {
    const data = normal(tokens * dim, dim);
    for (const fourSix of [false, true]) {
      const {codes, dims} = quantizeTokensNvfp4(
        readHead(source(data, tokens, dim)),
        0,
        false,
        fourSix,
      );
      expect(dims).toBe(Math.ceil(dim / 16) * 16);
      const expected = new Float32Array(tokens * dims);
      for (let t = 0; t < tokens; t++) {
        for (let first = 0; first < dims; first += 16) {
          const x = Array.from({length: 16}, (_, i) =>
            first + i < dim ? data[t * dim + first + i]! : 0,
          );
          expected.set(group(x, fourSix), t * dims + first);
        }
      }
      expect(codes).toEqual(expected);
    }
  });

  test.each([1, 15, 16, 17, 127, 129])(
    '%i tokens: along tokens for v, zeros past the end',
    (tokens) => {
      const dim = 3;
      const data = normal(tokens * dim, tokens + 1);
      for (const fourSix of [false, true]) {
        const codes = quantizeChannelsNvfp4(readHead(source(data, tokens, dim)), 0, fourSix);
        const expected = new Float32Array(tokens * dim);
        for (let first = 0; first < tokens; first += 16) {
          for (let d = 0; d < dim; d++) {
            const x = Array.from({length: 16}, (_, i) =>
              first + i < tokens ? data[(first + i) * dim + d]! : 0,
            );
            group(x, fourSix).forEach((value, i) => {
              if (first + i < tokens) expected[(first + i) * dim + d] = value;
            });
          }
        }
        expect(codes).toEqual(expected);
      }
    },
  );

  test('a worked group: scale e4m3(13/6) = 2.25, the largest becomes 6 · 2.25', () => {
    const data = new Float32Array(16);
    data.set([13, -1, 3.3, 0.5]);
    const {codes} = quantizeTokensNvfp4(readHead(source(data, 1, 16)), 0, false, false);
    // 13/6 = 2.1667 lies between 2 and 2.25; 1/2.25 = .444, 3.3/2.25 = 1.4667, .5/2.25 = .222.
    expect(Array.from(codes.subarray(0, 4))).toEqual([13.5, -1.125, 3.375, 0]);
  });

  test('amax / 4 is taken where it fits better, and only then', () => {
    const data = new Float32Array(16).fill(3);
    data[0] = 4;
    const head = readHead(source(data, 1, 16));
    // amax / 6 = 2/3 gives scale .6875 and 3 / .6875 = 4.36 -> 4 · .6875 = 2.75; amax / 4 = 1 is exact.
    expect(quantizeTokensNvfp4(head, 0, false, true).codes).toEqual(data);
    expect(quantizeTokensNvfp4(head, 0, false, false).codes[1]).toBe(2.75);
    const six = Float32Array.from({length: 16}, (_, i) => [6, 4, 1, 0.5][i % 4]!);
    expect(quantizeTokensNvfp4(readHead(source(six, 1, 16)), 0, false, true).codes).toEqual(six);
  });

  test('2 amax / 13 is taken where it fits better, and only then', () => {
    // amax / 6 becomes 1.125, whose multiples are none of these. 2 amax / 13 = 1 cuts 6.5 to 6 and keeps the rest.
    const data = Float32Array.from({length: 16}, (_, i) =>
      i === 0 ? 6.5 : [4, 3, 2, 1.5][i % 4]!,
    );
    const cut = data.slice();
    cut[0] = 6;
    const head = readHead(source(data, 1, 16));
    expect(quantizeTokensNvfp4(head, 0, false, true).codes).toEqual(cut);
    expect(quantizeTokensNvfp4(head, 0, false, false).codes[0]).toBe(6.75);
    // Alone, 6.5 is exact under amax / 4 = 1.625.
    const alone = new Float32Array(16);
    alone[3] = 6.5;
    expect(quantizeTokensNvfp4(readHead(source(alone, 1, 16)), 0, false, true).codes).toEqual(
      alone,
    );
  });

  test('the best of three lowers the squared error by a fifth', () => {
    const data = normal(400 * 16, 77);
    const head = readHead(source(data, 400, 16));
    const error = (codes: Float32Array) =>
      data.reduce((sum, x, i) => sum + (x - codes[i]!) ** 2, 0);
    const six = error(quantizeTokensNvfp4(head, 0, false, false).codes);
    const best = error(quantizeTokensNvfp4(head, 0, false, true).codes);
    // .771 by 60,000 groups; of amax / 6 and amax / 4 alone .833.
    expect(best).toBeLessThan(0.8 * six);
  });
});

describe('the head exponent', () => {
  test.each([
    [1, 4],
    [1.999, 4],
    [2, 3],
    [16, 0],
    [31.9, 0],
    [32, -1],
    [0.75, 5],
    [2 ** -90, 94],
    [1e-38, 100],
    [2 ** -149, 100],
    [1e30, 4 - 99],
  ])('largest magnitude %d: e = %i', (largest, e) => {
    expect(headExponent(readHead(source(Float32Array.of(0, -largest), 2, 1)))).toBe(e);
  });

  test('0 for an all-zero head, and values that are not finite do not count', () => {
    expect(headExponent(readHead(source(new Float32Array(3), 3, 1)))).toBe(0);
    expect(headExponent(readHead(source(Float32Array.of(2, Infinity, NaN), 3, 1)))).toBe(3);
  });

  test('is that of the input, before smoothing', () => {
    const data = Float32Array.of(100, 101, 100, 99);
    const recipe = recipeOf('fp4');
    // floor(log2(101)) = 6, so e = -2 although k' is at most 1.
    expect(quantizeK(recipe, source(data, 4, 1)).scale[0]).toBe(2 ** 2);
    expect(quantizeV(recipe, source(data, 4, 1)).channelScale[0]).toBe(2 ** 2);
    expect(quantizeQ(recipe, source(data, 4, 1)).scale[3]).toBe(2 ** 2);
  });

  test.each([1e-30, 1e-4, 1, 1e4, 1e30])(
    'q, k and v of size %d keep their relative accuracy',
    (size) => {
      const tokens = 48;
      const dim = 40;
      const data = normal(tokens * dim, 5).map((x) => x * size);
      const recipe = recipeOf('fp4', {smoothQ: false, smoothK: false, smoothV: false});
      const v = quantizeV(recipe, source(data, tokens, dim));
      expect(
        relativeL1(
          v.codes.map((x) => x * v.channelScale[0]!),
          data,
        ),
      ).toBeLessThan(0.1);
      const k = quantizeK(recipe, source(data, tokens, dim));
      const rotated = rotatedRows(data, tokens, dim, k.dims);
      expect(
        relativeL1(
          k.codes.map((x, i) => x * k.scale[Math.floor(i / k.dims)]!),
          rotated,
        ),
      ).toBeLessThan(0.1);
    },
  );

  test('without it the published form loses small heads', () => {
    const data = normal(64, 5).map((x) => x * 1e-4);
    const {codes} = quantizeK(
      recipeOf('fp4', {variant: 'paper', smoothK: false}),
      source(data, 1, 64),
    );
    expect(codes.every((code) => code === 0)).toBe(true);
  });
});

function rotatedRows(data: Float32Array, tokens: number, dim: number, dims: number): Float32Array {
  const out = new Float32Array(tokens * dims);
  for (let t = 0; t < tokens; t++) {
    const row = out.subarray(t * dims, (t + 1) * dims);
    row.set(data.subarray(t * dim, (t + 1) * dim));
    rotateRow(row);
  }
  return out;
}

describe('the rotation', () => {
  test.each([
    [16, 16],
    [48, 16],
    [64, 64],
    [80, 16],
    [96, 32],
    [128, 128],
    [512, 512],
  ])('%i dims: a Sylvester-Hadamard matrix in blocks of %i', (dims, block) => {
    const row = normal(dims, dims);
    const rotated = row.slice();
    rotateRow(rotated);
    const expected = new Float64Array(dims);
    for (let d = 0; d < dims; d++) {
      for (let e = 0; e < block; e++) {
        let both = (d % block) & e;
        let sign = 1;
        for (; both; both &= both - 1) sign = -sign;
        expected[d]! += (sign * row[d - (d % block) + e]!) / Math.sqrt(block);
      }
    }
    expect(relativeL1(rotated, expected)).toBeLessThan(3e-7);
  });

  test('the same for q and k, so dot products stay', () => {
    const a = normal(96, 1);
    const b = normal(96, 2);
    const dot = (x: Float32Array, y: Float32Array) =>
      x.reduce((sum, value, i) => sum + value * y[i]!, 0);
    const before = dot(a, b);
    rotateRow(a);
    rotateRow(b);
    expect(dot(a, b)).toBeCloseTo(before, 4);
  });

  test('spreads an outlier channel', () => {
    const dim = 64;
    const data = normal(dim * 32, 3);
    for (let t = 0; t < 32; t++) data[t * dim + 7]! *= 40;
    const choice = {smoothK: false, smoothQ: false};
    const rotated = quantizeK(recipeOf('fp4', choice), source(data, 32, dim));
    const truth = rotatedRows(data, 32, dim, dim);
    const straight = quantizeTokensNvfp4(readHead(source(data, 32, dim)), 0, false, true);
    // Relative errors of everything but the outlier's own group.
    const plainError = relativeL1(straight.codes.subarray(0, 7), data.subarray(0, 7));
    const values = rotated.codes.map((x) => x * rotated.scale[0]!);
    expect(relativeL1(values, truth)).toBeLessThan(0.5 * plainError);
  });
});

test('smoothed k is given back unrotated and unquantised where Q is smoothed', () => {
  const data = normal(33 * 20, 21);
  const recipe = recipeOf('fp4');
  const {smoothed, mean} = quantizeK(recipe, source(data, 33, 20));
  data.forEach((x, i) => {
    if (smoothed![i] !== f32(x - mean![i % 20]!)) throw new Error(`element ${i}`);
  });
  expect(quantizeK(recipeOf('int8_fp8'), source(data, 33, 20)).smoothed).toBeNull();
});

test('NaN and Infinity are flagged and change no other group', () => {
  const clean = normal(3 * 40, 8);
  clean[45] = 0;
  const dirty = clean.slice();
  dirty[45] = Infinity;
  const recipe = recipeOf('fp4', {smoothK: false, smoothQ: false, smoothV: false});
  const k = quantizeK(recipe, source(dirty, 3, 40));
  expect(k.codes).toEqual(quantizeK(recipe, source(clean, 3, 40)).codes);
  expect(Array.from(k.notFinite)).toEqual([0, 1, 0]);
  const v = quantizeV(recipe, source(dirty, 3, 40));
  expect(v.codes).toEqual(quantizeV(recipe, source(clean, 3, 40)).codes);
  expect(v.notFinite!.indexOf(1)).toBe(45);
});
