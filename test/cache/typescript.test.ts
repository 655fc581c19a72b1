/** SageKvCache in TypeScript, on backends cpu and wasm. */
import * as tf from '@tensorflow/tfjs-core';
import {SageKvCache} from '../../src/cache/kv_cache.js';
import {configureSageAttention} from '../../src/runtime/config.js';
import {useBackend} from '../kernels/backends.js';
import {
  CACHE_CASES,
  attend,
  checkCache,
  makeCache,
  makeCacheInputs,
  appendTokens,
} from './kv_cache_checks.js';

const before = configureSageAttention({engine: 'typescript'});
afterAll(() => configureSageAttention(before));

describe('backend cpu', () => {
  beforeAll(() => useBackend('cpu'));
  checkCache();

  test('the engine is the one required', () => {
    expect(new SageKvCache({batch: 1, heads: 1, headDim: 8}).engine).toBe('typescript');
  });
});

describe('backend wasm', () => {
  const c = CACHE_CASES.find(({name}) => name === 'boolean mask')!;
  const inputs = makeCacheInputs(c);

  test('gives what backend cpu gives, on its own tensors', async () => {
    const results = [];
    for (const backend of ['cpu', 'wasm']) {
      await useBackend(backend);
      const cache = makeCache(c, 'int8');
      appendTokens(cache, c, inputs, 0, c.kvLen);
      results.push(attend(cache, c, inputs));
      const o = cache.attend(tf.ones([1, 4, 1, 64]));
      expect(o.add(o).shape).toEqual([1, 4, 1, 64]);
    }
    expect(results[1]).toEqual(results[0]);
  });
});
