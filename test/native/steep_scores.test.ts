/**
 * Scores far beyond what a trained model has: rows attend to one key, whose v is the answer, and their lse is its score.
 * The native engine on every instruction set, and its caches, where 2^(s c - m) has to stay at most 1 although m is rounded.
 */
import * as tf from '@tensorflow/tfjs-core';
import {SageKvCache} from '../../src/cache/kv_cache.js';
import {CACHE_PRECISIONS} from '../../src/numerics/kv_cache.js';
import {PRECISIONS} from '../../src/numerics/recipes.js';
import {referenceAttention} from '../../src/numerics/reference.js';
import {encodeProblem, PROBLEM_WORDS} from '../../src/problem.js';
import {configureSageAttention} from '../../src/runtime/config.js';
import {loadAddon} from '../../src/runtime/load_addon.js';
import {recipeOf} from '../engines/typescript_checks.js';
import {CASES, makeInputs, problemOf, Random} from '../cases.js';
import {useBackend} from '../kernels/backends.js';

const {abs, max} = Math;

const {addon} = loadAddon();
if (addon === null) throw new Error('no native addon');
const isas = addon.capabilities().isa.available;

/** Of q and of k: the largest scores are some 4e3 to 4e20. */
const GAINS = [30, 300, 1e3, 1e4, 1e5, 1e10];
/** o is v with the error of its code, and where two scores lie close together some of another: not another v. */
const O_BOUND = 0.3;
const LSE_BOUND = 1e-5;

const gained = (x: Float32Array, gain: number): Float32Array => x.map((value) => value * gain);

/** Where values differ by more than the bound; NaN does. */
function differing(actual: ArrayLike<number>, expected: ArrayLike<number>, bound: (y: number) => number): number {
  let count = 0;
  for (let i = 0; i < expected.length; i++) {
    const x = actual[i]!;
    const y = expected[i]!;
    // Equal: -Infinity as well, of rows that attend to nothing.
    if (x !== y && !(abs(x - y) <= bound(y))) count++;
  }
  return count;
}

describe.each(isas)('%s', (isa) => {
  test.each([
    'N 300',
    'top_left, N 300',
    'boolean mask, empty rows',
    'additive mask, causal, grouped heads',
  ])('%s', (name) => {
    addon.configure({isa, threads: 1});
    const c = {...CASES.find((one) => one.name === name)!, wantLse: true};
    const inputs = makeInputs(c, 3);
    const failures: string[] = [];
    for (const precision of PRECISIONS) {
      const problem = problemOf(c, recipeOf(precision));
      const words = encodeProblem(problem, new Float64Array(PROBLEM_WORDS));
      for (const gain of GAINS) {
        const [q, k] = [gained(inputs.q, gain), gained(inputs.k, gain)];
        const expected = referenceAttention(problem, q, k, inputs.v, inputs.mask);
        const o = new Float32Array(expected.o.length);
        const lse = new Float32Array(expected.lse.length);
        addon.forward(words, q, k, inputs.v, inputs.mask, o, lse);
        const wrong = differing(o, expected.o, () => O_BOUND);
        const off = differing(lse, expected.lse, (y) => LSE_BOUND * max(1, abs(y)));
        if (wrong + off > 0) failures.push(`${precision}, gain ${gain}: o ${wrong}, lse ${off}`);
      }
    }
    expect(failures).toEqual([]);
  });
});

describe('caches', () => {
  const before = configureSageAttention({});
  afterAll(() => configureSageAttention(before));
  beforeAll(() => useBackend('cpu'));

  test.each(CACHE_PRECISIONS)('%s', (precision) => {
    const failures: string[] = [];
    for (const qLen of [1, 3, 20]) {
      for (const gain of GAINS) {
        const random = new Random(qLen);
        const normal = (n: number, by: number) =>
          tf.tensor(
            new Float32Array(2 * n * 64).map(() => by * random.normal()),
            [1, 2, n, 64],
          );
        const [q, k, v] = [normal(qLen, gain), normal(200, gain), normal(200, 1)];
        const answer = (): Float32Array => {
          const cache = new SageKvCache({batch: 1, heads: 2, headDim: 64, precision});
          const o = cache.append(k, v).attend(q);
          cache.dispose();
          return o.dataSync().slice() as Float32Array;
        };
        configureSageAttention({engine: 'typescript'});
        const expected = answer();
        for (const isa of isas.filter((one) => one !== 'amx')) {
          configureSageAttention({engine: 'native', isa});
          const wrong = differing(answer(), expected, () => 0.01);
          if (wrong > 0) failures.push(`${isa}, ${qLen} queries, gain ${gain}: ${wrong}`);
        }
      }
    }
    expect(failures).toEqual([]);
  });
});
