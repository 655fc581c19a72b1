/** One call of an attention layer that keeps keys and values of earlier tokens, as tfjs' nlp folder has it. */
import * as tf from '@tensorflow/tfjs-core';
import type {AttendCall} from './attend.js';
import {attentionAxes, foldMask} from './attention_axes.js';

interface Dense {
  apply(x: tf.Tensor): tf.Tensor;
}

/** Keyword arguments of `callAndReturnCache`. */
export interface CachedCallKwargs {
  value: tf.Tensor;
  key?: tf.Tensor | null;
  attentionMask?: tf.Tensor | null;
  /** [B, 2, cached tokens, H, D]: keys and values. */
  cache?: tf.Tensor | null;
  /** Token at which the new keys and values go into the cache. */
  cacheUpdateIndex?: number | null;
}

export interface CachedAttention {
  readonly keyDim: number;
  readonly name: string;
  readonly queryDense: Dense;
  readonly keyDense: Dense;
  readonly valueDense: Dense;
  readonly outputDense: Dense;
  callAndReturnCache(
    query: tf.Tensor,
    kwargs: CachedCallKwargs,
  ): [output: tf.Tensor, cache: tf.Tensor | null | undefined];
}

/** @param attend The attention between the projections. */
export function cachedCall(
  layer: CachedAttention,
  query: tf.Tensor,
  {value, key, attentionMask, cache, cacheUpdateIndex}: CachedCallKwargs,
  attend: (call: AttendCall) => tf.Tensor4D,
): [output: tf.Tensor, cache: tf.Tensor | null | undefined] {
  const run = (): [tf.Tensor, tf.Tensor | null | undefined] => {
    const q = layer.queryDense.apply(query) as tf.Tensor4D;
    let k: tf.Tensor4D;
    let v: tf.Tensor4D;
    let next = cache;
    if (cache == null) {
      k = layer.keyDense.apply(key ?? value) as tf.Tensor4D;
      v = layer.valueDense.apply(value) as tf.Tensor4D;
    } else {
      [k, v] = tf.unstack(cache, 1) as [tf.Tensor4D, tf.Tensor4D];
      if (cacheUpdateIndex != null) {
        k = replaceTokens(k, layer.keyDense.apply(key ?? value) as tf.Tensor4D, cacheUpdateIndex);
        v = replaceTokens(v, layer.valueDense.apply(value) as tf.Tensor4D, cacheUpdateIndex);
        next = tf.stack([k, v], 1);
      }
    }
    const output = attend({
      q,
      k,
      v,
      scale: 1 / Math.sqrt(layer.keyDim),
      causal: false,
      window: null,
      queryMask: null,
      keyMask: null,
      attentionMask:
        attentionMask == null
          ? null
          : foldMask(
              layer.name,
              tf.cast(attentionMask, 'bool'),
              attentionAxes(layer.name, [1], 3),
              q,
            ),
      emptyRows: 'mean',
    });
    return [layer.outputDense.apply(output), next];
  };
  return tf.tidy(run as () => tf.Tensor[]) as ReturnType<typeof run>;
}

/** `tokens` in place of those of `cache` from `at` on. */
function replaceTokens(cache: tf.Tensor4D, tokens: tf.Tensor4D, at: number): tf.Tensor4D {
  const [batch, count, heads, dim] = cache.shape;
  const after = at + tokens.shape[1];
  return tf.concat(
    [
      tf.slice(cache, [0, 0, 0, 0], [batch, at, heads, dim]),
      tokens,
      tf.slice(cache, [0, after, 0, 0], [batch, count - after, heads, dim]),
    ],
    1,
  );
}
