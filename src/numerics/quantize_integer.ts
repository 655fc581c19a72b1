/**
 * Integer quantisers of q and k: groups of tokens that share a scale, int8 and int4, and the two that bound their dot
 * products, int8_pair and int16 (docs/numerics.md 4.1 to 4.4; SageAttention2 3.2 for the per-thread groups).
 */
import {roundHalfAway, roundHalfEven} from './formats.js';
import {roundUpTo, TINY} from './operands.js';
import type {HeadValues} from './operands.js';
import type {Rounding, TokenGroup} from './recipes.js';

const {abs, floor, max, min, sqrt} = Math;
const f32 = Math.fround;
/** Codes [tokens, dims] and one scale per token. */
export interface TokenCodes {
  readonly codes: Float32Array;
  readonly dims: number;
  readonly scale: Float32Array;
}

/** Dims that a norm of the bounded quantisers covers; head_dim is padded to a multiple. */
const SEGMENT = 32;

// By Cauchy-Schwarz a lane's sum is at most the product of the norms of its codes. Rounding 16 codes adds at most
// sqrt(16)/2 = 2 to a norm, and (178.9 + 2)^2 < 2^15. The constant is a float32, as every operand here.
const LANE_NORM = f32(178.9);
// Rounding 512 codes adds at most sqrt(512)/2 < 11.4, and (46200 + 11.4)^2 < 2^31.
const DOT_NORM = 46200;
// Largest code of k: u = code + 107 is at most 214, and 214 · 153 < 2^15, so unsigned·signed pairs do not saturate.
const K_PAIR_TOP = 107;
// 126.5 rounds to 127 at most. Rounding two codes adds at most 1 to the sum of a pair: 152 + 1 = 153.
const Q_PAIR_TOP = 126.5;
const Q_PAIR_SUM = 152;
const INT16_TOP = 32700;

/** The group of token t (docs/numerics.md 4.1). */
export function groupOfToken(group: TokenGroup, t: number): number {
  switch (group) {
    case 'token':
      return t;
    case 'warp32':
    case 'consecutive32':
      return floor(t / 32);
    case 'warp64':
    case 'block64':
      return floor(t / 64);
    case 'block128':
      return floor(t / 128);
    case 'thread32':
      return floor(t / 32) * 8 + (t % 8);
    case 'thread64':
      return floor(t / 64) * 4 + floor((t % 8) / 2);
  }
}

/** int8 (top 127) and int4 (top 7) with one scale per group of tokens. */
export function quantizeTokenGroups(
  head: HeadValues,
  group: TokenGroup,
  top: number,
  rounding: Rounding,
): TokenCodes {
  const {values, tokens, dim} = head;
  // A group's number is at most that of its first token, so there are at most as many groups as tokens.
  const largest = new Float32Array(tokens);
  for (let t = 0; t < tokens; t++) {
    const g = groupOfToken(group, t);
    largest[g] = max(largest[g]!, rowMagnitude(values, t * dim, dim));
  }
  const codes = new Float32Array(tokens * dim);
  const scale = new Float32Array(tokens);
  const away = rounding === 'away';
  for (let t = 0; t < tokens; t++) {
    const amax = largest[groupOfToken(group, t)]!;
    if (amax < TINY) continue;
    scale[t] = amax / top;
    const inverse = f32(top / amax);
    const end = (t + 1) * dim;
    for (let i = t * dim; i < end; i++) {
      const x = f32(values[i]! * inverse);
      const code = away ? roundHalfAway(x) : roundHalfEven(x);
      // Adding 0 turns -0 into 0: integers have one zero.
      codes[i] = min(top, max(-top, code)) + 0;
    }
  }
  return {codes, dims: dim, scale};
}

/** Which of the two operands: their limits differ in `int8_pair`. */
export type Operand = 'q' | 'k';

/** int8_pair: codes whose dot products are exact in 16-bit lanes. */
export function quantizePairs(head: HeadValues, operand: Operand): TokenCodes {
  return quantizeBounded(head, (y, dims) => {
    const limit = f32(LANE_NORM / f32(sqrt(laneNorms(y, dims).largest)));
    if (operand === 'k') return min(K_PAIR_TOP, limit);
    let pair = 0;
    for (let d = 0; d < dims; d += 2) {
      pair = max(pair, f32(abs(y[d]!) + abs(y[d + 1]!)));
    }
    return min(Q_PAIR_TOP, limit, f32(Q_PAIR_SUM / pair));
  });
}

/** int16: codes whose dot products fit in int32. */
export function quantizeInt16(head: HeadValues): TokenCodes {
  return quantizeBounded(head, (y, dims) => {
    const norm = f32(sqrt(laneNorms(y, dims).sum));
    return min(INT16_TOP, f32(DOT_NORM / norm));
  });
}

/** Per token: y = x / amax, then codes y · limit(y), where `limit` bounds what a dot product can reach. */
function quantizeBounded(
  head: HeadValues,
  limitOf: (y: Float32Array, dims: number) => number,
): TokenCodes {
  const {values, tokens, dim} = head;
  const dims = roundUpTo(dim, SEGMENT);
  const codes = new Float32Array(tokens * dims);
  const scale = new Float32Array(tokens);
  const y = new Float32Array(dims);
  for (let t = 0; t < tokens; t++) {
    const amax = rowMagnitude(values, t * dim, dim);
    if (amax < TINY) continue;
    const inverse = f32(1 / amax);
    for (let d = 0; d < dim; d++) y[d] = values[t * dim + d]! * inverse;
    const limit = limitOf(y, dims);
    for (let d = 0; d < dim; d++) {
      codes[t * dims + d] = roundHalfEven(f32(y[d]! * limit)) + 0;
    }
    scale[t] = amax / limit;
  }
  return {codes, dims, scale};
}

function rowMagnitude(values: Float32Array, begin: number, dim: number): number {
  let largest = 0;
  for (let i = begin; i < begin + dim; i++) {
    const x = abs(values[i]!);
    if (x > largest) largest = x;
  }
  return largest;
}

const norms = {largest: 0, sum: 0};

/**
 * Squared norms n(g, L) of the 16 dims of each 16-bit lane L in each segment g of 32: their maximum and their sum.
 * The tree of float32 sums is the one that a shuffle-free SIMD reduction makes. The result is overwritten by the next call.
 */
function laneNorms(
  y: Float32Array,
  dims: number,
): {readonly largest: number; readonly sum: number} {
  norms.largest = 0;
  norms.sum = 0;
  for (let segment = 0; segment < dims; segment += SEGMENT) {
    for (let lane = segment; lane < segment + 4; lane += 2) {
      const even = f32(
        f32(pair(y, lane) + pair(y, lane + 16)) + f32(pair(y, lane + 4) + pair(y, lane + 20)),
      );
      const odd = f32(
        f32(pair(y, lane + 8) + pair(y, lane + 24)) + f32(pair(y, lane + 12) + pair(y, lane + 28)),
      );
      const norm = f32(even + odd);
      norms.largest = max(norms.largest, norm);
      norms.sum = f32(norms.sum + norm);
    }
  }
  return norms;
}

function pair(y: Float32Array, d: number): number {
  return f32(f32(y[d]! * y[d]!) + f32(y[d + 1]! * y[d + 1]!));
}
