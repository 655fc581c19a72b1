/**
 * The native backward pass after the native forward pass, on every instruction set that this machine runs: every gradient
 * case of the table against float64 gradients. (csrc/test/backward_test.cc checks the pass alone, on more shapes.)
 */
import {isRefusal, resolveRecipe} from '../../src/numerics/recipes.js';
import type {Precision, Recipe} from '../../src/numerics/recipes.js';
import {referenceGradients} from '../../src/numerics/reference.js';
import type {ReferenceGradients} from '../../src/numerics/reference.js';
import {encodeProblem, PROBLEM_WORDS} from '../../src/problem.js';
import type {AttentionProblem} from '../../src/problem.js';
import {loadAddon} from '../../src/runtime/load_addon.js';
import type {NativeAddon} from '../../src/runtime/native_addon.js';
import {casesTagged, makeInputs, makeLseGradient, makeOutputGradient, problemOf} from '../cases.js';
import type {CaseInputs} from '../cases.js';

const {addon: loaded, attempts} = loadAddon();
if (loaded === null) throw new Error(`no native addon: ${JSON.stringify(attempts)}`);
const addon: NativeAddon = loaded;
const isas = addon.capabilities().isa.available.filter((isa) => isa !== 'amx');

/** Relative L1 that exact float32 gradients must keep. */
const BOUND = 1e-5;
/** Filled into gradients before a call: what is not written stands out. */
const UNWRITTEN = 1234.5;

interface Gradients {
  readonly dQ: Float32Array;
  readonly dK: Float32Array;
  readonly dV: Float32Array;
  readonly dMask: Float32Array | null;
}

function recipeOf(precision: Precision): Recipe {
  const recipe = resolveRecipe(precision, {});
  if (isRefusal(recipe)) throw new Error(JSON.stringify(recipe));
  return recipe;
}

function differentiate(
  problem: AttentionProblem,
  {q, k, v, mask}: CaseInputs,
  dO: Float32Array,
  dLse: Float32Array | null,
): Gradients {
  const rows = problem.batch * problem.qHeads * problem.qLen;
  const o = new Float32Array(rows * problem.vDim);
  const lse = new Float32Array(rows);
  const words = encodeProblem({...problem, wantLse: true}, new Float64Array(PROBLEM_WORDS));
  addon.forward(words, q, k, v, mask, o, lse);
  const dQ = new Float32Array(q.length).fill(UNWRITTEN);
  const dK = new Float32Array(k.length).fill(UNWRITTEN);
  const dV = new Float32Array(v.length).fill(UNWRITTEN);
  const additive = problem.maskKind === 'additive' && mask !== null;
  const dMask = additive ? new Float32Array(mask.length).fill(UNWRITTEN) : null;
  addon.backward(words, q, k, v, mask, o, lse, dO, dLse, dQ, dK, dV, dMask);
  return {dQ, dK, dV, dMask};
}

/**
 * Relative L1 to the reference, where each element counts as at least 0.05 large, times the root of how many terms it
 * sums: rows of dS cancel to dLse (to 0 without one), and what is left of dQ with one key, or of dMask with one element,
 * is rounding.
 */
function deviation(actual: Float32Array, expected: Float64Array, terms = 1): number {
  let difference = 0;
  let size = 0;
  for (let i = 0; i < expected.length; i++) {
    difference += Math.abs(actual[i]! - expected[i]!);
    size += Math.max(0.05 * Math.sqrt(terms), Math.abs(expected[i]!));
  }
  return difference === 0 ? 0 : difference / size;
}

function sameBits(a: Float32Array, b: Float32Array): boolean {
  return Buffer.from(a.buffer).equals(Buffer.from(b.buffer));
}

const GRAD = casesTagged('grad');
interface Prepared {
  readonly name: string;
  readonly problem: AttentionProblem;
  readonly inputs: CaseInputs;
  readonly dO: Float32Array;
  readonly dLse: Float32Array | null;
  readonly expected: ReferenceGradients;
}

/** Every second case has a gradient of lse. */
const prepared: Prepared[] = GRAD.map((c, at) => {
  const problem = problemOf(c, recipeOf('exact'));
  const inputs = makeInputs(c, 21);
  const dO = makeOutputGradient(c, 21);
  const dLse = at % 2 === 0 ? makeLseGradient(c, 21) : null;
  const {q, k, v, mask} = inputs;
  const expected = referenceGradients(problem, q, k, v, mask, dO, dLse);
  return {name: c.name, problem, inputs, dO, dLse, expected};
});
const long = prepared.find(({name}) => name === 'N 300')!;

function failuresOf({name, problem, inputs, dO, dLse, expected}: Prepared): string[] {
  const {dQ, dK, dV, dMask} = differentiate(problem, inputs, dO, dLse);
  const {batch, qHeads, qLen, kvLen} = problem;
  const errors = {
    dQ: deviation(dQ, expected.dQ),
    dK: deviation(dK, expected.dK),
    dV: deviation(dV, expected.dV),
    dMask:
      dMask === null
        ? 0
        : deviation(dMask, expected.dMask!, (batch * qHeads * qLen * kvLen) / dMask.length),
  };
  return Object.entries(errors)
    .filter(([, error]) => !(error <= BOUND))
    .map(([gradient, error]) => `${name}: ${gradient} ${error}`);
}

describe.each(isas)('%s', (isa) => {
  test.each([1, 2])('every gradient case, %d threads', (threads) => {
    addon.configure({isa, threads});
    expect(prepared.flatMap(failuresOf)).toEqual([]);
  });

  test('the same thread count gives the same bits', () => {
    addon.configure({isa, threads: 2});
    const {problem, inputs, dO, dLse} = long;
    const first = differentiate(problem, inputs, dO, dLse);
    for (let repeat = 0; repeat < 5; repeat++) {
      const again = differentiate(problem, inputs, dO, dLse);
      for (const name of ['dQ', 'dK', 'dV'] as const) {
        expect(sameBits(again[name], first[name])).toBe(true);
      }
    }
  });

  test('8-bit forward, exact backward: close to the exact gradients', () => {
    addon.configure({isa, threads: 1});
    const {problem, inputs, dO, dLse, expected} = long;
    const actual = differentiate({...problem, recipe: recipeOf('int8')}, inputs, dO, dLse);
    for (const name of ['dQ', 'dK', 'dV'] as const) {
      expect(deviation(actual[name], expected[name])).toBeLessThan(0.05);
      expect(deviation(actual[name], expected[name])).toBeGreaterThan(BOUND);
    }
  });

  test('what is not finite reaches the rows that see it, and no other', () => {
    addon.configure({isa, threads: 1});
    const c = GRAD.find(({name}) => name === 'top_left, N 129')!;
    const problem = problemOf(c, recipeOf('exact'));
    const dim = c.headDim;
    const bad = 60;
    const row = (x: Float32Array, i: number): Float32Array => x.subarray(i * dim, (i + 1) * dim);
    const finite = (x: Float32Array): boolean => x.every((value) => Number.isFinite(value));
    const none = (x: Float32Array): boolean => !x.some((value) => Number.isFinite(value));
    for (const name of ['q', 'k', 'v', 'dO'] as const) {
      const inputs = makeInputs(c, 22);
      const dO = makeOutputGradient(c, 22);
      const poisoned = name === 'dO' ? dO : inputs[name];
      poisoned[bad * dim + 1] = NaN;
      poisoned[bad * dim + 2] = Infinity;
      const {dQ, dK, dV} = differentiate(problem, inputs, dO, null);
      // Queries before the bad token never see it; those after it see a bad key or value, but no bad query.
      expect(finite(dQ.subarray(0, bad * dim))).toBe(true);
      expect(none(row(dQ, bad))).toBe(true);
      expect(finite(row(dQ, bad + 1))).toBe(name === 'q' || name === 'dO');
      // Keys after a bad query are not seen by it; all keys before are.
      expect(none(row(dK, bad))).toBe(true);
      if (name === 'q' || name === 'dO') {
        expect(finite(dK.subarray((bad + 1) * dim, c.kvLen * dim))).toBe(true);
        expect(finite(dV.subarray((bad + 1) * dim, c.kvLen * dim))).toBe(true);
        expect(row(dV, bad)[1]).toBeNaN();
      }
      // The second head holds nothing of it.
      expect(finite(dQ.subarray(c.qLen * dim))).toBe(true);
    }
  });
});
