/** Computes one SageAttention node of a graph: the op where it can, the composition where it cannot. */
import * as tf from '@tensorflow/tfjs-core';
import {sageAttention} from '../ops/sage_attention.js';
import {MAX_HEAD_DIM} from '../ops/tensor_arguments.js';
import {alignOperands, orderOutput, type AlignedOperands} from './aligned_operands.js';
import type {AttentionPlan} from './attention_plan.js';
import {composeAttention} from './compose_attention.js';
import {hasEmptyRows} from './empty_rows.js';
import type {RecipeOptions} from './model_attentions.js';

/**
 * @param inputs q, k, v and what the plan's steps read, as the graph has them.
 * @returns The output in the plan's axes; everything else is disposed.
 */
export function runAttention(
  plan: AttentionPlan,
  options: RecipeOptions,
  inputs: readonly tf.Tensor[],
): tf.Tensor {
  return tf.tidy(() => {
    const operands = alignOperands(plan, inputs);
    const depth = operands.sizes.get('d') ?? 1;
    const scale = plan.scale.factor * depth ** plan.scale.power;
    // The op gives 0 for a row that sees nothing, too.
    const isPlain = plan.zeroHidden && plan.steps.every(({op}) => op !== 'add');
    const o =
      isForOp(operands, scale) && (isPlain || !hasEmptyRows(operands))
        ? byOp(operands, scale, options)
        : composeAttention(operands, scale, plan.zeroHidden);
    const ordered = orderOutput(o, plan, operands);
    const {outputFactor} = plan;
    // A clone where nothing was computed: the graph disposes inputs and outputs by themselves.
    return outputFactor === 1 ? tf.clone(ordered) : tf.mul(ordered, outputFactor);
  });
}

function isForOp({q, k, v, steps}: AlignedOperands, scale: number): boolean {
  const dims = [q.shape[3], v.shape[3]];
  return (
    [q, k, v].every(({dtype}) => dtype === 'float32') &&
    dims.every((dim) => dim >= 1 && dim <= MAX_HEAD_DIM) &&
    Number.isFinite(scale) &&
    steps.every((step) => step.op !== 'add' || step.tensor.dtype === 'float32')
  );
}

function byOp(operands: AlignedOperands, scale: number, options: RecipeOptions): tf.Tensor {
  const {q, k, v, layout, steps} = operands;
  const corners = new Set(steps.flatMap((step) => (step.op === 'causal' ? [step.corner] : [])));
  const tokenAxis = layout === 'NHD' ? 1 : 2;
  const qLen = q.shape[tokenAxis] as number;
  const kvLen = k.shape[tokenAxis] as number;
  // Both at once: the stricter one, which for fewer queries than keys is that from the top left.
  const strictest = kvLen >= qLen ? 'top_left' : 'bottom_right';
  const isCausal =
    corners.size === 0 ? false : corners.size === 2 ? strictest : ([...corners][0] ?? false);
  const mask = combinedMask(operands);
  return sageAttention(q, k, v, {
    ...options,
    layout,
    scale,
    isCausal,
    ...(mask === null ? {} : {mask}),
  });
}

/** All masks as one: bool where there are only conditions, else float32 with -Infinity on what they hide. */
function combinedMask({steps}: AlignedOperands): tf.Tensor | null {
  let seen: tf.Tensor | null = null;
  let added: tf.Tensor | null = null;
  for (const step of steps) {
    if (step.op === 'causal') continue;
    if (step.op === 'select') {
      seen = seen === null ? step.tensor : tf.logicalAnd(seen, step.tensor);
    } else {
      const part = step.factor === 1 ? step.tensor : tf.mul(step.tensor, step.factor);
      added = added === null ? part : tf.add(added, part);
    }
  }
  if (seen === null || added === null) return seen ?? added;
  return tf.where(seen, added, -Infinity);
}
