/**
 * The quantised recipes inside TensorFlow on a GPU: the case table in TensorFlow's memory, what `auto` means there, a
 * gradient behind a quantised forward pass, and js-gpt by every recipe.
 */
import * as tf from '@tensorflow/tfjs-core';
import {compareArrays} from '../../src/accuracy/metrics';
import {chooseEngine} from '../../src/engines/choose_engine';
import {lastGpuRefusal, tensorflowOp} from '../../src/engines/tensorflow_op';
import {configureSageAttention, sageAttention} from '../../src/index';
import {PRECISIONS, type Precision} from '../../src/numerics/recipes';
import {loadAddon} from '../../src/runtime/load_addon';
import {loadGpt2} from '../../models/gpt2/load';
import {casesTagged, relativeL1Bound, type AttentionCase} from '../cases';
import {callOf, exactAnswer} from '../ops/case_calls';
import {goldenPrompts, idsOf, JS_GPT, meanLoss} from '../models/golden_prompts';
import {loadTensorflowBackend} from '../tensorflow/tensorflow_backend';

jest.setTimeout(300_000);

const callsOfOp = (): number => loadAddon().addon?.tensorflowTrace().calls ?? NaN;

beforeAll(async () => {
  loadTensorflowBackend();
  await tf.setBackend('tensorflow');
  expect(tensorflowOp().device).toBe('GPU');
});

/** Relative L1 of o from float64, by the op on the GPU and by the native engine on host copies. */
async function errorsOf(c: AttentionCase, precision: Precision) {
  const expected = exactAnswer(c).o;
  const {q, k, v, options} = callOf(c);
  const attend = async (engine: 'auto' | 'native') => {
    configureSageAttention({engine});
    const o = sageAttention(q, k, v, {...options, precision, returnLse: false});
    const {relativeL1} = compareArrays(await o.data(), expected);
    o.dispose();
    return relativeL1;
  };
  const errors = {native: await attend('native'), gpu: await attend('auto')};
  tf.dispose([q, k, v, options.mask as tf.Tensor]);
  return errors;
}

const hasWork = ({batch, heads, qLen, kvLen}: AttentionCase): boolean =>
  batch * heads * qLen * kvLen > 0;

test.each(PRECISIONS)('%s: the case table', async (precision) => {
  if (!tensorflowOp().precisions.includes(precision)) {
    expect(chooseEngine('tensorflow', precision)).toMatchObject({precision: 'exact', onGpu: true});
    return;
  }
  const failures: string[] = [];
  const calls = callsOfOp();
  let cases = 0;
  for (const c of [...casesTagged('fast'), ...casesTagged('accuracy')].filter(hasWork)) {
    const {native, gpu} = await errorsOf(c, precision);
    cases += 1;
    const allowed = Math.max(relativeL1Bound(c, precision), 1.25 * native);
    if (!(gpu <= allowed)) failures.push(`${c.name}: ${gpu}, allowed ${allowed}`);
  }
  expect(failures).toEqual([]);
  // The rest has a head_dim that only other kernels or TensorFlow's own ops compute.
  expect(callsOfOp() - calls).toBeGreaterThan(cases / 2);
});

test('auto is the device’s recipe for many keys, exact for few and in decoding', () => {
  const meant = tensorflowOp().autoOnGpu();
  expect(meant).not.toBe('exact');
  const attend = (queries: number, keys: number, precision: Precision | 'auto') =>
    tf.tidy(() => {
      const [q, k, v] = [queries, keys, keys].map((n, i) =>
        tf.randomNormal([1, 2, n, 64], 0, 1, 'float32', i + 1),
      ) as [tf.Tensor, tf.Tensor, tf.Tensor];
      return sageAttention(q, k, v, {precision}).dataSync();
    });
  expect(attend(600, 600, 'auto')).toEqual(attend(600, 600, meant));
  expect(attend(600, 600, 'auto')).not.toEqual(attend(600, 600, 'exact'));
  expect(attend(100, 100, 'auto')).toEqual(attend(100, 100, 'exact'));
  expect(attend(1, 600, 'auto')).toEqual(attend(1, 600, 'exact'));
});

test('the gradient of a quantised call lies near the exact one', () => {
  const x = [1, 2, 3].map((seed) => tf.randomNormal([1, 4, 600, 64], 0, 1, 'float32', seed));
  const gradients = (precision: Precision) =>
    tf.grads((...[q, k, v]: tf.Tensor[]) =>
      tf.sum(tf.square(sageAttention(q!, k!, v!, {precision}))),
    )(x);
  const [exact, quantised] = [gradients('exact'), gradients('int8_fp8')];
  for (const [i, gradient] of quantised.entries()) {
    const {relativeL1} = compareArrays(gradient.dataSync(), exact[i]!.dataSync());
    expect(relativeL1).toBeLessThan(0.1);
  }
  tf.dispose([...x, ...exact, ...quantised]);
});

test('js-gpt loses little by the recipes', async () => {
  let precision: Precision = 'exact';
  const model = await loadGpt2(JS_GPT, {
    attention: (q, k, v, {scale, isCausal}) =>
      sageAttention(q, k, v, {precision, scale, isCausal}) as tf.Tensor4D,
  });
  const prompt = goldenPrompts[0]!;
  const ids = idsOf(prompt);
  const rows = PRECISIONS.filter((name) => tensorflowOp().precisions.includes(name)).map((name) => {
    precision = name;
    const logits = model.logits([ids]);
    const loss = meanLoss(ids, logits.dataSync<'float32'>());
    logits.dispose();
    return {name, over: loss - prompt.mean_nll};
  });
  console.info(rows.map(({name, over}) => `${name}: ${over.toFixed(5)}`).join('\n'));
  for (const {name, over} of rows) {
    expect(Math.abs(over)).toBeLessThan(name === 'exact' ? 1e-4 : 0.5);
  }
  expect(lastGpuRefusal() ?? '').not.toContain('not taken by auto');
  model.dispose();
});
