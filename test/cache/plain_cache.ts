/**
 * A key/value cache as plain arrays, answered by the float64 references: what SageKvCache is tested against.
 */
import {
  frozenMean,
  quantizeCacheKeys,
  quantizeCacheValues,
  type CachePrecision,
} from '../../src/numerics/kv_cache.js';
import {attendCacheRow} from '../../src/numerics/kv_cache_reference.js';
import {isRefusal, resolveRecipe} from '../../src/numerics/recipes.js';
import {exactAttention} from '../../src/numerics/reference.js';
import {plainProblem, type AttentionProblem} from '../../src/problem.js';

const {floor} = Math;

export interface CacheSizes {
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly capacity: number;
}

/** One attention over a cache. */
export interface CacheQuery {
  /** [batch, heads, qLen, headDim]. */
  readonly q: Float32Array;
  readonly qLen: number;
  readonly isCausal: false | 'top_left' | 'bottom_right';
  readonly windowSize: readonly [left: number, right: number];
  readonly scale: number;
  /** In [batch or 1, heads or 1, qLen or 1, length or 1]; null without one. */
  readonly mask: {
    readonly data: Float32Array;
    readonly shape: readonly number[];
    readonly kind: 'boolean' | 'additive';
  } | null;
}

/** What a cache holds, head by head of batch and kvHeads; `mean` of its first append. */
export class PlainCache {
  length = 0;
  private keys: Float32Array[];
  private values: Float32Array[];
  private means: Float32Array[] | null = null;

  constructor(readonly sizes: CacheSizes) {
    const count = sizes.batch * sizes.kvHeads;
    this.keys = Array.from({length: count}, () => new Float32Array(0));
    this.values = Array.from({length: count}, () => new Float32Array(0));
  }

  /** k [batch, kvHeads, n, headDim], v [batch, kvHeads, n, valueDim]. */
  append(k: Float32Array, v: Float32Array, n: number): void {
    if (n === 0) return;
    const {headDim, valueDim} = this.sizes;
    const part = (x: Float32Array, at: number, dim: number) =>
      x.subarray(at * n * dim, (at + 1) * n * dim);
    this.means ??= this.keys.map((_, at) =>
      frozenMean({
        data: part(k, at, headDim),
        offset: 0,
        tokenStride: headDim,
        tokens: n,
        dim: headDim,
      }),
    );
    const join = (a: Float32Array, b: Float32Array) => Float32Array.from([...a, ...b]);
    this.keys = this.keys.map((held, at) => join(held, part(k, at, headDim)));
    this.values = this.values.map((held, at) => join(held, part(v, at, valueDim)));
    this.length += n;
  }

  truncate(length: number): void {
    // An empty cache freezes the means of its next append.
    if (length === 0) this.means = null;
    this.length = length;
    this.keys = this.keys.map((x) => x.slice(0, length * this.sizes.headDim));
    this.values = this.values.map((x) => x.slice(0, length * this.sizes.valueDim));
  }

  fork(): PlainCache {
    const copy = new PlainCache(this.sizes);
    copy.length = this.length;
    copy.keys = this.keys;
    copy.values = this.values;
    copy.means = this.means;
    return copy;
  }

  attend(query: CacheQuery, precision: CachePrecision): {o: Float64Array; lse: Float64Array} {
    return precision === 'exact' ? this.attendExactly(query) : this.attendCodes(query, precision);
  }

  private attendCodes(query: CacheQuery, precision: Exclude<CachePrecision, 'exact'>) {
    const {batch, heads, kvHeads, headDim, valueDim} = this.sizes;
    const {q, qLen, isCausal, windowSize, scale, mask} = query;
    const o: number[] = [];
    const lse: number[] = [];
    const offset = isCausal === 'bottom_right' ? this.length - qLen : 0;
    for (let b = 0; b < batch; b++) {
      for (let h = 0; h < heads; h++) {
        const head = b * kvHeads + floor((h * kvHeads) / heads);
        const source = (data: Float32Array, dim: number) => ({
          data,
          offset: 0,
          tokenStride: dim,
          tokens: this.length,
          dim,
        });
        const mean = this.means?.[head] ?? new Float32Array(headDim);
        const keys = quantizeCacheKeys(source(this.keys[head]!, headDim), mean, precision);
        const values = quantizeCacheValues(source(this.values[head]!, valueDim), precision);
        for (let i = 0; i < qLen; i++) {
          const at = ((b * heads + h) * qLen + i) * headDim;
          const masked = (j: number): number => {
            if (mask === null) return 0;
            const [mb, mh, mq, mk] = mask.shape as [number, number, number, number];
            const value =
              mask.data[
                (((mb === 1 ? 0 : b) * mh + (mh === 1 ? 0 : h)) * mq + (mq === 1 ? 0 : i)) * mk +
                  (mk === 1 ? 0 : j)
              ]!;
            return mask.kind === 'additive' ? value : value === 0 ? -Infinity : 0;
          };
          const row = attendCacheRow({
            q: q.subarray(at, at + headDim),
            keys,
            values,
            mean,
            valueDim,
            scale,
            attends: (j) =>
              !(isCausal !== false && j > i + offset) &&
              !(isCausal === false && windowSize[1] >= 0 && j > i + offset + windowSize[1]) &&
              !(windowSize[0] >= 0 && j < i + offset - windowSize[0]) &&
              masked(j) !== -Infinity,
            added: masked,
          });
          o.push(...row.o);
          lse.push(row.lse);
        }
      }
    }
    return {o: Float64Array.from(o), lse: Float64Array.from(lse)};
  }

  private attendExactly({q, qLen, isCausal, windowSize, scale, mask}: CacheQuery) {
    const {batch, heads, kvHeads, headDim, valueDim} = this.sizes;
    const recipe = resolveRecipe('exact', {});
    if (isRefusal(recipe)) throw new Error('exact');
    const whole = (parts: Float32Array[]) => Float32Array.from(parts.flatMap((x) => [...x]));
    const strides = (n: number, tokens: number, dim: number) => ({
      batch: n * tokens * dim,
      head: tokens * dim,
      token: dim,
    });
    const stride = (axis: number): number => {
      const shape = mask?.shape ?? [1, 1, 1, 1];
      return shape[axis] === 1 ? 0 : shape.slice(axis + 1).reduce((a, b) => a * b, 1);
    };
    const problem: AttentionProblem = {
      ...plainProblem(1, recipe),
      batch,
      qHeads: heads,
      kvHeads,
      qLen,
      kvLen: this.length,
      qkDim: headDim,
      vDim: valueDim,
      q: strides(heads, qLen, headDim),
      k: strides(kvHeads, this.length, headDim),
      v: strides(kvHeads, this.length, valueDim),
      o: strides(heads, qLen, valueDim),
      scale,
      causal: isCausal === false ? 'none' : isCausal,
      windowLeft: windowSize[0],
      windowRight: isCausal === false ? windowSize[1] : 0,
      maskKind: mask?.kind ?? 'none',
      mask: {batch: stride(0), head: stride(1), query: stride(2), key: stride(3)},
      wantLse: true,
    };
    const bytes =
      mask === null || mask.kind === 'additive' ? (mask?.data ?? null) : Uint8Array.from(mask.data);
    return exactAttention(problem, q, whole(this.keys), whole(this.values), bytes);
  }
}
