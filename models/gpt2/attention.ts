// The seam between the model and attention: the model is given a function and never looks inside.

import type {Tensor4D} from '@tensorflow/tfjs-core';

/** What the model asks of an attention call. */
export interface AttentionOptions {
  /**
   * Causal, aligned at the end: query i of q_len sees key j of kv_len if j <= i + kv_len - q_len. So new rows against a
   * cache see all that came before them.
   */
  readonly isCausal: 'bottom_right';
  /** Factor of the scores before the softmax. */
  readonly scale: number;
}

/**
 * softmax(scale * q kT, causal) v.
 *
 * @param q [batch, heads, q_len, head_dim], float32
 * @param k [batch, heads, kv_len, head_dim], float32, kv_len >= q_len
 * @param v [batch, heads, kv_len, head_dim], float32
 * @returns [batch, heads, q_len, head_dim], float32; the inputs stay as they are and are not disposed
 */
export type Attention = (
  q: Tensor4D,
  k: Tensor4D,
  v: Tensor4D,
  options: AttentionOptions,
) => Tensor4D;
