// The plain key/value cache: two tensors per layer, to which new rows are concatenated. Attention is the model's own.

import * as tf from '@tensorflow/tfjs-core';
import type {CausalAttention, CausalOptions, KvCache} from './kv_cache.js';

/** Keys and values of one layer, [batch, kv_heads, length, head_dim]. */
export interface LayerKeysValues {
  readonly k: tf.Tensor4D;
  readonly v: tf.Tensor4D;
}

/**
 * It holds two tensors per layer from the first pass to `dispose`: 8 * layers * kv_heads * head_dim * length bytes per
 * sequence. Every pass copies all of them.
 */
export class TensorKvCache implements KvCache {
  private committed: readonly LayerKeysValues[] = [];
  private staged: LayerKeysValues[] = [];

  get length(): number {
    return this.committed[0]?.k.shape[2] ?? 0;
  }

  get batch(): number | undefined {
    return this.committed[0]?.k.shape[0];
  }

  attend(
    layer: number,
    q: tf.Tensor4D,
    k: tf.Tensor4D,
    v: tf.Tensor4D,
    attention: CausalAttention,
    options: CausalOptions,
  ): tf.Tensor4D {
    const all = this.stage(layer, k, v);
    return attention(q, all.k, all.v, options);
  }

  commit(): void {
    free(this.committed);
    this.committed = this.staged;
    this.staged = [];
  }

  rollBack(): void {
    free(this.staged);
    this.staged = [];
  }

  truncate(length: number): void {
    if (length === this.length) return;
    if (length === 0) {
      this.dispose();
      return;
    }
    const cut = (x: tf.Tensor4D): tf.Tensor4D =>
      tf.keep(tf.slice(x, [0, 0, 0, 0], [-1, -1, length, -1]));
    this.staged = this.committed.map(({k, v}) => ({k: cut(k), v: cut(v)}));
    this.commit();
  }

  fork(): TensorKvCache {
    const fork = new TensorKvCache();
    const copy = (x: tf.Tensor4D): tf.Tensor4D => tf.keep(tf.clone(x));
    fork.committed = this.committed.map(({k, v}) => ({k: copy(k), v: copy(v)}));
    return fork;
  }

  dispose(): void {
    this.rollBack();
    free(this.committed);
    this.committed = [];
  }

  /** Keys and values of a layer with the new rows appended; the first ones become the cache's own. */
  private stage(layer: number, k: tf.Tensor4D, v: tf.Tensor4D): LayerKeysValues {
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
}

function free(layers: readonly LayerKeysValues[]): void {
  for (const {k, v} of layers) tf.dispose([k, v]);
}
