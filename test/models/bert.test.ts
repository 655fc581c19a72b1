// BERT against transformers' answers: tokens, embeddings with padding on either side, pairs, recipes, memory, misuse.

import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import '@tensorflow/tfjs-backend-wasm';
import type {Attention} from '../../models/attention.js';
import type {Bert} from '../../models/bert/bert.js';
import {parseBertConfig, parseBertPooling} from '../../models/bert/config.js';
import {
  cosineSimilarity,
  embedTexts,
  padTexts,
  similarityTable,
} from '../../models/bert/embed_texts.js';
import {loadBert} from '../../models/bert/load.js';
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

interface Golden {
  texts: string[];
  ids: number[][];
  left: {first_tokens: number[]; embeddings: number[]};
  right: {first_tokens: number[]; embeddings: number[]};
  pair: {ids: number[][]; types: number[][]; hidden: number[]};
}

const DIRECTORY = fixture('bert');
const WIDTH = 48;
const golden = goldenOf<Golden>('bert');
const tokenizer = loadTokenizer(DIRECTORY);

tf.env().set('IS_TEST', true);

const rowsOf = (values: ArrayLike<number>): Float32Array[] =>
  Array.from({length: values.length / WIDTH}, (_, i) =>
    Float32Array.from({length: WIDTH}, (__, j) => values[i * WIDTH + j] as number),
  );

/** The lowest cosine of corresponding rows. */
function lowestCosine(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  expect(actual.length).toBe(expected.length);
  const others = rowsOf(expected);
  return Math.min(...rowsOf(actual).map((row, i) => cosineSimilarity(row, others[i]!)));
}

async function withBert<T>(
  attention: Attention,
  action: (model: Bert) => T | Promise<T>,
): Promise<T> {
  const model = await loadBert(DIRECTORY, {attention});
  try {
    return await action(model);
  } finally {
    model.dispose();
  }
}

test('tokens are those of the reference, with characters it does not know', () => {
  expect(golden.texts.map((text) => tokenizer.encode(text))).toEqual(golden.ids);
  expect(golden.ids.flat()).toContain(tokenizer.idOf('[UNK]'));
  expect(tokenizer.encode('look', {special: false}).length).toBe(
    tokenizer.encode('look').length - 2,
  );
});

describe.each(['cpu', 'wasm'])('on backend %s', (backend) => {
  let before: number;
  beforeAll(async () => {
    await tf.setBackend(backend);
    // wasm keeps tensors of its own from its first uses on.
    before = tf.memory().numTensors;
  });
  afterEach(() => expect(tf.memory().numTensors).toBe(before));

  test.each(['right', 'left'] as const)('embeddings, padding on the %s', (side) =>
    withBert(plainAttention, (model) => {
      const {ids, mask} = padTexts(golden.texts, tokenizer, 48, 0, side);
      const embeddings = read(model.embed(ids, {mask}));
      expect(lowestCosine(embeddings, golden[side].embeddings)).toBeGreaterThan(0.99999);
      expect(maxDifference(embeddings, golden[side].embeddings)).toBeLessThan(1e-4);
      const hidden = read(model.hidden(ids, {mask}));
      const length = ids[0]!.length;
      const first = mask.flatMap((row, i) => {
        const begin = (i * length + row.indexOf(1)) * WIDTH;
        return [...hidden.subarray(begin, begin + WIDTH)];
      });
      expect(maxDifference(first, golden[side].first_tokens)).toBeLessThan(LOGIT_TOLERANCE);
    }),
  );

  test('embedTexts: in batches as one by one', () =>
    withBert(recipeAttention('exact'), async (model) => {
      for (const batch of [1, 4, 16]) {
        const rows = await embedTexts(model, tokenizer, golden.texts, {batch});
        const flat = rows.flatMap((row) => [...row]);
        expect(lowestCosine(flat, golden.right.embeddings)).toBeGreaterThan(0.99999);
      }
      expect(await embedTexts(model, tokenizer, [])).toEqual([]);
    }));

  test('a pair of texts, every vector', () =>
    withBert(plainAttention, (model) => {
      const {ids, types, hidden} = golden.pair;
      expect(maxDifference(read(model.hidden(ids, {types})), hidden)).toBeLessThan(LOGIT_TOLERANCE);
      expect(maxDifference(read(model.hidden(ids)), hidden)).toBeGreaterThan(0.1);
    }));

  test('a mask that is dropped is noticed', () =>
    withBert(
      (q, k, v, {isCausal, scale}) => plainAttention(q, k, v, {isCausal, scale}),
      (model) => {
        const {ids, mask} = padTexts(golden.texts, tokenizer, 48, 0);
        const embeddings = read(model.embed(ids, {mask}));
        expect(lowestCosine(embeddings, golden.right.embeddings)).toBeLessThan(0.999);
      },
    ));

  test.each(RECIPES)('$precision stays within $bound of exact', async ({precision, bound}) => {
    const {ids, mask} = padTexts(golden.texts, tokenizer, 48, 0);
    const [exact, quantised] = await Promise.all(
      (['exact', precision] as const).map((name) =>
        withBert(recipeAttention(name), (model) => read(model.embed(ids, {mask}))),
      ),
    );
    const error = relativeL1(quantised!, exact!);
    expect(error).toBeLessThan(bound);
    expect(error).toBeGreaterThan(0);
  });
});

describe('what it says', () => {
  const config = parseBertConfig({
    vocab_size: 9,
    hidden_size: 8,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    intermediate_size: 8,
    max_position_embeddings: 16,
  });

  test.each([
    ['model_type', 'roberta', /"roberta"; expected "bert"/],
    ['position_embedding_type', 'relative_key', /"absolute"/],
    ['num_attention_heads', 3, /divisor of hidden_size, 8/],
    ['hidden_act', 'tanh', /one of gelu/],
    ['hidden_size', undefined, /missing/],
    ['layer_norm_eps', -1, /number > 0/],
    ['pad_token_id', 9, /below vocab_size, 9/],
    ['is_decoder', true, /encoder/],
  ])('config %s = %p', (field, value, message) => {
    const json = {
      vocab_size: 9,
      hidden_size: 8,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      intermediate_size: 8,
      max_position_embeddings: 16,
      [field]: value,
    };
    const parse = (): unknown => parseBertConfig(json, 'dir/config.json');
    expect(parse).toThrow(ModelError);
    expect(parse).toThrow(new RegExp(`dir/config.json, ${field}: `));
    expect(parse).toThrow(message);
  });

  test('pooling files', () => {
    expect(parseBertPooling({}, config)).toEqual({kind: 'mean', normalise: true, maxLength: 16});
    const modules = [{type: 'sentence_transformers.models.Pooling'}];
    const cls = {pooling_mode_cls_token: true, pooling_mode_mean_tokens: false};
    const files = {pooling: cls, modules, sentence: {max_seq_length: 5}};
    expect(parseBertPooling(files, config)).toEqual({kind: 'cls', normalise: false, maxLength: 5});
    const poolingOf = (pooling: object) => () => parseBertPooling({pooling}, config);
    expect(poolingOf({pooling_mode: 'cls'})().kind).toBe('cls');
    expect(poolingOf({pooling_mode: 'max'})).toThrow(/"max"; expected "mean" or "cls"/);
    expect(poolingOf({pooling_mode_max_tokens: true})).toThrow(/pooling_mode_max_tokens/);
  });

  test('calls that do not fit', async () => {
    await tf.setBackend('cpu');
    const before = tf.memory().numTensors;
    await withBert(plainAttention, async (model) => {
      const held = tf.memory().numTensors;
      expect(() => model.hidden([])).toThrow(/ids: hold no token/);
      expect(() => model.hidden([[]])).toThrow(/ids: hold no token/);
      expect(() => model.hidden([[1, 2], [3]])).toThrow(/row 1 holds 1 ids; expected 2/);
      expect(() => model.hidden([[1, 100000]])).toThrow(/\[0\]\[1\] is 100000/);
      expect(() => model.hidden([new Array<number>(65).fill(1)])).toThrow(/65 ids exceed/);
      expect(() => model.hidden([[1, 2]], {mask: [[1]]})).toThrow(/mask: row 0 holds 1 entries/);
      expect(() => model.hidden([[1, 2]], {mask: [[0, 0]]})).toThrow(/hides every id/);
      expect(() => model.hidden([[1, 2]], {mask: [[1, 2]]})).toThrow(/expected 1 or 0/);
      expect(() => model.hidden([[1, 2]], {types: [[0, 2]]})).toThrow(/types: \[0\]\[1\] is 2/);
      expect(() => model.hidden([[1, 2]], {types: [[0]]})).toThrow(/types/);
      await expect(embedTexts(model, tokenizer, ['a'], {batch: 0})).rejects.toThrow(/batch/);
      expect(tf.memory().numTensors).toBe(held);
      model.dispose();
      expect(() => model.hidden([[1]])).toThrow(/disposed/);
    });
    expect(tf.memory().numTensors).toBe(before);
    await expect(loadBert('/nowhere')).rejects.toThrow(/config.json: cannot be read/);
  });

  test('long texts are cut before their end mark; padding goes where it is asked', () => {
    const {ids, mask} = padTexts(['a query', golden.texts[2]!], tokenizer, 6, 0);
    expect(ids[1]).toEqual([...golden.ids[2]!.slice(0, 5), tokenizer.idOf('[SEP]')]);
    expect(mask[0]!.reduce((a, b) => a + b)).toBe(tokenizer.encode('a query').length);
  });

  test('similarity is symmetric with ones on its diagonal', () => {
    const table = similarityTable([Float32Array.of(1, 2), Float32Array.of(2, -1), [0, 0]]);
    expect(table[0]![0]).toBeCloseTo(1, 12);
    expect(table[0]![1]).toBeCloseTo(0, 12);
    expect(table[2]).toEqual([0, 0, 0]);
  });
});
