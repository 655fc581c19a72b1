/**
 * The numerics of the key/value cache (docs/numerics.md 8): a token is quantised once, by a rule that looks at nothing
 * but the token and a mean that the first append froze. So the codes do not depend on how the tokens were cut into
 * appends, and stay right under truncation and forks.
 */
import {roundHalfEven} from './formats.js';
import {readHead, TINY} from './operands.js';
import type {HeadSource} from './operands.js';
import {quantizeTokenGroups} from './quantize_integer.js';
import {subtractMeans, tokenMean} from './smoothing.js';

const f32 = Math.fround;

/** Tokens whose rounded P share one scale; tokens 128 m to 128 m + 127 of the cache. Also a page of storage. */
export const CACHE_BLOCK = 128;
/** The largest codes of q and of P. */
export const CACHE_Q_TOP = 8191;
export const CACHE_P_TOP = 16383;

/** How a cache holds k and v: in 8 bits, k in 8 and v in 16, in 16, or as they came. */
export const CACHE_PRECISIONS = ['int8', 'int8_int16', 'int16', 'exact'] as const;
export type CachePrecision = (typeof CACHE_PRECISIONS)[number];
/** Those with codes. */
export type PackedCachePrecision = Exclude<CachePrecision, 'exact'>;

/** The codes of k and v. */
export interface CodeRange {
  /** The largest. */
  readonly keyTop: number;
  readonly valueTop: number;
  /** Stands in the codes of v for a value that is not finite; it counts in no sum. */
  readonly notFinite: number;
}

/** Of 16 bits: two digits, 128 · high + low with low in -64 to 63 and high in ±127. */
const WIDE_TOP = 127 * 128;

export const CACHE_CODES: Readonly<Record<PackedCachePrecision, CodeRange>> = {
  int8: {keyTop: 127, valueTop: 127, notFinite: -128},
  int8_int16: {keyTop: 127, valueTop: WIDE_TOP, notFinite: -128 * 128},
  int16: {keyTop: WIDE_TOP, valueTop: WIDE_TOP, notFinite: -128 * 128},
};

/** The channel means of k that the first append freezes, [dim]: of its finite values, as in docs/numerics.md 3. */
export function frozenMean(k: HeadSource): Float32Array {
  return tokenMean(readHead(k));
}

/** Tokens of one head as codes. */
export interface CacheCodes {
  /** [tokens, dim]. */
  readonly codes: Int8Array | Int16Array;
  /** [tokens]. */
  readonly scale: Float32Array;
  /** [tokens], 1 where the token holds a NaN or an Infinity (which count as 0). */
  readonly notFinite: Uint8Array;
}

/** Codes of keys: k minus the frozen mean, with one scale per token (docs/numerics.md 4.2 with another top). */
export function quantizeCacheKeys(
  k: HeadSource,
  mean: Float32Array,
  precision: PackedCachePrecision,
): CacheCodes {
  const {keyTop} = CACHE_CODES[precision];
  const head = readHead(k);
  subtractMeans(head, mean, Math.max(1, head.tokens));
  const {codes, scale} = quantizeTokenGroups(head, 'token', keyTop, 'even');
  return {codes: stored(codes, keyTop), scale, notFinite: head.notFiniteTokens};
}

/** Codes of values with one scale per token, as those of keys without a mean. */
export function quantizeCacheValues(v: HeadSource, precision: PackedCachePrecision): CacheCodes {
  const {valueTop, notFinite} = CACHE_CODES[precision];
  const head = readHead(v);
  const {codes, scale} = quantizeTokenGroups(head, 'token', valueTop, 'even');
  const values = stored(codes, valueTop);
  head.notFinite?.forEach((flag, i) => {
    if (flag === 1) values[i] = notFinite;
  });
  return {codes: values, scale, notFinite: head.notFiniteTokens};
}

function stored(codes: Float32Array, top: number): Int8Array | Int16Array {
  return top > 127 ? Int16Array.from(codes) : Int8Array.from(codes);
}

/** Codes of one row of q, 14 bits, written to `codes`; returns the scale. Values that are not finite count as 0. */
export function quantizeCacheQuery(
  q: Float32Array,
  offset: number,
  dim: number,
  codes: Float64Array,
): number {
  let amax = 0;
  for (let d = 0; d < dim; d++) {
    const x = q[offset + d]!;
    const magnitude = x < 0 ? -x : x;
    if (magnitude > amax && magnitude < Infinity) amax = magnitude;
  }
  codes.fill(0);
  if (amax < TINY) return 0;
  const inverse = f32(CACHE_Q_TOP / amax);
  for (let d = 0; d < dim; d++) {
    const x = q[offset + d]!;
    // NaN and the infinities: x - x is not 0.
    if (x - x === 0) codes[d] = roundHalfEven(f32(x * inverse));
  }
  return f32(amax / CACHE_Q_TOP);
}
