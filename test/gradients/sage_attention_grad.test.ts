/** Gradients against tfjs' own of the plain composition, on every kind of backend; what they refuse; what they keep. */
import * as tf from '@tensorflow/tfjs-core';
import {compareArrays} from '../../src/accuracy/metrics';
import {asAttributes, SageAttention} from '../../src/kernels/kernel_names';
import {prepareCall} from '../../src/ops/prepare_call';
import {sageAttention, SageAttentionError, type Precision} from '../../src/index';
import {Random} from '../cases';
import {UNKNOWN_BACKEND, useBackend} from '../kernels/backends';

const random = new Random(11);

function normal(shape: number[]): tf.Tensor {
  const size = shape.reduce((a, b) => a * b, 1);
  return tf.tensor(
    Float32Array.from({length: size}, () => random.normal()),
    shape,
  );
}

/** [B,H,N,D] with all heads; the mask is added. Also ln sum exp of the scores. */
function plain(
  q: tf.Tensor,
  k: tf.Tensor,
  v: tf.Tensor,
  mask?: tf.Tensor,
): [o: tf.Tensor, lse: tf.Tensor] {
  const dim = q.shape[q.rank - 1] as number;
  const products = tf.div(tf.matMul(q, k, false, true), Math.sqrt(dim));
  const scores = mask === undefined ? products : tf.add(products, mask);
  return [tf.matMul(tf.softmax(scores), v), tf.logSumExp(scores, -1)];
}

function errors(actual: tf.Tensor[], expected: tf.Tensor[]): number[] {
  expect(actual.map((x) => x.shape)).toEqual(expected.map((x) => x.shape));
  return actual.map((x, i) => {
    return compareArrays(x.dataSync(), (expected[i] as tf.Tensor).dataSync()).relativeL1;
  });
}

function expectWithin(actual: tf.Tensor[], expected: tf.Tensor[], bound: number): void {
  for (const error of errors(actual, expected)) expect(error).toBeLessThan(bound);
}

describe.each(['cpu', 'wasm', UNKNOWN_BACKEND])('backend %s', (backend) => {
  beforeAll(() => useBackend(backend));

  it.each<[Precision, number]>([
    ['exact', 1e-5],
    ['int16', 0.05],
    ['int8_int16', 0.05],
    ['int8_bf16', 0.05],
    ['int8_fp16', 0.05],
    ['int8_fp8', 0.05],
    ['int8', 0.05],
  ])('q, k, v and lse, forward in %s', (precision, bound) => {
    const inputs = [normal([1, 2, 33, 32]), normal([1, 2, 40, 32]), normal([1, 2, 40, 16])];
    const [wo, wl] = [normal([1, 2, 33, 16]), normal([1, 2, 33])];
    const loss = (o: tf.Tensor, lse: tf.Tensor) =>
      tf.add(tf.sum(tf.mul(o, wo)), tf.sum(tf.mul(lse, wl))) as tf.Scalar;
    const actual = tf.grads((q, k, v) =>
      loss(...sageAttention(q!, k!, v!, {precision, returnLse: true})),
    )(inputs);
    expectWithin(actual, tf.grads((q, k, v) => loss(...plain(q!, k!, v!)))(inputs), bound);
  });

  it('one of q, k and v alone, through returned o only', () => {
    const [q, k, v] = [normal([17, 8]), normal([19, 8]), normal([19, 8])] as const;
    const weights = normal([17, 8]);
    const exact = {precision: 'exact'} as const;
    const sum = (o: tf.Tensor) => tf.sum(tf.mul(o, weights)) as tf.Scalar;
    const actual = [
      tf.grad((x) => sum(sageAttention(x, k, v, exact)))(q),
      tf.grad((x) => sum(sageAttention(q, x, v, exact)))(k),
      tf.grad((x) => sum(sageAttention(q, k, x, exact)))(v),
    ];
    const expected = [
      tf.grad((x) => sum(plain(x, k, v)[0]))(q),
      tf.grad((x) => sum(plain(q, x, v)[0]))(k),
      tf.grad((x) => sum(plain(q, k, x)[0]))(v),
    ];
    expectWithin(actual, expected, 1e-5);
  });

  it('the same tensor as q, k and v', () => {
    const x = normal([17, 8]);
    const weights = normal([17, 8]);
    const actual = tf.grad((y) =>
      tf.sum(tf.mul(sageAttention(y, y, y, {precision: 'exact'}), weights)),
    )(x);
    const expected = tf.grad((y) => tf.sum(tf.mul(plain(y, y, y)[0], weights)))(x);
    expectWithin([actual], [expected], 1e-5);
  });

  it.each([[[2, 2, 9, 11]], [[2, 1, 11]], [[9, 1]], [[11]], [[2, 1, 1, 1]], [[]]])(
    'an additive mask of shape %p',
    (shape) => {
      const [q, k, v] = [normal([2, 2, 9, 8]), normal([2, 2, 11, 8]), normal([2, 2, 11, 8])];
      const weights = normal([2, 2, 9, 8]);
      const mask = normal(shape);
      const actual = tf.grad((m) =>
        tf.sum(tf.mul(sageAttention(q!, k!, v!, {precision: 'exact', mask: m}), weights)),
      )(mask);
      const expected = tf.grad((m) => tf.sum(tf.mul(plain(q!, k!, v!, m)[0], weights)))(mask);
      // A mask that is constant along the keys changes nothing: both gradients are rounding errors around 0.
      const {maxAbs, relativeL1} = compareArrays(actual.dataSync(), expected.dataSync());
      expect(actual.shape).toEqual(shape);
      expect(maxAbs < 2e-5 ? 0 : relativeL1).toBeLessThan(1e-5);
    },
  );

  it('grouped heads, causal, NHD, with a boolean mask', () => {
    const q = normal([1, 12, 4, 8]);
    const [k, v] = [normal([1, 12, 2, 8]), normal([1, 12, 2, 8])] as const;
    const weights = normal([1, 12, 4, 8]);
    const allowed = Array.from({length: 12}, (_, i) =>
      Array.from({length: 12}, (__, j) => j <= i && j !== 3),
    );
    const added = tf.tensor2d(allowed.map((row) => row.map((yes) => (yes ? 0 : -1e9))));
    const mask = tf.tensor1d(
      allowed[11]!.map((_, j) => j !== 3),
      'bool',
    );
    const head = (x: tf.Tensor, h: number) => tf.slice(x, [0, 0, h, 0], [1, 12, 1, 8]);
    const heads = (x: tf.Tensor, of: number[]) =>
      tf.transpose(
        tf.concat(
          of.map((h) => head(x, h)),
          2,
        ),
        [0, 2, 1, 3],
      );
    const actual = tf.grads((a, b, c) =>
      tf.sum(
        tf.mul(
          sageAttention(a!, b!, c!, {precision: 'exact', layout: 'NHD', isCausal: true, mask}),
          weights,
        ),
      ),
    )([q, k, v]);
    const expected = tf.grads((a, b, c) => {
      const [o] = plain(
        heads(a!, [0, 1, 2, 3]),
        heads(b!, [0, 0, 1, 1]),
        heads(c!, [0, 0, 1, 1]),
        added,
      );
      return tf.sum(tf.mul(tf.transpose(o, [0, 2, 1, 3]), weights));
    })([q, k, v]);
    expectWithin(actual, expected, 1e-5);
  });

  it('a kernel that ran without lse: it is computed again', () => {
    const [q, k, v] = [normal([17, 8]), normal([19, 8]), normal([19, 8])] as const;
    const weights = normal([17, 8]);
    // As a graph model would run it: under a tape the op itself always asks for lse.
    const options = {precision: 'exact'} as const;
    const {problem} = prepareCall('test', q, k, v, options, false);
    const attrs = asAttributes({problem});
    const actual = tf.grads((a, b, c) => {
      const [o] = tf.engine().runKernel(SageAttention, {q: a!, k: b!, v: c!}, attrs) as tf.Tensor[];
      return tf.sum(tf.mul(o!, weights));
    })([q, k, v]);
    const expected = tf.grads((a, b, c) => tf.sum(tf.mul(plain(a!, b!, c!)[0], weights)))([
      q,
      k,
      v,
    ]);
    expectWithin(actual, expected, 1e-5);
  });

  it('second order is refused in words', () => {
    const x = normal([5, 8]);
    const first = (y: tf.Tensor) =>
      tf.grad((z) => tf.sum(tf.square(sageAttention(z, z, z, {precision: 'exact'}))))(y);
    expect(first(x).shape).toEqual([5, 8]);
    let error: unknown;
    try {
      tf.grad((y) => tf.sum(tf.square(first(y))))(x);
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(SageAttentionError);
    expect((error as SageAttentionError).code).toBe('second-order-gradient');
    expect((error as SageAttentionError).message).toContain('second order');
  });

  it('rows that attend to nothing have gradients of 0', () => {
    const [q, k, v] = [normal([3, 8]), normal([5, 8]), normal([5, 8])] as const;
    const mask = tf.tensor2d([[true], [false], [true]], [3, 1], 'bool');
    const [dQ] = tf.grads((a, b, c) =>
      tf.sum(tf.square(sageAttention(a!, b!, c!, {precision: 'exact', mask}))),
    )([q, k, v]) as [tf.Tensor];
    const values = [...dQ.dataSync()];
    expect(values.slice(8, 16)).toEqual(Array(8).fill(0));
    expect(values.every(Number.isFinite)).toBe(true);
    expect(values[0]).not.toBe(0);
    const empty = tf.zeros([0, 8]);
    const [dQ0, dK0] = tf.grads((a, b, c) => tf.sum(sageAttention(a!, b!, c!)))([
      q,
      empty,
      empty,
    ]) as [tf.Tensor, tf.Tensor];
    expect([...dQ0.dataSync()].every((x) => x === 0)).toBe(true);
    expect(dK0.shape).toEqual([0, 8]);
  });

  it('trains variables, the mask among them', () => {
    const q = tf.variable(normal([9, 8]));
    const bias = tf.variable(tf.zeros([9, 9]) as tf.Tensor);
    const x = normal([9, 8]);
    const before = tf.memory().numTensors;
    const loss = () => tf.sum(tf.square(sageAttention(q, x, x, {mask: bias}))) as tf.Scalar;
    const valueOf = (f: () => tf.Tensor) => tf.tidy(() => f().dataSync()[0] as number);
    const start = valueOf(loss);
    const optimizer = tf.train.sgd(0.05);
    for (let i = 0; i < 20; i += 1) optimizer.minimize(loss, false, [q, bias]);
    expect(valueOf(loss)).toBeLessThan(0.9 * start);
    expect(valueOf(() => tf.sum(tf.abs(bias)))).toBeGreaterThan(0.01);
    optimizer.dispose();
    expect(tf.memory().numTensors).toBe(before);
    tf.dispose([q, bias, x]);
  });
});
