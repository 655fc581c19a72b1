/**
 * Random histories of SageKvCache in the memory of a GPU, as test/native/random_caches.test.ts runs them on the CPU. Skipped
 * without a GPU; the title tells why.
 *
 *   SAGE_RANDOM_PROBLEMS=300 SAGE_RANDOM_SEED=7 npm run test:gpu
 */
import * as tf from '@tensorflow/tfjs-core';
import {cudaEngine, lastCudaRefusal} from '../../src/engines/cuda';
import {configureSageAttention, releaseCudaMemory} from '../../src/index';
import {loadAddon} from '../../src/runtime/load_addon';
import {historyFailures} from '../cache/random_histories';
import {useBackend} from '../kernels/backends';
import {randomRun} from '../random_problems';

const {engine, reason} = cudaEngine();
const {addon} = loadAddon();
const {count, seed} = randomRun(60);

if (engine === null || addon === null) {
  test.skip(`no GPU here: ${reason}`, () => undefined);
} else {
  const before = configureSageAttention({});
  beforeAll(() => useBackend('cpu'));
  afterAll(() => {
    configureSageAttention(before);
    releaseCudaMemory();
    expect(addon.cudaState().deviceBytes).toBe(0);
  });

  test(`${count} histories of seed ${seed}`, () => {
    const tensors = tf.memory().numTensors;
    const numbers = Array.from({length: count}, (_, at) => at);
    const run = (at: number) => historyFailures([{engine: 'cuda'}], ['int8'], seed, at);
    expect(numbers.flatMap(run)).toEqual([]);
    expect(lastCudaRefusal()).toBeNull();
    expect(tf.memory().numTensors).toBe(tensors);
  }, 3_600_000);
}
