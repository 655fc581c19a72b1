/** js-gpt on backend `tensorflow`, its attention by the op inside TensorFlow: golden values, greedy tokens, memory. */
import * as tf from '@tensorflow/tfjs-core';
import type {Attention} from '../../models/gpt2/attention.js';
import {decodeBytes} from '../../models/gpt2/bytes.js';
import type {Gpt2} from '../../models/gpt2/gpt2.js';
import {loadGpt2} from '../../models/gpt2/load.js';
import {sageAttention} from '../../src/index.js';
import type {Precision} from '../../src/numerics/recipes.js';
import {loadAddon} from '../../src/runtime/load_addon.js';
import {
  goldenError,
  goldenPrompts,
  idsOf,
  JS_GPT,
  LOGIT_TOLERANCE,
  LOSS_TOLERANCE,
  meanLoss,
} from '../models/golden_prompts.js';
import {loadTensorflowBackend} from './tensorflow_backend.js';

jest.setTimeout(180_000);

const callsOfOp = (): number => loadAddon().addon?.tensorflowTrace().calls ?? NaN;

let precision: Precision = 'exact';
const attention: Attention = (q, k, v, {scale, isCausal}) =>
  sageAttention(q, k, v, {precision, scale, isCausal}) as tf.Tensor4D;

let model: Gpt2;
beforeAll(async () => {
  loadTensorflowBackend();
  await tf.setBackend('tensorflow');
  model = await loadGpt2(JS_GPT, {attention});
});
afterAll(() => model.dispose());

test.each(goldenPrompts.map((prompt) => ({file: prompt.file, prompt})))(
  '$file: logits, loss and 64 greedy tokens',
  async ({prompt}) => {
    precision = 'exact';
    const tensors = tf.memory().numTensors;
    const calls = callsOfOp();
    const ids = idsOf(prompt);
    const cache = model.createCache();
    const tensor = model.logits([ids], cache);
    const logits = tensor.dataSync<'float32'>();
    tensor.dispose();
    expect(goldenError(prompt, logits, ids.length)).toBeLessThan(LOGIT_TOLERANCE);
    expect(Math.abs(meanLoss(ids, logits) - prompt.mean_nll)).toBeLessThan(LOSS_TOLERANCE);
    const last = logits.subarray(-257);
    const firstToken = last.indexOf(last.reduce((a, b) => (a > b ? a : b)));
    const rest = await model.generate([firstToken], {maxNewTokens: 63, cache});
    expect([firstToken, ...rest]).toEqual(prompt.greedy_tokens);
    expect(decodeBytes([firstToken, ...rest])).toBe(prompt.greedy_text);
    cache.dispose();
    expect(tf.memory().numTensors).toBe(tensors);
    // One call for each layer of the prompt and of every token after it.
    expect(callsOfOp() - calls).toBe(64 * model.config.layers);
  },
);

test('a recipe changes the loss a little, and the golden values notice it', () => {
  const [prompt] = goldenPrompts as [(typeof goldenPrompts)[number]];
  precision = 'int8_int16';
  const ids = idsOf(prompt);
  const tensor = model.logits([ids]);
  const logits = tensor.dataSync<'float32'>();
  tensor.dispose();
  expect(Math.abs(meanLoss(ids, logits) - prompt.mean_nll)).toBeLessThan(0.02);
  if (loadAddon().addon?.tensorflowTrace().device === 'CPU') {
    expect(goldenError(prompt, logits, ids.length)).toBeGreaterThan(LOGIT_TOLERANCE);
  }
});
