/**
 * What the quantisers take and give: one head of q, k or v in, its codes and scales out.
 * Rules: docs/numerics.md 2 and 4. One head at a time, so that working memory stays O(N) per head.
 */

const {abs} = Math;
/** One head inside a tensor: element (t, d) is data[offset + t * tokenStride + d]. */
export interface HeadSource {
  readonly data: Float32Array;
  readonly offset: number;
  readonly tokenStride: number;
  readonly tokens: number;
  readonly dim: number;
}

/** One quantised head of q. A score is scale[row] · k.scale[token] · (codes · k.codes), plus mean · k' where Q is smoothed. */
export interface QuantizedQ {
  /** [rows, dims]: integer codes, for nvfp4 code · group scale (before 2^-e), for float32 q itself; 0 past `dim`. */
  readonly codes: Float32Array;
  /** Padded head_dim: a multiple of 32 for int8_pair and int16, of 16 for nvfp4, else head_dim. */
  readonly dims: number;
  /** [rows], multiplies the codes: 2^-e for nvfp4, 1 for float32. */
  readonly scale: Float32Array;
  /** [ceil(rows / meanRows), dim], the mean taken out of each block of rows; null unless Q is smoothed. */
  readonly mean: Float32Array | null;
  /** Rows per mean, 0 unless Q is smoothed. */
  readonly meanRows: number;
  /** [rows], 1 where the row holds a NaN or an Infinity (its codes count such elements as 0). */
  readonly notFinite: Uint8Array;
}

/** One quantised head of k. */
export interface QuantizedK {
  /** [tokens, dims], as in `QuantizedQ`. */
  readonly codes: Float32Array;
  readonly dims: number;
  /** [tokens]. */
  readonly scale: Float32Array;
  /** [dim], the mean over all tokens; null unless K is smoothed. */
  readonly mean: Float32Array | null;
  /** [tokens, dim], k' in float32, not quantised and not rotated; null unless the recipe smooths Q. */
  readonly smoothed: Float32Array | null;
  /** [tokens]. */
  readonly notFinite: Uint8Array;
}

/** One quantised head of v: v is near codes · channelScale · tokenScale + mean. */
export interface QuantizedV {
  /** [tokens, dim]: values of the codes; v itself for float32. */
  readonly codes: Float32Array;
  /** [dim], 1 where unused; 2^-e for nvfp4. */
  readonly channelScale: Float32Array;
  /** [tokens]; null unless v is scaled by blocks of 64 tokens. */
  readonly tokenScale: Float32Array | null;
  /** [ceil(tokens / 128), dim], what is put back: the mean taken out less that of the rounded rest; null unless V is smoothed. */
  readonly mean: Float32Array | null;
  /** [tokens * dim], 1 where v is not finite; null when all of v is finite. */
  readonly notFinite: Uint8Array | null;
}

/** Below this largest magnitude a group is all zeros: the inverse of its scale would overflow float32. */
export const TINY = 2 ** -110;

/** One head copied into a contiguous array, elements that are not finite replaced by 0 and flagged. */
export interface HeadValues {
  /** [tokens, dim]. */
  readonly values: Float32Array;
  readonly tokens: number;
  readonly dim: number;
  /** [tokens * dim], 1 where the element is not finite; null when all are finite. */
  readonly notFinite: Uint8Array | null;
  /** [tokens], 1 where any element of the token is not finite. */
  readonly notFiniteTokens: Uint8Array;
}

/** Copies a head; the source is never changed. */
export function readHead(source: HeadSource): HeadValues {
  const {data, tokenStride, tokens, dim} = source;
  const values = new Float32Array(tokens * dim);
  const notFiniteTokens = new Uint8Array(tokens);
  let notFinite: Uint8Array | null = null;
  for (let t = 0; t < tokens; t++) {
    const from = source.offset + t * tokenStride;
    const to = t * dim;
    // NaN - NaN and Infinity - Infinity are NaN, so one sum of differences finds both.
    let residue = 0;
    for (let d = 0; d < dim; d++) {
      const x = data[from + d]!;
      values[to + d] = x;
      residue += x - x;
    }
    if (residue === 0) continue;
    notFiniteTokens[t] = 1;
    notFinite ??= new Uint8Array(tokens * dim);
    for (let d = 0; d < dim; d++) {
      if (Number.isFinite(values[to + d]!)) continue;
      notFinite[to + d] = 1;
      values[to + d] = 0;
    }
  }
  return {values, tokens, dim, notFinite, notFiniteTokens};
}

/** Largest magnitude of an array of finite values. */
export function largestMagnitude(values: Float32Array): number {
  let largest = 0;
  for (let i = 0; i < values.length; i++) {
    const x = abs(values[i]!);
    if (x > largest) largest = x;
  }
  return largest;
}

/** The smallest multiple of `step` that is not below `n`. */
export function roundUpTo(n: number, step: number): number {
  return Math.ceil(n / step) * step;
}
