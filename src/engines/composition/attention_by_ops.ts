/**
 * Exact attention as tfjs ops over blocks of queries, for backends without a kernel of their own.
 * A block sees all its keys at once, so its softmax needs no recurrence. Memory O(N) beside a mask's own.
 * Rules for empty rows and non-finite values: docs/numerics.md 1 and 2.
 */
import * as tf from '@tensorflow/tfjs-core';
import {endOfVisibleKeys, type AttentionProblem} from '../../problem.js';
import {
  blockScores,
  byHeads,
  finiteOnly,
  fromHeads,
  isTrivial,
  keysOf,
  keyValueProducts,
  notFinite,
  queriesOf,
  queryBlocks,
  type Block,
  type CompositionInputs,
} from './score_blocks.js';

/** Finite q, k, v, and where they were not. */
interface Operands {
  readonly q: tf.Tensor4D;
  readonly k: tf.Tensor4D;
  readonly v: tf.Tensor4D;
  /** [B,Hq,Nq,1]: the row of q is not finite. */
  readonly badQueries: tf.Tensor4D;
  /** [B,Hkv,Nk,Dv+1]: the element of v, and in the last channel the row of k, is not finite. */
  readonly badKeys: tf.Tensor4D;
}

/** `[o]` or, with `wantLse`, `[o, lse]`, in the shapes of the op. */
export function attentionByOps(inputs: CompositionInputs, problem: AttentionProblem): tf.Tensor[] {
  const {batch, qHeads, qLen, vDim, wantLse} = problem;
  const oShape = [...inputs.q.shape.slice(0, -1), vDim];
  const lseShape = [batch, qHeads, qLen].slice(4 - inputs.q.shape.length);
  if (isTrivial(problem)) {
    const o = tf.zeros(oShape);
    return wantLse ? [o, tf.fill(lseShape, -Infinity)] : [o];
  }
  return tf.tidy(() => {
    const operands = prepare(inputs, problem);
    const outputs: tf.Tensor4D[] = [];
    const rowSums: tf.Tensor4D[] = [];
    for (const block of queryBlocks(problem)) {
      const [o, lse] = tf.tidy(() => attendBlock(operands, inputs.mask, problem, block));
      outputs.push(o);
      rowSums.push(lse);
    }
    const o = fromHeads(tf.concat(outputs, 2), oShape, problem.o);
    return wantLse ? [o, tf.reshape(tf.concat(rowSums, 2), lseShape)] : [o];
  });
}

function prepare(inputs: CompositionInputs, problem: AttentionProblem): Operands {
  const {batch, qHeads, kvHeads, qLen, kvLen} = problem;
  const q = byHeads(inputs.q, batch, qHeads, qLen, problem.q);
  const k = byHeads(inputs.k, batch, kvHeads, kvLen, problem.k);
  const v = byHeads(inputs.v, batch, kvHeads, kvLen, problem.v);
  const rowIsBad = (x: tf.Tensor4D): tf.Tensor4D => tf.max(notFinite(x), -1, true);
  return {
    q: finiteOnly(q),
    k: finiteOnly(k),
    v: finiteOnly(v),
    badQueries: rowIsBad(q),
    badKeys: tf.concat([notFinite(v), rowIsBad(k)], 3),
  };
}

/** o [B,Hq,n,Dv] and lse [B,Hq,n,1] of one block. */
function attendBlock(
  operands: Operands,
  mask: tf.TensorInfo | undefined,
  problem: AttentionProblem,
  block: Block,
): [o: tf.Tensor4D, lse: tf.Tensor4D] {
  const q = queriesOf(operands.q, block);
  const scores = blockScores(q, keysOf(operands.k, block), mask, problem, block);
  const largest = tf.max<tf.Tensor4D>(scores, -1, true);
  // A mask may make the largest score NaN: such a row attends.
  const attends = tf.logicalNot(tf.equal<tf.Tensor4D>(largest, -Infinity));
  const top = tf.where<tf.Tensor4D>(attends, largest, 0);
  const p = tf.exp<tf.Tensor4D>(tf.sub<tf.Tensor4D>(scores, top));
  const sum = tf.where<tf.Tensor4D>(attends, tf.sum<tf.Tensor4D>(p, -1, true), 1);
  const o = tf.div<tf.Tensor4D>(keyValueProducts(p, keysOf(operands.v, block)), sum);
  const lse = tf.where<tf.Tensor4D>(attends, tf.add<tf.Tensor4D>(top, tf.log(sum)), -Infinity);

  const reached = badKeysReached(operands.badKeys, scores, mask, problem, block);
  const badQuery = tf.logicalAnd(tf.cast(queriesOf(operands.badQueries, block), 'bool'), attends);
  const badRow = tf.logicalOr(badQuery, tf.slice(reached, [0, 0, 0, problem.vDim]));
  const badOutput = tf.logicalOr(
    badRow,
    tf.slice(reached, [0, 0, 0, 0], [-1, -1, -1, problem.vDim]),
  );
  return [tf.where(badOutput, NaN, o), tf.where(badRow, NaN, lse)];
}

/** bool [B,Hq,n,Dv+1]: which outputs a non-finite key or value reaches. */
function badKeysReached(
  badKeys: tf.Tensor4D,
  scores: tf.Tensor4D,
  mask: tf.TensorInfo | undefined,
  problem: AttentionProblem,
  block: Block,
): tf.Tensor4D {
  if (mask !== undefined || problem.windowLeft >= 0) {
    const attended = tf.cast(tf.greater<tf.Tensor4D>(scores, -Infinity), 'float32');
    return tf.greater(keyValueProducts(attended, keysOf(badKeys, block)), 0);
  }
  // Queries see all keys up to an end of their own: the first bad key of a channel tells, without a product.
  const {batch, qHeads, kvHeads, kvLen} = problem;
  const channels = badKeys.shape[3];
  const position = tf.reshape<tf.Rank.R4>(tf.range(0, kvLen), [1, 1, -1, 1]);
  const firstBad = tf.min<tf.Tensor4D>(
    tf.where<tf.Tensor4D>(tf.cast(badKeys, 'bool'), position, kvLen),
    2,
    true,
  );
  const perQueryHead = tf.tile(tf.reshape(firstBad, [batch * kvHeads, 1, channels]), [
    1,
    qHeads / kvHeads,
    1,
  ]);
  const ends: number[] = [];
  for (let i = block.from; i < block.to; i += 1) ends.push(endOfVisibleKeys(problem, i));
  return tf.greater(
    tf.reshape(tf.tensor1d(ends), [1, 1, -1, 1]),
    tf.reshape(perQueryHead, [batch, qHeads, 1, channels]),
  );
}
