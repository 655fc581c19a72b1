/** tf.sageAttention and q.sageAttention: who gets them, and when. */
import {createRequire} from 'node:module';
import '@tensorflow/tfjs-backend-cpu';
import * as tf from '@tensorflow/tfjs-core';
import * as facade from '../src/tfjs';
import {install, sageAttention, SageAttentionError} from '../src/index';

const load = createRequire(__filename);

it('CommonJS module objects have it', () => {
  const core = load('@tensorflow/tfjs-core') as {sageAttention?: unknown};
  const union = load('@tensorflow/tfjs') as {sageAttention?: unknown};
  expect(core.sageAttention).toBe(sageAttention);
  expect(union.sageAttention).toBe(sageAttention);
});

it('tensors have it, hidden from enumeration', async () => {
  await tf.setBackend('cpu');
  const x = tf.ones([3, 4]);
  expect(x.sageAttention(x, x).shape).toEqual([3, 4]);
  for (const key in x) expect(key).not.toBe('sageAttention');
});

it('the facade is tfjs with the op', () => {
  expect(facade.sageAttention).toBe(sageAttention);
  expect(facade.matMul).toBeDefined();
  expect(facade.loadGraphModel).toBeDefined();
  expect(facade.SageAttentionError).toBe(SageAttentionError);
});

it('install extends an open namespace and inherits from a sealed one', () => {
  const open = {...tf};
  expect(install(open)).toBe(open);
  expect(install(open).sageAttention).toBe(sageAttention);
  const {Tensor, matMul} = tf;
  const sealed = Object.freeze({Tensor, matMul});
  const extended = install(sealed);
  expect(extended.sageAttention).toBe(sageAttention);
  expect(extended.matMul).toBe(tf.matMul);
});

it.each([null, undefined, 5, {}, {Tensor: 1}])('install refuses %p', (namespace) => {
  let error: unknown;
  try {
    install(namespace as never);
  } catch (thrown) {
    error = thrown;
  }
  expect(error).toMatchObject({code: 'invalid-option', argument: 'namespace'});
});
