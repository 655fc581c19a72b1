/**
 * Attention through a key/value cache in float64, for one row of q and one head: what both implementations are tested
 * against. Every rounding is that of docs/numerics.md 8; sums have none.
 */
import {roundHalfEven} from './formats.js';
import {
  CACHE_BLOCK,
  CACHE_P_TOP,
  CACHE_CODES,
  quantizeCacheQuery,
  type CacheCodes,
} from './kv_cache.js';
import {TINY} from './operands.js';

/** One head of a cache, and what a query sees of it. */
export interface CacheRow {
  readonly q: Float32Array;
  readonly keys: CacheCodes;
  readonly values: CacheCodes;
  /** [q.length], the frozen mean of k. */
  readonly mean: Float32Array;
  readonly valueDim: number;
  readonly scale: number;
  /** Whether the query attends to key j, and what is added to the score there. */
  readonly attends: (j: number) => boolean;
  readonly added: (j: number) => number;
}

/** o [valueDim] and lse of the row. */
export function attendCacheRow(row: CacheRow): {o: Float64Array; lse: number} {
  const {q, keys, values, mean, valueDim, scale} = row;
  const {notFinite} = CACHE_CODES[values.codes instanceof Int8Array ? 'int8' : 'int16'];
  const dim = q.length;
  const tokens = keys.scale.length;
  const seen = Array.from({length: tokens}, (_, j) => j).filter((j) => row.attends(j));
  const o = new Float64Array(valueDim);
  if (seen.length === 0) return {o, lse: -Infinity};
  if (q.some((x) => !Number.isFinite(x)) || seen.some((j) => keys.notFinite[j] === 1)) {
    return {o: o.fill(NaN), lse: NaN};
  }
  const codes = new Float64Array(dim);
  const qScale = quantizeCacheQuery(q, 0, dim, codes);
  const scores = new Float64Array(tokens).fill(-Infinity);
  for (const j of seen) {
    let dot = 0;
    for (let d = 0; d < dim; d++) dot += codes[d]! * keys.codes[j * dim + d]!;
    scores[j] = dot * keys.scale[j]! * qScale * scale + row.added(j);
  }
  const most = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const p = scores.map((s) => Math.exp(s - most));
  const sum = p.reduce((a, b) => a + b, 0);
  for (let first = 0; first < tokens; first += CACHE_BLOCK) {
    const end = Math.min(tokens, first + CACHE_BLOCK);
    let top = 0;
    for (let j = first; j < end; j++) top = Math.max(top, p[j]! * values.scale[j]!);
    if (top < TINY) continue;
    for (let j = first; j < end; j++) {
      const weight = roundHalfEven((CACHE_P_TOP * p[j]! * values.scale[j]!) / top);
      const factor = (weight * top) / CACHE_P_TOP;
      for (let d = 0; d < valueDim; d++) {
        const code = values.codes[j * valueDim + d]!;
        if (code !== notFinite) o[d]! += factor * code;
      }
    }
  }
  for (let d = 0; d < valueDim; d++) {
    const bad = seen.some((j) => values.codes[j * valueDim + d] === notFinite);
    o[d] = bad ? NaN : o[d]! / sum;
  }
  const offset = q.reduce((total, x, d) => total + x * mean[d]!, 0);
  return {o, lse: most + Math.log(sum) + scale * offset};
}
