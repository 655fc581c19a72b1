/** Accuracy suites as a user of the package writes them; docs/accuracy.md shows this file. */
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import {sageAttention} from '../../src/index.js';
import {
  describeAttentionAccuracy,
  toleranceOf,
  type AccuracyCase,
  type AttentionUnderTest,
} from '../../src/accuracy/jest.js';

beforeAll(async () => {
  await tf.setBackend('cpu');
});

/** Sizes as they come in your model, and inputs that are hard for some formats. */
const SIZES = {batch: 1, heads: 2, kvHeads: 2, qLen: 129, kvLen: 129, headDim: 32};
const CASES: AccuracyCase[] = [
  {...SIZES, distribution: 'normal', causal: false},
  {...SIZES, distribution: 'k_bias', causal: false},
  {...SIZES, distribution: 'outlier_channels', causal: true},
];

// Every case against exact attention in float64, with the bounds that this package holds itself to.
describe.each(['int8_int16', 'int8_fp8', 'fp4'] as const)('recipe %s', (precision) => {
  describeAttentionAccuracy('on short causal and full attention', {
    attention: (q, k, v, {isCausal, scale}) => sageAttention(q, k, v, {isCausal, scale, precision}),
    cases: CASES,
    tolerances: ({distribution}) => toleranceOf(precision, distribution),
  });
});

// Any function that attends can be put to the same test.
const myAttention: AttentionUnderTest = (q, k, v, {isCausal, scale}) =>
  tf.tidy(() => {
    const [queries, keys] = [q.shape[2], k.shape[2]];
    const scores = tf.mul(tf.matMul(q, k, false, true), scale);
    const seen = tf.linalg.bandPart(tf.ones([queries, keys]), -1, isCausal ? 0 : -1);
    const hidden = tf.mul(tf.sub(1, seen), -1e30);
    return tf.matMul(tf.softmax(tf.add(scores, hidden)), v);
  });

describeAttentionAccuracy('my own attention', {
  attention: myAttention,
  cases: CASES,
  tolerances: {cosine: 0.999999, relativeL1: 1e-5},
});

// The matcher alone: two tensors, or a tensor and its expected values.
test('smoothing k matters where its channels are biased', () => {
  const bias = tf.linspace(-30, 30, 32);
  const q = tf.randomNormal([64, 32], 0, 1, 'float32', 1);
  const k = tf.add(tf.randomNormal([64, 32], 0, 1, 'float32', 2), bias);
  const v = tf.randomNormal([64, 32], 0, 1, 'float32', 3);
  const exact = sageAttention(q, k, v, {precision: 'exact'});
  const smoothed = sageAttention(q, k, v, {precision: 'int8'});
  const unsmoothed = sageAttention(q, k, v, {precision: 'int8', smoothK: false});
  expect(smoothed).toMatchAttention(exact, {cosine: 0.999, relativeL1: 0.03});
  expect(unsmoothed).not.toMatchAttention(exact, {relativeL1: 0.03});
  tf.dispose([bias, q, k, v, exact, smoothed, unsmoothed]);
});
