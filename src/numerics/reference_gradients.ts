/**
 * The exact gradients of attention in float64: what every engine's backward pass is measured against.
 * p = exp(s - lse), dP = dO·v, dS = p · (dP - sum(p · dP) + dLse); dQ = scale · dS·K, dK = scale · dSᵀ·Q, dV = pᵀ·dO,
 * and dS itself for an additive mask (FlashAttention 2, 3.2, with the term of lse).
 */
import type {AttentionProblem} from '../problem.js';
import {collectKeys, headOffset, makeRowKeys} from './reference_rows.js';
import type {MaskData} from './reference_rows.js';

const {exp, max} = Math;

type Numbers = Float32Array | Float64Array;

/** Gradients in the strides of their tensors; dMask, in the strides of the mask, is summed over its broadcast axes. */
export interface ReferenceGradients {
  readonly dQ: Float64Array;
  readonly dK: Float64Array;
  readonly dV: Float64Array;
  /** null unless the mask is additive. */
  readonly dMask: Float64Array | null;
}

/**
 * @param dO Gradient with respect to o, in its strides.
 * @param dLse Gradient with respect to lse, [B, H, Nq]; none by default.
 */
export function referenceGradients(
  problem: AttentionProblem,
  q: Numbers,
  k: Numbers,
  v: Numbers,
  mask: MaskData,
  dO: Numbers,
  dLse?: Numbers | null,
): ReferenceGradients {
  const {qkDim, vDim, qLen, qHeads, scale} = problem;
  const dQ = new Float64Array(q.length);
  const dK = new Float64Array(k.length);
  const dV = new Float64Array(v.length);
  const dMask = problem.maskKind === 'additive' && mask ? new Float64Array(mask.length) : null;
  const row = makeRowKeys(problem);
  const p = new Float64Array(problem.kvLen);
  const dP = new Float64Array(problem.kvLen);
  const groupSize = qHeads / problem.kvHeads;
  for (let b = 0; b < problem.batch; b++) {
    for (let h = 0; h < qHeads; h++) {
      const kvHead = Math.floor(h / groupSize);
      const kBase = headOffset(problem.k, b, kvHead);
      const vBase = headOffset(problem.v, b, kvHead);
      const maskBase = b * problem.mask.batch + h * problem.mask.head;
      for (let i = 0; i < qLen; i++) {
        collectKeys(problem, mask, b, h, i, row);
        if (row.count === 0) continue;
        const qAt = headOffset(problem.q, b, h) + i * problem.q.token;
        const oAt = headOffset(problem.o, b, h) + i * problem.o.token;
        let rowMax = -Infinity;
        for (let n = 0; n < row.count; n++) {
          const kAt = kBase + row.keys[n]! * problem.k.token;
          let score = 0;
          for (let d = 0; d < qkDim; d++) score += q[qAt + d]! * k[kAt + d]!;
          p[n] = scale * score + row.bias[n]!;
          rowMax = max(rowMax, p[n]!);
        }
        let rowSum = 0;
        for (let n = 0; n < row.count; n++) {
          p[n] = exp(p[n]! - rowMax);
          rowSum += p[n]!;
        }
        // sum(p · dP) = dO·o: what the normalisation of p takes back.
        let normalisation = 0;
        for (let n = 0; n < row.count; n++) {
          p[n]! /= rowSum;
          const vAt = vBase + row.keys[n]! * problem.v.token;
          let sum = 0;
          for (let d = 0; d < vDim; d++) {
            sum += dO[oAt + d]! * v[vAt + d]!;
            dV[vAt + d]! += p[n]! * dO[oAt + d]!;
          }
          dP[n] = sum;
          normalisation += p[n]! * sum;
        }
        const fromLse = dLse ? dLse[(b * qHeads + h) * qLen + i]! : 0;
        for (let n = 0; n < row.count; n++) {
          const j = row.keys[n]!;
          const dS = p[n]! * (dP[n]! - normalisation + fromLse);
          if (dMask) dMask[maskBase + i * problem.mask.query + j * problem.mask.key]! += dS;
          const kAt = kBase + j * problem.k.token;
          for (let d = 0; d < qkDim; d++) {
            dQ[qAt + d]! += scale * dS * k[kAt + d]!;
            dK[kAt + d]! += scale * dS * q[qAt + d]!;
          }
        }
      }
    }
  }
  return {dQ, dK, dV, dMask};
}
