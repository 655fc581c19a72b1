// js-gpt against values that another framework computed in float64 from the same weights, and proof that these values
// notice a wrong attention.

import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-wasm';
import type {Attention} from '../../models/gpt2/attention.js';
import type {Gpt2} from '../../models/gpt2/gpt2.js';
import {decodeBytes} from '../../models/gpt2/bytes.js';
import {loadGpt2} from '../../models/gpt2/load.js';
import {plainAttention} from '../../models/gpt2/plain_attention.js';
import {
  goldenError,
  goldenPrompts,
  idsOf,
  JS_GPT,
  LOGIT_TOLERANCE,
  logSumExp,
  LOSS_TOLERANCE,
  meanLoss,
  type GoldenPrompt,
} from './golden_prompts.js';

const [first] = goldenPrompts as [GoldenPrompt];

// Seconds of arithmetic on a free machine; a busy one may take many times as long.
jest.setTimeout(180_000);

beforeAll(async () => {
  await tf.setBackend('wasm');
});

describe('with plain attention', () => {
  let model: Gpt2;
  beforeAll(async () => {
    model = await loadGpt2(JS_GPT);
  });
  afterAll(() => model.dispose());

  test.each(goldenPrompts.map((prompt) => ({file: prompt.file, prompt})))(
    '$file: logits, loss and 64 greedy tokens',
    async ({prompt}) => {
      const before = tf.memory().numTensors;
      const ids = idsOf(prompt);
      const cache = model.createCache();
      const tensor = model.logits([ids], cache);
      expect(tensor.shape).toEqual([1, ids.length, 257]);
      const logits = tensor.dataSync<'float32'>();
      tensor.dispose();
      expect(prompt.logits.map(({position}) => position)).toContain(ids.length - 1);
      expect(goldenError(prompt, logits, ids.length)).toBeLessThan(LOGIT_TOLERANCE);

      const mean = meanLoss(ids, logits);
      expect(Math.abs(mean - prompt.mean_nll)).toBeLessThan(LOSS_TOLERANCE);

      // The logits after the prompt give the first token; the cache holds the prompt, so generation goes on from there.
      const lastRow = logits.subarray(-257);
      const firstToken = lastRow.indexOf(lastRow.reduce((a, b) => (a > b ? a : b)));
      const rest = await model.generate([firstToken], {maxNewTokens: 63, cache});
      expect([firstToken, ...rest]).toEqual(prompt.greedy_tokens);
      expect(decodeBytes([firstToken, ...rest])).toBe(prompt.greedy_text);
      cache.dispose();
      expect(tf.memory().numTensors).toBe(before);
    },
  );

  test('score gives the losses and likeliest bytes of these logits', () => {
    const ids = idsOf(first).slice(0, 353);
    const before = tf.memory().numTensors;
    const {negativeLogLikelihood, likeliest} = model.score(ids);
    const logits = model.logits([ids]);
    const values = logits.dataSync<'float32'>();
    logits.dispose();
    expect(negativeLogLikelihood.length).toBe(352);
    negativeLogLikelihood.forEach((loss, i) => {
      const row = values.subarray(i * 257, (i + 1) * 257);
      expect(loss).toBeCloseTo(logSumExp(row) - (row[ids[i + 1] as number] as number), 4);
    });
    const listed = first.logits.filter(({position}) => position < 352);
    expect(listed.length).toBe(5);
    for (const {position, top5} of listed) expect(likeliest[position]).toBe(top5[0]?.[0]);
    expect(tf.memory().numTensors).toBe(before);
  });

  test('generate equals the argmax of whole passes without a cache', async () => {
    const ids = idsOf(first).slice(0, 90);
    const withCache = await model.generate(ids, {maxNewTokens: 12});
    const without: number[] = [];
    while (without.length < 12) {
      const all = [...ids, ...without];
      const row = tf.tidy(() =>
        tf.argMax(tf.slice(model.logits([all]), [0, all.length - 1, 0]), -1),
      );
      without.push(row.dataSync()[0] as number);
      row.dispose();
    }
    expect(withCache).toEqual(without);
  });

  test('a later byte changes no earlier logit', () => {
    const ids = idsOf(first).slice(0, 129);
    const changed = [...ids.slice(0, -1), (ids[128] as number) ^ 1];
    const [a, b] = [ids, changed].map((row) => {
      const logits = model.logits([row]);
      const values = logits.dataSync<'float32'>();
      logits.dispose();
      return values;
    }) as [Float32Array, Float32Array];
    expect(a.subarray(0, 128 * 257)).toEqual(b.subarray(0, 128 * 257));
    expect(a.subarray(128 * 257)).not.toEqual(b.subarray(128 * 257));
  });
});

describe('wrong attention is noticed by the golden values', () => {
  /** Positions 0, 1, 2, 87 and 351 of the first prompt are among the first 352. */
  const count = 352;
  const unmasked: Attention = (q, k, v, {scale}) =>
    tf.tidy(
      () => tf.matMul(tf.softmax(tf.mul(tf.matMul(q, k, false, true), scale)), v) as tf.Tensor4D,
    );
  const rotated: Attention = (q, k, v, options) =>
    tf.tidy(() => {
      const turned = tf.concat([tf.slice(v, [0, 1, 0, 0]), tf.slice(v, 0, [1, 1, -1, -1])], 1);
      return plainAttention(q, k, turned as tf.Tensor4D, options);
    });
  const attentions: [string, Attention, boolean][] = [
    ['plain', plainAttention, true],
    ['mask dropped', unmasked, false],
    [
      'scale off by 1 %',
      (q, k, v, o) => plainAttention(q, k, v, {...o, scale: o.scale * 1.01}),
      false,
    ],
    ['v of the next head', rotated, false],
    ['v passed through', (_q, _k, v) => tf.clone(v), false],
    [
      'rows shifted by one key',
      (q, k, v, o) =>
        tf.tidy(() => {
          const n = q.shape[2];
          const padded = [k, v].map((x) =>
            tf.pad(x, [
              [0, 0],
              [0, 0],
              [1, 0],
              [0, 0],
            ]),
          );
          const [shiftedK, shiftedV] = padded.map((x) => tf.slice(x, 0, [-1, -1, n, -1]));
          return plainAttention(q, shiftedK as tf.Tensor4D, shiftedV as tf.Tensor4D, o);
        }),
      false,
    ],
  ];

  test.each(attentions)('%s', async (_, attention, good) => {
    const model = await loadGpt2(JS_GPT, {attention});
    const logits = model.logits([idsOf(first).slice(0, count)]);
    const error = goldenError(first, logits.dataSync<'float32'>(), count);
    tf.dispose(logits);
    model.dispose();
    if (good) expect(error).toBeLessThan(LOGIT_TOLERANCE);
    else expect(error).toBeGreaterThan(4 * LOGIT_TOLERANCE);
  });
});
