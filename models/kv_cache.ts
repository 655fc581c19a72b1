// What a language model asks of its key/value cache: the tokens seen so far, so that a new token costs one row.

import type * as tf from '@tensorflow/tfjs-core';
import type {AttentionOptions} from './attention.js';

/** Options of a call over cached tokens: the last query stands opposite the last token. */
export interface CausalOptions extends AttentionOptions {
  readonly isCausal: 'bottom_right';
}

/** The attention of a model that generates. */
export type CausalAttention = (
  q: tf.Tensor4D,
  k: tf.Tensor4D,
  v: tf.Tensor4D,
  options: CausalOptions,
) => tf.Tensor4D;

/**
 * The cache of all layers of one model and one batch. A pass of the model calls `attend` once per layer and then
 * `commit`, or `rollBack` where it failed: that leaves the cache as it was.
 */
export interface KvCache {
  /** Tokens held. */
  readonly length: number;
  /** Sequences held side by side; undefined while the cache is empty. */
  readonly batch: number | undefined;
  /**
   * Takes up the new rows of a layer and attends to everything held of it. They count only once `commit` is called.
   *
   * @param layer index of the layer, counted up from 0 within a pass
   * @param q [batch, heads, new, head_dim]
   * @param k new keys, [batch, kv_heads, new, head_dim]
   * @param v new values, the same shape
   * @param attention the model's own
   * @returns [batch, heads, new, head_dim]
   */
  attend(
    layer: number,
    q: tf.Tensor4D,
    k: tf.Tensor4D,
    v: tf.Tensor4D,
    attention: CausalAttention,
    options: CausalOptions,
  ): tf.Tensor4D;
  /** Takes over what the pass added. */
  commit(): void;
  /** Forgets what the pass added. */
  rollBack(): void;
  /** Forgets all tokens from `length` on, as after a rejected draft. Between passes only; 0 <= length <= this.length. */
  truncate(length: number): void;
  /** A cache with the same tokens that goes its own way, as for another sample of one prompt. Between passes only. */
  fork(): KvCache;
  /** Frees everything; the cache is empty and may be used again. */
  dispose(): void;
}

/** What a cache of one layer is made for. */
export interface LayerCacheSizes {
  /** Sequences side by side. */
  readonly batch: number;
  /** Heads of q: a multiple of `kvHeads`. */
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /**
   * How k and v are to be held: the cheapest form of SageKvCache with which greedy text stays what it is without a cache
   * (docs/kv_cache.md). `{...sizes, precision: 'int8'}` takes half of the memory.
   */
  readonly precision: 'int16';
}

/** The cache of one layer, which computes the attention over what it holds; SageKvCache is one. */
export interface LayerCache {
  /** k, v [batch, kv_heads, n, head_dim]; they stay the caller's. */
  append(k: tf.Tensor4D, v: tf.Tensor4D): unknown;
  /** q [batch, heads, n, head_dim]; returns [batch, heads, n, head_dim]. */
  attend(q: tf.Tensor4D, options: CausalOptions): tf.Tensor4D;
  truncate(length: number): unknown;
  fork(): LayerCache;
  dispose(): void;
}

/**
 * Makes the cache of one layer, at the layer's first tokens:
 * ```js
 * const model = await loadGpt2(directory, {attention, layerCache: (sizes) => new SageKvCache(sizes)});
 * ```
 */
export type CreateLayerCache = (sizes: LayerCacheSizes) => LayerCache;
