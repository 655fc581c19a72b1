/** The TypeScript engine, backward: every gradient case of the table against float64 gradients, and what must stay finite. */
import {typescriptEngine} from '../../src/engines/typescript/typescript_engine.js';
import {referenceGradients} from '../../src/numerics/reference.js';
import type {AttentionProblem} from '../../src/problem.js';
import type {BackwardBuffers} from '../../src/engines/engine.js';
import {casesTagged, makeInputs, makeLseGradient, makeOutputGradient, problemOf} from '../cases.js';
import type {AttentionCase, CaseInputs} from '../cases.js';
import {attend, recipeOf, relativeL1, UNWRITTEN} from './typescript_checks.js';

/** Gradients for given outputs of the forward pass; every gradient is pre-filled with a value that must be overwritten. */
function differentiate(
  problem: AttentionProblem,
  inputs: CaseInputs,
  dO: Float32Array,
  dLse: Float32Array | null,
): BackwardBuffers & {o: Float32Array} {
  const withLse = {...problem, wantLse: true};
  const {o, lse} = attend(withLse, inputs);
  const {q, k, v, mask} = inputs;
  const buffers = {
    ...inputs,
    o,
    lse: lse!,
    dO,
    dLse,
    dQ: new Float32Array(q.length).fill(UNWRITTEN),
    dK: new Float32Array(k.length).fill(UNWRITTEN),
    dV: new Float32Array(v.length).fill(UNWRITTEN),
    dMask:
      problem.maskKind === 'additive' && mask
        ? new Float32Array(mask.length).fill(UNWRITTEN)
        : null,
  };
  typescriptEngine.backward(problem, buffers);
  return buffers;
}

/**
 * Relative L1 to the reference, where each element counts as at least 0.1 large: with one key to attend to, dQ and dMask
 * are exactly 0, and what is left of them is rounding.
 */
function deviation(actual: ArrayLike<number>, expected: Float64Array): number {
  let difference = 0;
  let size = 0;
  for (let i = 0; i < expected.length; i++) {
    difference += Math.abs(actual[i]! - expected[i]!);
    size += Math.max(0.1, Math.abs(expected[i]!));
  }
  return difference === 0 ? 0 : difference / size;
}

function checkGradients(c: AttentionCase, withLse: boolean, bound: number): void {
  const inputs = makeInputs(c, 11);
  const problem = problemOf(c, recipeOf('exact'));
  const dO = makeOutputGradient(c, 11);
  const dLse = withLse ? makeLseGradient(c, 11) : null;
  const actual = differentiate(problem, inputs, dO, dLse);
  const {q, k, v, mask} = inputs;
  const expected = referenceGradients(problem, q, k, v, mask, dO, dLse);
  expect(deviation(actual.dQ, expected.dQ)).toBeLessThan(bound);
  expect(deviation(actual.dK, expected.dK)).toBeLessThan(bound);
  expect(deviation(actual.dV, expected.dV)).toBeLessThan(bound);
  if (actual.dMask) expect(deviation(actual.dMask, expected.dMask!)).toBeLessThan(bound);
}

describe.each(casesTagged('grad').map((c) => [c.name, c] as const))('%s', (_name, c) => {
  test('gradients of o', () => checkGradients(c, false, 2e-6));
  test('gradients of o and lse', () => checkGradients(c, true, 2e-6));
});

test('8-bit forward, exact backward: close to the exact gradients', () => {
  const c = casesTagged('grad').find((one) => one.name === 'N 300')!;
  const inputs = makeInputs(c, 12);
  const dO = makeOutputGradient(c, 12);
  const problem = problemOf(c, recipeOf('int8_bf16'));
  const actual = differentiate(problem, inputs, dO, null);
  const expected = referenceGradients(problem, inputs.q, inputs.k, inputs.v, null, dO);
  for (const name of ['dQ', 'dK', 'dV'] as const) {
    const error = relativeL1(actual[name], expected[name]);
    expect(error).toBeLessThan(0.05);
    expect(error).toBeGreaterThan(1e-5);
  }
});

describe('values that are not finite', () => {
  const c = casesTagged('grad').find((one) => one.name === 'top_left, N 129')!;
  const problem = problemOf(c, recipeOf('exact'));
  const dim = c.headDim;
  const rowOf = (values: Float32Array, row: number): Float32Array =>
    values.subarray(row * dim, (row + 1) * dim);
  const allFinite = (values: Float32Array): boolean => values.every((x) => Number.isFinite(x));

  test('in a query: its own dQ, and dK and dV of the keys that it attends to', () => {
    const inputs = makeInputs(c, 13);
    inputs.q[100 * dim + 3] = NaN;
    const {dQ, dK, dV} = differentiate(problem, inputs, makeOutputGradient(c, 13), null);
    expect(rowOf(dQ, 100).every((x) => Number.isNaN(x))).toBe(true);
    expect(allFinite(rowOf(dQ, 99))).toBe(true);
    expect(allFinite(rowOf(dQ, 101))).toBe(true);
    for (const gradient of [dK, dV]) {
      expect(rowOf(gradient, 100).every((x) => Number.isNaN(x))).toBe(true);
      expect(allFinite(rowOf(gradient, 101))).toBe(true);
    }
    // The second head holds no NaN.
    expect(allFinite(dQ.subarray(c.qLen * dim))).toBe(true);
  });

  test('in a key: queries before it keep finite gradients', () => {
    const inputs = makeInputs(c, 14);
    inputs.k[60 * dim] = Infinity;
    const {dQ} = differentiate(problem, inputs, makeOutputGradient(c, 14), null);
    expect(allFinite(dQ.subarray(0, 60 * dim))).toBe(true);
    expect(rowOf(dQ, 60).every((x) => Number.isNaN(x))).toBe(true);
  });

  test('in dO: rows and keys that have nothing to do with it stay finite', () => {
    const inputs = makeInputs(c, 15);
    const dO = makeOutputGradient(c, 15);
    dO[70 * dim + 1] = Infinity;
    const {dQ, dV} = differentiate(problem, inputs, dO, null);
    expect(allFinite(rowOf(dQ, 69))).toBe(true);
    expect(allFinite(rowOf(dQ, 71))).toBe(true);
    expect(rowOf(dQ, 70).some((x) => Number.isFinite(x))).toBe(false);
    expect(allFinite(rowOf(dV, 71))).toBe(true);
    expect(rowOf(dV, 70).some((x) => Number.isFinite(x))).toBe(false);
  });
});

test('inputs are not changed', () => {
  const c = casesTagged('grad').find((one) => one.name === 'NHD views')!;
  const inputs = makeInputs(c, 16);
  const dO = makeOutputGradient(c, 16);
  const before = structuredClone({...inputs, dO});
  const after = differentiate(problemOf(c, recipeOf('exact')), inputs, dO, null);
  expect(after.q).toEqual(before.q);
  expect(after.k).toEqual(before.k);
  expect(after.v).toEqual(before.v);
  expect(after.mask).toEqual(before.mask);
  expect(after.dO).toEqual(before.dO);
});
