/** The op: checks the call, describes it as a problem, runs the kernel. Knows no backend. */
import * as tf from '@tensorflow/tfjs-core';
import {asAttributes, SageAttention} from '../kernels/kernel_names.js';
import {ensureKernels} from '../kernels/register_all.js';
import type {SageAttentionOptions} from './options.js';
import {prepareCall} from './prepare_call.js';

const OPERATION = 'sageAttention';

/**
 * Scaled dot-product attention, softmax(scale·q·kᵀ + mask)·v, by the quantised recipes of SageAttention.
 * Differentiable once in q, k, v and a float mask. Inputs are never changed.
 *
 * ```js
 * const q = tf.randomNormal([1, 8, 1024, 64]);   // [batch, heads, tokens, head_dim]
 * const k = tf.randomNormal([1, 2, 1024, 64]);   // fewer heads: each serves 8 / 2 query heads
 * const v = tf.randomNormal([1, 2, 1024, 64]);
 * const o = sageAttention(q, k, v, {isCausal: true});                   // [1, 8, 1024, 64]
 * const [o2, lse] = sageAttention(q, k, v, {precision: 'int8_fp8', returnLse: true});
 * ```
 *
 * @param q float32 [B,H,Nq,D], [H,Nq,D] or [Nq,D]; with `layout: 'NHD'` [B,Nq,H,D] or [Nq,H,D]. D is 1 to 512.
 * @param k float32 of the same rank, [B,Hkv,Nk,D]; H is a multiple of Hkv.
 * @param v float32 of the same rank, [B,Hkv,Nk,Dv]. Dv is 1 to 512.
 * @param options See `SageAttentionOptions`: every option, its default and unit.
 * @returns o, float32, of the shape of q with v's head_dim; a query that attends to nothing gives 0.
 *   With `returnLse`: `[o, lse]`; such a query has lse = -Infinity.
 * @throws SageAttentionError for every misuse; docs/errors.md lists the codes.
 */
function sageAttention_<T extends tf.Tensor>(
  q: T | tf.TensorLike,
  k: tf.Tensor | tf.TensorLike,
  v: tf.Tensor | tf.TensorLike,
  options?: SageAttentionOptions & {returnLse?: false | undefined},
): T;
function sageAttention_<T extends tf.Tensor>(
  q: T | tf.TensorLike,
  k: tf.Tensor | tf.TensorLike,
  v: tf.Tensor | tf.TensorLike,
  options: SageAttentionOptions & {returnLse: true},
): [o: T, lse: tf.Tensor];
function sageAttention_<T extends tf.Tensor>(
  q: T | tf.TensorLike,
  k: tf.Tensor | tf.TensorLike,
  v: tf.Tensor | tf.TensorLike,
  options?: SageAttentionOptions,
): T | [o: T, lse: tf.Tensor];
function sageAttention_(
  q: tf.Tensor | tf.TensorLike,
  k: tf.Tensor | tf.TensorLike,
  v: tf.Tensor | tf.TensorLike,
  options?: SageAttentionOptions,
): tf.Tensor | [tf.Tensor, tf.Tensor] {
  ensureKernels(OPERATION);
  const {inputs, problem, returnLse} = prepareCall(OPERATION, q, k, v, options, isRecording());
  const outputs = tf
    .engine()
    .runKernel(SageAttention, {...inputs}, asAttributes({problem})) as tf.Tensor[];
  return returnLse ? (outputs as [tf.Tensor, tf.Tensor]) : (outputs[0] as tf.Tensor);
}

/** Whether tfjs records for a gradient, which then needs lse: computing it again would cost a forward pass. */
function isRecording(): boolean {
  const {activeTape, kernelDepth} = tf.engine().state;
  return activeTape != null && kernelDepth === 0;
}

export const sageAttention = tf.op({sageAttention_});
