/** The accuracy suites: which shapes and distributions, their inputs, and the float64 answer they are judged by. */
import {exactAttention} from '../numerics/reference.js';
import {resolveRecipe, isRefusal, type Precision} from '../numerics/recipes.js';
import type {AttentionProblem, TokenStrides} from '../problem.js';
import {applyDistribution, Operand, Random, type Distribution} from './distributions.js';

/** One line of an accuracy table. q is [batch, heads, qLen, headDim]; k and v are [batch, kvHeads, kvLen, headDim]. */
export interface AccuracyCase {
  readonly distribution: Distribution;
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly qLen: number;
  readonly kvLen: number;
  readonly headDim: number;
  /** true: query i sees keys 0..i. */
  readonly causal: boolean;
}

const square = (distribution: Distribution, headDim: number, causal = false): AccuracyCase => ({
  distribution,
  batch: 1,
  heads: 2,
  kvHeads: 2,
  qLen: 1000,
  kvLen: 1000,
  headDim,
  causal,
});

/** What `npx tfjs-sage-attention accuracy` and `describeAttentionAccuracy` run by default. */
export const ACCURACY_CASES: readonly AccuracyCase[] = [
  square('normal', 64),
  square('normal', 128),
  square('normal', 64, true),
  square('k_bias', 64),
  square('k_bias', 128),
  square('qv_bias', 64),
  square('outlier_channels', 64),
  square('outlier_tokens', 64),
  square('peaky', 64),
  {...square('long', 64), qLen: 64, kvLen: 8192},
  {...square('normal', 64, true), batch: 2, heads: 6, kvHeads: 2, qLen: 129, kvLen: 129},
];

/** Inputs of a case and its answer in float64, HND, contiguous. */
export interface AccuracyInputs {
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  /** [batch, heads, qLen, headDim]: exact attention in float64. */
  readonly expected: Float64Array;
}

/** The seeded inputs of a case with the float64 answer. Takes about 4 · batch · heads · qLen · kvLen · headDim operations. */
export function accuracyInputs(c: AccuracyCase, seed = 1): AccuracyInputs {
  const random = new Random(seed);
  const operand = (heads: number, tokens: number): Operand =>
    new Operand(
      new Float32Array(c.batch * heads * tokens * c.headDim),
      c.batch,
      heads,
      tokens,
      c.headDim,
      'HND',
      random,
    );
  const q = operand(c.heads, c.qLen);
  const k = operand(c.kvHeads, c.kvLen);
  const v = operand(c.kvHeads, c.kvLen);
  applyDistribution(c.distribution, q, k, v, random);
  const expected = exactAttention(accuracyProblem(c, 'exact'), q.data, k.data, v.data, null).o;
  return {q: q.data, k: k.data, v: v.data, expected};
}

/** The case as a problem for an engine: contiguous HND, scale 1 / sqrt(headDim), the recipe's defaults. */
export function accuracyProblem(c: AccuracyCase, precision: Precision): AttentionProblem {
  const recipe = resolveRecipe(precision, {});
  if (isRefusal(recipe)) throw new Error(`no default form of ${precision}`);
  const strides = (heads: number, tokens: number): TokenStrides => ({
    batch: heads * tokens * c.headDim,
    head: tokens * c.headDim,
    token: c.headDim,
  });
  return {
    batch: c.batch,
    qHeads: c.heads,
    kvHeads: c.kvHeads,
    qLen: c.qLen,
    kvLen: c.kvLen,
    qkDim: c.headDim,
    vDim: c.headDim,
    q: strides(c.heads, c.qLen),
    k: strides(c.kvHeads, c.kvLen),
    v: strides(c.kvHeads, c.kvLen),
    o: strides(c.heads, c.qLen),
    scale: 1 / Math.sqrt(c.headDim),
    causal: c.causal ? 'top_left' : 'none',
    windowLeft: -1,
    windowRight: c.causal ? 0 : -1,
    maskKind: 'none',
    mask: {batch: 0, head: 0, query: 0, key: 0},
    wantLse: false,
    recipe,
  };
}
