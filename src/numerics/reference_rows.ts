/**
 * What every float64 reference shares: which keys a row attends to, and the walk over batches, heads and rows.
 * docs/numerics.md 1.
 */
import {endOfVisibleKeys, firstVisibleKey} from '../problem.js';
import type {AttentionProblem, TokenStrides} from '../problem.js';

/** float32 values added to scale·q·k, or bytes (0 = not attended); null when the problem has no mask. */
export type MaskData = Float32Array | Float64Array | Uint8Array | null;

/** Outputs of a reference: o in the problem's o strides, lse [B, H, Nq]. */
export interface AttentionResult {
  readonly o: Float64Array;
  readonly lse: Float64Array;
}

/** The keys one row attends to, in ascending order, and what an additive mask adds to their scores. */
export interface RowKeys {
  count: number;
  /** [kvLen], the first `count` are valid. */
  readonly keys: Int32Array;
  /** [kvLen], 0 without an additive mask. */
  readonly bias: Float64Array;
}

/** Room for the keys of one row; reused from row to row. */
export function makeRowKeys(problem: AttentionProblem): RowKeys {
  return {
    count: 0,
    keys: new Int32Array(problem.kvLen),
    bias: new Float64Array(problem.kvLen),
  };
}

/** Fills `row` with the keys that query i of head h attends to: by causality, window and mask. */
export function collectKeys(
  problem: AttentionProblem,
  mask: MaskData,
  b: number,
  h: number,
  i: number,
  row: RowKeys,
): void {
  const strides = problem.mask;
  const base = b * strides.batch + h * strides.head + i * strides.query;
  const end = endOfVisibleKeys(problem, i);
  row.count = 0;
  for (let j = firstVisibleKey(problem, i); j < end; j++) {
    const value = mask && problem.maskKind !== 'none' ? mask[base + j * strides.key]! : 0;
    if (problem.maskKind === 'boolean' && value === 0) continue;
    if (value === -Infinity) continue;
    row.keys[row.count] = j;
    row.bias[row.count] = problem.maskKind === 'additive' ? value : 0;
    row.count++;
  }
}

/** Where a head's first element lies. */
export function headOffset(strides: TokenStrides, b: number, h: number): number {
  return b * strides.batch + h * strides.head;
}

/** Zeros for o (as long as its last element needs) and -Infinity for lse: what rows that attend to nothing hold. */
export function emptyResult(problem: AttentionProblem): AttentionResult {
  const {batch, qHeads, qLen, vDim, o} = problem;
  const some = batch * qHeads * qLen * vDim > 0;
  const last = (batch - 1) * o.batch + (qHeads - 1) * o.head + (qLen - 1) * o.token + vDim - 1;
  return {
    o: new Float64Array(some ? last + 1 : 0),
    lse: new Float64Array(batch * qHeads * qLen).fill(-Infinity),
  };
}

/** 0, 1, .., length - 1, or the rows asked for. */
export function rowsOf(problem: AttentionProblem, rows?: readonly number[]): readonly number[] {
  return rows ?? Array.from({length: problem.qLen}, (_, i) => i);
}
