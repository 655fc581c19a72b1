/** Seeded inputs and problems for the tests of the numerics. */
import {isRefusal, resolveRecipe} from '../../src/numerics/recipes';
import type {Precision, Recipe, RecipeChoice} from '../../src/numerics/recipes';
import type {AttentionProblem, TokenStrides} from '../../src/problem';

// Taken out of the global scope once: jest's sandbox makes every look-up there slow.
const {abs, cos, imul, log, PI, sin, sqrt} = Math;

/** Uniform numbers in [0, 1): mulberry32. */
export function uniform(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = imul(state ^ (state >>> 15), state | 1);
    t = (t + imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** `count` normal numbers (Box-Muller). */
export function normal(count: number, seed: number, deviation = 1): Float32Array {
  const next = uniform(seed);
  const out = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = deviation * sqrt(-2 * log(1 - next()));
    const angle = 2 * PI * next();
    out[i] = radius * cos(angle);
    if (i + 1 < count) out[i + 1] = radius * sin(angle);
  }
  return out;
}

/** Resolves a recipe that the test knows to be allowed. */
export function recipeOf(precision: Precision, choice: RecipeChoice = {}): Recipe {
  const recipe = resolveRecipe(precision, choice);
  if (isRefusal(recipe)) throw new Error(`refused: ${recipe.argument} ${recipe.received}`);
  return recipe;
}

/** Contiguous [B, H, N, D]. */
export function contiguous(heads: number, tokens: number, dim: number): TokenStrides {
  return {batch: heads * tokens * dim, head: tokens * dim, token: dim};
}

export interface Sizes {
  batch?: number;
  qHeads?: number;
  kvHeads?: number;
  qLen: number;
  kvLen?: number;
  qkDim: number;
  vDim?: number;
}

/** A problem in contiguous HND layout: no mask, not causal, default scale, unless `changes` says otherwise. */
export function problemOf(
  recipe: Recipe,
  sizes: Sizes,
  changes: Partial<AttentionProblem> = {},
): AttentionProblem {
  const {batch = 1, qHeads = 1, qLen, qkDim} = sizes;
  const kvHeads = sizes.kvHeads ?? qHeads;
  const kvLen = sizes.kvLen ?? qLen;
  const vDim = sizes.vDim ?? qkDim;
  return {
    batch,
    qHeads,
    kvHeads,
    qLen,
    kvLen,
    qkDim,
    vDim,
    q: contiguous(qHeads, qLen, qkDim),
    k: contiguous(kvHeads, kvLen, qkDim),
    v: contiguous(kvHeads, kvLen, vDim),
    o: contiguous(qHeads, qLen, vDim),
    scale: 1 / sqrt(qkDim),
    causal: 'none',
    windowLeft: -1,
    windowRight: -1,
    maskKind: 'none',
    mask: {batch: 0, head: 0, query: 0, key: 0},
    wantLse: true,
    recipe,
    ...changes,
  };
}

/** Normal q, k and v that fill a contiguous problem. */
export function normalInputs(
  problem: AttentionProblem,
  seed: number,
): {q: Float32Array; k: Float32Array; v: Float32Array} {
  const {batch, qHeads, kvHeads, qLen, kvLen, qkDim, vDim} = problem;
  return {
    q: normal(batch * qHeads * qLen * qkDim, seed),
    k: normal(batch * kvHeads * kvLen * qkDim, seed + 1),
    v: normal(batch * kvHeads * kvLen * vDim, seed + 2),
  };
}

/** sum |actual - expected| / sum |expected|. */
export function relativeL1(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let difference = 0;
  let size = 0;
  for (let i = 0; i < expected.length; i++) {
    difference += abs(actual[i]! - expected[i]!);
    size += abs(expected[i]!);
  }
  return difference / size;
}

/** Largest |actual - expected|; NaN if either holds one. */
export function maxAbsDifference(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let largest = 0;
  for (let i = 0; i < expected.length; i++) {
    if (actual[i] === expected[i]) continue;
    const difference = abs(actual[i]! - expected[i]!);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}
