/**
 * Rows all of whose keys carry float32's lowest value in an additive mask, as many models write "hidden": the value is
 * finite, so they attend to all of those keys alike (docs/numerics.md 5), though it overflows when multiplied by log2 e.
 */
import {referenceAttention} from '../src/numerics/reference.js';
import {plainProblem} from '../src/problem.js';
import type {AttentionProblem} from '../src/problem.js';
import type {Recipe} from '../src/numerics/recipes.js';
import {Random} from './case_inputs.js';

const {abs, floor} = Math;

export const LOWEST = -3.4028234663852886e38;
const TOKENS = 200;
const DIM = 64;

/** Of four queries two have it on all keys, one on every other key beside 0, one beside -Infinity, which hides. */
function valueAt(query: number, key: number): number {
  if (query % 4 < 2 || key % 2 === 1) return LOWEST;
  return query % 4 === 2 ? 0 : -Infinity;
}

/** What differs from the reference, in words; `bound` is that of o over the largest value of v, about 4. */
export function lowestMaskFailures(
  recipe: Recipe,
  bound: number,
  forward: (
    problem: AttentionProblem,
    inputs: {q: Float32Array; k: Float32Array; v: Float32Array; mask: Float32Array},
    o: Float32Array,
    lse: Float32Array,
  ) => void,
): string[] {
  const random = new Random(5);
  const normal = () => new Float32Array(TOKENS * DIM).map(() => random.normal());
  const mask = new Float32Array(TOKENS * TOKENS);
  for (let at = 0; at < mask.length; at++) mask[at] = valueAt(floor(at / TOKENS), at % TOKENS);
  const inputs = {q: normal(), k: normal(), v: normal(), mask};
  const problem: AttentionProblem = {
    ...plainProblem(TOKENS, recipe),
    maskKind: 'additive',
    mask: {batch: 0, head: 0, query: TOKENS, key: 1},
    wantLse: true,
  };
  const o = new Float32Array(TOKENS * DIM);
  const lse = new Float32Array(TOKENS);
  forward(problem, inputs, o, lse);
  const expected = referenceAttention(problem, inputs.q, inputs.k, inputs.v, inputs.mask);
  const failures: string[] = [];
  for (let i = 0; i < TOKENS; i++) {
    let most = 0;
    for (let d = i * DIM; d < (i + 1) * DIM; d++) {
      const error = abs(o[d]! - expected.o[d]!);
      if (!(error <= most)) most = error;
    }
    if (!(most <= 4 * bound)) failures.push(`${recipe.precision}, query ${i}: o off by ${most}`);
    const ordinary = i % 4 === 2;
    // In the log2 domain float32's lowest value is -2.36e38 of ours.
    const right = ordinary
      ? abs(lse[i]! - expected.lse[i]!) <= 3e-3
      : lse[i]! <= -2.3e38 && lse[i]! >= LOWEST;
    if (!right) failures.push(`${recipe.precision}, query ${i}: lse ${lse[i]}`);
  }
  return failures;
}
