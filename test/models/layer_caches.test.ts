// GPT-2 and Llama generating through a SageKvCache per layer: the golden tokens, forks, roll-backs, failures, memory.

import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import '@tensorflow/tfjs-backend-wasm';
import type {Attention} from '../../models/attention.js';
import {loadGpt2} from '../../models/gpt2/load.js';
import type {Gpt2} from '../../models/gpt2/gpt2.js';
import type {CreateLayerCache} from '../../models/kv_cache.js';
import {loadLlama} from '../../models/llama/load.js';
import {plainAttention} from '../../models/plain_attention.js';
import {configureSageAttention, SageKvCache, type SageKvCacheOptions} from '../../src/index.js';
import {fixture, goldenOf, LOGIT_TOLERANCE, maxDifference, read, relativeL1} from './golden.js';
import {goldenPrompts, idsOf, JS_GPT, type GoldenPrompt} from './golden_prompts.js';

type Precision = SageKvCacheOptions['precision'];

const [first] = goldenPrompts as [GoldenPrompt];

const before = configureSageAttention({});
afterAll(() => configureSageAttention(before));

// Seconds of arithmetic on a free machine; a busy one may take many times as long.
jest.setTimeout(180_000);

const cachesOf =
  (precision: Precision): CreateLayerCache =>
  (sizes) =>
    new SageKvCache({...sizes, precision});

/** js-gpt on a backend. */
async function gpt2On(backend: string, layerCache?: CreateLayerCache): Promise<Gpt2> {
  await tf.setBackend(backend);
  return loadGpt2(JS_GPT, {layerCache});
}

describe.each(['native', 'typescript'] as const)('engine %s', (engine) => {
  beforeEach(() => void configureSageAttention({engine}));

  test.each(goldenPrompts.map((prompt) => ({file: prompt.file, prompt})))(
    '$file: 64 greedy tokens on wasm and cpu with the caches that the model asks for',
    async ({prompt}) => {
      const ids = idsOf(prompt);
      const last = ids.slice(-1);
      const precisions = new Set<string>();
      const asked: CreateLayerCache = (sizes) => {
        const cache = new SageKvCache(sizes);
        precisions.add(cache.precision);
        return cache;
      };
      const onWasm = await gpt2On('wasm', asked);
      const tensors = tf.memory().numTensors;
      const cache = onWasm.createCache();
      onWasm.logits([ids.slice(0, -1)], cache).dispose();
      // The caches belong to no backend: one pass over the prompt serves both.
      const fork = cache.fork();
      const generated = await onWasm.generate(last, {maxNewTokens: 64, cache});
      expect(generated).toEqual(prompt.greedy_tokens);
      expect(cache.length).toBe(ids.length + 63);
      expect(fork.length).toBe(ids.length - 1);
      cache.dispose();
      expect(tf.memory().numTensors).toBe(tensors);
      onWasm.dispose();

      const onCpu = await gpt2On('cpu', asked);
      const held = tf.memory().numTensors;
      expect(await onCpu.generate(last, {maxNewTokens: 64, cache: fork})).toEqual(
        prompt.greedy_tokens,
      );
      fork.dispose();
      expect(tf.memory().numTensors).toBe(held);
      onCpu.dispose();
      expect([...precisions]).toEqual(['int16']);
    },
  );
});

test('8 bits of k move logits far more than 16 do', async () => {
  configureSageAttention({engine: 'auto'});
  const ids = idsOf(first).slice(0, 400);
  const last = ids.slice(-20);
  const steps = async (precision: Precision) => {
    const model = await gpt2On('wasm', cachesOf(precision));
    const cache = model.createCache();
    model.logits([ids.slice(0, -20)], cache).dispose();
    const logits = last.flatMap((id) => [...read(model.logits([[id]], cache))]);
    cache.dispose();
    model.dispose();
    return logits;
  };
  const exact = await steps('exact');
  const meanDifference = (logits: number[]) =>
    logits.reduce((sum, x, n) => sum + Math.abs(x - exact[n]!), 0) / exact.length;
  const int8 = meanDifference(await steps('int8'));
  const int16 = meanDifference(await steps('int16'));
  expect(int16).toBeLessThan(3e-3);
  expect(int8).toBeGreaterThan(20 * int16);
  expect(int8).toBeLessThan(0.3);
});

test('the golden tokens notice a cache that has forgotten all but the last 64 tokens', async () => {
  configureSageAttention({engine: 'auto'});
  const ids = idsOf(first);
  const model = await gpt2On('wasm', (sizes) => {
    const cache = new SageKvCache(sizes);
    return {
      append: (k, v) => cache.append(k, v),
      attend: (q, options) => cache.attend(q, {...options, windowSize: [63, 0]}),
      truncate: (length) => cache.truncate(length),
      fork: () => cache.fork(),
      dispose: () => cache.dispose(),
    };
  });
  expect(await model.generate(ids, {maxNewTokens: 64})).not.toEqual(first.greedy_tokens);
  model.dispose();
});

describe('one cache per layer', () => {
  const ids = idsOf(first).slice(0, 60);
  let model: Gpt2;
  let made: SageKvCache[] = [];
  beforeAll(async () => {
    configureSageAttention({engine: 'auto'});
    model = await gpt2On('wasm', (sizes) => {
      const cache = new SageKvCache(sizes);
      made.push(cache);
      return cache;
    });
  });
  beforeEach(() => (made = []));
  afterAll(() => model.dispose());

  test('is made at the first pass, disposed with the cache of the model, and none is tensors', async () => {
    const tensors = tf.memory().numTensors;
    const cache = model.createCache();
    expect([cache.length, cache.batch, made.length]).toEqual([0, undefined, 0]);
    model.logits([ids, [...ids].reverse()], cache).dispose();
    expect([cache.length, cache.batch, made.length]).toEqual([60, 2, model.config.layers]);
    expect(tf.memory().numTensors).toBe(tensors);
    expect(() => model.logits([[1]], cache)).toThrow(/the cache holds 2/);
    cache.dispose();
    expect(made.every((layer) => layer.isDisposed)).toBe(true);
    expect([cache.length, cache.batch]).toEqual([0, undefined]);
    // Empty again, for another batch.
    model.logits([ids], cache).dispose();
    expect([cache.length, cache.batch]).toEqual([60, 1]);
    cache.dispose();
    await model.generate(ids, {maxNewTokens: 2});
    expect(made.length).toBe(3 * model.config.layers);
    expect(made.every((layer) => layer.isDisposed)).toBe(true);
  });

  test('forks draw several samples from one pass over the prompt', async () => {
    const trunk = model.createCache();
    model.logits([ids.slice(0, -1)], trunk).dispose();
    const draw = (seed: number) => ({maxNewTokens: 12, temperature: 1.2, seed});
    const samples: number[][] = [];
    for (const seed of [1, 2, 3]) {
      const cache = trunk.fork();
      samples.push(await model.generate(ids.slice(-1), {...draw(seed), cache}));
      cache.dispose();
    }
    expect(trunk.length).toBe(59);
    trunk.dispose();
    expect(new Set(samples.map(String)).size).toBe(3);
    for (const [n, sample] of samples.entries()) {
      const alone = model.createCache();
      model.logits([ids.slice(0, -1)], alone).dispose();
      expect(await model.generate(ids.slice(-1), {...draw(n + 1), cache: alone})).toEqual(sample);
      alone.dispose();
    }
  });

  test('a truncated cache goes on as if the rest had never been there', () => {
    const cache = model.createCache();
    model.logits([ids.slice(0, 40)], cache).dispose();
    const wanted = read(model.logits([ids.slice(40, 43)], cache));
    cache.truncate(40);
    model.logits([[7, 7, 7, 7, 7]], cache).dispose();
    expect(cache.length).toBe(45);
    cache.truncate(40);
    expect(read(model.logits([ids.slice(40, 43)], cache))).toEqual(wanted);
    cache.truncate(0);
    expect([cache.length, cache.batch]).toEqual([0, undefined]);
    cache.dispose();
  });

  test('a token of a decoding step is not moved by tfjs on its way to the cache', async () => {
    const kernels = async (of: Gpt2): Promise<string[]> => {
      const cache = of.createCache();
      of.logits([ids], cache).dispose();
      const {kernelNames} = await tf.profile(() => of.logits([[1]], cache));
      cache.dispose();
      return kernelNames.filter((name) => /Transpose|Concat/.test(name));
    };
    expect(await kernels(model)).toEqual([]);
    const plain = await loadGpt2(JS_GPT);
    expect(await kernels(plain)).toContain('Concat');
    plain.dispose();
  });
});

test('a plain cache truncates and forks too', async () => {
  const ids = idsOf(first).slice(0, 30);
  const model = await gpt2On('wasm');
  const tensors = tf.memory().numTensors;
  const cache = model.createCache();
  model.logits([ids.slice(0, 20)], cache).dispose();
  const fork = cache.fork();
  const wanted = read(model.logits([ids.slice(20)], cache));
  cache.truncate(20);
  expect([cache.length, fork.length]).toEqual([20, 20]);
  expect(read(model.logits([ids.slice(20)], cache))).toEqual(wanted);
  cache.truncate(0);
  expect(cache.length).toBe(0);
  expect(read(model.logits([ids.slice(20)], fork))).toEqual(wanted);
  cache.dispose();
  fork.dispose();
  expect(tf.memory().numTensors).toBe(tensors);
  model.dispose();
});

test('a pass that fails leaves the caches of the layers as they were', async () => {
  const ids = idsOf(first).slice(0, 30);
  let calls = -1000;
  const model = await gpt2On('wasm', (sizes) => {
    const cache = new SageKvCache(sizes);
    return {
      append: (k, v) => cache.append(k, v),
      attend: (q, options) => {
        if (++calls === 4) throw new RangeError('no');
        return cache.attend(q, options);
      },
      truncate: (length) => cache.truncate(length),
      fork: () => cache.fork(),
      dispose: () => cache.dispose(),
    };
  });
  const cache = model.createCache();
  model.logits([ids.slice(0, 20)], cache).dispose();
  const fork = cache.fork();
  const wanted = read(model.logits([ids.slice(20)], fork));
  fork.dispose();
  const tensors = tf.memory().numTensors;
  calls = 0;
  expect(() => model.logits([ids.slice(20)], cache)).toThrow(RangeError);
  expect(tf.memory().numTensors).toBe(tensors);
  expect(cache.length).toBe(20);
  expect(read(model.logits([ids.slice(20)], cache))).toEqual(wanted);
  cache.dispose();
  model.dispose();
});

describe.each(['native', 'typescript'] as const)('Llama and its relatives, engine %s', (engine) => {
  interface Golden {
    ids: number[];
    logits: number[];
    left: {rows: number[][]; mask: number[][]; logits: number[]};
    greedy: number[];
  }

  beforeAll(async () => {
    configureSageAttention({engine});
    await tf.setBackend('wasm');
  });

  const MODELS = ['llama', 'llama_linear', 'qwen2', 'qwen3', 'mistral'];

  test.each(MODELS)(
    '%s: greedy tokens, and cached steps are the logits of the whole',
    async (name) => {
      const {ids, logits, greedy} = goldenOf<Golden>(name);
      for (const precision of ['exact', 'int8'] as const) {
        const model = await loadLlama(fixture(name), {layerCache: cachesOf(precision)});
        const cache = model.createCache();
        const parts = [ids.slice(0, 7), ids.slice(7, 8), ids.slice(8, 15), ids.slice(15)];
        const all = parts.flatMap((part) => [...read(model.logits([part], {cache}))]);
        cache.dispose();
        if (precision === 'exact') {
          expect(maxDifference(all, logits)).toBeLessThan(LOGIT_TOLERANCE);
          expect(await model.generate(ids, {maxNewTokens: greedy.length})).toEqual(greedy);
        } else {
          // Random weights have little to forgive.
          expect(relativeL1(all, logits)).toBeLessThan(0.02);
        }
        model.dispose();
      }
    },
  );

  test('a left-padded batch goes on with its caches', async () => {
    const {rows, mask, logits} = goldenOf<Golden>('llama').left;
    const model = await loadLlama(fixture('llama'), {layerCache: cachesOf('exact')});
    const cache = model.createCache();
    const part = (matrix: number[][], begin: number, end: number): number[][] =>
      matrix.map((row) => row.slice(begin, end));
    const head = read(model.logits(part(rows, 0, 12), {cache, mask: part(mask, 0, 12)}));
    const tail = read(model.logits(part(rows, 12, 17), {cache, mask}));
    cache.dispose();
    const {vocabSize} = model.config;
    const [a, b] = [head, tail].map((x) => x.subarray(x.length / 2)) as [
      Float32Array,
      Float32Array,
    ];
    expect(maxDifference([...a.subarray(6 * vocabSize), ...b], logits)).toBeLessThan(
      LOGIT_TOLERANCE,
    );
    model.dispose();
  });
});

test('the prompt attends by the attention of the model, later tokens by the caches', async () => {
  const lengths: number[][] = [];
  const attention: Attention = (q, k, v, options) => {
    lengths.push([q.shape[2], k.shape[2]]);
    return plainAttention(q, k, v, options);
  };
  await tf.setBackend('cpu');
  const model = await loadLlama(fixture('llama'), {attention, layerCache: cachesOf('exact')});
  await model.generate([1, 2, 3], {maxNewTokens: 4});
  expect(lengths).toEqual(new Array(model.config.layers).fill([3, 3]));
  model.dispose();
});
