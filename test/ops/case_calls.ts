/** A row of the case table as a call of the op: tensors, options, and the float64 answers. */
import * as tf from '@tensorflow/tfjs-core';
import {exactAttention, referenceGradients} from '../../src/numerics/reference';
import {isRefusal, resolveRecipe} from '../../src/numerics/recipes';
import type {SageAttentionOptions} from '../../src/ops/options';
import {
  makeInputs,
  makeLseGradient,
  makeOutputGradient,
  maskShape,
  problemOf,
  shapesOf,
  type AttentionCase,
} from '../cases';

export interface CaseCall {
  readonly q: tf.Tensor;
  readonly k: tf.Tensor;
  readonly v: tf.Tensor;
  readonly options: SageAttentionOptions;
}

const SEED = 7;

/** Tensors and options of a case; precision is left to the caller. */
export function callOf(c: AttentionCase): CaseCall {
  const inputs = makeInputs(c, SEED);
  const shapes = shapesOf(c);
  const options: SageAttentionOptions = {
    isCausal: c.causal === 'none' ? false : c.causal,
    layout: c.layout,
    windowSize: c.windowSize,
  };
  if (c.scale !== null) options.scale = c.scale;
  if (c.mask !== null && inputs.mask !== null) {
    const dtype = c.mask.kind === 'boolean' ? 'bool' : 'float32';
    options.mask = tf.tensor(inputs.mask, [...maskShape(c, c.mask)], dtype);
  }
  return {
    q: tf.tensor(inputs.q, shapes.q, 'float32'),
    k: tf.tensor(inputs.k, shapes.k, 'float32'),
    v: tf.tensor(inputs.v, shapes.v, 'float32'),
    options,
  };
}

function exactProblem(c: AttentionCase) {
  const recipe = resolveRecipe('exact', {});
  if (isRefusal(recipe)) throw new Error('exact is refused');
  return problemOf(c, recipe);
}

/** o and lse in float64. */
export function exactAnswer(c: AttentionCase): {o: Float64Array; lse: Float64Array} {
  const {q, k, v, mask} = makeInputs(c, SEED);
  return exactAttention(exactProblem(c), q, k, v, mask);
}

/** Gradients in float64 of sum(o·dO) + sum(lse·dLse). */
export function exactGradients(c: AttentionCase) {
  const {q, k, v, mask} = makeInputs(c, SEED);
  const {dO, dLse} = outputGradients(c);
  return referenceGradients(exactProblem(c), q, k, v, mask, dO, dLse);
}

export function outputGradients(c: AttentionCase): {dO: Float32Array; dLse: Float32Array} {
  return {dO: makeOutputGradient(c, SEED), dLse: makeLseGradient(c, SEED)};
}

/** Largest difference; NaN and infinities must be equal. */
export function maxDifference(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Infinity;
  let largest = 0;
  for (let i = 0; i < expected.length; i += 1) {
    const [a, e] = [actual[i] as number, expected[i] as number];
    if (Object.is(a, e)) continue;
    const difference = Math.abs(a - e);
    if (!(difference <= largest)) largest = Number.isNaN(difference) ? Infinity : difference;
  }
  return largest;
}
