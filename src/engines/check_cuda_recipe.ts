/**
 * Whether the CUDA kernels of a recipe compute attention on the device at hand: a small problem against exact attention by
 * the native engine. For kernels that may meet a device on which nobody has run them, and before anything is timed.
 */
import {compareArrays} from '../accuracy/metrics.js';
import {Random} from '../accuracy/distributions.js';
import {isRefusal, resolveRecipe, type Precision} from '../numerics/recipes.js';
import {plainProblem} from '../problem.js';
import type {Engine} from './engine.js';

/** Two whole tiles and a ragged one of every kernel. */
const TOKENS = 257;
const HEAD_DIM = 64;

/** Recipes lie within .22 of `exact` (relative L1) on normal inputs: beyond this something else was computed. */
const MAX_DIFFERENCE = 0.3;

/**
 * @param refusal Tells why the engine left a call to another one, null when it did not.
 * @returns What is wrong, in words; null when nothing is.
 */
export function checkCudaRecipe(
  precision: Precision,
  cuda: Engine,
  native: Engine,
  refusal: () => string | null,
): string | null {
  const random = new Random(1);
  const [q, k, v] = [0, 1, 2].map(() =>
    Float32Array.from({length: TOKENS * HEAD_DIM}, () => random.normal()),
  ) as [Float32Array, Float32Array, Float32Array];
  const attend = (engine: Engine, name: Precision): Float32Array => {
    const recipe = resolveRecipe(name, {});
    if (isRefusal(recipe)) throw new Error(`The recipe '${name}' has a default form.`);
    const o = new Float32Array(TOKENS * HEAD_DIM);
    engine.forward(
      {...plainProblem(TOKENS, recipe), causal: 'top_left', windowRight: 0},
      {q, k, v, mask: null, o, lse: null},
    );
    return o;
  };
  const before = refusal();
  const computed = attend(cuda, precision);
  const after = refusal();
  if (after !== before) return after;
  const {relativeL1} = compareArrays(computed, attend(native, 'exact'));
  if (relativeL1 <= MAX_DIFFERENCE) return null;
  return `relative L1 ${relativeL1.toPrecision(3)} from exact`;
}
