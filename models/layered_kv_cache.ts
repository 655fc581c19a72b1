// The key/value cache of a model whose layers each have a cache object of their own, such as a SageKvCache: a token is
// handed over once and never copied again.

import type * as tf from '@tensorflow/tfjs-core';
import type {
  CausalAttention,
  CausalOptions,
  CreateLayerCache,
  KvCache,
  LayerCache,
} from './kv_cache.js';

/**
 * The first tokens, the prompt, attend to each other by the model's own attention, since nothing else is there: the
 * caches take them up in one append. Every later token attends through the caches.
 */
export class LayeredKvCache implements KvCache {
  private layers: LayerCache[] = [];
  private held = 0;
  /** Tokens that the pass under way adds. */
  private added = 0;
  private sequences: number | undefined;

  constructor(private readonly create: CreateLayerCache) {}

  get length(): number {
    return this.held;
  }

  get batch(): number | undefined {
    return this.held === 0 ? undefined : this.sequences;
  }

  attend(
    layer: number,
    q: tf.Tensor4D,
    k: tf.Tensor4D,
    v: tf.Tensor4D,
    attention: CausalAttention,
    options: CausalOptions,
  ): tf.Tensor4D {
    this.sequences = q.shape[0];
    this.added = q.shape[2];
    const [batch, heads, , headDim] = q.shape;
    const cache = (this.layers[layer] ??= this.create({
      batch,
      heads,
      kvHeads: k.shape[1],
      headDim,
      precision: 'int16',
    }));
    cache.append(k, v);
    return this.held === 0 ? attention(q, k, v, options) : cache.attend(q, options);
  }

  commit(): void {
    this.held += this.added;
    this.added = 0;
  }

  rollBack(): void {
    this.added = 0;
    this.cut(this.held);
  }

  truncate(length: number): void {
    this.cut(length);
    this.held = length;
  }

  fork(): LayeredKvCache {
    const fork = new LayeredKvCache(this.create);
    fork.layers = this.layers.map((layer) => layer.fork());
    fork.held = this.held;
    fork.sequences = this.sequences;
    return fork;
  }

  dispose(): void {
    this.added = 0;
    this.held = 0;
    this.cut(0);
  }

  private cut(length: number): void {
    if (length > 0) {
      for (const layer of this.layers) layer.truncate(length);
      return;
    }
    // Made anew by the next pass, which may have another batch.
    for (const layer of this.layers) layer.dispose();
    this.layers = [];
  }
}
