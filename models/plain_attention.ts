// Attention as a composition of plain tfjs ops: matMul, mask, softmax, matMul. The default and the reference; it holds
// a q_len x kv_len matrix of scores.

import * as tf from '@tensorflow/tfjs-core';
import type {Attention, AttentionOptions} from './attention.js';
import {ModelError} from './model_error.js';

/**
 * Added to the scores that must not be seen. Far below any score, yet finite: -Infinity would rely on every backend's
 * exp and max to treat it well.
 */
const MASKED = -1e30;

/** Attention by plain tfjs ops, on any backend. */
export const plainAttention: Attention = (q, k, v, options) => {
  const [batch, heads, qLen, headDim] = q.shape;
  const [, kvHeads, kvLen] = k.shape;
  if (options.isCausal !== false && kvLen < qLen) {
    throw new ModelError(
      `${kvLen} keys for ${qLen} queries; expected at least one key for each query`,
      {field: 'k'},
    );
  }
  if (kvHeads === 0 || heads % kvHeads !== 0) {
    throw new ModelError(`${kvHeads} heads for ${heads} of q; expected a divisor`, {field: 'k'});
  }
  return tf.tidy(() => {
    const scaled = tf.mul(q, options.scale) as tf.Tensor4D;
    const mask = addedMask(qLen, kvLen, options);
    // On wasm a batched or transposed matMul runs a scalar loop, 35 to 100 times slower than the packed 2-D product.
    if (tf.getBackend() === 'wasm' && qLen > 1) {
      const parts = (x: tf.Tensor4D): tf.Tensor2D[] =>
        tf.unstack(tf.reshape(x, [-1, x.shape[2], x.shape[3]])) as tf.Tensor2D[];
      const keys = parts(k);
      const values = parts(v);
      const masks = mask === undefined ? undefined : headMasks(mask, batch, heads);
      const outputs = parts(scaled).map((queries, i) => {
        const source =
          Math.floor((i % heads) / (heads / kvHeads)) + Math.floor(i / heads) * kvHeads;
        return tf.tidy(() =>
          attend(queries, keys[source] as tf.Tensor2D, values[source] as tf.Tensor2D, masks?.(i)),
        );
      });
      return tf.reshape(tf.stack(outputs), [batch, heads, qLen, v.shape[3]]);
    }
    const repeated = (x: tf.Tensor4D): tf.Tensor4D => repeatHeads(x, heads / kvHeads);
    return attend(
      tf.reshape(scaled, [batch, heads, qLen, headDim]),
      repeated(k),
      repeated(v),
      mask,
    );
  });
};

function attend<T extends tf.Tensor2D | tf.Tensor4D>(
  q: T,
  k: T,
  v: T,
  mask: tf.Tensor | undefined,
): T {
  const transposed = tf.transpose(k, k.rank === 2 ? [1, 0] : [0, 1, 3, 2]);
  const scores = tf.matMul(q, transposed);
  const probabilities = tf.softmax(mask === undefined ? scores : tf.add(scores, mask), -1);
  return tf.matMul(probabilities, v) as T;
}

/** Every key head as often as query heads read it, in their order. */
function repeatHeads(x: tf.Tensor4D, times: number): tf.Tensor4D {
  if (times === 1) return x;
  const [batch, heads, length, headDim] = x.shape;
  const apart = tf.reshape(x, [batch, heads, 1, length * headDim]);
  return tf.reshape(tf.tile(apart, [1, 1, times, 1]), [batch, heads * times, length, headDim]);
}

/** Causality, window and mask as one tensor to add, of rank 2 without a mask; undefined where everything is seen. */
function addedMask(
  qLen: number,
  kvLen: number,
  {isCausal, mask, windowSize}: AttentionOptions,
): tf.Tensor | undefined {
  const causal = isCausal !== false;
  const left = windowSize?.[0] ?? -1;
  const right = causal ? 0 : (windowSize?.[1] ?? -1);
  // The last causal query sees everything, so one query needs no mask.
  const banded = causal ? qLen > 1 || left >= 0 : left >= 0 || right >= 0;
  const band = banded ? bandMask(qLen, kvLen, causal ? kvLen - qLen : 0, left, right) : undefined;
  if (mask === undefined) return band;
  const added = tf.mul(tf.sub(1, tf.cast(mask, 'float32')), MASKED);
  // Where both hide a key the sum is -2e30: as hidden as before.
  return band === undefined ? added : tf.add(added, band);
}

/** [qLen, kvLen]: 0 where query i sees key j, that is i + offset - left <= j <= i + offset + right; MASKED elsewhere. */
function bandMask(
  qLen: number,
  kvLen: number,
  offset: number,
  left: number,
  right: number,
): tf.Tensor2D {
  // Filled here rather than by comparisons of ranges, which take half a second at 2,048 on wasm.
  const values = new Float32Array(qLen * kvLen);
  for (let i = 0; i < qLen; i++) {
    const row = values.subarray(i * kvLen, (i + 1) * kvLen);
    if (right >= 0) row.fill(MASKED, Math.max(0, i + offset + right + 1));
    if (left >= 0) row.fill(MASKED, 0, Math.max(0, i + offset - left));
  }
  return tf.tensor2d(values, [qLen, kvLen]);
}

/** The part of a mask that belongs to head `i` of batch * heads, [qLen or 1, kvLen or 1]. */
function headMasks(mask: tf.Tensor, batch: number, heads: number): (i: number) => tf.Tensor2D {
  const shape = [...new Array<number>(4 - mask.rank).fill(1), ...mask.shape];
  const [maskBatch, maskHeads, rows, columns] = shape as [number, number, number, number];
  const parts = tf.unstack(tf.reshape(mask, [-1, rows, columns])) as tf.Tensor2D[];
  return (i) => {
    const b = maskBatch === batch ? Math.floor(i / heads) : 0;
    const h = maskHeads === heads ? i % heads : 0;
    return parts[b * maskHeads + h] as tf.Tensor2D;
  };
}
