/**
 * Random histories of SageKvCache, on every instruction set and in TypeScript, against plain arrays and the float64 reference.
 *
 *   SAGE_RANDOM_PROBLEMS=1000 SAGE_RANDOM_SEED=7 npx jest --selectProjects native --testPathPatterns random_caches
 */
import * as tf from '@tensorflow/tfjs-core';
import {CACHE_PRECISIONS} from '../../src/numerics/kv_cache.js';
import {configureSageAttention} from '../../src/runtime/config.js';
import {loadAddon} from '../../src/runtime/load_addon.js';
import {historyFailures} from '../cache/random_histories.js';
import type {CacheEngine} from '../cache/random_histories.js';
import {useBackend} from '../kernels/backends.js';
import {randomRun} from '../random_problems.js';

const {addon} = loadAddon();
if (addon === null) throw new Error('build/Release holds no addon: npm run build:native');
const engines: readonly CacheEngine[] = [
  {engine: 'typescript'},
  // AMX has no kernels for caches.
  ...addon
    .capabilities()
    .isa.available.filter((isa) => isa !== 'amx')
    .map((isa) => ({engine: 'native' as const, isa})),
];
const before = configureSageAttention({});
afterAll(() => configureSageAttention(before));
beforeAll(() => useBackend('cpu'));

const {count, seed} = randomRun(40);

test(`${count} histories of seed ${seed}`, () => {
  const tensors = tf.memory().numTensors;
  const numbers = Array.from({length: count}, (_, at) => at);
  const failures = numbers.flatMap((at) => historyFailures(engines, CACHE_PRECISIONS, seed, at));
  expect(failures).toEqual([]);
  expect(tf.memory().numTensors).toBe(tensors);
});
