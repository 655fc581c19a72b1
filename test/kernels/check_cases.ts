/** The case table through the op on one backend, against float64: outputs, lse, gradients, and nothing left behind. */
import * as tf from '@tensorflow/tfjs-core';
import {sageAttention} from '../../src/index';
import type {SageAttentionOptions} from '../../src/index';
import {compareArrays} from '../../src/accuracy/metrics';
import {casesTagged, type AttentionCase, type CaseTag} from '../cases';
import {
  callOf,
  exactAnswer,
  exactGradients,
  maxDifference,
  outputGradients,
} from '../ops/case_calls';

/** float32 sums of up to 512 products. */
const TOLERANCE = 4e-5;
const GRADIENT_RELATIVE_L1 = 1e-5;

/** Multiplications of a case; tests leave out what a slow backend cannot do in its seconds. */
function work(c: AttentionCase): number {
  return c.batch * c.heads * c.qLen * c.kvLen * c.headDim;
}

/** Cases with a tag that differ in shape, mask or window: kernels do not look at the numbers. */
function kernelCases(tag: CaseTag, most: number): [string, AttentionCase][] {
  return casesTagged(tag)
    .filter((c) => c.distribution === 'normal' && work(c) <= most)
    .map((c) => [c.name, c]);
}

/** Defines the tests of o and lse. */
export function checkForward(most: number): void {
  it.each(kernelCases('fast', most))('%s', async (_, c) => {
    const before = tf.memory().numTensors;
    const {q, k, v, options} = callOf(c);
    const [o, lse] = sageAttention(q, k, v, {...options, precision: 'exact', returnLse: true});
    const expected = exactAnswer(c);
    expect(o.shape).toEqual([...q.shape.slice(0, -1), c.vDim]);
    expect(lse.shape).toEqual([c.batch, c.heads, c.qLen]);
    expect(maxDifference(await o.data(), expected.o)).toBeLessThan(TOLERANCE);
    expect(maxDifference(await lse.data(), expected.lse)).toBeLessThan(TOLERANCE);
    tf.dispose([q, k, v, options.mask as tf.Tensor, o, lse]);
    expect(tf.memory().numTensors).toBe(before);
  });
}

/** Defines the tests of dQ, dK, dV and, for additive masks, dMask. */
export function checkGradients(most: number): void {
  it.each(kernelCases('grad', most))('gradients, %s', async (_, c) => {
    const before = tf.memory().numTensors;
    const {q, k, v, options} = callOf(c);
    const mask = options.mask as tf.Tensor | undefined;
    const trained = c.mask?.kind === 'additive' && mask !== undefined ? [q, k, v, mask] : [q, k, v];
    const {dO, dLse} = outputGradients(c);
    const loss = (...[q1, k1, v1, mask1]: tf.Tensor[]) => {
      const call: SageAttentionOptions = {...options, precision: 'exact', returnLse: true};
      if (mask1 !== undefined) call.mask = mask1;
      const [o, lse] = sageAttention(q1 as tf.Tensor, k1 as tf.Tensor, v1 as tf.Tensor, {
        ...call,
        returnLse: true,
      });
      return tf.add(
        tf.sum(tf.mul(o, tf.tensor(dO, o.shape))),
        tf.sum(tf.mul(lse, tf.tensor(dLse, lse.shape))),
      ) as tf.Scalar;
    };
    const gradients = tf.grads(loss)(trained);
    const expected = exactGradients(c);
    const wanted = [expected.dQ, expected.dK, expected.dV, expected.dMask];
    for (const [i, gradient] of gradients.entries()) {
      expect(gradient.shape).toEqual(trained[i]?.shape);
      const {relativeL1, maxAbs} = compareArrays(await gradient.data(), wanted[i] ?? []);
      // A gradient that cancels to nothing has no relative error.
      expect(maxAbs < 1e-6 ? 0 : relativeL1).toBeLessThan(GRADIENT_RELATIVE_L1);
    }
    tf.dispose([q, k, v, mask, ...gradients] as tf.Tensor[]);
    expect(tf.memory().numTensors).toBe(before);
  });
}
