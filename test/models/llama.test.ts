// Llama and its relatives against transformers' answers: logits, padding, cache, generation, recipes, memory, misuse.

import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import '@tensorflow/tfjs-backend-wasm';
import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import type {Attention} from '../../models/attention.js';
import {parseLlamaConfig} from '../../models/llama/config.js';
import type {Llama} from '../../models/llama/llama.js';
import {loadLlama} from '../../models/llama/load.js';
import {parseRotary, rotaryFrequencies} from '../../models/llama/rotary.js';
import {ConfigFields} from '../../models/config_fields.js';
import {loadTokenizer} from '../../models/load_files.js';
import {ModelError} from '../../models/model_error.js';
import {plainAttention} from '../../models/plain_attention.js';
import {
  fixture,
  goldenOf,
  LOGIT_TOLERANCE,
  maxDifference,
  read,
  recipeAttention,
  RECIPES,
  relativeL1,
} from './golden.js';

interface Padded {
  rows: number[][];
  mask: number[][];
  logits: number[];
}

interface Golden {
  ids: number[];
  logits: number[];
  left: Padded;
  right: Padded;
  greedy: number[];
}

interface GoldenTexts {
  texts: string[];
  text_ids: number[][];
  decoded: string[];
}

const MODELS = ['llama', 'llama_linear', 'qwen2', 'qwen3', 'mistral'];

tf.env().set('IS_TEST', true);

async function withLlama<T>(
  name: string,
  attention: Attention,
  action: (model: Llama, golden: Golden) => T | Promise<T>,
): Promise<T> {
  const model = await loadLlama(fixture(name), {attention});
  try {
    return await action(model, goldenOf<Golden>(name));
  } finally {
    model.dispose();
  }
}

/** The logits of the second row's tokens: the last `count` of `length` for left padding, the first for right. */
function tokensOf(logits: Float32Array, side: 'left' | 'right', vocab: number): Float32Array {
  const row = logits.subarray(logits.length / 2);
  return side === 'left' ? row.subarray(-11 * vocab) : row.subarray(0, 11 * vocab);
}

describe.each(['cpu', 'wasm'])('on backend %s', (backend) => {
  let before: number;
  beforeAll(async () => {
    await tf.setBackend(backend);
    before = tf.memory().numTensors;
  });
  afterEach(() => expect(tf.memory().numTensors).toBe(before));

  describe.each([
    ['plain', plainAttention],
    ['exact', recipeAttention('exact')],
  ] as const)('with %s attention', (_, attention) => {
    test.each(MODELS)('%s: logits', (name) =>
      withLlama(name, attention, (model, {ids, logits}) => {
        expect(maxDifference(read(model.logits([ids])), logits)).toBeLessThan(LOGIT_TOLERANCE);
      }),
    );

    test.each(MODELS)('%s: padded rows side by side with full ones', (name) =>
      withLlama(name, attention, (model, golden) => {
        for (const side of ['left', 'right'] as const) {
          const {rows, mask, logits} = golden[side];
          const all = read(model.logits(rows, {mask}));
          const {vocabSize} = model.config;
          expect(maxDifference(tokensOf(all, side, vocabSize), logits)).toBeLessThan(
            LOGIT_TOLERANCE,
          );
          expect(maxDifference(all.subarray(0, all.length / 2), golden.logits)).toBeLessThan(
            LOGIT_TOLERANCE,
          );
        }
      }),
    );

    test.each(MODELS)('%s: 24 greedy tokens with the cache', (name) =>
      withLlama(name, attention, async (model, {ids, greedy}) => {
        expect(await model.generate(ids, {maxNewTokens: greedy.length})).toEqual(greedy);
      }),
    );
  });

  test.each(MODELS)('%s: cached steps give the logits of the whole', (name) =>
    withLlama(name, recipeAttention('exact'), (model, {ids, logits}) => {
      const cache = model.createCache();
      const parts = [ids.slice(0, 7), ids.slice(7, 8), ids.slice(8, 15), ids.slice(15)];
      const all = parts.flatMap((part) => [...read(model.logits([part], {cache}))]);
      expect(cache.length).toBe(ids.length);
      expect(maxDifference(all, logits)).toBeLessThan(LOGIT_TOLERANCE);
      cache.dispose();
    }),
  );

  test('a left-padded batch goes on with its cache', () =>
    withLlama('llama', recipeAttention('exact'), (model, golden) => {
      const {rows, mask, logits} = golden.left;
      const cache = model.createCache();
      const part = (matrix: number[][], begin: number, end: number): number[][] =>
        matrix.map((row) => row.slice(begin, end));
      const first = read(model.logits(part(rows, 0, 12), {cache, mask: part(mask, 0, 12)}));
      const second = read(model.logits(part(rows, 12, 17), {cache, mask}));
      cache.dispose();
      const {vocabSize} = model.config;
      const [a, b] = [first, second].map((x) => x.subarray(x.length / 2)) as [
        Float32Array,
        Float32Array,
      ];
      const told = [...a.subarray(6 * vocabSize), ...b];
      expect(maxDifference(told, logits)).toBeLessThan(LOGIT_TOLERANCE);
    }));

  test.each(MODELS)('%s: every recipe stays within its bound of exact', async (name) => {
    const logitsBy = (attention: Attention): Promise<Float32Array> =>
      withLlama(name, attention, (model, {ids}) => read(model.logits([ids])));
    const exact = await logitsBy(recipeAttention('exact'));
    for (const {precision, bound} of RECIPES) {
      const error = relativeL1(await logitsBy(recipeAttention(precision)), exact);
      expect(error).toBeLessThan(bound);
      expect(error).toBeGreaterThan(0);
    }
  });

  test('a failing attention leaves the cache and the memory as they were', () => {
    let fail = false;
    const attention: Attention = (q, k, v, options) => {
      if (fail) throw new Error('out of order');
      return plainAttention(q, k, v, options);
    };
    return withLlama('qwen3', attention, (model, {ids}) => {
      const cache = model.createCache();
      tf.dispose(model.logits([ids], {cache}));
      const held = tf.memory().numTensors;
      fail = true;
      expect(() => model.logits([[3]], {cache})).toThrow('out of order');
      expect(tf.memory().numTensors).toBe(held);
      expect(cache.length).toBe(ids.length);
      cache.dispose();
    });
  });
});

describe('what the answers notice', () => {
  beforeAll(() => tf.setBackend('cpu'));

  const changed: [string, string, Attention][] = [
    ['a mask dropped', 'qwen2', (q, k, v, o) => plainAttention(q, k, v, {...o, isCausal: false})],
    [
      'a scale off by 2 %',
      'llama',
      (q, k, v, o) => plainAttention(q, k, v, {...o, scale: o.scale * 1.02}),
    ],
    [
      'a window dropped',
      'mistral',
      (q, k, v, {isCausal, scale}) => plainAttention(q, k, v, {isCausal, scale}),
    ],
    [
      'key heads in another order',
      'qwen3',
      (q, k, v, o) => tf.tidy(() => plainAttention(q, tf.reverse(k, 1), tf.reverse(v, 1), o)),
    ],
  ];
  test.each(changed)('%s (%s)', (_, name, attention) =>
    withLlama(name, attention, (model, {ids, logits}) => {
      expect(maxDifference(read(model.logits([ids])), logits)).toBeGreaterThan(5 * LOGIT_TOLERANCE);
    }),
  );
});

describe('the tokenizer', () => {
  const {texts, text_ids, decoded} = goldenOf<GoldenTexts>('llama');
  const tokenizer = loadTokenizer(fixture('llama'));

  test.each(texts.map((text, i) => [text, i] as const))('%j', (text, i) => {
    expect(tokenizer.encode(text)).toEqual(text_ids[i]);
    expect(tokenizer.decode(text_ids[i]!)).toBe(decoded[i]);
  });

  test('marks are added and shown only if asked', () => {
    const [begin, ...rest] = tokenizer.encode('attention');
    expect(tokenizer.encode('attention', {special: false})).toEqual(rest);
    expect(begin).toBe(tokenizer.idOf('<|begin_of_text|>'));
    expect(tokenizer.decode([begin!, ...rest], {special: true})).toBe('<|begin_of_text|>attention');
    expect(tokenizer.decode([])).toBe('');
    expect(tokenizer.idOf('no such token')).toBeUndefined();
  });
});

describe('rotary frequencies', () => {
  const parse = (json: object): ReturnType<typeof parseRotary> =>
    parseRotary(new ConfigFields(json, 'config.json'));

  test('fields of old and new files', () => {
    expect(parse({})).toEqual({base: 10000, scaling: {kind: 'none'}});
    expect(parse({rope_theta: 5, rope_scaling: null})).toEqual({base: 5, scaling: {kind: 'none'}});
    const linear = {base: 7, scaling: {kind: 'linear', factor: 4}};
    expect(parse({rope_theta: 7, rope_scaling: {type: 'linear', factor: 4}})).toEqual(linear);
    const newer = {rope_theta: 7, rope_type: 'linear', factor: 4};
    expect(parse({rope_parameters: newer})).toEqual(linear);
  });

  test('Llama 3 keeps short waves, stretches long ones, and passes between them', () => {
    const llama3 = {
      rope_type: 'llama3',
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 8192,
    };
    const config = parse({rope_theta: 500000, rope_scaling: llama3});
    const scaled = rotaryFrequencies(config, 128);
    const plain = rotaryFrequencies({...config, scaling: {kind: 'none'}}, 128);
    const ratios = Array.from(scaled, (x, i) => plain[i]! / x);
    expect(ratios[0]).toBe(1);
    expect(ratios.at(-1)).toBeCloseTo(8, 12);
    ratios.forEach((ratio, i) => expect(ratio).toBeGreaterThanOrEqual(ratios[i - 1] ?? 1));
    expect(ratios.some((ratio) => ratio > 1.01 && ratio < 7.99)).toBe(true);
  });

  test.each([
    [{rope_scaling: {rope_type: 'yarn', factor: 2}}, /rope_scaling.rope_type.*"yarn"/],
    [{rope_scaling: {type: 'dynamic', factor: 2}}, /rope_scaling.type.*"dynamic"/],
    [{rope_scaling: {type: 'linear'}}, /rope_scaling.factor.*missing/],
    [{rope_scaling: 3}, /rope_scaling.*expected an object/],
    [{partial_rotary_factor: 0.5}, /partial_rotary_factor/],
    [{rope_theta: 0}, /rope_theta.*number > 0/],
  ])('%j is refused', (json, message) => {
    expect(() => parse(json)).toThrow(ModelError);
    expect(() => parse(json)).toThrow(message);
  });
});

describe('what it says', () => {
  const stored = JSON.parse(
    readFileSync(join(fixture('mistral'), 'config.json'), 'utf8'),
  ) as Record<string, unknown>;

  test.each([
    ['model_type', 'gemma', /"gemma"; expected one of llama, mistral, qwen2, qwen3/],
    ['num_key_value_heads', 3, /divisor of num_attention_heads, 4/],
    ['head_dim', 7, /even/],
    ['hidden_act', 'tanh', /expected one of/],
    ['layer_types', ['full_attention'], /layer_types.*2 of full_attention/],
    ['eos_token_id', 61, /below vocab_size, 61/],
    ['tie_word_embeddings', 'yes', /true or false/],
    ['num_hidden_layers', 0, /whole number >= 1/],
  ])('config %s = %p', (field, value, message) => {
    const parse = (): unknown => parseLlamaConfig({...stored, [field]: value});
    expect(parse).toThrow(ModelError);
    expect(parse).toThrow(message);
  });

  test('windows by family', () => {
    const windows = (change: object): readonly number[] =>
      parseLlamaConfig({...stored, layer_types: null, ...change}).windows;
    expect(windows({})).toEqual([5, 5]);
    expect(windows({sliding_window: null})).toEqual([Infinity, Infinity]);
    expect(windows({model_type: 'llama'})).toEqual([Infinity, Infinity]);
    const qwen = {model_type: 'qwen2', max_window_layers: 1};
    expect(windows(qwen)).toEqual([Infinity, Infinity]);
    expect(windows({...qwen, use_sliding_window: true})).toEqual([Infinity, 5]);
    const types = ['sliding_attention', 'full_attention'];
    expect(windows({layer_types: types})).toEqual([5, Infinity]);
  });

  test('calls that do not fit', async () => {
    await tf.setBackend('cpu');
    await withLlama('llama', plainAttention, async (model) => {
      const held = tf.memory().numTensors;
      const long = new Array<number>(257).fill(1);
      expect(() => model.logits([long])).toThrow(/257 ids exceed the context of 256/);
      expect(() => model.logits([[-1]])).toThrow(/\[0\]\[0\] is -1/);
      await expect(model.generate([1], {maxNewTokens: 257})).rejects.toThrow(/257 positions/);
      await expect(model.generate([1], {maxNewTokens: 1, stop: [999]})).rejects.toThrow(/stop/);
      const cache = model.createCache();
      tf.dispose(model.logits([[1, 2]], {cache}));
      expect(() => model.logits([[1], [2]], {cache})).toThrow(/the cache holds 1/);
      expect(() => model.logits([[1]], {cache, mask: [[1]]})).toThrow(/expected 3/);
      cache.dispose();
      expect(tf.memory().numTensors).toBe(held);
    });
    const wrong: Attention = (q) => tf.slice(q, 0, [-1, -1, 1, -1]);
    await withLlama('llama', wrong, (model) => {
      expect(() => model.logits([[1, 2]])).toThrow(/attention: returned shape/);
    });
  });
});
