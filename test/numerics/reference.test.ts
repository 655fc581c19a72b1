/** The float64 reference against the definition of attention, in every shape, stride, mask and recipe. */
import {quantizeK, quantizeQ, quantizeV, roundP} from '../../src/numerics/quantize';
import {PRECISIONS, PUBLISHED_FORMS} from '../../src/numerics/recipes';
import type {Precision, Recipe} from '../../src/numerics/recipes';
import {exactAttention, referenceAttention} from '../../src/numerics/reference';
import type {AttentionProblem, MaskStrides} from '../../src/problem';
import {
  maxAbsDifference,
  normal,
  normalInputs,
  problemOf,
  recipeOf,
  relativeL1,
  uniform,
} from './inputs';
import type {Sizes} from './inputs';
import {naiveAttention} from './naive_attention';

const exact = recipeOf('exact');

/** o's relative L1 that no small shape of the recipe exceeds: about 1.5 times the bound at 1,000 tokens. */
const LOOSE: Record<Precision, number> = {
  exact: 3e-6,
  int16: 2e-3,
  int8_int16: 0.025,
  int8_bf16: 0.02,
  int8_fp16: 0.025,
  int8: 0.03,
  int8_fp8: 0.07,
  fp4_fp8: 0.25,
  fp4: 0.3,
  int4_fp8: 0.35,
};

interface Shape {
  name: string;
  sizes: Sizes;
  changes?: Partial<AttentionProblem>;
}

const FULL: MaskStrides = {batch: 0, head: 0, query: 0, key: 0};

const SHAPES: Shape[] = [
  {name: 'one token', sizes: {qLen: 1, qkDim: 1}},
  {name: '17 tokens, head_dim 7', sizes: {qLen: 17, qkDim: 7}},
  {name: 'batch 2, 3 heads', sizes: {batch: 2, qHeads: 3, qLen: 5, qkDim: 8}},
  {name: 'grouped heads', sizes: {batch: 2, qHeads: 6, kvHeads: 2, qLen: 9, qkDim: 16}},
  {name: 'one kv head', sizes: {qHeads: 4, kvHeads: 1, qLen: 4, kvLen: 33, qkDim: 5}},
  {name: 'dv other than dk', sizes: {qHeads: 2, qLen: 6, kvLen: 11, qkDim: 24, vDim: 3}},
  {
    name: 'decode',
    sizes: {qLen: 1, kvLen: 129, qkDim: 33},
    changes: {causal: 'bottom_right', windowRight: 0},
  },
  {name: 'causal', sizes: {qLen: 127, qkDim: 20}, changes: {causal: 'top_left', windowRight: 0}},
  {
    name: 'causal, more keys, top left',
    sizes: {qLen: 5, kvLen: 9, qkDim: 4},
    changes: {causal: 'top_left', windowRight: 0},
  },
  {
    name: 'causal, more keys, bottom right',
    sizes: {qLen: 5, kvLen: 9, qkDim: 4},
    changes: {causal: 'bottom_right', windowRight: 0},
  },
  {
    name: 'causal, more queries, bottom right',
    sizes: {qLen: 9, kvLen: 5, qkDim: 4},
    changes: {causal: 'bottom_right', windowRight: 0},
  },
  {
    name: 'causal, more queries, top left',
    sizes: {qLen: 9, kvLen: 5, qkDim: 4},
    changes: {causal: 'top_left', windowRight: 0},
  },
  {name: 'window', sizes: {qLen: 40, qkDim: 6}, changes: {windowLeft: 3, windowRight: 2}},
  {
    name: 'window past the keys',
    sizes: {qLen: 30, kvLen: 8, qkDim: 6},
    changes: {windowLeft: 2, windowRight: 1},
  },
  {
    name: 'causal window',
    sizes: {qLen: 129, qkDim: 6},
    changes: {causal: 'top_left', windowLeft: 16, windowRight: 0},
  },
  {name: 'own scale', sizes: {qLen: 17, qkDim: 6}, changes: {scale: 0.7}},
  {name: 'scale 0', sizes: {qLen: 3, qkDim: 6}, changes: {scale: 0}},
];

describe('exactAttention', () => {
  test.each(SHAPES)('$name', ({sizes, changes}) => {
    const problem = problemOf(exact, sizes, changes);
    const {q, k, v} = normalInputs(problem, 1);
    const {o, lse} = exactAttention(problem, q, k, v, null);
    const expected = naiveAttention(problem, {q, k, v, mask: null});
    expect(maxAbsDifference(o, expected.o)).toBeLessThan(1e-13);
    expect(maxAbsDifference(lse, expected.lse)).toBeLessThan(1e-13);
  });

  const sizes: Sizes = {batch: 2, qHeads: 4, kvHeads: 2, qLen: 5, kvLen: 7, qkDim: 3};
  const maskShapes: [string, MaskStrides, number][] = [
    ['[B,H,Nq,Nk]', {batch: 140, head: 35, query: 7, key: 1}, 280],
    ['[1,1,Nq,Nk]', {...FULL, query: 7, key: 1}, 35],
    ['[B,1,1,Nk]', {...FULL, batch: 7, key: 1}, 14],
    ['[1,H,Nq,1]', {...FULL, head: 5, query: 1}, 20],
    ['[B,H,1,1]', {...FULL, batch: 4, head: 1}, 8],
    ['[1,1,1,1]', FULL, 1],
  ];

  test.each(maskShapes)('masks broadcast from %s', (_name, mask, size) => {
    const additive = normal(size, 5, 2);
    const next = uniform(6);
    for (let n = 1; n < size; n += 3) if (next() < 0.5) additive[n] = -Infinity;
    const boolean = Uint8Array.from(additive, (x) => (x > -0.5 ? 1 : 0));
    for (const causal of ['none', 'top_left'] as const) {
      const windowRight = causal === 'none' ? -1 : 0;
      for (const [maskKind, data] of [
        ['additive', additive],
        ['boolean', boolean],
      ] as const) {
        const problem = problemOf(exact, sizes, {mask, maskKind, causal, windowRight});
        const {q, k, v} = normalInputs(problem, 7);
        const {o, lse} = exactAttention(problem, q, k, v, data);
        const expected = naiveAttention(problem, {q, k, v, mask: data});
        expect(maxAbsDifference(o, expected.o)).toBeLessThan(1e-13);
        expect(maxAbsDifference(lse, expected.lse)).toBeLessThan(1e-13);
      }
    }
  });

  test('NHD strides and padded tokens: nothing between the tokens is read or written', () => {
    const [heads, n, dim, gap] = [3, 6, 4, 5];
    const token = heads * dim + gap;
    const strides = {batch: n * token, head: dim, token};
    const changes = {q: strides, k: strides, v: strides, o: strides};
    const problem = problemOf(exact, {batch: 2, qHeads: heads, qLen: n, qkDim: dim}, changes);
    const fill = (seed: number) => {
      const data = normal(2 * n * token, seed);
      return data.map((x, at) => (at % token < heads * dim ? x : NaN));
    };
    const [q, k, v] = [fill(1), fill(2), fill(3)];
    const {o} = exactAttention(problem, q, k, v, null);
    const expected = naiveAttention(problem, {q, k, v, mask: null});
    expect(o.length).toBe(2 * n * token - gap);
    for (let at = 0; at < o.length; at++) {
      if (at % token >= heads * dim) expect(o[at]).toBe(0);
      else expect(o[at]).toBeCloseTo(expected.o[at]!, 12);
    }
    const quantised = referenceAttention({...problem, recipe: recipeOf('int16')}, q, k, v, null);
    expect(maxAbsDifference(quantised.o, o)).toBeLessThan(5e-3);
  });
});

const RECIPES: [string, Recipe][] = PRECISIONS.flatMap((precision) => {
  const tuned: [string, Recipe] = [precision, recipeOf(precision)];
  if (!PUBLISHED_FORMS[precision] || precision === 'exact') return [tuned];
  return [tuned, [`${precision} as published`, recipeOf(precision, {variant: 'paper'})]];
});

describe.each(RECIPES)('%s', (_name, recipe) => {
  test.each(SHAPES)('$name', ({sizes, changes}) => {
    const problem = problemOf(recipe, sizes, changes);
    const {q, k, v} = normalInputs(problem, 11);
    const {o, lse} = referenceAttention(problem, q, k, v, null);
    const expected = exactAttention(problem, q, k, v, null);
    // One key or channel alone may err by a whole rounding step, so small outputs are judged by absolute size.
    const bound = LOOSE[recipe.precision] * Math.max(1, 2 / Math.sqrt(sizes.qkDim));
    if (o.length > 200) expect(relativeL1(o, expected.o)).toBeLessThan(bound);
    expect(maxAbsDifference(o, expected.o)).toBeLessThan(6 * bound);
    for (let n = 0; n < lse.length; n++) {
      if (expected.lse[n] === -Infinity) expect(lse[n]).toBe(-Infinity);
      else expect(Math.abs(lse[n]! - expected.lse[n]!)).toBeLessThan(4 * bound);
    }
  });

  test('is the definition, on the operands that the codes mean', () => {
    // Q·K from restored operands plus what smoothing took out; P rounded by roundP; V restored.
    const problem = problemOf(recipe, {qLen: 33, kvLen: 150, qkDim: 40, vDim: 9});
    const {q, k, v} = normalInputs(problem, 3);
    for (let i = 0; i < k.length; i++) k[i]! += (i % 40) / 8;
    for (let i = 0; i < v.length; i++) v[i]! += 1;
    const {o, lse} = referenceAttention(problem, q, k, v, null);
    const qHead = quantizeQ(recipe, {data: q, offset: 0, tokenStride: 40, tokens: 33, dim: 40});
    const kHead = quantizeK(recipe, {data: k, offset: 0, tokenStride: 40, tokens: 150, dim: 40});
    const vHead = quantizeV(recipe, {data: v, offset: 0, tokenStride: 9, tokens: 150, dim: 9});
    for (const i of [0, 20, 32]) {
      const scores = Array.from({length: 150}, (_, j) => {
        let s = 0;
        for (let d = 0; d < qHead.dims; d++) {
          const a = qHead.codes[i * qHead.dims + d]! * qHead.scale[i]!;
          s += a * kHead.codes[j * kHead.dims + d]! * kHead.scale[j]!;
        }
        if (!qHead.mean) return s * problem.scale;
        const block = Math.floor(i / qHead.meanRows);
        for (let d = 0; d < 40; d++) {
          s += qHead.mean[block * 40 + d]! * kHead.smoothed![j * 40 + d]!;
        }
        return s * problem.scale;
      });
      const max = Math.max(...scores);
      const p = Float32Array.from(scores, (s) => Math.exp(s - max));
      const rounded = p.slice();
      roundP(recipe, rounded, 150);
      const weights = recipe.rowSum === 'quantized' ? rounded.map((x) => x / recipe.pTop) : p;
      const sum = weights.reduce((a, x) => a + x, 0);
      let unsmoothed = 0;
      if (kHead.mean) for (let d = 0; d < 40; d++) unsmoothed += q[i * 40 + d]! * kHead.mean[d]!;
      const exactSum = p.reduce((a, x) => a + x, 0);
      expect(lse[i]).toBeCloseTo(max + Math.log(exactSum) + problem.scale * unsmoothed, 5);
      for (let d = 0; d < 9; d++) {
        let out = 0;
        for (let j = 0; j < 150; j++) {
          const scale = vHead.channelScale[d]! * (vHead.tokenScale ? vHead.tokenScale[j]! : 1);
          out += (rounded[j]! / recipe.pTop) * vHead.codes[j * 9 + d]! * scale;
          if (vHead.mean) out += weights[j]! * vHead.mean[Math.floor(j / 128) * 9 + d]!;
        }
        // fp16 accumulators round by themselves.
        const digits = recipe.pvAccumulator === 'fp16+fp32' ? 2 : 5;
        expect(o[i * 9 + d]).toBeCloseTo(out / sum, digits);
      }
    }
  });

  test('a subset of rows is the same as all rows', () => {
    const problem = problemOf(recipe, {qHeads: 2, qLen: 70, qkDim: 10});
    const {q, k, v} = normalInputs(problem, 4);
    const all = referenceAttention(problem, q, k, v, null);
    const some = referenceAttention(problem, q, k, v, null, [3, 69]);
    for (const i of [3, 69]) {
      for (const h of [0, 1]) {
        const at = h * 700 + i * 10;
        expect(some.o.subarray(at, at + 10)).toEqual(all.o.subarray(at, at + 10));
        expect(some.lse[h * 70 + i]).toBe(all.lse[h * 70 + i]);
      }
    }
    expect(some.o[0]).toBe(0);
  });

  test.each([
    ['batch 0', {batch: 0, qLen: 3, qkDim: 4}],
    ['no heads', {qHeads: 0, kvHeads: 0, qLen: 3, qkDim: 4}],
    ['no queries', {qLen: 0, kvLen: 5, qkDim: 4}],
    ['no keys', {qLen: 3, kvLen: 0, qkDim: 4}],
  ] as [string, Sizes][])('%s', (_case, sizes) => {
    const problem = problemOf(recipe, sizes);
    const {q, k, v} = normalInputs(problem, 2);
    for (const {o, lse} of [
      referenceAttention(problem, q, k, v, null),
      exactAttention(problem, q, k, v, null),
    ]) {
      const rows = problem.batch * problem.qHeads * problem.qLen;
      expect(Array.from(o)).toEqual(new Array(rows * 4).fill(0));
      expect(Array.from(lse)).toEqual(new Array(rows).fill(-Infinity));
    }
  });
});

describe('head_dim from 1 to 512', () => {
  test.each([1, 2, 3, 15, 31, 33, 63, 65, 100, 127, 129, 255, 257, 511, 512])('%i', (dim) => {
    for (const precision of PRECISIONS) {
      const problem = problemOf(recipeOf(precision), {qLen: 3, kvLen: 17, qkDim: dim, vDim: dim});
      const {q, k, v} = normalInputs(problem, dim);
      const {o} = referenceAttention(problem, q, k, v, null);
      const expected = exactAttention(problem, q, k, v, null);
      const bound = LOOSE[precision] * Math.max(1.3, 4 / Math.sqrt(dim));
      expect(relativeL1(o, expected.o)).toBeLessThan(bound);
    }
  });
});
