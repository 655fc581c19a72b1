/** MultiHeadAttention and GroupQueryAttention against the same formula written in matMul and softmax. */
import * as tf from '@tensorflow/tfjs';
import {compareArrays} from '../../src/accuracy/metrics';
import {groupQueryAttention, multiHeadAttention} from '../../src/layers';
import {useBackend} from '../kernels/backends';
import {plainLayer, weightsOf} from './plain_layer';

const exact = {precision: 'exact'} as const;

function expectClose(actual: tf.Tensor, expected: tf.Tensor, tolerance = 1e-5): void {
  expect(actual.shape).toEqual(expected.shape);
  const {relativeL1} = compareArrays(actual.dataSync(), expected.dataSync());
  expect(relativeL1).toBeLessThan(tolerance);
}

const random = (shape: number[], seed: number): tf.Tensor =>
  tf.randomNormal(shape, 0, 1, 'float32', seed);

describe.each(['cpu', 'wasm'])('on %s', (backend) => {
  beforeAll(() => useBackend(backend));

  it.each([
    [1, 1],
    [17, 17],
    [127, 129],
    [1, 1000],
  ])('T %i, S %i: both layers, with and without causality', (queries, keys) => {
    const layers = [
      multiHeadAttention({numHeads: 3, keyDim: 5, valueDim: 7, sage: exact}),
      groupQueryAttention({headDim: 8, numQueryHeads: 6, numKeyValueHeads: 2, sage: exact}),
    ];
    for (const layer of layers) {
      const query = random([2, queries, 10], 1);
      const value = random([2, keys, 10], 2);
      for (const useCausalMask of [false, true]) {
        const output = layer.apply([query, value], {useCausalMask}) as tf.Tensor;
        const mask = useCausalMask
          ? tf.greaterEqual(tf.range(0, queries).expandDims(1), tf.range(0, keys).expandDims(0))
          : tf.ones([1, 1], 'bool');
        const weights = weightsOf(layer);
        expectClose(output, plainLayer(weights, {query, value, mask})[0]);
      }
    }
  });

  it('key apart from value, without bias, with a gate and another output shape', () => {
    const layer = multiHeadAttention({
      numHeads: 2,
      keyDim: 4,
      valueDim: 6,
      useBias: false,
      useGate: true,
      outputShape: 5,
      sage: exact,
    });
    const [query, value, key] = [random([2, 6, 8], 3), random([2, 9, 7], 4), random([2, 9, 3], 5)];
    const output = layer.apply([query, value, key]) as tf.Tensor;
    const weights = weightsOf(layer);
    expect(Object.keys(weights)).toEqual([
      'query/kernel',
      'key/kernel',
      'gate/kernel',
      'value/kernel',
      'attention_output/kernel',
    ]);
    expectClose(output, plainLayer(weights, {query, value, key, gate: true})[0]);
  });

  it('attention masks of rank 3 and 4, masks of query, value and key, and all together', () => {
    const layer = multiHeadAttention({numHeads: 2, keyDim: 4, sage: exact});
    const [query, value] = [random([2, 5, 8], 6), random([2, 7, 8], 7)];
    const keep = (shape: number[], seed: number): tf.Tensor =>
      tf.greater(tf.randomUniform(shape, 0, 1, 'float32', seed), 0.4);
    const attentionMask = keep([2, 5, 7], 8);
    const perHead = keep([2, 2, 5, 7], 9);
    const [queryMask, valueMask, keyMask] = [keep([2, 5], 10), keep([2, 7], 11), keep([2, 7], 12)];
    layer.apply([query, value]);
    const weights = weightsOf(layer);
    const cases = [
      {kwargs: {attentionMask}, mask: attentionMask.expandDims(1)},
      {kwargs: {attentionMask: attentionMask.toFloat()}, mask: attentionMask.expandDims(1)},
      {kwargs: {attentionMask: perHead}, mask: perHead},
      {kwargs: {queryMask}, mask: queryMask.reshape([2, 1, 5, 1])},
      {kwargs: {valueMask}, mask: valueMask.reshape([2, 1, 1, 7])},
      {
        kwargs: {attentionMask, queryMask, valueMask, keyMask},
        mask: attentionMask
          .expandDims(1)
          .logicalAnd(queryMask.reshape([2, 1, 5, 1]))
          .logicalAnd(valueMask.logicalAnd(keyMask).reshape([2, 1, 1, 7])),
      },
    ];
    for (const {kwargs, mask} of cases) {
      const output = layer.apply([query, value], kwargs) as tf.Tensor;
      const full = tf.logicalAnd(mask, tf.ones([2, 1, 5, 7], 'bool'));
      const wanted = plainLayer(weights, {query, value, mask: full})[0];
      expectClose(output, wanted);
    }
    const listed = layer.apply([query, value], {mask: [queryMask, valueMask]}) as tf.Tensor;
    expectClose(listed, layer.apply([query, value], {queryMask, valueMask}) as tf.Tensor, 1e-9);
  });

  it('a query that sees nothing averages all values, as in Keras', () => {
    const layer = groupQueryAttention({
      headDim: 4,
      numQueryHeads: 4,
      numKeyValueHeads: 2,
      sage: exact,
    });
    const x = random([1, 6, 8], 13);
    const nothing = tf.zeros([1, 6, 6], 'bool');
    const output = layer.apply([x, x], {attentionMask: nothing}) as tf.Tensor;
    const weights = weightsOf(layer);
    const mask = nothing.expandDims(1);
    expectClose(output, plainLayer(weights, {query: x, mask})[0]);
  });

  it('returns scores, and with them the same output', () => {
    const layer = groupQueryAttention({
      headDim: 4,
      numQueryHeads: 4,
      numKeyValueHeads: 2,
      sage: exact,
    });
    const x = random([2, 9, 8], 14);
    const plain = layer.apply([x, x]) as tf.Tensor;
    const [output, scores] = layer.apply([x, x], {returnAttentionScores: true}) as tf.Tensor[];
    expectClose(output as tf.Tensor, plain);
    const weights = weightsOf(layer);
    const wanted = plainLayer(weights, {query: x})[1];
    expectClose(scores as tf.Tensor, wanted);
  });

  it('windows of keys', () => {
    const layer = multiHeadAttention({numHeads: 2, keyDim: 4, slidingWindow: 3, sage: exact});
    const x = random([1, 17, 8], 15);
    const [i, j] = [tf.range(0, 17).expandDims(1), tf.range(0, 17).expandDims(0)];
    const band = tf.less(tf.abs(tf.sub(i, j)), 3);
    const output = layer.apply(x) as tf.Tensor;
    const weights = weightsOf(layer);
    expectClose(output, plainLayer(weights, {query: x, mask: band})[0]);
    const causal = layer.apply(x, {useCausalMask: true}) as tf.Tensor;
    const mask = band.logicalAnd(tf.greaterEqual(i, j));
    expectClose(causal, plainLayer(weights, {query: x, mask})[0]);
  });

  it('an empty batch gives an empty output', () => {
    const layer = multiHeadAttention({numHeads: 2, keyDim: 4, sage: exact});
    const output = layer.apply(tf.zeros([0, 5, 8])) as tf.Tensor;
    expect(output.shape).toEqual([0, 5, 8]);
  });

  it('int32 input is read as float32', () => {
    const layer = multiHeadAttention({numHeads: 2, keyDim: 4, sage: exact});
    const x = tf.tensor(
      Array.from({length: 24}, (_, i) => i % 5),
      [1, 3, 8],
      'int32',
    );
    expectClose(layer.apply(x) as tf.Tensor, layer.apply(x.toFloat()) as tf.Tensor, 1e-9);
  });
});

it('computes by the recipe that `sage` names', async () => {
  await useBackend('cpu');
  const x = random([1, 64, 32], 16);
  const layer = multiHeadAttention({numHeads: 2, keyDim: 32, sage: exact});
  const exactly = layer.apply(x) as tf.Tensor;
  layer.sage = {precision: 'int8_fp8'};
  const lossy = layer.apply(x) as tf.Tensor;
  const {relativeL1} = compareArrays(lossy.dataSync(), exactly.dataSync());
  expect(relativeL1).toBeGreaterThan(1e-4);
  expect(relativeL1).toBeLessThan(0.1);
});

it('heads wider than the op takes run by plain ops', async () => {
  await useBackend('cpu');
  const layer = multiHeadAttention({numHeads: 1, keyDim: 520, sage: exact});
  const x = random([1, 3, 4], 17);
  const output = layer.apply(x) as tf.Tensor;
  expectClose(output, plainLayer(weightsOf(layer), {query: x})[0]);
  expect(layer.whyNotReplaced()).toMatch(/512/);
});

it('NaN in one sequence leaves the others alone', async () => {
  await useBackend('cpu');
  const layer = multiHeadAttention({numHeads: 2, keyDim: 4, sage: exact});
  const clean = random([2, 5, 8], 18);
  const values = clean.dataSync().slice();
  values[0] = NaN;
  const output = layer.apply(tf.tensor(values, [2, 5, 8])) as tf.Tensor3D;
  const wanted = layer.apply(clean) as tf.Tensor3D;
  expectClose(output.slice([1], [1]), wanted.slice([1], [1]), 1e-9);
  expect(output.slice([0], [1]).dataSync().every(Number.isNaN)).toBe(true);
});
