/**
 * Random problems through the CUDA kernels, against float64, as test/native/random_problems.test.ts does for the CPU: every
 * recipe that the device computes, tuned and published, and gradients. Skipped without a GPU; the title tells why.
 *
 *   SAGE_RANDOM_PROBLEMS=300 SAGE_RANDOM_SEED=7 npm run test:gpu
 */
import {cudaEngine} from '../../src/engines/cuda';
import {PRECISIONS, isRefusal, resolveRecipe} from '../../src/numerics/recipes';
import type {Precision, Recipe} from '../../src/numerics/recipes';
import {encodeProblem, PROBLEM_WORDS} from '../../src/problem';
import type {AttentionProblem} from '../../src/problem';
import {loadAddon} from '../../src/runtime/load_addon';
import {recipeOf} from '../engines/typescript_checks';
import {checkRandomForward, checkRandomGradients} from '../random_checks';
import type {Allowance} from '../random_checks';
import {randomProblem, randomRun} from '../random_problems';

const {engine, reason} = cudaEngine();
const {addon} = loadAddon();
const {count, seed} = randomRun(60);
const numbers = Array.from({length: count}, (_, at) => at);

/** As on the CPU, but P is rounded against a maximum that lags behind. */
const INT8: Allowance = {o: 0.01, lse: 3e-4};
/** A row that attends to one key may have 15/16 or 17/16 of its P: e4m3 has three bits after the first. */
const E4M3: Allowance = {o: 0.04, lse: 3e-4, otherNeighbour: 0.08};
/**
 * Means of q and k' are multiplied in fp16, which loses up to 2^-11 of each product, and a p between two codes may take the
 * other: from 4 to 6, of a row sum of 11 at least, it moves the row by 2/11 of a v less its mean.
 */
const NVFP4: Allowance = {
  o: 0.04,
  lse: 3e-4,
  ofScores: {lse: 1000, o: 50},
  otherNeighbour: 0.2,
};
const ALLOWANCES: Readonly<Partial<Record<Precision, Allowance>>> = {
  exact: {o: 1e-6, lse: 3e-4},
  int8_fp16: INT8,
  int8_fp8: E4M3,
  int4_fp8: E4M3,
  fp4: NVFP4,
  fp4_fp8: {...NVFP4, otherNeighbour: 0.08},
};

if (engine === null || addon === null) {
  test.skip(`no GPU here: ${reason}`, () => undefined);
} else {
  const wordsOf = (problem: AttentionProblem) =>
    encodeProblem(problem, new Float64Array(PROBLEM_WORDS));
  const recipes = PRECISIONS.filter((name) => engine.supports(name)).flatMap((precision) =>
    (['tuned', 'paper'] as const).flatMap((variant): (readonly [string, Recipe])[] => {
      const recipe = resolveRecipe(precision, {variant});
      return isRefusal(recipe) ? [] : [[`${precision}, ${variant}`, recipe]];
    }),
  );

  describe(`${count} problems of seed ${seed}`, () => {
    test.each(recipes)(
      '%s',
      (_name, recipe) => {
        const allowance = ALLOWANCES[recipe.precision];
        if (allowance === undefined) throw new Error(`no allowance for ${recipe.precision}`);
        const failures: string[] = [];
        let computed = 0;
        for (const at of numbers) {
          const random = randomProblem(seed, at);
          const {q, k, v, mask} = random.inputs;
          if (addon.cudaHostSupports(wordsOf(random.problem(recipe))) !== null) continue;
          computed += 1;
          const found = checkRandomForward(random, recipe, allowance, (problem, o, lse) =>
            addon.cudaForward(wordsOf(problem), q, k, v, mask, o, problem.wantLse ? lse : null),
          );
          failures.push(...found);
        }
        expect(failures).toEqual([]);
        expect(computed).toBeGreaterThan(count / 2);
      },
      3_600_000,
    );

    test('gradients', () => {
      const failures: string[] = [];
      for (const at of numbers) {
        const random = randomProblem(seed + 1, at);
        if (random.notFinite) continue;
        if (addon.cudaHostSupports(wordsOf(random.problem(recipeOf('exact')))) !== null) continue;
        const {q, k, v, mask} = random.inputs;
        const found = checkRandomGradients(random, at, (problem, buffers) => {
          const {o, lse, dO, dLse, dQ, dK, dV, dMask} = buffers;
          const words = wordsOf(problem);
          addon.cudaForward(words, q, k, v, mask, o, lse);
          addon.cudaBackward(words, q, k, v, mask, o, lse, dO, dLse, dQ, dK, dV, dMask);
        });
        failures.push(...found);
      }
      expect(failures).toEqual([]);
    }, 3_600_000);
  });
}
