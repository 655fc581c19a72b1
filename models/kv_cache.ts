// The keys and values of the tokens seen so far, per layer, so that a new token costs one row.

import * as tf from '@tensorflow/tfjs-core';

/** Keys and values of one layer, [batch, kv_heads, length, head_dim]. */
export interface LayerKeysValues {
  readonly k: tf.Tensor4D;
  readonly v: tf.Tensor4D;
}

/**
 * A KV cache. It holds two tensors per layer from the first pass to `dispose`; a pass that fails leaves it as it was.
 * Its size is 8 * layers * kv_heads * head_dim * length bytes per sequence.
 */
export class KvCache {
  private committed: readonly LayerKeysValues[] = [];
  private staged: LayerKeysValues[] = [];

  /** Tokens held. */
  get length(): number {
    return this.committed[0]?.k.shape[2] ?? 0;
  }

  /** Sequences held side by side; undefined while the cache is empty. */
  get batch(): number | undefined {
    return this.committed[0]?.k.shape[0];
  }

  /**
   * Keys and values of a layer with the new rows appended. They count only once `commit` is called.
   *
   * @param layer index of the layer
   * @param k new keys, [batch, kv_heads, new, head_dim]; the first ones become the cache's own
   * @param v new values, the same shape
   */
  stage(layer: number, k: tf.Tensor4D, v: tf.Tensor4D): LayerKeysValues {
    const before = this.committed[layer];
    const after =
      before === undefined
        ? {k, v}
        : {k: tf.concat([before.k, k], 2), v: tf.concat([before.v, v], 2)};
    // Kept, as the caller's tidy would free them.
    tf.keep(after.k);
    tf.keep(after.v);
    this.staged.push(after);
    return after;
  }

  /** Takes over what was staged and frees what it replaces. */
  commit(): void {
    free(this.committed);
    this.committed = this.staged;
    this.staged = [];
  }

  /** Frees what was staged; the cache is as before. */
  rollBack(): void {
    free(this.staged);
    this.staged = [];
  }

  /** Frees everything; the cache is empty and may be used again. */
  dispose(): void {
    this.rollBack();
    free(this.committed);
    this.committed = [];
  }
}

function free(layers: readonly LayerKeysValues[]): void {
  for (const {k, v} of layers) tf.dispose([k, v]);
}
