/**
 * Smoothing: means of finite values over blocks of tokens, and their removal (docs/numerics.md 3;
 * SageAttention 3.2 for K, SageAttention2 3.1 for Q and 3.3 for V).
 */
import type {HeadValues} from './operands.js';

/** Sums run over blocks of this many tokens first, so that every engine adds in the same order. */
const SUM_BLOCK = 128;

/**
 * The mean of each block of `rows` tokens and each channel, [ceil(tokens / rows), dim]: float64 sums rounded to float32.
 * Blocks longer than 128 tokens add sums of 128. Values that are not finite are left out; 0 where none is finite.
 */
export function blockMeans(head: HeadValues, rows: number): Float32Array {
  const {values, tokens, dim, notFinite} = head;
  const blocks = Math.ceil(tokens / rows);
  const means = new Float32Array(blocks * dim);
  const totals = new Float64Array(dim);
  const sums = new Float64Array(dim);
  for (let block = 0; block < blocks; block++) {
    const begin = block * rows;
    const end = Math.min(tokens, begin + rows);
    totals.fill(0);
    for (let first = begin; first < end; first += SUM_BLOCK) {
      const last = Math.min(end, first + SUM_BLOCK);
      sums.fill(0);
      for (let t = first; t < last; t++) {
        const row = t * dim;
        for (let d = 0; d < dim; d++) sums[d]! += values[row + d]!;
      }
      for (let d = 0; d < dim; d++) totals[d]! += sums[d]!;
    }
    for (let d = 0; d < dim; d++) {
      const count = finiteCount(notFinite, begin, end, dim, d);
      means[block * dim + d] = count === 0 ? 0 : totals[d]! / count;
    }
  }
  return means;
}

/** The mean over all tokens per channel, [dim]; 0 when there are no tokens. */
export function tokenMean(head: HeadValues): Float32Array {
  return head.tokens === 0 ? new Float32Array(head.dim) : blockMeans(head, head.tokens);
}

/** How many of a channel's values in tokens begin..end-1 are finite. */
export function finiteCount(
  notFinite: Uint8Array | null,
  begin: number,
  end: number,
  dim: number,
  d: number,
): number {
  let count = end - begin;
  if (!notFinite) return count;
  for (let t = begin; t < end; t++) count -= notFinite[t * dim + d]!;
  return count;
}

/** Takes the mean of each block of `rows` tokens out of the head, in place; elements that are not finite stay 0. */
export function subtractMeans(head: HeadValues, means: Float32Array, rows: number): void {
  const {values, tokens, dim, notFinite} = head;
  for (let t = 0; t < tokens; t++) {
    const row = t * dim;
    const mean = Math.floor(t / rows) * dim;
    for (let d = 0; d < dim; d++) values[row + d]! -= means[mean + d]!;
    if (!notFinite || head.notFiniteTokens[t] === 0) continue;
    for (let d = 0; d < dim; d++) if (notFinite[row + d] === 1) values[row + d] = 0;
  }
}
