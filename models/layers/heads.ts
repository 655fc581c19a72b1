// Rows to heads and back, and attention between them with its result checked.

import * as tf from '@tensorflow/tfjs-core';
import type {Attention, AttentionOptions} from '../attention.js';
import {ModelError} from '../model_error.js';

/** [batch * length, heads * head_dim] to [batch, heads, length, head_dim]. Of one token it is a view, not a copy. */
export function splitHeads(x: tf.Tensor2D, batch: number, heads: number): tf.Tensor4D {
  const headDim = x.shape[1] / heads;
  if (x.shape[0] === batch) return tf.reshape(x, [batch, heads, 1, headDim]);
  return tf.transpose(tf.reshape(x, [batch, -1, heads, headDim]), [0, 2, 1, 3]);
}

/** [batch, heads, length, head_dim] to [batch * length, heads * head_dim]. Of one token it is a view, not a copy. */
export function mergeHeads(x: tf.Tensor4D): tf.Tensor2D {
  if (x.shape[2] === 1) return tf.reshape(x, [x.shape[0], -1]);
  return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [-1, x.shape[1] * x.shape[3]]);
}

/**
 * Calls the attention that the model was given.
 *
 * @returns the heads side by side, [batch * q_len, heads * head_dim]
 * @throws ModelError if it returns another shape than it should
 */
export function attendHeads(
  attention: Attention,
  q: tf.Tensor4D,
  k: tf.Tensor4D,
  v: tf.Tensor4D,
  options: AttentionOptions,
): tf.Tensor2D {
  return mergeAttended(q, attention(q, k, v, options));
}

/**
 * Heads side by side from the result of an attention or of a cache.
 *
 * @throws ModelError unless it has the shape of q
 */
export function mergeAttended(q: tf.Tensor4D, o: tf.Tensor4D): tf.Tensor2D {
  if (o.shape.join() !== q.shape.join()) {
    throw new ModelError(
      `returned shape [${o.shape.join(', ')}]; expected that of q, [${q.shape.join(', ')}]`,
      {field: 'attention'},
    );
  }
  return mergeHeads(o);
}
