/** Caches under an additive mask of nothing but float32's lowest value: o is the mean of v (docs/numerics.md 5). */
import * as tf from '@tensorflow/tfjs-core';
import {SageKvCache} from '../../src/cache/kv_cache.js';
import type {CachePrecision} from '../../src/numerics/kv_cache.js';
import {configureSageAttention} from '../../src/runtime/config.js';
import {LOWEST} from '../lowest_mask.js';
import type {CacheEngine} from './random_histories.js';

const {abs, max} = Math;
const TOKENS = 200;

/** What is wrong with one query, a few and many, in words; leaves `engine` configured. */
export function lowestMaskCacheFailures(engine: CacheEngine, precision: CachePrecision): string[] {
  configureSageAttention(engine);
  return tf.tidy(() =>
    [1, 3, 20].flatMap((qLen) => {
      const normal = (n: number, seed: number) =>
        tf.randomNormal([1, 2, n, 64], 0, 1, 'float32', seed) as tf.Tensor4D;
      const v = normal(TOKENS, 3);
      const cache = new SageKvCache({batch: 1, heads: 2, headDim: 64, precision});
      cache.append(normal(TOKENS, 2), v);
      const mask = tf.fill([qLen, TOKENS], LOWEST);
      const o = cache.attend(normal(qLen, 1), {mask, isCausal: false}).dataSync<'float32'>();
      cache.dispose();
      const mean = tf.tile(tf.mean(v, 2, true), [1, 1, qLen, 1]).dataSync<'float32'>();
      const off = o.reduce(
        (most, x, i) => max(most, x >= -Infinity ? abs(x - mean[i]!) : Infinity),
        0,
      );
      return off < 0.01 ? [] : [`${JSON.stringify(engine)}, ${qLen} queries: o off by ${off}`];
    }),
  );
}
