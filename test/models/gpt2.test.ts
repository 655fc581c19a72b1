// The GPT-2 model on small random weights, against a float64 reference: every configuration it takes, cache, batch,
// generation, memory, and what it refuses.

import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import '@tensorflow/tfjs-backend-wasm';
import type {Attention} from '../../models/gpt2/attention.js';
import {parseGpt2Config} from '../../models/gpt2/config.js';
import {Gpt2Error} from '../../models/gpt2/errors.js';
import {Gpt2} from '../../models/gpt2/gpt2.js';
import {plainAttention} from '../../models/gpt2/plain_attention.js';
import type {Gpt2WeightSource} from '../../models/gpt2/weights.js';
import {
  randomWeights,
  type ReferenceConfig,
  referenceLogits,
  type ReferenceWeights,
} from './gpt2_reference.js';

const BASE: ReferenceConfig = {
  vocab_size: 11,
  n_positions: 40,
  n_embd: 12,
  n_layer: 2,
  n_head: 3,
  n_inner: null,
  activation_function: 'gelu_new',
  layer_norm_epsilon: 1e-5,
  tie_word_embeddings: true,
  scale_attn_weights: true,
  scale_attn_by_inverse_layer_idx: false,
};

/** The weights as a source; `prefix` goes before all names but the head's. */
function sourceOf(weights: ReferenceWeights, prefix = ''): Gpt2WeightSource {
  const bare = (name: string): string =>
    name.startsWith(prefix) ? name.slice(prefix.length) : name === 'lm_head.weight' ? name : '-';
  const find = (name: string): {shape: number[]; values: Float32Array} => {
    const tensor = weights.get(bare(name));
    if (tensor === undefined) throw new Error(`asked for ${name}, which is not there`);
    return tensor;
  };
  return {
    file: 'weights',
    has: (name) => weights.has(bare(name)),
    entry: (name) => ({
      name,
      file: 'shard',
      dtype: 'F32',
      shape: find(name).shape,
      begin: 0,
      end: 4 * find(name).values.length,
    }),
    float32: (name) => find(name).values.slice(),
  };
}

function build(
  change: Partial<ReferenceConfig> = {},
  attention?: Attention,
): {model: Gpt2; config: ReferenceConfig; weights: ReferenceWeights} {
  const config = {...BASE, ...change};
  const weights = randomWeights(config);
  const model = new Gpt2(parseGpt2Config(config), sourceOf(weights), attention);
  return {model, config, weights};
}

const someIds = (length: number, vocab = 11): number[] =>
  Array.from({length}, (_, i) => (i * i * 7 + 3 * i + 1) % vocab);

function read(tensor: tf.Tensor): Float32Array {
  const values = tensor.dataSync<'float32'>();
  tensor.dispose();
  return values;
}

function maxDifference(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  expect(actual.length).toBe(expected.length);
  let worst = 0;
  for (let i = 0; i < actual.length; i++) {
    const difference = Math.abs((actual[i] as number) - (expected[i] as number));
    worst = difference <= worst ? worst : difference;
  }
  return worst;
}

async function errorOf(action: () => unknown): Promise<Gpt2Error> {
  try {
    await action();
  } catch (error) {
    expect(error).toBeInstanceOf(Gpt2Error);
    return error as Gpt2Error;
  }
  throw new Error('nothing was thrown');
}

// Silences the advice to install tfjs-node, and lets tfjs check its kernels for leaks.
tf.env().set('IS_TEST', true);

// The largest case takes a second on a free machine, many on a busy one.
jest.setTimeout(60_000);

/** float32 against float64 on logits of size 10. */
const TOLERANCE = 1e-4;

describe.each(['cpu', 'wasm'])('on backend %s', (backend) => {
  let tensorsBefore: number;
  beforeAll(async () => {
    await tf.setBackend(backend);
  });
  beforeEach(() => {
    tensorsBefore = tf.memory().numTensors;
  });
  afterEach(() => {
    expect(tf.memory().numTensors).toBe(tensorsBefore);
  });

  const variants: [string, Partial<ReferenceConfig>][] = [
    ['gelu_new', {}],
    ['gelu', {activation_function: 'gelu'}],
    ['relu', {activation_function: 'relu'}],
    ['n_inner', {n_inner: 7}],
    ['a head of its own', {tie_word_embeddings: false}],
    ['scores not scaled', {scale_attn_weights: false}],
    ['scores scaled by layer', {scale_attn_by_inverse_layer_idx: true, n_layer: 3}],
    ['another epsilon', {layer_norm_epsilon: 0.25}],
    ['one head, one layer', {n_head: 1, n_layer: 1}],
  ];
  test.each(variants)('%s: the logits of the reference', (_, change) => {
    const {model, config, weights} = build(change);
    const ids = someIds(17);
    const expected = referenceLogits(config, weights, ids).flat();
    expect(maxDifference(read(model.logits([ids])), expected)).toBeLessThan(TOLERANCE);
    model.dispose();
    model.dispose();
  });

  test.each([1, 2, 17, 40])('%i ids', (length) => {
    const {model, config, weights} = build();
    const ids = someIds(length);
    const expected = referenceLogits(config, weights, ids).flat();
    expect(maxDifference(read(model.logits([ids])), expected)).toBeLessThan(TOLERANCE);
    model.dispose();
  });

  test('a batch, as an array and as a tensor, is its sequences', () => {
    const {model, config, weights} = build();
    const rows = [someIds(9), someIds(9).reverse(), new Array<number>(9).fill(10)];
    const expected = rows.flatMap((ids) => referenceLogits(config, weights, ids).flat());
    const logits = model.logits(rows);
    expect(logits.shape).toEqual([3, 9, 11]);
    expect(maxDifference(read(logits), expected)).toBeLessThan(TOLERANCE);
    const ids = tf.tensor2d(rows, [3, 9], 'int32');
    expect(maxDifference(read(model.logits(ids)), expected)).toBeLessThan(TOLERANCE);
    ids.dispose();
    model.dispose();
  });

  test('pieces through a cache give the logits of the whole, in a batch of two', () => {
    const {model, config, weights} = build();
    const rows = [someIds(20), someIds(20).reverse()];
    const expected = rows.map((ids) => referenceLogits(config, weights, ids));
    const cache = model.createCache();
    let begin = 0;
    for (const length of [5, 1, 1, 3, 10]) {
      const end = begin + length;
      const piece = rows.map((ids) => ids.slice(begin, end));
      const wanted = expected.flatMap((logits) => logits.slice(begin, end).flat());
      // Inside a tidy of the caller's the cache has to outlive it.
      const actual = tf.tidy(() => tf.keep(model.logits(piece, cache)));
      expect(maxDifference(read(actual), wanted)).toBeLessThan(TOLERANCE);
      begin = end;
      expect(cache.length).toBe(begin);
      expect(cache.batch).toBe(2);
    }
    cache.dispose();
    expect(cache.length).toBe(0);
    model.dispose();
  });

  test('losses and likeliest ids of the logits, few rows at a time', () => {
    // 140,001 logits a row: seven rows a step, so 17 rows take three steps; looked at are the first and last of each.
    const {model} = build({vocab_size: 140001, n_embd: 4, n_head: 2});
    const ids = someIds(18, 140001);
    const logits = read(model.logits([ids]));
    const {negativeLogLikelihood, likeliest} = model.score(ids);
    for (const i of [0, 6, 7, 13, 14, 16]) {
      const row = logits.subarray(i * 140001, (i + 1) * 140001);
      const {exp} = Math;
      let sum = 0;
      let best = 0;
      for (let id = 0; id < row.length; id++) {
        sum += exp(row[id] as number);
        if ((row[id] as number) > (row[best] as number)) best = id;
      }
      const loss = Math.log(sum) - (row[ids[i + 1] as number] as number);
      expect(Math.abs((negativeLogLikelihood[i] as number) - loss)).toBeLessThan(TOLERANCE);
      expect(likeliest[i]).toBe(best);
    }
    const start = model.negativeLogLikelihood(ids.slice(0, 2));
    expect(start.length).toBe(1);
    expect(start[0]).toBeCloseTo(negativeLogLikelihood[0] as number, 4);
    expect(model.score([1]).likeliest.length).toBe(0);
    model.dispose();
  });

  test('between tokens tensors stay as many, bytes grow by one row of keys and values', async () => {
    const {model} = build();
    const memory: {numTensors: number; numBytes: number}[] = [];
    await model.generate([1, 2, 3], {
      maxNewTokens: 12,
      onToken: () => void memory.push(tf.memory()),
    });
    const rowBytes = 2 * 2 * 12 * 4;
    for (let i = 1; i < memory.length; i++) {
      expect(memory[i]?.numTensors).toBe(memory[0]?.numTensors);
      expect((memory[i]?.numBytes ?? 0) - (memory[i - 1]?.numBytes ?? 0)).toBe(rowBytes);
    }
    expect(memory.length).toBe(12);
    model.dispose();
  });

  test('an attention that fails leaves cache and memory as they were', async () => {
    let calls = 0;
    const {model, config, weights} = build({}, (q, k, v, options) => {
      // Calls 3 and 4 are the two layers of the second pass.
      if (++calls === 4) throw new RangeError('no');
      return plainAttention(q, k, v, options);
    });
    const ids = someIds(8);
    const cache = model.createCache();
    model.logits([ids.slice(0, 5)], cache).dispose();
    const before = tf.memory().numTensors;
    expect(() => model.logits([ids.slice(5)], cache)).toThrow(RangeError);
    expect(tf.memory().numTensors).toBe(before);
    expect(cache.length).toBe(5);
    const expected = referenceLogits(config, weights, ids).slice(5).flat();
    const actual = read(model.logits([ids.slice(5)], cache));
    expect(maxDifference(actual, expected)).toBeLessThan(TOLERANCE);
    calls = 2;
    await expect(model.generate(ids, {maxNewTokens: 3})).rejects.toThrow(RangeError);
    cache.dispose();
    model.dispose();
  });

  test('attention gets [B,H,N,D], bottom-right causality and the scale of its layer', () => {
    const seen: unknown[] = [];
    const {model} = build({scale_attn_by_inverse_layer_idx: true}, (q, k, v, options) => {
      seen.push({q: q.shape, k: k.shape, v: v.shape, ...options});
      return plainAttention(q, k, v, options);
    });
    const cache = model.createCache();
    model.logits([[1, 2, 3]], cache).dispose();
    model.logits([[4, 5]], cache).dispose();
    cache.dispose();
    const call = (q: number, kv: number, scale: number): unknown => ({
      q: [1, 3, q, 4],
      k: [1, 3, kv, 4],
      v: [1, 3, kv, 4],
      isCausal: 'bottom_right',
      scale,
    });
    expect(seen).toEqual([call(3, 3, 0.5), call(3, 3, 0.25), call(2, 5, 0.5), call(2, 5, 0.25)]);
    model.dispose();
  });

  test('NaN in one place of the text shows as NaN losses from there on', () => {
    const config = {...BASE};
    const weights = randomWeights(config);
    weights.get('wpe.weight')?.values.fill(NaN, 5 * 12, 6 * 12);
    const model = new Gpt2(parseGpt2Config(config), sourceOf(weights));
    const {negativeLogLikelihood, likeliest} = model.score(someIds(9));
    // Rows before it depend on the attention: plain ops mask with a sum, which NaN survives.
    expect(negativeLogLikelihood[5]).toBeNaN();
    expect(negativeLogLikelihood[7]).toBeNaN();
    expect(likeliest[7]).toBe(-1);
    model.dispose();
  });

  test('wrong ids are refused before anything is computed', async () => {
    const {model} = build();
    const message = async (action: () => unknown): Promise<string> =>
      (await errorOf(action)).message;
    expect(await message(() => model.logits([]))).toMatch(/no token/);
    expect(await message(() => model.logits([[]]))).toMatch(/no token/);
    expect(await message(() => model.logits([[1, 11]]))).toMatch(/\[0\]\[1\] is 11.*below 11/);
    expect(await message(() => model.logits([[1], [-1]]))).toMatch(/\[1\]\[0\] is -1/);
    expect(await message(() => model.logits([[1.5]]))).toMatch(/is 1.5/);
    expect(await message(() => model.logits([[1, 2], [1]]))).toMatch(
      /row 1 holds 1 ids; expected 2/,
    );
    expect(await message(() => model.logits([someIds(41)]))).toMatch(/41 ids.*40 positions/);
    expect(await message(() => model.score([]))).toMatch(/no token/);
    const cache = model.createCache();
    model.logits([someIds(30)], cache).dispose();
    expect(await message(() => model.logits([someIds(11)], cache))).toMatch(/30 cached and 11 ids/);
    expect(await message(() => model.logits([[1], [2]], cache))).toMatch(/2 sequences.*holds 1/);
    cache.dispose();
    model.dispose();
    expect(await message(() => model.logits([[1]]))).toMatch(/disposed/);
  });

  test('attention of the wrong shape is refused', async () => {
    const {model} = build({}, (q) => tf.slice(q, 0, [-1, -1, 1, -1]));
    const error = await errorOf(() => model.logits([[1, 2]]));
    expect(error).toMatchObject({field: 'attention'});
    expect(error.message).toMatch(/\[1, 3, 1, 4\].*\[1, 3, 2, 4\]/);
    model.dispose();
  });
});

describe('generation', () => {
  let model: Gpt2;
  beforeAll(async () => {
    await tf.setBackend('cpu');
    model = build().model;
  });
  afterAll(() => model.dispose());

  test('greedy takes the likeliest id of each whole pass', async () => {
    const generated = await model.generate([1], {maxNewTokens: 30});
    const {likeliest} = model.score([1, ...generated, 0]);
    expect(generated).toEqual(Array.from(likeliest.subarray(0, 30)));
  });

  test('the same seed draws the same, another seed others; onToken sees each in order', async () => {
    const seen: number[][] = [];
    const draw = (seed: number): Promise<number[]> =>
      model.generate([1], {maxNewTokens: 30, temperature: 1.5, seed});
    const first = await model.generate([1], {
      maxNewTokens: 30,
      temperature: 1.5,
      seed: 5,
      onToken: (id, index) => void seen.push([id, index]),
    });
    expect(await draw(5)).toEqual(first);
    expect(await draw(6)).not.toEqual(first);
    expect(await draw(5 + 2 ** 32)).not.toEqual(first);
    expect(seen).toEqual(first.map((id, index) => [id, index]));
  });

  test('top-k of 1 and a tiny top-p are greedy at any temperature', async () => {
    const greedy = await model.generate([2, 3], {maxNewTokens: 20});
    for (const limit of [{topK: 1}, {topP: 1e-9}]) {
      const drawn = await model.generate([2, 3], {maxNewTokens: 20, temperature: 5, ...limit});
      expect(drawn).toEqual(greedy);
    }
  });

  test('stop ends before the token', async () => {
    const all = await model.generate([1], {maxNewTokens: 30});
    const stop = all[10] as number;
    const cut = await model.generate([1], {maxNewTokens: 30, stop: [stop]});
    expect(cut).toEqual(all.slice(0, all.indexOf(stop)));
  });

  test('a given cache is continued and stays', async () => {
    const whole = await model.generate([1, 2], {maxNewTokens: 9});
    const cache = model.createCache();
    const head = await model.generate([1, 2], {maxNewTokens: 4, cache});
    expect(cache.length).toBe(5);
    const tail = await model.generate(head.slice(-1), {maxNewTokens: 5, cache});
    expect([...head, ...tail]).toEqual(whole);
    cache.dispose();
  });

  test('the context may be filled to its end and not beyond', async () => {
    expect((await model.generate(someIds(40), {maxNewTokens: 1})).length).toBe(1);
    expect((await model.generate([1], {maxNewTokens: 40})).length).toBe(40);
    expect(await model.generate([1], {maxNewTokens: 0})).toEqual([]);
    let called = false;
    const error = await errorOf(() =>
      model.generate([1], {maxNewTokens: 41, onToken: () => void (called = true)}),
    );
    expect(error.message).toMatch(/need 41 positions.*has 40/);
    expect(called).toBe(false);
  });

  test.each([
    ['maxNewTokens', {maxNewTokens: 1.5}],
    ['maxNewTokens', {maxNewTokens: -1}],
    ['temperature', {temperature: -1}],
    ['temperature', {temperature: NaN}],
    ['topK', {topK: 0}],
    ['topK', {topK: 1.5}],
    ['topP', {topP: 0}],
    ['topP', {topP: 1.1}],
    ['seed', {seed: 0.5}],
    ['stop', {stop: [11]}],
  ])('a wrong %s is refused: %p', async (field, options) => {
    const error = await errorOf(() => model.generate([1], {maxNewTokens: 1, ...options}));
    expect(error.field).toBe(field);
  });

  test('an exception of onToken ends generation and frees the cache', async () => {
    const before = tf.memory().numTensors;
    const stopped = model.generate([1], {
      maxNewTokens: 9,
      onToken: () => Promise.reject(new RangeError('enough')),
    });
    await expect(stopped).rejects.toThrow('enough');
    expect(tf.memory().numTensors).toBe(before);
  });
});

describe('plain attention', () => {
  test.each(['cpu', 'wasm'])('one query block against more keys, on %s', async (backend) => {
    await tf.setBackend(backend);
    const whole = [0, 1, 2].map((seed) =>
      tf.randomNormal([2, 3, 129, 8], 0, 1, 'float32', seed + 1),
    );
    const [q, k, v] = whole as [tf.Tensor4D, tf.Tensor4D, tf.Tensor4D];
    const options = {isCausal: 'bottom_right', scale: 0.3} as const;
    const all = plainAttention(q, k, v, options);
    for (const rows of [1, 17, 127]) {
      const tail = tf.slice(q, [0, 0, 129 - rows, 0]);
      const expected = tf.slice(all, [0, 0, 129 - rows, 0]);
      const actual = plainAttention(tail, k, v, options);
      expect(actual.shape).toEqual([2, 3, rows, 8]);
      expect(maxDifference(read(actual), read(expected))).toBeLessThan(2e-6);
      tail.dispose();
    }
    const short = tf.slice(k, 0, [-1, -1, 5, -1]);
    expect((await errorOf(() => plainAttention(q, short, short, options))).message).toMatch(
      /5 keys for 129 queries/,
    );
    tf.dispose([...whole, all, short]);
  });
});

describe('configuration', () => {
  const {n_inner: _, ...fields} = BASE;
  test.each([
    ['model_type', 'bert', /is "bert"; expected "gpt2"/],
    ['n_embd', undefined, /is missing; expected a whole number/],
    ['n_embd', '12', /is "12"/],
    ['n_layer', 0, /is 0/],
    ['n_head', 5, /divisor of n_embd, 12/],
    ['vocab_size', 1.5, /is 1.5/],
    ['n_positions', -1, /is -1/],
    ['n_inner', 'wide', /is "wide"/],
    ['activation_function', 'swish', /one of gelu_new, gelu_pytorch_tanh, gelu, relu/],
    ['layer_norm_epsilon', 0, /between 0 and 1/],
    ['tie_word_embeddings', 'yes', /true or false/],
    ['add_cross_attention', true, /false/],
    ['eos_token_id', 11, /below vocab_size, 11/],
  ])('%s = %p is refused', async (field, value, message) => {
    const error = await errorOf(() =>
      parseGpt2Config({...fields, [field]: value}, 'x/config.json'),
    );
    expect(error).toMatchObject({file: 'x/config.json', field});
    expect(error.message).toMatch(message);
  });

  test.each([[null], [[]], ['gpt2'], [3]])('%p is no configuration', async (json) => {
    expect((await errorOf(() => parseGpt2Config(json))).message).toMatch(/expected a JSON object/);
  });

  test('what is left out has the defaults of the format', () => {
    const {vocab_size, n_positions, n_embd, n_layer, n_head} = BASE;
    expect(parseGpt2Config({vocab_size, n_positions, n_embd, n_layer, n_head})).toEqual(
      parseGpt2Config(BASE),
    );
    expect(parseGpt2Config({...BASE, eos_token_id: 3}).endOfText).toBe(3);
    expect(parseGpt2Config({...BASE, activation_function: 'gelu_pytorch_tanh'}).activation).toBe(
      'gelu_new',
    );
  });
});

describe('weights', () => {
  beforeAll(async () => {
    await tf.setBackend('cpu');
  });
  const config = parseGpt2Config({...BASE, tie_word_embeddings: false});
  const weights = (): ReferenceWeights => randomWeights({...BASE, tie_word_embeddings: false});

  test('names with the prefix "transformer." are the same model', () => {
    const [bare, prefixed] = ['', 'transformer.'].map((prefix) => {
      const model = new Gpt2(config, sourceOf(weights(), prefix));
      const logits = read(model.logits([someIds(9)]));
      model.dispose();
      return logits;
    }) as [Float32Array, Float32Array];
    expect(bare).toEqual(prefixed);
  });

  test.each([...weights().keys()])('without %s, or with one of another shape', async (name) => {
    const before = tf.memory().numTensors;
    const missing = weights();
    missing.delete(name);
    const error = await errorOf(() => new Gpt2(config, sourceOf(missing)));
    expect(error).toMatchObject({file: 'weights', tensor: name});
    expect(error.message).toMatch(/missing; expected shape \[/);

    const odd = weights();
    odd.set(name, {shape: [2, 3], values: new Float32Array(6)});
    const wrong = await errorOf(() => new Gpt2(config, sourceOf(odd)));
    expect(wrong).toMatchObject({file: 'shard', tensor: name});
    expect(wrong.message).toMatch(/has shape \[2, 3\]; by the configuration it should be \[/);
    expect(tf.memory().numTensors).toBe(before);
  });
});
