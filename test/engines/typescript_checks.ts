/** What the tests of the TypeScript engine share: running it on a case, and picking rows for the slow float64 references. */
import {typescriptEngine} from '../../src/engines/typescript/typescript_engine.js';
import {isRefusal, resolveRecipe} from '../../src/numerics/recipes.js';
import type {Precision, Recipe, RecipeChoice} from '../../src/numerics/recipes.js';
import type {AttentionProblem} from '../../src/problem.js';
import type {CaseInputs} from '../cases.js';

/** Filled into outputs before a call: what is not written stands out. */
export const UNWRITTEN = 1234.5;

export interface Outputs {
  readonly o: Float32Array;
  readonly lse: Float32Array | null;
}

export function recipeOf(precision: Precision, choice: RecipeChoice = {}): Recipe {
  const recipe = resolveRecipe(precision, choice);
  if (isRefusal(recipe)) throw new Error(`refused: ${recipe.argument} ${recipe.received}`);
  return recipe;
}

export function makeOutputs(problem: AttentionProblem): Outputs {
  const {batch, qHeads, qLen, vDim, wantLse} = problem;
  const rows = batch * qHeads * qLen;
  return {
    o: new Float32Array(rows * vDim).fill(UNWRITTEN),
    lse: wantLse ? new Float32Array(rows).fill(UNWRITTEN) : null,
  };
}

/** The engine's outputs for a problem. */
export function attend(problem: AttentionProblem, inputs: CaseInputs): Outputs {
  const outputs = makeOutputs(problem);
  typescriptEngine.forward(problem, {...inputs, ...outputs});
  return outputs;
}

/** At most `count` query rows, spread over all of them, first and last included. */
export function spreadRows(problem: AttentionProblem, count: number): number[] {
  const {qLen} = problem;
  if (qLen <= count) return Array.from({length: qLen}, (_, i) => i);
  return Array.from({length: count}, (_, n) => Math.round((n * (qLen - 1)) / (count - 1)));
}

/** The given rows of o of every batch entry and head, one after the other. */
export function outputRows(
  problem: AttentionProblem,
  o: ArrayLike<number>,
  rows: readonly number[],
): Float64Array {
  const {batch, qHeads, vDim} = problem;
  const out = new Float64Array(batch * qHeads * rows.length * vDim);
  let to = 0;
  forEachRow(problem, rows, (b, h, i) => {
    const from = b * problem.o.batch + h * problem.o.head + i * problem.o.token;
    for (let d = 0; d < vDim; d++) out[to++] = o[from + d]!;
  });
  return out;
}

/** The given rows of lse of every batch entry and head. */
export function lseRows(
  problem: AttentionProblem,
  lse: ArrayLike<number>,
  rows: readonly number[],
): number[] {
  const out: number[] = [];
  forEachRow(problem, rows, (b, h, i) => {
    out.push(lse[(b * problem.qHeads + h) * problem.qLen + i]!);
  });
  return out;
}

function forEachRow(
  problem: AttentionProblem,
  rows: readonly number[],
  f: (batch: number, head: number, row: number) => void,
): void {
  for (let b = 0; b < problem.batch; b++) {
    for (let h = 0; h < problem.qHeads; h++) for (const i of rows) f(b, h, i);
  }
}

/** sum |actual - expected| / sum |expected|; 0 where both are all zeros. */
export function relativeL1(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let difference = 0;
  let size = 0;
  for (let i = 0; i < expected.length; i++) {
    const d = actual[i]! - expected[i]!;
    const e = expected[i]!;
    difference += d < 0 ? -d : d;
    size += e < 0 ? -e : e;
  }
  return difference === 0 ? 0 : difference / size;
}

/** Largest |actual - expected| / max(1, |expected|); equal values, infinities included, differ by 0. */
export function largestDifference(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let largest = 0;
  for (let i = 0; i < expected.length; i++) {
    if (actual[i] === expected[i]) continue;
    const difference = Math.abs(actual[i]! - expected[i]!) / Math.max(1, Math.abs(expected[i]!));
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

/** The bytes of an array: comparing those is fast and tells NaNs apart. */
export function bytesOf(values: ArrayBufferView | null): Buffer {
  return values
    ? Buffer.from(values.buffer, values.byteOffset, values.byteLength)
    : Buffer.alloc(0);
}
