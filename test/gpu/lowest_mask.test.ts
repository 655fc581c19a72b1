/** Rows whose every key has float32's lowest value in an additive mask, through the CUDA kernels. Skipped without a GPU. */
import {cudaEngine} from '../../src/engines/cuda';
import {configureSageAttention} from '../../src/index';
import {PRECISIONS} from '../../src/numerics/recipes';
import {encodeProblem, PROBLEM_WORDS} from '../../src/problem';
import {loadAddon} from '../../src/runtime/load_addon';
import {lowestMaskCacheFailures} from '../cache/lowest_mask';
import {recipeOf} from '../engines/typescript_checks';
import {useBackend} from '../kernels/backends';
import {lowestMaskFailures} from '../lowest_mask';

const {engine, reason} = cudaEngine();
const {addon} = loadAddon();

if (engine === null || addon === null) {
  test.skip(`no GPU here: ${reason}`, () => undefined);
} else {
  const computed = PRECISIONS.filter((name) => engine.supports(name));

  test.each(computed)('%s', (precision) => {
    const bound = precision === 'exact' ? 1e-6 : 0.04;
    const forward: Parameters<typeof lowestMaskFailures>[2] = (
      problem,
      {q, k, v, mask},
      o,
      lse,
    ) => {
      const words = encodeProblem(problem, new Float64Array(PROBLEM_WORDS));
      addon.cudaForward(words, q, k, v, mask, o, lse);
    };
    expect(lowestMaskFailures(recipeOf(precision), bound, forward)).toEqual([]);
  });

  test('caches', async () => {
    await useBackend('cpu');
    const before = configureSageAttention({});
    expect(lowestMaskCacheFailures({engine: 'cuda'}, 'int8')).toEqual([]);
    configureSageAttention(before);
  });
}
