/** Models with attention layers train, with the gradients of the plain formula, and keep no tensors. */
import * as tf from '@tensorflow/tfjs';
import {compareArrays} from '../../src/accuracy/metrics';
import {attention, groupQueryAttention, multiHeadAttention} from '../../src/layers';
import {useBackend} from '../kernels/backends';
import {plainLayer, weightsOf} from './plain_layer';

const exact = {precision: 'exact'} as const;

/** Sequences of 8 tokens below 10, class = whether 3 comes before 7; token 0 is padding. */
function task(count: number): {xs: tf.Tensor; ys: tf.Tensor} {
  const rows: number[][] = [];
  const classes: number[] = [];
  let state = 1;
  const next = (below: number): number => {
    state = (state * 48271) % 2147483647;
    return state % below;
  };
  for (let row = 0; row < count; row += 1) {
    const tokens = Array.from({length: 8}, () => [1, 2, 4, 5, 6, 8, 9][next(7)] ?? 1);
    const [first, second] = [next(3), 3 + next(3)];
    const threeFirst = next(2) === 1;
    tokens[first] = threeFirst ? 3 : 7;
    tokens[second] = threeFirst ? 7 : 3;
    if (next(2) === 1) tokens.fill(0, 6);
    rows.push(tokens);
    classes.push(threeFirst ? 1 : 0);
  }
  return {xs: tf.tensor2d(rows, undefined, 'int32'), ys: tf.tensor2d(classes, [count, 1])};
}

function classifier(dropout = 0): tf.LayersModel {
  const ids = tf.input({shape: [8], dtype: 'int32'});
  const init = (seed: number) => tf.initializers.glorotUniform({seed});
  const embedded = tf.layers
    .embedding({inputDim: 10, outputDim: 8, maskZero: true, embeddingsInitializer: init(1)})
    .apply(ids) as tf.SymbolicTensor;
  const attended = multiHeadAttention({
    numHeads: 2,
    keyDim: 4,
    dropout,
    seed: 5,
    kernelInitializer: init(2),
    sage: exact,
  }).apply([embedded, embedded], {useCausalMask: true}) as tf.SymbolicTensor;
  const sum = tf.layers.add().apply([embedded, attended]) as tf.SymbolicTensor;
  const mixed = groupQueryAttention({
    headDim: 4,
    numQueryHeads: 2,
    numKeyValueHeads: 1,
    kernelInitializer: init(3),
    sage: exact,
  }).apply(sum) as tf.SymbolicTensor;
  const flat = tf.layers.flatten().apply(mixed) as tf.SymbolicTensor;
  const y = tf.layers
    .dense({units: 1, activation: 'sigmoid', kernelInitializer: init(4)})
    .apply(flat) as tf.SymbolicTensor;
  const model = tf.model({inputs: ids, outputs: y});
  model.compile({
    optimizer: tf.train.adam(0.04),
    loss: 'binaryCrossentropy',
    metrics: ['accuracy'],
  });
  return model;
}

beforeAll(() => useBackend('cpu'));

it('gradients are those of the plain formula, for every weight and the inputs', () => {
  const layer = multiHeadAttention({
    numHeads: 2,
    keyDim: 4,
    valueDim: 3,
    useGate: true,
    sage: exact,
  });
  const query = tf.randomNormal([2, 7, 8], 0, 1, 'float32', 1);
  const value = tf.randomNormal([2, 9, 6], 0, 1, 'float32', 2);
  const keyMask = tf.tensor([1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0], [2, 9], 'bool');
  layer.apply([query, value]);
  const weights = Object.entries(weightsOf(layer));
  expect(weights).toHaveLength(10);
  const variables = layer.weights.map((weight) => weight.read() as tf.Variable);
  const direction = tf.randomNormal([2, 7, 8], 0, 1, 'float32', 3);
  const mine = tf.variableGrads(
    () => tf.sum(tf.mul(layer.apply([query, value], {valueMask: keyMask}) as tf.Tensor, direction)),
    variables,
  ).grads;
  const mask = keyMask.reshape([2, 1, 1, 9]).logicalAnd(tf.ones([2, 2, 7, 9], 'bool'));
  const theirs = tf.grads((...given: tf.Tensor[]) => {
    const named = Object.fromEntries(weights.map(([name], i) => [name, given[i] as tf.Tensor]));
    const [output] = plainLayer(named, {query, value, mask, gate: true});
    return tf.sum(tf.mul(output, direction));
  })(weights.map(([, weight]) => weight));
  Object.values(mine).forEach((gradient, i) => {
    const wanted = theirs[i] as tf.Tensor;
    expect(gradient.shape).toEqual(wanted.shape);
    const {maxAbs} = compareArrays(gradient.dataSync(), wanted.dataSync());
    expect(maxAbs).toBeLessThan(1e-5 * Math.max(1, wanted.abs().max().dataSync()[0] ?? 1));
  });
});

it('gradients pass through rows that see nothing', () => {
  const layer = multiHeadAttention({numHeads: 2, keyDim: 4, sage: exact});
  const x = tf.randomNormal([1, 5, 8], 0, 1, 'float32', 4);
  const queryMask = tf.tensor([1, 1, 0, 1, 0], [1, 5], 'bool');
  layer.apply(x);
  const weights = weightsOf(layer);
  const mine = tf.grad((given) => tf.sum(layer.apply(given, {queryMask}) as tf.Tensor))(x);
  const mask = queryMask.reshape([1, 1, 5, 1]).logicalAnd(tf.ones([1, 2, 5, 5], 'bool'));
  const theirs = tf.grad((given) => tf.sum(plainLayer(weights, {query: given, mask})[0]))(x);
  expect(compareArrays(mine.dataSync(), theirs.dataSync()).maxAbs).toBeLessThan(1e-5);
});

it('a classifier learns: the loss falls, and it is right on sequences that it has not seen', async () => {
  const model = classifier();
  const {xs, ys} = task(96);
  const history = await model.fit(xs, ys, {epochs: 16, batchSize: 32, shuffle: false, verbose: 0});
  const losses = history.history.loss as number[];
  expect(losses.at(-1)).toBeLessThan(0.25 * (losses[0] as number));
  const unseen = task(156);
  const [, accuracy] = model.evaluate(
    unseen.xs.slice([96, 0], [60, 8]),
    unseen.ys.slice([96, 0], [60, 1]),
  ) as tf.Scalar[];
  expect(accuracy?.dataSync()[0]).toBeGreaterThan(0.9);
});

it('dropout of the scores acts in training only, differently each time', () => {
  const layer = multiHeadAttention({numHeads: 2, keyDim: 4, dropout: 0.5, seed: 3, sage: exact});
  const x = tf.randomNormal([1, 16, 8], 0, 1, 'float32', 5);
  const values = (training: boolean): number[] => [
    ...(layer.apply(x, {training}) as tf.Tensor).dataSync(),
  ];
  expect(values(false)).toEqual(values(false));
  const [first, second] = [values(true), values(true)];
  expect(first).not.toEqual(second);
  expect(first).not.toEqual(values(false));
});

it('attention without projections trains its scale', () => {
  const layer = attention({useScale: true, sage: exact});
  const x = tf.randomNormal([2, 6, 8], 0, 1, 'float32', 6);
  layer.apply([x, x]);
  const [scale] = layer.weights.map((weight) => weight.read() as tf.Variable);
  const {grads} = tf.variableGrads(
    () => tf.sum(tf.square(layer.apply([x, x]) as tf.Tensor)),
    [scale as tf.Variable],
  );
  const plain = tf.grad((s) =>
    tf.sum(tf.square(tf.matMul(tf.softmax(tf.mul(tf.matMul(x, x, false, true), s)), x))),
  )(scale as tf.Tensor);
  const [mine] = Object.values(grads).map((gradient) => gradient.dataSync()[0]);
  expect(mine).toBeCloseTo(plain.dataSync()[0] as number, 3);
});

it('1,000 predictions and training steps keep no tensors', async () => {
  const model = classifier(0.1);
  const {xs, ys} = task(4);
  const batches = {xs: xs as tf.Tensor2D, ys: ys as tf.Tensor2D};
  tf.dispose(model.predict(batches.xs));
  await model.trainOnBatch(batches.xs, batches.ys);
  const before = tf.memory().numTensors;
  for (let run = 0; run < 1000; run += 1) tf.dispose(model.predict(batches.xs));
  expect(tf.memory().numTensors).toBe(before);
  for (let step = 0; step < 30; step += 1) await model.trainOnBatch(batches.xs, batches.ys);
  expect(tf.memory().numTensors).toBe(before);
});
