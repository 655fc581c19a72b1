// The seam between a model and attention: models are given a function and never look inside.

import type * as tf from '@tensorflow/tfjs-core';

/** What a model asks of an attention call. */
export interface AttentionOptions {
  /**
   * `'bottom_right'`: query i of q_len sees key j of kv_len if j <= i + kv_len - q_len, so that new rows against a cache
   * see all that came before them. `false`: every query sees every key.
   */
  readonly isCausal: false | 'bottom_right';
  /** Factor of the scores before the softmax. */
  readonly scale: number;
  /** bool, broadcastable to [batch, heads, q_len, kv_len]; true = attend, beside what `isCausal` allows. Default: all */
  readonly mask?: tf.Tensor | undefined;
  /** [left, right] in tokens around a query's own position; -1 = no limit. Default: no limits */
  readonly windowSize?: readonly [left: number, right: number] | undefined;
}

/**
 * softmax(scale * q kT, masked) v.
 *
 * @param q [batch, heads, q_len, head_dim], float32
 * @param k [batch, kv_heads, kv_len, head_dim], float32; heads is a multiple of kv_heads, query head h reads key head
 *   floor(h * kv_heads / heads)
 * @param v [batch, kv_heads, kv_len, head_dim], float32
 * @returns [batch, heads, q_len, head_dim], float32; the inputs stay as they are and are not disposed. Rows that see
 *   nothing may hold any finite numbers: no model reads them
 */
export type Attention = (
  q: tf.Tensor4D,
  k: tf.Tensor4D,
  v: tf.Tensor4D,
  options: AttentionOptions,
) => tf.Tensor4D;
