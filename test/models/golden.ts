// The small checkpoints of test/fixtures/models: their expected answers, comparisons, and attention by every recipe.

import type * as tf from '@tensorflow/tfjs-core';
import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import type {Attention} from '../../models/attention.js';
import {sageAttention} from '../../src/index.js';
import {PRECISIONS, type Precision} from '../../src/numerics/recipes.js';

/** Path of a model's directory. */
export const fixture = (name: string): string => join(__dirname, '../fixtures/models', name);

/** The expected answers of a model. */
export const goldenOf = <T>(name: string): T =>
  JSON.parse(readFileSync(join(fixture(name), 'golden.json'), 'utf8')) as T;

/** Logits and latents against float64. */
export const LOGIT_TOLERANCE = 2e-3;

/** Reads and frees a tensor. */
export function read(tensor: tf.Tensor): Float32Array {
  const values = tensor.dataSync<'float32'>();
  tensor.dispose();
  return values;
}

/** Largest difference; NaN counts as infinitely far. */
export function maxDifference(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length || expected.length === 0) return Infinity;
  let worst = 0;
  for (let i = 0; i < actual.length; i++) {
    const difference = Math.abs((actual[i] as number) - (expected[i] as number));
    if (!(difference <= worst)) worst = difference >= 0 ? difference : Infinity;
  }
  return worst;
}

/** sum |actual - expected| / sum |expected|. */
export function relativeL1(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let error = 0;
  let size = 0;
  for (let i = 0; i < expected.length; i++) {
    error += Math.abs((actual[i] as number) - (expected[i] as number));
    size += Math.abs(expected[i] as number);
  }
  return error / size;
}

/** Attention by this package with one recipe. */
export const recipeAttention =
  (precision: Precision): Attention =>
  (q, k, v, options) =>
    sageAttention(q, k, v, {...options, precision});

/**
 * Bounds of the relative L1 between a model's output with a recipe and with `exact`: about twice what the worst of the small
 * checkpoints loses. Random weights have little to forgive; a trained model loses far less (recipe_losses.test.ts).
 */
const RECIPE_BOUNDS: Readonly<Record<Precision, number>> = {
  exact: 0,
  int16: 1.2e-3,
  int8_int16: 0.025,
  int8_bf16: 0.025,
  int8_fp16: 0.03,
  int8_fp8: 0.1,
  int8: 0.035,
  int4_fp8: 0.5,
  fp4: 0.5,
  fp4_fp8: 0.4,
};

/** Every recipe with its bound. */
export const RECIPES = PRECISIONS.filter((name) => name !== 'exact').map((precision) => ({
  precision,
  bound: RECIPE_BOUNDS[precision],
}));
