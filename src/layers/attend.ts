/**
 * Dot-product attention with the mask rules of Keras' layers: through sageAttention, which allocates nothing of size
 * T x S, or as plain tfjs ops where somebody reads the scores or dropout changes them.
 *
 * Axes: B batch, T queries, S keys, H heads of q, G heads of k and v (H is a multiple of G), D and Dv head sizes.
 */
import * as tf from '@tensorflow/tfjs-core';
import {sageAttention} from '../ops/sage_attention.js';
import type {RecipeOptions} from '../replace/model_attentions.js';

/** One attention, after the projections. Masks are bool, true = attend. */
export interface AttendCall {
  /** float32 [B,T,H,D]. */
  readonly q: tf.Tensor4D;
  /** float32 [B,S,G,D]. */
  readonly k: tf.Tensor4D;
  /** float32 [B,S,G,Dv]. */
  readonly v: tf.Tensor4D;
  /** Multiplies q·k. */
  readonly scale: number;
  /** Query i sees keys 0..i. */
  readonly causal: boolean;
  /** Query i sees key j if |i - j| < window; null = no window. */
  readonly window: number | null;
  /** [B,T] of queries that see anything at all. */
  readonly queryMask: tf.Tensor | null;
  /** [B,S]. */
  readonly keyMask: tf.Tensor | null;
  /** Broadcastable to [B,H,T,S]. */
  readonly attentionMask: tf.Tensor4D | null;
  /**
   * What a query that sees nothing gives. Keras masks by a large negative number, so that such a query averages all
   * values; where its Softmax layer zeroes masked scores afterwards, it gives 0.
   */
  readonly emptyRows: 'mean' | 'zero';
}

/** Dropout on the scores. */
export interface ScoreDropout {
  /** Share of the scores that become 0; the others grow by 1 / (1 - rate). */
  readonly rate: number;
  readonly seed: number | undefined;
}

/** float32 [B,T,H,Dv]. */
export function attendBySage(call: AttendCall, options: RecipeOptions): tf.Tensor4D {
  const {q, k, v, scale, causal, window, queryMask, emptyRows} = call;
  const mask = keySideMask(call);
  const opOptions = {
    ...options,
    layout: 'NHD',
    scale,
    isCausal: causal,
    ...(window === null ? {} : {windowSize: [window - 1, window - 1] as const}),
    ...(mask === null ? {} : {mask}),
  } as const;
  // Without masks and window every query sees key 0.
  const someRowsMayBeEmpty = mask !== null || window !== null;
  const wantsMean = emptyRows === 'mean' && someRowsMayBeEmpty;
  const [o, lse] = wantsMean
    ? sageAttention(q, k, v, {...opOptions, returnLse: true})
    : [sageAttention(q, k, v, opOptions), null];
  const blind = queryMask === null ? null : tf.logicalNot(asColumns(queryMask));
  if (emptyRows === 'zero') return blind === null ? o : tf.where(blind, tf.zerosLike(o), o);
  const empty = lse === null ? blind : blindOrKeyless(blind, lse);
  // The mean over no keys is no number; the op's 0 stands.
  if (empty === null || k.shape[1] === 0) return o;
  return tf.where(empty, meanOfValues(v, q.shape[2]), o);
}

/**
 * The same by matMul and softmax, with T x S scores in memory.
 *
 * @returns The output [B,T,H,Dv] and the scores [B,H,T,S], the latter before dropout, as Keras returns them.
 */
export function attendByOps(
  call: AttendCall,
  dropout: ScoreDropout | null,
): {output: tf.Tensor4D; scores: tf.Tensor4D} {
  const {q, k, v, scale, emptyRows} = call;
  const heads = q.shape[2];
  const queries = tf.transpose<tf.Tensor4D>(tf.mul<tf.Tensor4D>(q, scale), [0, 2, 1, 3]);
  const keys = tf.transpose<tf.Tensor4D>(repeatHeads(k, heads), [0, 2, 1, 3]);
  const values = tf.transpose<tf.Tensor4D>(repeatHeads(v, heads), [0, 2, 1, 3]);
  const logits = tf.matMul<tf.Tensor4D>(queries, keys, false, true);
  const {scores, dropped} = softmaxOfScores(logits, fullMask(call), emptyRows, dropout);
  return {
    output: tf.transpose<tf.Tensor4D>(tf.matMul<tf.Tensor4D>(dropped, values), [0, 2, 1, 3]),
    scores,
  };
}

/**
 * Keras' masked softmax over the last axis: masked logits become -1e9, so that a row of them averages.
 *
 * @param mask bool, broadcastable to `logits`; null = everything is seen.
 */
export function softmaxOfScores<T extends tf.Tensor>(
  logits: T,
  mask: tf.Tensor | null,
  emptyRows: AttendCall['emptyRows'],
  dropout: ScoreDropout | null,
): {scores: T; dropped: T} {
  const masked = mask === null ? logits : tf.where<T>(mask, logits, MASKED_LOGIT);
  const weights = tf.softmax<T>(masked);
  const scores = mask === null || emptyRows === 'mean' ? weights : tf.where<T>(mask, weights, 0);
  const dropped =
    dropout === null ? scores : (tf.dropout(scores, dropout.rate, undefined, dropout.seed) as T);
  return {scores, dropped};
}

/** What Keras puts in place of a masked logit. */
const MASKED_LOGIT = -1e9;

/**
 * Queries that see nothing, bool [B,T,H,1].
 *
 * @param blind Those that a mask hides, [B,T,1,1].
 * @param lse Log-sum-exps [B,H,T]: -Infinity where no key was left.
 */
function blindOrKeyless(blind: tf.Tensor4D | null, lse: tf.Tensor): tf.Tensor4D {
  // tfjs asks even a condition for its gradient, which comparisons do not have.
  const compare = tf.customGrad((...args) => {
    const [x, save] = args as unknown as [tf.Tensor, tf.GradSaveFunc];
    save([x]);
    const keyless = tf.expandDims<tf.Tensor4D>(tf.transpose(tf.equal(x, -Infinity), [0, 2, 1]), 3);
    return {
      value: blind === null ? keyless : tf.logicalOr(blind, keyless),
      gradFunc: (_dy: tf.Tensor, saved: tf.Tensor[]) => tf.zerosLike(saved[0] as tf.Tensor),
    };
  });
  return compare(lse) as tf.Tensor4D;
}

/** What the op takes as its mask: all but causality, window and masked queries. [B|1,H|1,T|1,S]. */
function keySideMask({keyMask, attentionMask}: AttendCall): tf.Tensor4D | null {
  return both(attentionMask, keyMask === null ? null : asRow(keyMask));
}

/** Everything as one mask, broadcastable to [B,H,T,S]; null when everything is seen. */
function fullMask(call: AttendCall): tf.Tensor4D | null {
  const {q, k, queryMask} = call;
  const rows = queryMask === null ? null : tf.expandDims<tf.Tensor4D>(asColumn(queryMask), 1);
  return both(both(keySideMask(call), rows), positionMask(q.shape[1], k.shape[1], call));
}

/** Causality and window as bool [1,1,T,S]; null without either. */
export function positionMask(
  queries: number,
  keys: number,
  {causal, window}: Pick<AttendCall, 'causal' | 'window'>,
): tf.Tensor4D | null {
  if (!causal && window === null) return null;
  const i = tf.reshape<tf.Rank.R4>(tf.range(0, queries), [1, 1, queries, 1]);
  const j = tf.reshape<tf.Rank.R4>(tf.range(0, keys), [1, 1, 1, keys]);
  const behind = causal ? (tf.greaterEqual(i, j) as tf.Tensor4D) : null;
  const near =
    window === null
      ? null
      : (tf.less(tf.abs(tf.sub<tf.Tensor4D>(i, j)), window) as unknown as tf.Tensor4D);
  return both(behind, near);
}

/** The mean of v over all keys for each head of q: [B,1,H,Dv]. */
function meanOfValues(v: tf.Tensor4D, heads: number): tf.Tensor4D {
  return repeatHeads(tf.mean<tf.Tensor4D>(v, 1, true), heads);
}

/** [B,S,G,D] to [B,S,H,D]: each head serves H / G neighbouring heads. */
function repeatHeads(x: tf.Tensor4D, heads: number): tf.Tensor4D {
  const [batch, tokens, groups, dim] = x.shape;
  if (groups === heads) return x;
  const repeated = tf.tile(tf.expandDims<tf.Tensor5D>(x, 3), [1, 1, 1, heads / groups, 1]);
  return tf.reshape(repeated, [batch, tokens, heads, dim]);
}

/** [B,T] to [B,T,1]. */
function asColumn(mask: tf.Tensor): tf.Tensor3D {
  return tf.expandDims<tf.Tensor3D>(tf.cast(mask, 'bool'), 2);
}

/** [B,T] to [B,T,1,1], beside o. */
function asColumns(mask: tf.Tensor): tf.Tensor4D {
  return tf.expandDims<tf.Tensor4D>(asColumn(mask), 3);
}

/** [B,S] to [B,1,1,S]. */
function asRow(mask: tf.Tensor): tf.Tensor4D {
  return tf.reshape(tf.cast(mask, 'bool'), [mask.shape[0] ?? 1, 1, 1, mask.shape[1] ?? 1]);
}

function both(a: tf.Tensor4D | null, b: tf.Tensor4D | null): tf.Tensor4D | null {
  if (a === null || b === null) return a ?? b;
  return tf.logicalAnd<tf.Tensor4D>(a, b);
}
