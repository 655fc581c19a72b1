/**
 * Random problems through the native engine on every instruction set, and through the TypeScript engine, against float64:
 * outputs, lse, gradients, which of them are NaN, and that gaps between rows are neither read nor written.
 *
 *   SAGE_RANDOM_PROBLEMS=2000 SAGE_RANDOM_SEED=7 npx jest --selectProjects native --testPathPatterns random_problems
 */
import {typescriptEngine} from '../../src/engines/typescript/typescript_engine.js';
import {PRECISIONS} from '../../src/numerics/recipes.js';
import type {Precision} from '../../src/numerics/recipes.js';
import {referenceAttention, referenceGradients} from '../../src/numerics/reference.js';
import {encodeProblem, PROBLEM_WORDS} from '../../src/problem.js';
import type {AttentionProblem, TokenStrides} from '../../src/problem.js';
import {loadAddon} from '../../src/runtime/load_addon.js';
import type {NativeAddon} from '../../src/runtime/native_addon.js';
import {Random} from '../case_inputs.js';
import {recipeOf, UNWRITTEN} from '../engines/typescript_checks.js';
import {forEachElement, randomProblem, randomRun} from '../random_problems.js';

const {abs, max, sqrt} = Math;
const {isNaN} = Number;

const {addon: loaded, attempts} = loadAddon();
if (loaded === null) throw new Error(`no native addon: ${JSON.stringify(attempts)}`);
const addon: NativeAddon = loaded;
const isas = addon.capabilities().isa.available;
const {count, seed} = randomRun(40);
const numbers = Array.from({length: count}, (_, at) => at);
const problems = numbers.map((at) => randomProblem(seed, at));

/**
 * Largest error of an output over the largest value of v. Codes are equal: what is left is the rounding of P against
 * another maximum, which in rows with one large score makes the most of 417 keys 1.5e-3 for a step of 1/8192 (`int16`).
 */
const BOUNDS: Readonly<Record<Precision, number>> = {
  exact: 1e-6,
  int16: 3e-3,
  int8_int16: 3e-3,
  int8_bf16: 5e-3,
  int8_fp16: 5e-3,
  int8_fp8: 0.03,
  int8: 0.05,
  int4_fp8: 0.03,
  fp4: 0.03,
  fp4_fp8: 0.03,
};
/** Largest error of lse, and of exact gradients over the largest of them. */
const LSE_BOUND = 3e-4;
const GRADIENT_BOUND = 2e-5;
/** float32 carries 24 bits of a score, and of lse: what p = exp(score - lse) may be off, for scores of 1. */
const OF_SCORES = 2e-6;

function largest(x: Float32Array): number {
  let most = 0;
  for (const value of x) if (abs(value) < Infinity) most = max(most, abs(value));
  return most;
}

/** A bound of the scores' magnitude. */
function steepness(problem: AttentionProblem, q: Float32Array, k: Float32Array): number {
  return (abs(problem.scale) * largest(q) * largest(k) * problem.qkDim) / 4;
}

/** The largest difference, Infinity where only one of the two is NaN; and that what lies between elements kept UNWRITTEN. */
function difference(
  actual: Float32Array,
  expected: ArrayLike<number>,
  strides: TokenStrides,
  sizes: readonly [number, number, number, number],
): number {
  const rest = actual.slice();
  let most = 0;
  forEachElement(strides, sizes, (at) => {
    const x = actual[at]!;
    const y = expected[at]!;
    if (isNaN(x) !== isNaN(y)) most = Infinity;
    else if (!isNaN(x) && x !== y) most = max(most, abs(x - y));
    rest[at] = UNWRITTEN;
  });
  return rest.every((x) => x === UNWRITTEN) ? most : Infinity;
}

/** 'typescript', or an instruction set of the native engine. */
type Where = 'typescript' | (typeof isas)[number];
const everywhere: readonly Where[] = [...isas, 'typescript'];

/** The recipes that have kernels of their own on a CPU, and one of the others. */
function recipesFor(at: number): Precision[] {
  const tuned: Precision[] = ['exact', 'int16', 'int8_int16', 'int8_bf16', 'int8'];
  const others = PRECISIONS.filter((precision) => !tuned.includes(precision));
  return [...tuned, others[at % others.length]!];
}

describe(`${count} problems of seed ${seed}`, () => {
  test.each(everywhere)('o and lse, %s', (where) => {
    const failures: string[] = [];
    for (const at of numbers) {
      const random = problems[at]!;
      const {q, k, v, mask} = random.inputs;
      const precisions = recipesFor(at);
      const steep = OF_SCORES * steepness(random.problem(recipeOf('exact')), q, k);
      const vMost = largest(v);
      for (const precision of where === 'typescript' ? [precisions[at % 6]!] : precisions) {
        const problem = random.problem(recipeOf(precision));
        const {batch, qHeads, qLen, vDim, wantLse} = problem;
        const expected = referenceOf(at, problem, random.inputs);
        const o = new Float32Array(random.oLength).fill(UNWRITTEN);
        const lse = new Float32Array(batch * qHeads * qLen).fill(UNWRITTEN);
        if (where === 'typescript') {
          typescriptEngine.forward(problem, {q, k, v, mask, o, lse: wantLse ? lse : null});
        } else {
          addon.configure({isa: where, threads: 1 + (at % 3)});
          addon.forward(encodeProblem(problem, new Float64Array(PROBLEM_WORDS)), q, k, v, mask, o, lse);
        }
        const error = difference(o, expected.o, problem.o, [batch, qHeads, qLen, vDim]);
        const bound = (BOUNDS[precision] + steep) * vMost;
        if (!(error <= bound)) failures.push(`${precision}, o ${error}, allowed ${bound}: ${random.name}`);
        const rows = {batch: qHeads * qLen, head: qLen, token: 1};
        const wanted = wantLse ? expected.lse : lse.slice().fill(UNWRITTEN);
        const off = difference(lse, wanted, rows, [batch, qHeads, qLen, 1]);
        if (!(off <= LSE_BOUND + steep)) failures.push(`${precision}, lse ${off}: ${random.name}`);
      }
    }
    expect(failures).toEqual([]);
  });

  test.each(everywhere)('gradients, %s', (where) => {
    const failures: string[] = [];
    for (const at of numbers) {
      const random = randomProblem(seed + 1, at);
      if (random.notFinite) continue;
      const problem = {...random.problem(recipeOf('exact')), wantLse: true};
      const {batch, qHeads, kvHeads, qLen, kvLen, qkDim, vDim} = problem;
      const {q, k, v, mask} = random.inputs;
      const normal = new Random(at);
      const dO = new Float32Array(random.oLength).fill(NaN);
      forEachElement(problem.o, [batch, qHeads, qLen, vDim], (n) => (dO[n] = normal.normal()));
      const rows = batch * qHeads * qLen;
      const dLse = at % 2 === 1 ? new Float32Array(rows).map(() => normal.normal()) : null;
      const unwritten = (like: {length: number}) => new Float32Array(like.length).fill(UNWRITTEN);
      const trained = problem.maskKind === 'additive' && at % 3 > 0;
      const [o, lse] = [unwritten(dO), new Float32Array(rows)];
      const [dQ, dK, dV] = [unwritten(q), unwritten(k), unwritten(v)];
      const dMask = trained ? unwritten(mask!) : null;
      if (where === 'typescript') {
        const buffers = {q, k, v, mask, o, lse};
        typescriptEngine.forward(problem, buffers);
        typescriptEngine.backward(problem, {...buffers, dO, dLse, dQ, dK, dV, dMask});
      } else {
        addon.configure({isa: where, threads: 1 + (at % 3)});
        const words = encodeProblem(problem, new Float64Array(PROBLEM_WORDS));
        addon.forward(words, q, k, v, mask, o, lse);
        addon.backward(words, q, k, v, mask, o, lse, dO, dLse, dQ, dK, dV, dMask);
      }
      const expected = referenceGradients(problem, q, k, v, mask, dO, dLse);
      // What one term may be: a gradient whose terms cancel is rounding.
      const dP = 3 * (1 + sqrt(vDim) * largest(v));
      const scale = abs(problem.scale);
      const steep = OF_SCORES * steepness(problem, q, k);
      const check = (name: string, error: number, wanted: Float64Array, term: number): void => {
        const size = wanted.reduce((most, x) => max(most, abs(x)), term);
        if (error <= (GRADIENT_BOUND + steep) * size) return;
        failures.push(`${name} ${error} of ${size}: ${random.name}`);
      };
      const heads = (n: number, tokens: number, dim: number) => [batch, n, tokens, dim] as const;
      check(
        'dQ',
        difference(dQ, expected.dQ, problem.q, heads(qHeads, qLen, qkDim)),
        expected.dQ,
        scale * dP * largest(k),
      );
      check(
        'dK',
        difference(dK, expected.dK, problem.k, heads(kvHeads, kvLen, qkDim)),
        expected.dK,
        scale * dP * largest(q),
      );
      check('dV', difference(dV, expected.dV, problem.v, heads(kvHeads, kvLen, vDim)), expected.dV, 1);
      if (dMask !== null) {
        const flat = {batch: 0, head: 0, token: 0};
        const error = difference(dMask, expected.dMask!, flat, [1, 1, 1, dMask.length]);
        check('dMask', error, expected.dMask!, dP);
      }
    }
    expect(failures).toEqual([]);
  });
});

/** Answers are the same for every instruction set. */
const answers = new Map<string, ReturnType<typeof referenceAttention>>();
function referenceOf(
  at: number,
  problem: AttentionProblem,
  {q, k, v, mask}: ReturnType<typeof randomProblem>['inputs'],
): ReturnType<typeof referenceAttention> {
  const key = `${at} ${problem.recipe.precision}`;
  const known = answers.get(key) ?? referenceAttention(problem, q, k, v, mask);
  answers.set(key, known);
  return known;
}
