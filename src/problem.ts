/**
 * The problem: one attention call as plain data. Built by the op, read by kernels and engines, no tensors and no pointers.
 * `csrc/include/sage/problem.h` holds the same fields in the same order; `encodeProblem` is the wire between the two.
 */
import type {Recipe} from './numerics/recipes.js';

export type MaskKind = 'none' | 'boolean' | 'additive';
export type CausalKind = 'none' | 'top_left' | 'bottom_right';

/** Element strides of batch, head and token; the last axis (head_dim) always has stride 1. */
export interface TokenStrides {
  readonly batch: number;
  readonly head: number;
  readonly token: number;
}

/** Element strides of a mask in [B,H,Nq,Nk]; 0 where the axis is broadcast. */
export interface MaskStrides {
  readonly batch: number;
  readonly head: number;
  readonly query: number;
  readonly key: number;
}

/** One attention call. Query head h reads key/value head floor(h / (qHeads / kvHeads)). */
export interface AttentionProblem {
  readonly batch: number;
  readonly qHeads: number;
  readonly kvHeads: number;
  readonly qLen: number;
  readonly kvLen: number;
  /** head_dim of q and k. */
  readonly qkDim: number;
  /** head_dim of v and o. */
  readonly vDim: number;
  readonly q: TokenStrides;
  readonly k: TokenStrides;
  readonly v: TokenStrides;
  readonly o: TokenStrides;
  /** Multiplies q·k, natural-log domain; the default of the op is 1 / sqrt(qkDim). */
  readonly scale: number;
  readonly causal: CausalKind;
  /** Keys left of the diagonal that a query sees, -1 = no limit. */
  readonly windowLeft: number;
  /** Keys right of the diagonal, -1 = no limit; 0 when causal. */
  readonly windowRight: number;
  readonly maskKind: MaskKind;
  readonly mask: MaskStrides;
  readonly wantLse: boolean;
  readonly recipe: Recipe;
}

/**
 * Where the diagonal lies: query i stands opposite key i + offset.
 * 0, or kvLen - qLen when causal is `bottom_right`.
 */
export function diagonalOffset(problem: AttentionProblem): number {
  return problem.causal === 'bottom_right' ? problem.kvLen - problem.qLen : 0;
}

/** First key that query i may see by causality and window (the mask comes on top). */
export function firstVisibleKey(problem: AttentionProblem, i: number): number {
  if (problem.windowLeft < 0) return 0;
  return Math.max(0, i + diagonalOffset(problem) - problem.windowLeft);
}

/** One past the last key that query i may see; may be <= firstVisibleKey: then the row attends to nothing. */
export function endOfVisibleKeys(problem: AttentionProblem, i: number): number {
  if (problem.windowRight < 0) return problem.kvLen;
  return Math.min(
    problem.kvLen,
    Math.max(0, i + diagonalOffset(problem) + problem.windowRight + 1),
  );
}

/** Number of float64 words that `encodeProblem` writes. */
export const PROBLEM_WORDS = 49;

/** Written as word 0: an addon built for another field order refuses the call instead of misreading it. */
export const PROBLEM_VERSION = 2;

const MASK_CODES: Record<MaskKind, number> = {none: 0, boolean: 1, additive: 2};
const CAUSAL_CODES: Record<CausalKind, number> = {none: 0, top_left: 1, bottom_right: 2};

/** Writes the problem as float64 words (every integer below 2^53 is exact) in the order of problem.h. */
export function encodeProblem(problem: AttentionProblem, words: Float64Array): Float64Array {
  const {q, k, v, o, mask, recipe} = problem;
  words[0] = PROBLEM_VERSION;
  words[1] = problem.batch;
  words[2] = problem.qHeads;
  words[3] = problem.kvHeads;
  words[4] = problem.qLen;
  words[5] = problem.kvLen;
  words[6] = problem.qkDim;
  words[7] = problem.vDim;
  words[8] = q.batch;
  words[9] = q.head;
  words[10] = q.token;
  words[11] = k.batch;
  words[12] = k.head;
  words[13] = k.token;
  words[14] = v.batch;
  words[15] = v.head;
  words[16] = v.token;
  words[17] = o.batch;
  words[18] = o.head;
  words[19] = o.token;
  words[20] = problem.scale;
  words[21] = CAUSAL_CODES[problem.causal];
  words[22] = problem.windowLeft;
  words[23] = problem.windowRight;
  words[24] = MASK_CODES[problem.maskKind];
  words[25] = mask.batch;
  words[26] = mask.head;
  words[27] = mask.query;
  words[28] = mask.key;
  words[29] = problem.wantLse ? 1 : 0;
  words.set(recipe.words, 30);
  return words;
}

/** One head of `tokens` queries and keys with head_dim 64, no mask: what the addon is asked when it is tried. */
export function plainProblem(tokens: number, recipe: Recipe): AttentionProblem {
  const strides = {batch: tokens * 64, head: tokens * 64, token: 64};
  return {
    batch: 1,
    qHeads: 1,
    kvHeads: 1,
    qLen: tokens,
    kvLen: tokens,
    qkDim: 64,
    vDim: 64,
    q: strides,
    k: strides,
    v: strides,
    o: strides,
    scale: 1 / 8,
    causal: 'none',
    windowLeft: -1,
    windowRight: -1,
    maskKind: 'none',
    mask: {batch: 0, head: 0, query: 0, key: 0},
    wantLse: false,
    recipe,
  };
}
