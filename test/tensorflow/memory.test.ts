/** Thousands of calls of the op leave nothing behind: no tensor, no memory, no kernel object. */
import * as tf from '@tensorflow/tfjs-core';
import {sageAttention} from '../../src/index';
import {loadAddon} from '../../src/runtime/load_addon';
import {expectNothingLeft} from '../memory_growth';
import {loadTensorflowBackend} from './tensorflow_backend';

beforeAll(async () => {
  loadTensorflowBackend();
  await tf.setBackend('tensorflow');
});

const trace = () => {
  const {addon} = loadAddon();
  if (addon === null) throw new Error('there is no addon');
  return addon.tensorflowTrace();
};

it('thousands of forward calls', () => {
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
  const called = expectNothingLeft(7000, attend);
  expect(tf.memory()).toMatchObject({numTensors, numBytes, numDataBuffers});
  expect(trace().calls - calls).toBe(called);
  expect(trace().kernels).toBe(kernels);
  tf.dispose([q, k, v, mask]);
});

it('thousands of gradients', () => {
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
  expectNothingLeft(3500, step);
  expect(tf.memory()).toMatchObject({numTensors, numBytes, numDataBuffers});
  expect(trace().kernels).toBe(kernels);
  tf.dispose([...inputs, mask]);
});

it('thousands of different problems: neither their descriptions nor kernel objects pile up', () => {
  const q = tf.randomNormal([1, 1, 8]);
  const cache = tf.randomNormal([1, 64, 8]);
  const binding = (tf.backend() as unknown as {binding: {getNumOfTensors(): number}}).binding;
  const attend = (i: number) =>
    tf.dispose(sageAttention(q, cache, cache, {scale: 0.1 + i / 1e5, windowSize: [i % 50, -1]}));
  for (let i = 0; i < 100; i++) attend(i);
  const {numTensors, numDataBuffers} = tf.memory();
  const {kernels} = trace();
  const tensors = binding.getNumOfTensors();
  expectNothingLeft(7000, attend);
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
