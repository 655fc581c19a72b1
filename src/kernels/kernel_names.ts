/** Names, inputs and attributes of the two kernels, as tfjs-core's kernel_names.ts does for its own. */
import type {NamedAttrMap, NamedTensorInfoMap, TensorInfo} from '@tensorflow/tfjs-core';
import type {AttentionProblem} from '../problem.js';

/** Outputs: o, and lse when `problem.wantLse`. */
export const SageAttention = 'SageAttention';
export interface SageAttentionInputs extends NamedTensorInfoMap {
  q: TensorInfo;
  k: TensorInfo;
  v: TensorInfo;
}
export interface SageAttentionAttrs {
  readonly problem: AttentionProblem;
}

/** Outputs: dQ, dK, dV, and dMask when `wantMaskGradient`. */
export const SageAttentionGrad = 'SageAttentionGrad';
export interface SageAttentionGradInputs extends SageAttentionInputs {
  o: TensorInfo;
  lse: TensorInfo;
  dO: TensorInfo;
}
export interface SageAttentionGradAttrs extends SageAttentionAttrs {
  readonly wantMaskGradient: boolean;
}

/** tfjs hands attributes through untouched, but types them as plain values only. */
export function asAttributes(attrs: SageAttentionAttrs | SageAttentionGradAttrs): NamedAttrMap {
  return attrs as unknown as NamedAttrMap;
}

export function forwardAttributes(attrs: NamedAttrMap | undefined): SageAttentionAttrs {
  return attrs as unknown as SageAttentionAttrs;
}

export function gradientAttributes(attrs: NamedAttrMap | undefined): SageAttentionGradAttrs {
  return attrs as unknown as SageAttentionGradAttrs;
}

/** Shape of o: that of q with v's head_dim. */
export function outputShape(q: TensorInfo, problem: AttentionProblem): number[] {
  const shape = q.shape.slice();
  shape[shape.length - 1] = problem.vDim;
  return shape;
}

/** Shape of lse: [B,H,Nq], [H,Nq] or [Nq] by the rank of q, in every layout. */
export function lseShape(q: TensorInfo, problem: AttentionProblem): number[] {
  return [problem.batch, problem.qHeads, problem.qLen].slice(4 - q.shape.length);
}
