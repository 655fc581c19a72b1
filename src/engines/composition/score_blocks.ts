/**
 * Attention by tfjs ops, the parts that forward and backward share: blocks of queries, their scores, and the
 * products with grouped key/value heads. All tensors are [B,H,N,D] here, whatever the caller's layout.
 */
import * as tf from '@tensorflow/tfjs-core';
import {
  diagonalOffset,
  endOfVisibleKeys,
  firstVisibleKey,
  type AttentionProblem,
  type TokenStrides,
} from '../../problem.js';

/** Scores of one block: 2^21 floats are 8 MiB, large enough for a GPU's matmul and small beside a model. */
const MAX_BLOCK_SCORES = 2 ** 21;

/** Below this a block is all launch overhead. */
const MIN_BLOCK_ROWS = 16;

/** The largest float32: whatever is not within it is NaN or infinite. */
const MAX_FLOAT32 = 3.4028234663852886e38;

/** Tensors as a kernel gets them: tfjs passes real tensors, typed as TensorInfo. */
export interface CompositionInputs {
  readonly q: tf.TensorInfo;
  readonly k: tf.TensorInfo;
  readonly v: tf.TensorInfo;
  readonly mask?: tf.TensorInfo | undefined;
}

/** Queries [from, to) with the keys [first, end) that any of them may see; never without a key. */
export interface Block {
  readonly from: number;
  readonly to: number;
  readonly first: number;
  readonly end: number;
}

export type Shape4 = [number, number, number, number];

export function asTensor(info: tf.TensorInfo): tf.Tensor {
  return info as tf.Tensor;
}

/** Nothing to compute, or nothing to attend to. */
export function isTrivial({batch, qHeads, qLen, kvLen}: AttentionProblem): boolean {
  return kvLen === 0 || batch * qHeads * qLen === 0;
}

export function queryBlocks(problem: AttentionProblem): Block[] {
  const {batch, qHeads, qLen, kvLen} = problem;
  const affordable = Math.floor(MAX_BLOCK_SCORES / (batch * qHeads * kvLen));
  const rows = Math.max(MIN_BLOCK_ROWS, affordable);
  const blocks: Block[] = [];
  for (let from = 0; from < qLen; from += rows) {
    const to = Math.min(qLen, from + rows);
    const first = Math.min(firstVisibleKey(problem, from), kvLen - 1);
    const end = Math.max(first + 1, endOfVisibleKeys(problem, to - 1));
    blocks.push({from, to, first, end});
  }
  return blocks;
}

/** A caller's tensor as [B,H,N,D]. */
export function byHeads(
  info: tf.TensorInfo,
  batch: number,
  heads: number,
  tokens: number,
  strides: TokenStrides,
): tf.Tensor4D {
  const dim = info.shape[info.shape.length - 1] ?? 1;
  const x = asTensor(info);
  if (!isTokensFirst(strides, heads, dim)) return tf.reshape(x, [batch, heads, tokens, dim]);
  return tf.transpose(tf.reshape(x, [batch, tokens, heads, dim]), [0, 2, 1, 3]);
}

/** [B,H,N,D] back in the caller's layout and rank. */
export function fromHeads(x: tf.Tensor4D, shape: number[], strides: TokenStrides): tf.Tensor {
  const [, heads, , dim] = x.shape;
  return tf.reshape(isTokensFirst(strides, heads, dim) ? tf.transpose(x, [0, 2, 1, 3]) : x, shape);
}

/** Whether strides are those of [B,N,H,D]; where both layouts agree the answer does not matter. */
function isTokensFirst(strides: TokenStrides, heads: number, dim: number): boolean {
  return strides.head === dim && strides.token === heads * dim;
}

/** 1 where x is NaN or infinite, else 0. */
export function notFinite(x: tf.Tensor4D): tf.Tensor4D {
  return tf.cast(tf.logicalNot(tf.lessEqual<tf.Tensor4D>(tf.abs(x), MAX_FLOAT32)), 'float32');
}

/** x with 0 where it is NaN or infinite: 0 · NaN would reach rows that do not attend. */
export function finiteOnly(x: tf.Tensor4D): tf.Tensor4D {
  return tf.where(tf.lessEqual(tf.abs(x), MAX_FLOAT32), x, 0);
}

export function queriesOf(x: tf.Tensor4D, {from, to}: Block): tf.Tensor4D {
  return tf.slice(x, [0, 0, from, 0], [-1, -1, to - from, -1]);
}

export function keysOf(x: tf.Tensor4D, {first, end}: Block): tf.Tensor4D {
  return tf.slice(x, [0, 0, first, 0], [-1, -1, end - first, -1]);
}

/** The four axes of a mask's shape, missing ones 1. */
export function maskShape(mask: tf.TensorInfo): Shape4 {
  const {shape} = mask;
  return [...Array<number>(4 - shape.length).fill(1), ...shape] as Shape4;
}

/** scale·q·k + mask of one block, [B,Hq,n,m]; -Infinity where a query does not attend, and nowhere else. */
export function blockScores(
  q: tf.Tensor4D,
  k: tf.Tensor4D,
  mask: tf.TensorInfo | undefined,
  problem: AttentionProblem,
  block: Block,
): tf.Tensor4D {
  let scores: tf.Tensor4D = tf.mul(queryKeyProducts(q, k), problem.scale);
  if (mask !== undefined) {
    const part = maskPart(mask, block);
    scores = mask.dtype === 'bool' ? tf.where(part, scores, -Infinity) : tf.add(scores, part);
  }
  // Last, since a mask may be NaN or Infinity where causality or the window hides the key.
  const visible = visibleKeys(problem, block);
  return visible === null ? scores : tf.where(visible, scores, -Infinity);
}

/** bool [1,1,n,m] by causality and window; null when every query of the block sees all its keys. */
function visibleKeys(problem: AttentionProblem, {from, to, first, end}: Block): tf.Tensor4D | null {
  const {windowLeft, windowRight} = problem;
  const firstOfLast = firstVisibleKey(problem, to - 1);
  const endOfFirst = endOfVisibleKeys(problem, from);
  if (firstOfLast <= first && endOfFirst >= end) return null;
  const offset = diagonalOffset(problem);
  const opposite = tf.reshape(tf.range(from + offset, to + offset), [1, 1, -1, 1]);
  const key = tf.reshape(tf.range(first, end), [1, 1, 1, -1]);
  const ahead: tf.Tensor4D = tf.sub(key, opposite);
  const notLeft = windowLeft < 0 ? null : tf.greaterEqual<tf.Tensor4D>(ahead, -windowLeft);
  const notRight = windowRight < 0 ? null : tf.lessEqual<tf.Tensor4D>(ahead, windowRight);
  if (notLeft === null || notRight === null) return notLeft ?? notRight;
  return tf.logicalAnd<tf.Tensor4D>(notLeft, notRight);
}

function maskPart(mask: tf.TensorInfo, {from, to, first, end}: Block): tf.Tensor4D {
  const [b, h, queries, keys] = maskShape(mask);
  const whole = tf.reshape<tf.Rank.R4>(asTensor(mask), [b, h, queries, keys]);
  return tf.slice(
    whole,
    [0, 0, queries === 1 ? 0 : from, keys === 1 ? 0 : first],
    [-1, -1, queries === 1 ? 1 : to - from, keys === 1 ? 1 : end - first],
  );
}

/** q [B,Hq,n,D] times k [B,Hkv,m,D] transposed: [B,Hq,n,m]. Query heads of one key head are stacked as rows. */
export function queryKeyProducts(q: tf.Tensor4D, k: tf.Tensor4D): tf.Tensor4D {
  const [batch, heads, rows] = q.shape;
  const keys = k.shape[2];
  const products = tf.matMul(grouped(q, k.shape[1]), stacked(k), false, true);
  return tf.reshape(products, [batch, heads, rows, keys]);
}

/** p [B,Hq,n,m] times v [B,Hkv,m,D]: [B,Hq,n,D]. */
export function keyValueProducts(p: tf.Tensor4D, v: tf.Tensor4D): tf.Tensor4D {
  const [batch, heads, rows] = p.shape;
  const products = tf.matMul(grouped(p, v.shape[1]), stacked(v));
  return tf.reshape(products, [batch, heads, rows, v.shape[3]]);
}

/** p [B,Hq,n,m] transposed times x [B,Hq,n,D], summed over the query heads of each key head: [B,Hkv,m,D]. */
export function sumOverQueries(p: tf.Tensor4D, x: tf.Tensor4D, kvHeads: number): tf.Tensor4D {
  const products = tf.matMul(grouped(p, kvHeads), grouped(x, kvHeads), true, false);
  return tf.reshape(products, [p.shape[0], kvHeads, p.shape[3], x.shape[3]]);
}

function grouped(x: tf.Tensor4D, kvHeads: number): tf.Tensor3D {
  const [batch, heads, rows, dim] = x.shape;
  return tf.reshape(x, [batch * kvHeads, (heads / kvHeads) * rows, dim]);
}

function stacked(x: tf.Tensor4D): tf.Tensor3D {
  const [batch, heads, rows, dim] = x.shape;
  return tf.reshape(x, [batch * heads, rows, dim]);
}
