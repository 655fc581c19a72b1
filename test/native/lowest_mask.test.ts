/** Rows whose every key has float32's lowest value in an additive mask: every instruction set, the TypeScript engine, caches. */
import {typescriptEngine} from '../../src/engines/typescript/typescript_engine.js';
import {CACHE_PRECISIONS} from '../../src/numerics/kv_cache.js';
import {PRECISIONS} from '../../src/numerics/recipes.js';
import {encodeProblem, PROBLEM_WORDS} from '../../src/problem.js';
import {configureSageAttention} from '../../src/runtime/config.js';
import {loadAddon} from '../../src/runtime/load_addon.js';
import {lowestMaskCacheFailures} from '../cache/lowest_mask.js';
import {recipeOf} from '../engines/typescript_checks.js';
import {useBackend} from '../kernels/backends.js';
import {lowestMaskFailures} from '../lowest_mask.js';

const {addon} = loadAddon();
if (addon === null) throw new Error('no native addon');
const isas = addon.capabilities().isa.available;

test.each(PRECISIONS)('%s', (precision) => {
  const recipe = recipeOf(precision);
  const bound = precision === 'exact' ? 1e-6 : 0.03;
  const failures = lowestMaskFailures(recipe, bound, (problem, inputs, o, lse) =>
    typescriptEngine.forward(problem, {...inputs, o, lse}),
  );
  for (const isa of isas) {
    addon.configure({isa, threads: 1});
    const found = lowestMaskFailures(recipe, bound, (problem, {q, k, v, mask}, o, lse) => {
      const words = encodeProblem(problem, new Float64Array(PROBLEM_WORDS));
      addon.forward(words, q, k, v, mask, o, lse);
    });
    failures.push(...found.map((failure) => `${isa}, ${failure}`));
  }
  expect(failures).toEqual([]);
});

describe('caches', () => {
  const before = configureSageAttention({});
  afterAll(() => configureSageAttention(before));
  beforeAll(() => useBackend('cpu'));

  test.each(CACHE_PRECISIONS)('%s', (precision) => {
    const native = isas.filter((isa) => isa !== 'amx').map((isa) => ({engine: 'native', isa}) as const);
    const failures = [{engine: 'typescript'} as const, ...native].flatMap((engine) =>
      lowestMaskCacheFailures(engine, precision),
    );
    expect(failures).toEqual([]);
  });
});
