/** One call of a cache as plain data: its tensors checked, its problem built. */
import type * as tf from '@tensorflow/tfjs-core';
import {resolveRecipe, type Recipe} from '../numerics/recipes.js';
import {attentionTensor, maskStrides, maskTensor, tokenStrides} from '../ops/tensor_arguments.js';
import type {AttentionProblem} from '../problem.js';
import {SageAttentionError} from '../runtime/errors.js';
import {checkAttendOptions, type CheckedCacheOptions} from './cache_options.js';

/** Not read by a cache; a problem has one. */
const NO_RECIPE = resolveRecipe('exact', {}) as Recipe;
const NO_MASK = {batch: 0, head: 0, query: 0, key: 0};

/** Attention of new queries over the tokens held. */
export interface AttendCall {
  readonly problem: AttentionProblem;
  readonly q: tf.Tensor;
  readonly mask: tf.Tensor | null;
  /** Zeroed: what a cache without tokens gives. */
  readonly o: Float32Array;
  /** -Infinity throughout; null unless asked for. */
  readonly lse: Float32Array | null;
}

/**
 * Checks a call of `attend`; `operation` opens every message. Makes tensors of nested arrays: call it inside a tidy.
 * @param tokens Tokens held.
 */
export function prepareAttend(
  operation: string,
  {batch, heads, kvHeads, headDim, valueDim}: CheckedCacheOptions,
  tokens: number,
  q: unknown,
  options: unknown,
): AttendCall {
  const checked = checkAttendOptions(operation, options);
  const $q = attentionTensor(operation, 'q', q);
  const qLen = $q.shape[2] ?? 0;
  requireShape(operation, 'q', $q, [batch, heads, qLen, headDim]);
  const mask = checked.mask === null ? null : maskTensor(operation, checked.mask);
  // Spelled out, as in src/ops/prepare_call.ts.
  const problem: AttentionProblem = {
    batch,
    qHeads: heads,
    kvHeads,
    qLen,
    kvLen: tokens,
    qkDim: headDim,
    vDim: valueDim,
    q: tokenStrides(heads, qLen, headDim, 'HND'),
    k: tokenStrides(kvHeads, tokens, headDim, 'HND'),
    v: tokenStrides(kvHeads, tokens, valueDim, 'HND'),
    o: tokenStrides(heads, qLen, valueDim, 'HND'),
    scale: Number.isNaN(checked.scale) ? 1 / Math.sqrt(headDim) : checked.scale,
    causal: checked.causal,
    windowLeft: checked.windowLeft,
    windowRight: checked.windowRight,
    maskKind: mask === null ? 'none' : mask.dtype === 'bool' ? 'boolean' : 'additive',
    mask:
      mask === null
        ? NO_MASK
        : maskStrides(operation, mask.shape, 4, {batch, qHeads: heads, qLen, kvLen: tokens}),
    wantLse: checked.returnLse,
    recipe: NO_RECIPE,
  };
  const rows = batch * heads * qLen;
  return {
    problem,
    q: $q,
    mask,
    o: new Float32Array(rows * valueDim),
    lse: checked.returnLse ? new Float32Array(rows).fill(-Infinity) : null,
  };
}

/** Whether there is anything to compute. */
export function isEmptyCall({problem: {batch, qHeads, qLen, kvLen}}: AttendCall): boolean {
  return kvLen === 0 || batch * qHeads * qLen === 0;
}

/** Refuses a tensor of another shape. */
export function requireShape(
  operation: string,
  name: 'q' | 'k' | 'v',
  tensor: tf.Tensor,
  wanted: readonly number[],
): void {
  if (tensor.rank !== 4) {
    throw new SageAttentionError({
      code: 'unsupported-rank',
      argument: name,
      message: `${operation}: \`${name}\` has rank ${tensor.rank} (shape [${tensor.shape}]), expected rank 4.`,
      hint: 'Reshape it to [batch, heads, tokens, head_dim].',
    });
  }
  const {shape} = tensor;
  let axis = 0;
  while (axis < 4 && shape[axis] === wanted[axis]) axis += 1;
  if (axis === 4) return;
  throw new SageAttentionError({
    code: 'shape-mismatch',
    argument: name,
    message: `${operation}: \`${name}\` has shape [${shape}], expected [${wanted}].`,
    hint: 'The sizes of a cache are those it was made with; q, k and v are [batch, heads, tokens, head_dim].',
  });
}
