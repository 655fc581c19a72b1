/**
 * SageKvCache in the memory of a GPU, for arrays of backends `cpu` and `wasm`: the checks that every engine passes, codes
 * of the CPU's cache bit for bit, memory, and what happens when there is none left. Without a GPU the tests are skipped
 * and their title tells why.
 */
import * as tf from '@tensorflow/tfjs-core';
import {Worker} from 'node:worker_threads';
import {cudaEngine, lastCudaRefusal} from '../../src/engines/cuda';
import {configureSageAttention, releaseCudaMemory, SageKvCache} from '../../src/index';
import {loadAddon} from '../../src/runtime/load_addon';
import {
  appendTokens,
  attend,
  CACHE_CASES,
  checkCache,
  makeCache,
  makeCacheInputs,
  type CacheCase,
} from '../cache/kv_cache_checks';
import {useBackend} from '../kernels/backends';

const {engine, reason} = cudaEngine();
const loaded = loadAddon();
const {addon} = loaded;

if (engine === null || addon === null) {
  test.skip(`no GPU here: ${reason}`, () => undefined);
} else {
  const long: CacheCase = {
    name: 'long',
    batch: 2,
    heads: 8,
    kvHeads: 2,
    qLen: 2,
    kvLen: 5000,
    headDim: 128,
    valueDim: 128,
  };
  const inputs = makeCacheInputs(long);
  const filled = (tokens = long.kvLen): SageKvCache => {
    const cache = makeCache(long, 'int8');
    appendTokens(cache, long, inputs, 0, tokens);
    return cache;
  };

  const before = configureSageAttention({engine: 'cuda'});
  beforeAll(() => useBackend('cpu'));
  afterAll(() => {
    configureSageAttention(before);
    releaseCudaMemory();
  });

  describe.each(['cpu', 'wasm'])('backend %s', (backend) => {
    beforeAll(() => useBackend(backend));
    checkCache();

    test('all of it was computed on the GPU', () => {
      expect(lastCudaRefusal()).toBeNull();
      const cache = makeCache(CACHE_CASES[0]!, 'int8');
      expect(cache.engine).toBe('cuda');
      expect(cache.engineReason).toMatch(/^in the memory of CUDA device .*, as configured$/);
      cache.dispose();
    });
  });

  test.each([
    ['int16', 64, /not on a GPU: .*int8 codes only/],
    ['int8', 300, /not on a GPU: .*head_dim of 1 to 256/],
  ] as const)('%s with head_dim %i is held by the CPU, and why', (precision, headDim, why) => {
    const cache = new SageKvCache({batch: 1, heads: 2, headDim, precision});
    expect([cache.engine, cache.engineReason]).toEqual(['native', expect.stringMatching(why)]);
    cache.dispose();
  });

  test('codes, scales and means are those of the CPU, also once they have moved there', () => {
    for (const c of [...CACHE_CASES, long]) {
      const {k, v} = makeCacheInputs(c);
      const sizes = [c.batch, c.kvHeads, c.headDim, c.valueDim, 1, 0] as const;
      const cpu = addon.cacheCreate(...sizes);
      const gpu = addon.cudaCacheCreate(...sizes);
      addon.cacheAppend(cpu, k, v, c.kvLen);
      addon.cudaCacheAppend(gpu, k, v, c.kvLen);
      const moved = addon.cudaCacheToHost(gpu);
      for (let head = 0; head < c.batch * c.kvHeads; head++) {
        const codes = [0, 1, 2].map(() => ({
          k: new Int16Array(c.kvLen * c.headDim),
          kScale: new Float32Array(c.kvLen),
          mean: new Float32Array(c.headDim),
          v: new Int16Array(c.kvLen * c.valueDim),
          vScale: new Float32Array(c.kvLen),
        }));
        const at = [Math.floor(head / c.kvHeads), head % c.kvHeads] as const;
        codes.forEach((x, n) => {
          const arrays = [x.k, x.kScale, x.mean, x.v, x.vScale] as const;
          if (n === 0) addon.cacheInspect(cpu, ...at, ...arrays);
          if (n === 1) addon.cudaCacheInspect(gpu, ...at, ...arrays);
          if (n === 2) addon.cacheInspect(moved, ...at, ...arrays);
        });
        // The scale of a key with a value that is not finite is read by nobody.
        codes[0]!.kScale.forEach((_, n) => {
          if (!Number.isNaN(codes[1]!.kScale[n])) return;
          for (const x of codes) x.kScale[n] = 0;
        });
        expect(codes[1]).toEqual(codes[0]);
        expect(codes[2]).toEqual(codes[0]);
      }
      addon.cudaCacheDispose(gpu);
    }
  });

  test('dispose frees what a cache held, forks share it', () => {
    releaseCudaMemory();
    const idle = addon.cudaState().deviceBytes;
    const cache = filled();
    const held = addon.cudaState().deviceBytes - idle;
    // Two heads in two sequences: 5,000 tokens of 264 bytes.
    expect(cache.bytes).toBeGreaterThan(4 * 5000 * 264);
    expect(held).toBeGreaterThanOrEqual(cache.bytes);
    const forks = Array.from({length: 5}, () => cache.fork());
    expect(addon.cudaState().deviceBytes - idle).toBe(held);
    cache.dispose();
    releaseCudaMemory();
    expect(addon.cudaState().deviceBytes).toBeGreaterThan(idle);
    for (const fork of forks) fork.dispose();
    releaseCudaMemory();
    expect(addon.cudaState().deviceBytes).toBe(idle);
  });

  test('without room it moves to the CPU with its tokens, and says so', () => {
    const whole = filled();
    const wanted = attend(whole, long, inputs);
    whole.dispose();
    releaseCudaMemory();
    const cache = filled(2000);
    expect(cache.engine).toBe('cuda');
    const limit = configureSageAttention({cudaMemory: 1});
    appendTokens(cache, long, inputs, 2000, 5000);
    configureSageAttention(limit);
    expect([cache.engine, cache.length]).toEqual(['native', 5000]);
    expect(cache.engineReason).toMatch(/moved there from the GPU: .*memory/);
    const {o} = attend(cache, long, inputs);
    // The frozen mean is another one: the first append was shorter.
    const error = o.reduce((sum, x, n) => sum + Math.abs(x - wanted.o[n]!), 0);
    const size = wanted.o.reduce((sum, x) => sum + Math.abs(x), 0);
    expect(error / size).toBeLessThan(0.02);
    cache.dispose();
    const none = configureSageAttention({cudaMemory: 1});
    const other = new SageKvCache({batch: 1, heads: 8, headDim: 128, capacity: 100_000});
    expect(other.engineReason).toMatch(/not on a GPU: .*memory/);
    other.dispose();
    configureSageAttention(none);
    expect(cudaEngine().engine).not.toBeNull(); // the addon has the limit of before again
  });

  test('a worker thread that ends leaves no memory behind', async () => {
    releaseCudaMemory();
    const idle = addon.cudaState().deviceBytes;
    const path = loaded.attempts[loaded.attempts.length - 1]!.path;
    const worker = new Worker(
      `const addon = require(${JSON.stringify(path)});
       const cache = addon.cudaCacheCreate(1, 2, 64, 64, 1, 100000);
       addon.cudaCacheAppend(cache, new Float32Array(2 * 64 * 130), new Float32Array(2 * 64 * 130), 130);
       const fork = addon.cudaCacheFork(cache);
       require('node:worker_threads').parentPort.postMessage(addon.cudaState().deviceBytes);`,
      {eval: true},
    );
    const bytes = await new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
    expect(bytes).toBeGreaterThan(idle + 2e7);
    await worker.terminate();
    releaseCudaMemory();
    // Less where the garbage collector has come by.
    expect(addon.cudaState().deviceBytes).toBeLessThanOrEqual(idle);
  });

  test('a decoding loop with asynchronous calls', async () => {
    await useBackend('cpu');
    const cache = filled(1000);
    const alone = filled(1000);
    for (let token = 1000; token < 1140; token++) {
      for (const each of [cache, alone]) appendTokens(each, long, inputs, token, token + 1);
      const q = tf.tensor4d(inputs.q.subarray(0, 2 * 8 * 128), [2, 8, 1, 128]);
      const [o, wanted] = [await cache.attendAsync(q), alone.attend(q)];
      expect(o.dataSync()).toEqual(wanted.dataSync());
      tf.dispose([q, o, wanted]);
    }
    expect(cache.engine).toBe('cuda');
    cache.dispose();
    alone.dispose();
  });
}
