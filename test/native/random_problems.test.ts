/**
 * Random problems through the native engine on every instruction set, and through the TypeScript engine, against float64:
 * outputs, lse, gradients, which of them are NaN, and that gaps between rows are neither read nor written.
 *
 *   SAGE_RANDOM_PROBLEMS=2000 SAGE_RANDOM_SEED=7 npx jest --selectProjects native --testPathPatterns random_problems
 */
import {typescriptEngine} from '../../src/engines/typescript/typescript_engine.js';
import {PRECISIONS} from '../../src/numerics/recipes.js';
import type {Precision} from '../../src/numerics/recipes.js';
import {referenceAttention} from '../../src/numerics/reference.js';
import type {AttentionResult} from '../../src/numerics/reference.js';
import {encodeProblem, PROBLEM_WORDS} from '../../src/problem.js';
import {loadAddon} from '../../src/runtime/load_addon.js';
import type {NativeAddon} from '../../src/runtime/native_addon.js';
import {recipeOf} from '../engines/typescript_checks.js';
import {checkRandomForward, checkRandomGradients} from '../random_checks.js';
import {randomProblem, randomRun} from '../random_problems.js';

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
/** Largest error of lse. */
const LSE_BOUND = 3e-4;

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
      for (const precision of where === 'typescript' ? [precisions[at % 6]!] : precisions) {
        const found = checkRandomForward(
          random,
          recipeOf(precision),
          {o: BOUNDS[precision], lse: LSE_BOUND},
          (problem, o, lse) => {
            if (where === 'typescript') {
              const lseOrNone = problem.wantLse ? lse : null;
              typescriptEngine.forward(problem, {q, k, v, mask, o, lse: lseOrNone});
              return;
            }
            addon.configure({isa: where, threads: 1 + (at % 3)});
            const words = encodeProblem(problem, new Float64Array(PROBLEM_WORDS));
            addon.forward(words, q, k, v, mask, o, lse);
          },
          referenceOf(at, precision),
        );
        failures.push(...found);
      }
    }
    expect(failures).toEqual([]);
  });

  test.each(everywhere)('gradients, %s', (where) => {
    const failures: string[] = [];
    for (const at of numbers) {
      const random = randomProblem(seed + 1, at);
      if (random.notFinite) continue;
      const {q, k, v, mask} = random.inputs;
      const found = checkRandomGradients(random, at, (problem, buffers) => {
        const {o, lse, dO, dLse, dQ, dK, dV, dMask} = buffers;
        if (where === 'typescript') {
          typescriptEngine.forward(problem, {q, k, v, mask, o, lse});
          typescriptEngine.backward(problem, {q, k, v, mask, ...buffers});
          return;
        }
        addon.configure({isa: where, threads: 1 + (at % 3)});
        const words = encodeProblem(problem, new Float64Array(PROBLEM_WORDS));
        addon.forward(words, q, k, v, mask, o, lse);
        addon.backward(words, q, k, v, mask, o, lse, dO, dLse, dQ, dK, dV, dMask);
      });
      failures.push(...found);
    }
    expect(failures).toEqual([]);
  });
});

/** Answers are the same for every instruction set. */
const answers = new Map<string, AttentionResult>();
function referenceOf(at: number, precision: Precision): AttentionResult {
  const key = `${at} ${precision}`;
  const {q, k, v, mask} = problems[at]!.inputs;
  const problem = problems[at]!.problem(recipeOf(precision));
  const known = answers.get(key) ?? referenceAttention(problem, q, k, v, mask);
  answers.set(key, known);
  return known;
}
