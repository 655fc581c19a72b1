/**
 * Gradients of exact attention as tfjs ops over blocks of queries, from the saved o and lse:
 * p = exp(s - lse), dV = pᵀ·dO, dS = p·(dO·vᵀ - rowsum(dO·o) + dLse), dQ = scale·dS·k, dK = scale·dSᵀ·q.
 */
import * as tf from '@tensorflow/tfjs-core';
import type {AttentionProblem} from '../../problem.js';
import {
  asTensor,
  blockScores,
  byHeads,
  finiteOnly,
  fromHeads,
  isTrivial,
  keysOf,
  keyValueProducts,
  maskShape,
  queriesOf,
  queryBlocks,
  queryKeyProducts,
  sumOverQueries,
  type Block,
  type CompositionInputs,
  type Shape4,
} from './score_blocks.js';

export interface CompositionGradientInputs extends CompositionInputs {
  readonly o: tf.TensorInfo;
  readonly lse: tf.TensorInfo;
  readonly dO: tf.TensorInfo;
  readonly dLse?: tf.TensorInfo | undefined;
}

/** What every block reads. */
interface Operands {
  readonly q: tf.Tensor4D;
  readonly k: tf.Tensor4D;
  readonly v: tf.Tensor4D;
  readonly dO: tf.Tensor4D;
  /** [B,Hq,Nq,1]; 0 for rows that attend to nothing: their scores are -Infinity, so p is 0. */
  readonly lse: tf.Tensor4D;
  /** [B,Hq,Nq,1]: rowsum(dO·o) - dLse. */
  readonly delta: tf.Tensor4D;
}

/** `[dQ, dK, dV]` and, with `wantMaskGradient`, dMask summed over its broadcast axes, in the inputs' shapes. */
export function gradientsByOps(
  inputs: CompositionGradientInputs,
  problem: AttentionProblem,
  wantMaskGradient: boolean,
): tf.Tensor[] {
  const {q, k, v, mask} = inputs;
  const maskWanted = wantMaskGradient ? mask : undefined;
  const wanted = maskWanted === undefined ? [q, k, v] : [q, k, v, maskWanted];
  if (isTrivial(problem)) return wanted.map(({shape}) => tf.zeros(shape));
  return tf.tidy(() => {
    const operands = prepare(inputs, problem);

    const dQs: tf.Tensor4D[] = [];
    let sums: tf.Tensor4D[] = [tf.zerosLike(operands.k), tf.zerosLike(operands.v)];
    if (maskWanted !== undefined) sums.push(tf.zeros(maskShape(maskWanted)));
    for (const block of queryBlocks(problem)) {
      const parts = tf.tidy(() => {
        const {dQ, dK, dV, dS} = differentiateBlock(operands, mask, problem, block);
        const terms = [ontoKeys(dK, block, problem), ontoKeys(dV, block, problem)];
        if (maskWanted !== undefined) {
          terms.push(ontoMask(dS, maskShape(maskWanted), block, problem));
        }
        const nextSums = sums.map((sum, i) => tf.add<tf.Tensor4D>(sum, terms[i] as tf.Tensor4D));
        return {dQ, nextSums};
      });
      tf.dispose(sums);
      sums = parts.nextSums;
      dQs.push(parts.dQ);
    }
    const [dK, dV, dMask] = sums as [tf.Tensor4D, tf.Tensor4D, tf.Tensor4D?];
    const gradients = [
      fromHeads(tf.concat(dQs, 2), q.shape, problem.q),
      fromHeads(dK, k.shape, problem.k),
      fromHeads(dV, v.shape, problem.v),
    ];
    if (dMask !== undefined && maskWanted !== undefined) {
      gradients.push(tf.reshape(dMask, maskWanted.shape));
    }
    return gradients;
  });
}

function prepare(inputs: CompositionGradientInputs, problem: AttentionProblem): Operands {
  const {batch, qHeads, kvHeads, qLen, kvLen} = problem;
  const rows: Shape4 = [batch, qHeads, qLen, 1];
  const o = byHeads(inputs.o, batch, qHeads, qLen, problem.o);
  const dO = byHeads(inputs.dO, batch, qHeads, qLen, problem.o);
  const lse = tf.reshape<tf.Rank.R4>(asTensor(inputs.lse), rows);
  const products = tf.sum<tf.Tensor4D>(tf.mul(dO, o), -1, true);
  return {
    q: finiteOnly(byHeads(inputs.q, batch, qHeads, qLen, problem.q)),
    k: finiteOnly(byHeads(inputs.k, batch, kvHeads, kvLen, problem.k)),
    v: finiteOnly(byHeads(inputs.v, batch, kvHeads, kvLen, problem.v)),
    dO,
    lse: tf.where(tf.equal(lse, -Infinity), 0, lse),
    delta:
      inputs.dLse === undefined
        ? products
        : tf.sub(products, tf.reshape(asTensor(inputs.dLse), rows)),
  };
}

/** dQ of the block's queries, dK and dV of its keys, and dS [B,Hq,n,m]. */
function differentiateBlock(
  operands: Operands,
  mask: tf.TensorInfo | undefined,
  problem: AttentionProblem,
  block: Block,
): {dQ: tf.Tensor4D; dK: tf.Tensor4D; dV: tf.Tensor4D; dS: tf.Tensor4D} {
  const {kvHeads, scale} = problem;
  const q = queriesOf(operands.q, block);
  const k = keysOf(operands.k, block);
  const dO = queriesOf(operands.dO, block);
  const scores = blockScores(q, k, mask, problem, block);
  const p = tf.exp(tf.sub<tf.Tensor4D>(scores, queriesOf(operands.lse, block)));
  const dP = queryKeyProducts(dO, keysOf(operands.v, block));
  const dS = tf.mul<tf.Tensor4D>(p, tf.sub(dP, queriesOf(operands.delta, block)));
  const scaled = tf.mul<tf.Tensor4D>(dS, scale);
  return {
    dQ: keyValueProducts(scaled, k),
    dK: sumOverQueries(scaled, q, kvHeads),
    dV: sumOverQueries(p, dO, kvHeads),
    dS,
  };
}

/** A block's [B,Hkv,m,D] among all keys. */
function ontoKeys(x: tf.Tensor4D, {first, end}: Block, {kvLen}: AttentionProblem): tf.Tensor4D {
  return tf.pad(x, [
    [0, 0],
    [0, 0],
    [first, kvLen - end],
    [0, 0],
  ]);
}

/** A block's dS summed over the mask's broadcast axes, among all queries and keys that the mask has. */
function ontoMask(
  dS: tf.Tensor4D,
  shape: Shape4,
  {from, to, first, end}: Block,
  {qLen, kvLen}: AttentionProblem,
): tf.Tensor4D {
  const broadcast = [0, 1, 2, 3].filter((axis) => shape[axis] === 1);
  const summed: tf.Tensor4D = broadcast.length === 0 ? dS : tf.sum(dS, broadcast, true);
  return tf.pad(summed, [
    [0, 0],
    [0, 0],
    shape[2] === 1 ? [0, 0] : [from, qLen - to],
    shape[3] === 1 ? [0, 0] : [first, kvLen - end],
  ]);
}
