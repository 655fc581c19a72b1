/** The exact gradients against finite differences of exactAttention in float64. */
import {recipeOf, normal, problemOf, uniform} from './inputs';
import type {Sizes} from './inputs';
import {exactAttention, referenceGradients} from '../../src/numerics/reference';
import type {AttentionProblem, MaskStrides} from '../../src/problem';

const STEP = 1e-5;
const exact = recipeOf('exact');
const NONE: MaskStrides = {batch: 0, head: 0, query: 0, key: 0};

interface Case {
  name: string;
  sizes: Sizes;
  changes?: Partial<AttentionProblem>;
  maskSize?: number;
}

const CASES: Case[] = [
  {name: 'full', sizes: {qLen: 5, qkDim: 3}},
  {name: 'one token', sizes: {qLen: 1, qkDim: 2}},
  {
    name: 'batch 2, grouped heads, dv',
    sizes: {batch: 2, qHeads: 4, kvHeads: 2, qLen: 4, kvLen: 6, qkDim: 3, vDim: 5},
  },
  {name: 'causal', sizes: {qLen: 7, qkDim: 4}, changes: {causal: 'top_left', windowRight: 0}},
  {
    name: 'bottom-right, fewer queries',
    sizes: {qHeads: 2, kvHeads: 1, qLen: 3, kvLen: 8, qkDim: 4},
    changes: {causal: 'bottom_right', windowRight: 0},
  },
  {
    name: 'bottom-right, empty rows',
    sizes: {qLen: 7, kvLen: 4, qkDim: 4},
    changes: {causal: 'bottom_right', windowRight: 0},
  },
  {name: 'window', sizes: {qLen: 9, qkDim: 3}, changes: {windowLeft: 2, windowRight: 1}},
  {name: 'own scale', sizes: {qLen: 5, qkDim: 3}, changes: {scale: -0.8}},
  {
    name: 'additive mask [1,1,Nq,Nk]',
    sizes: {batch: 2, qHeads: 2, qLen: 4, kvLen: 5, qkDim: 3},
    changes: {maskKind: 'additive', mask: {...NONE, query: 5, key: 1}},
    maskSize: 20,
  },
  {
    name: 'additive mask [B,1,1,Nk], causal',
    sizes: {batch: 2, qHeads: 2, qLen: 5, qkDim: 3},
    changes: {
      maskKind: 'additive',
      mask: {...NONE, batch: 5, key: 1},
      causal: 'top_left',
      windowRight: 0,
    },
    maskSize: 10,
  },
  {
    name: 'additive mask [1,H,Nq,1]',
    sizes: {qHeads: 2, qLen: 4, qkDim: 3},
    changes: {maskKind: 'additive', mask: {...NONE, head: 4, query: 1}},
    maskSize: 8,
  },
  {
    name: 'additive mask of one number',
    sizes: {qHeads: 2, qLen: 4, qkDim: 3},
    changes: {maskKind: 'additive', mask: NONE},
    maskSize: 1,
  },
  {
    name: 'boolean mask',
    sizes: {qLen: 4, kvLen: 5, qkDim: 3},
    changes: {maskKind: 'boolean', mask: {...NONE, query: 5, key: 1}},
    maskSize: 20,
  },
];

function wide(count: number, seed: number): Float64Array {
  return Float64Array.from(normal(count, seed));
}

function makeInputs({sizes, changes, maskSize}: Case) {
  const problem = problemOf(exact, sizes, changes);
  const {batch, qHeads, kvHeads, qLen, kvLen, qkDim, vDim} = problem;
  const q = wide(batch * qHeads * qLen * qkDim, 1);
  const k = wide(batch * kvHeads * kvLen * qkDim, 2);
  const v = wide(batch * kvHeads * kvLen * vDim, 3);
  const dO = wide(batch * qHeads * qLen * vDim, 4);
  const dLse = wide(batch * qHeads * qLen, 5);
  let mask: Float64Array | Uint8Array | null = null;
  if (maskSize !== undefined) {
    const next = uniform(6);
    const additive = wide(maskSize, 7);
    // The second row and some others: one is masked in full.
    if (maskSize > 8)
      for (let n = 5; n < maskSize; n++) if (n < 10 || next() < 0.2) additive[n] = -Infinity;
    mask =
      problem.maskKind === 'boolean'
        ? Uint8Array.from(additive, (x) => (x > -0.7 ? 1 : 0))
        : additive;
  }
  return {problem, q, k, v, mask, dO, dLse};
}

type Inputs = ReturnType<typeof makeInputs>;

/** sum dO · o + sum dLse · lse, over rows that attend to something. */
function loss({problem, q, k, v, mask, dO, dLse}: Inputs): number {
  const {o, lse} = exactAttention(problem, q, k, v, mask);
  let sum = 0;
  for (let n = 0; n < o.length; n++) sum += o[n]! * dO[n]!;
  for (let n = 0; n < lse.length; n++) if (lse[n] !== -Infinity) sum += lse[n]! * dLse[n]!;
  return sum;
}

/** The derivative with respect to values[n], by central differences. */
function difference(inputs: Inputs, values: Float64Array, n: number): number {
  const value = values[n]!;
  values[n] = value + STEP;
  const above = loss(inputs);
  values[n] = value - STEP;
  const below = loss(inputs);
  values[n] = value;
  return (above - below) / (2 * STEP);
}

function largestError(inputs: Inputs, values: Float64Array, gradient: Float64Array): number {
  expect(gradient.length).toBe(values.length);
  let largest = 0;
  for (let n = 0; n < values.length; n++) {
    if (values[n] === -Infinity) {
      expect(gradient[n]).toBe(0);
      continue;
    }
    largest = Math.max(largest, Math.abs(gradient[n]! - difference(inputs, values, n)));
  }
  return largest;
}

test.each(CASES)('$name', (testCase) => {
  const inputs = makeInputs(testCase);
  const {problem, q, k, v, mask, dO, dLse} = inputs;
  const {dQ, dK, dV, dMask} = referenceGradients(problem, q, k, v, mask, dO, dLse);
  expect(largestError(inputs, q, dQ)).toBeLessThan(1e-8);
  expect(largestError(inputs, k, dK)).toBeLessThan(1e-8);
  expect(largestError(inputs, v, dV)).toBeLessThan(1e-8);
  if (problem.maskKind === 'additive') {
    expect(largestError(inputs, mask as Float64Array, dMask!)).toBeLessThan(1e-8);
  } else {
    expect(dMask).toBeNull();
  }
  // The gradients are those of the loss that was asked for: without dLse they differ.
  const without = referenceGradients(problem, q, k, v, mask, dO);
  inputs.dLse.fill(0);
  expect(largestError(inputs, k, without.dK)).toBeLessThan(1e-8);
  expect(without.dV).toEqual(dV);
});

test('rows that attend to nothing have gradient 0', () => {
  const {problem, q, k, v, dO, dLse} = makeInputs(CASES[5]!);
  const {dQ} = referenceGradients(problem, q, k, v, null, dO, dLse);
  // Seven queries, four keys: the first three rows see none.
  expect(dQ.subarray(0, 12).every((x) => x === 0)).toBe(true);
  expect(dQ.subarray(12).every((x) => x !== 0 || x === 0)).toBe(true);
  expect(dQ.subarray(16).some((x) => x !== 0)).toBe(true);
});

test('gradients lie in the strides of their tensors', () => {
  const [heads, n, dim] = [2, 5, 3];
  const token = heads * dim + 4;
  const strides = {batch: n * token, head: dim, token};
  const sizes = {qHeads: heads, qLen: n, qkDim: dim};
  const compact = problemOf(exact, sizes);
  const spread = problemOf(exact, sizes, {q: strides, k: strides, v: strides, o: strides});
  const inputs = [1, 2, 3, 4].map((seed) => wide(heads * n * dim, seed));
  const spreadOut = (x: Float64Array) => {
    const out = new Float64Array(n * token).fill(NaN);
    for (let h = 0; h < heads; h++) {
      for (let t = 0; t < n; t++) {
        for (let d = 0; d < dim; d++) out[h * dim + t * token + d] = x[(h * n + t) * dim + d]!;
      }
    }
    return out;
  };
  const [q, k, v, dO] = inputs as [Float64Array, Float64Array, Float64Array, Float64Array];
  const expected = referenceGradients(compact, q, k, v, null, dO);
  const actual = referenceGradients(
    spread,
    spreadOut(q),
    spreadOut(k),
    spreadOut(v),
    null,
    spreadOut(dO),
  );
  for (const name of ['dQ', 'dK', 'dV'] as const) {
    const want = spreadOut(expected[name]).map((x) => (Number.isNaN(x) ? 0 : x));
    expect(actual[name]).toEqual(want);
  }
});

test.each([
  ['no keys', {qLen: 3, kvLen: 0, qkDim: 4}],
  ['no queries', {qLen: 0, kvLen: 3, qkDim: 4}],
  ['batch 0', {batch: 0, qLen: 3, qkDim: 4}],
] as [string, Sizes][])('%s: all gradients are 0', (name, sizes) => {
  const {problem, q, k, v, dO, dLse} = makeInputs({name, sizes});
  const gradients = referenceGradients(problem, q, k, v, null, dO, dLse);
  for (const gradient of [gradients.dQ, gradients.dK, gradients.dV]) {
    expect(gradient.every((x) => x === 0)).toBe(true);
  }
});
