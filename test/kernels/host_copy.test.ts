/** Quantised recipes on a backend that this package does not know: an engine on host copies, with gradients. */
import * as tf from '@tensorflow/tfjs-core';
import {compareArrays} from '../../src/accuracy/metrics';
import {sageAttention, type SageAttentionOptions} from '../../src/index';
import {UNKNOWN_BACKEND, useBackend} from './backends';

const wave = (shape: number[], seed: number) =>
  tf.tensor(
    Float32Array.from({length: shape.reduce((a, b) => a * b, 1)}, (_, i) => Math.sin(seed + i)),
    shape,
  );

async function results(
  backend: string,
  options: Omit<SageAttentionOptions, 'returnLse'>,
): Promise<Float32Array[]> {
  await useBackend(backend);
  return tf.tidy(() => {
    const inputs = [wave([2, 20, 16], 1), wave([2, 30, 16], 2), wave([2, 30, 16], 3)];
    const mask = wave([20, 30], 4);
    const call = {...options, mask, returnLse: true} as const;
    const [o, lse] = sageAttention(inputs[0]!, inputs[1]!, inputs[2]!, call);
    const gradients = tf.grads((q, k, v, m) =>
      tf.sum(tf.square(sageAttention(q!, k!, v!, {...options, mask: m!}))),
    )([...inputs, mask]);
    return [o, lse, ...gradients].map((x) => x.dataSync() as Float32Array);
  });
}

it.each(['int8', 'int8_fp16', 'fp4'] as const)(
  '%s gives what it gives on cpu',
  async (precision) => {
    await useBackend('cpu');
    const before = tf.memory().numTensors;
    const expected = await results('cpu', {precision});
    const actual = await results(UNKNOWN_BACKEND, {precision});
    expect(actual).toHaveLength(6);
    for (const [i, values] of actual.entries()) {
      expect(compareArrays(values, expected[i] ?? []).maxAbs).toBe(0);
    }
    expect(tf.memory().numTensors).toBe(before);
  },
);
