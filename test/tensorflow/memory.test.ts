/** Thousands of calls of the op leave nothing behind: no tensor, no memory, no kernel object. */
import * as tf from '@tensorflow/tfjs-core';
import {sageAttention} from '../../src/index';
import {loadAddon} from '../../src/runtime/load_addon';
import {loadTensorflowBackend} from './tensorflow_backend';

beforeAll(async () => {
  loadTensorflowBackend();
  await tf.setBackend('tensorflow');
});

const MEBIBYTE = 2 ** 20;
const trace = () => {
  const {addon} = loadAddon();
  if (addon === null) throw new Error('there is no addon');
  return addon.tensorflowTrace();
};

/** Bytes by which memory grew over the last 70 % of the calls. */
function growth(calls: number, call: (i: number) => void): number {
  const bytes: number[] = [];
  for (let i = 1; i <= calls; i += 1) {
    call(i);
    if (i % (calls / 10) === 0) bytes.push(process.memoryUsage().rss);
  }
  return (bytes[9] ?? NaN) - (bytes[2] ?? NaN);
}

it('10,000 forward calls', () => {
  const [q, k, v] = [0, 1, 2].map(() => tf.randomNormal([2, 16, 16])) as [
    tf.Tensor,
    tf.Tensor,
    tf.Tensor,
  ];
  const mask = tf.randomNormal([16, 16]);
  const attend = () => tf.dispose(sageAttention(q, k, v, {mask, returnLse: true}));
  attend();
  const {numTensors, numBytes, numDataBuffers} = tf.memory();
  const {calls, kernels} = trace();
  expect(growth(10_000, attend)).toBeLessThan(16 * MEBIBYTE);
  expect(tf.memory()).toMatchObject({numTensors, numBytes, numDataBuffers});
  expect(trace().calls - calls).toBe(10_000);
  expect(trace().kernels).toBe(kernels);
  tf.dispose([q, k, v, mask]);
});

it('1,000 gradients', () => {
  const inputs = [
    tf.randomNormal([1, 2, 9, 8]),
    ...[0, 1].map(() => tf.randomNormal([1, 1, 9, 8])),
  ];
  const mask = tf.randomNormal([9, 9]);
  const differentiate = tf.grads((q, k, v, m) =>
    tf.sum(tf.square(sageAttention(q!, k!, v!, {mask: m!, isCausal: true}))),
  );
  const step = () => tf.dispose(differentiate([...inputs, mask]));
  step();
  const {numTensors, numBytes, numDataBuffers} = tf.memory();
  const {kernels} = trace();
  expect(growth(1000, step)).toBeLessThan(16 * MEBIBYTE);
  expect(tf.memory()).toMatchObject({numTensors, numBytes, numDataBuffers});
  expect(trace().kernels).toBe(kernels);
  tf.dispose([...inputs, mask]);
});

it('10,000 different problems: neither their descriptions nor kernel objects pile up', () => {
  const q = tf.randomNormal([1, 1, 8]);
  const cache = tf.randomNormal([1, 64, 8]);
  const binding = (tf.backend() as unknown as {binding: {getNumOfTensors(): number}}).binding;
  const attend = (i: number) =>
    tf.dispose(sageAttention(q, cache, cache, {scale: 0.1 + i / 1e5, windowSize: [i % 50, -1]}));
  for (let i = 0; i < 100; i++) attend(i);
  const {numTensors, numDataBuffers} = tf.memory();
  const {kernels} = trace();
  const tensors = binding.getNumOfTensors();
  expect(growth(10_000, attend)).toBeLessThan(16 * MEBIBYTE);
  expect(tf.memory()).toMatchObject({numTensors, numDataBuffers});
  expect(trace().kernels).toBe(kernels);
  expect(binding.getNumOfTensors()).toBe(tensors);
  tf.dispose([q, cache]);
});

it("tensors stay TensorFlow's: the output of one call is the input of the next, in place", () => {
  const q = tf.neg(tf.randomNormal([2, 64, 16]));
  const first = sageAttention(q, q, q);
  const {output} = trace();
  const second = sageAttention(first, q, q);
  expect(trace().q).toBe(output);
  expect(output).not.toBe(0n);
  tf.dispose([q, first, second]);
});
