// Attention as a composition of plain tfjs ops: matMul, mask, softmax, matMul. The default and the reference; it holds
// a q_len x kv_len matrix of scores.

import * as tf from '@tensorflow/tfjs-core';
import type {Attention} from './attention.js';
import {Gpt2Error} from './errors.js';

/**
 * Added to the scores that must not be seen. Far below any score, yet finite: -Infinity would rely on every backend's
 * exp and max to treat it well.
 */
const MASKED = -1e30;

/** Attention by plain tfjs ops, on any backend. */
export const plainAttention: Attention = (q, k, v, {scale}) => {
  const [batch, heads, qLen, headDim] = q.shape;
  const kvLen = k.shape[2];
  if (kvLen < qLen) {
    throw new Gpt2Error(
      `${kvLen} keys for ${qLen} queries; expected at least one key for each query`,
      {field: 'k'},
    );
  }
  return tf.tidy(() => {
    const scaled = tf.mul(q, scale) as tf.Tensor4D;
    // The last query sees everything, so one query needs no mask.
    const mask = qLen === 1 ? undefined : causalMask(qLen, kvLen);
    if (tf.getBackend() !== 'wasm' || qLen === 1) {
      return attend(scaled, k, v, mask);
    }
    // On wasm a batched or transposed matMul runs a scalar loop, 35 to 100 times slower than the packed 2-D product.
    const split = (x: tf.Tensor4D): tf.Tensor2D[] =>
      tf.unstack(tf.reshape(x, [batch * heads, x.shape[2], headDim])) as tf.Tensor2D[];
    const keys = split(k);
    const values = split(v);
    const outputs = split(scaled).map((queries, i) =>
      tf.tidy(() => attend(queries, keys[i] as tf.Tensor2D, values[i] as tf.Tensor2D, mask)),
    );
    return tf.reshape(tf.stack(outputs), [batch, heads, qLen, headDim]);
  });
};

function attend<T extends tf.Tensor2D | tf.Tensor4D>(
  q: T,
  k: T,
  v: T,
  mask: tf.Tensor2D | undefined,
): T {
  const transposed = tf.transpose(k, k.rank === 2 ? [1, 0] : [0, 1, 3, 2]);
  const scores = tf.matMul(q, transposed);
  const probabilities = tf.softmax(mask === undefined ? scores : tf.add(scores, mask), -1);
  return tf.matMul(probabilities, v) as T;
}

/** [qLen, kvLen]: 0 where query i sees key j, MASKED where it does not. */
function causalMask(qLen: number, kvLen: number): tf.Tensor2D {
  // Filled here rather than by comparisons of ranges, which take half a second at 2,048 on wasm.
  const values = new Float32Array(qLen * kvLen);
  for (let i = 0; i < qLen; i++) {
    values.fill(MASKED, i * kvLen + i + kvLen - qLen + 1, (i + 1) * kvLen);
  }
  return tf.tensor2d(values, [qLen, kvLen]);
}
