/** Which keys a query attends to: causality and window as a range, the mask on top (docs/numerics.md 1). */
import {endOfVisibleKeys, firstVisibleKey} from '../../problem.js';
import type {AttentionProblem} from '../../problem.js';

/** A half-open range of keys. */
export interface KeyRange {
  readonly begin: number;
  readonly end: number;
}

/** The keys that any of the queries firstQuery .. firstQuery + rows - 1 may see: both ends grow with the query. */
export function visibleToTile(
  problem: AttentionProblem,
  firstQuery: number,
  rows: number,
): KeyRange {
  return {
    begin: firstVisibleKey(problem, firstQuery),
    end: endOfVisibleKeys(problem, firstQuery + rows - 1),
  };
}

/** Where the row of query `query` starts in the mask. */
export function maskRow(
  problem: AttentionProblem,
  batch: number,
  head: number,
  query: number,
): number {
  const {mask} = problem;
  return batch * mask.batch + head * mask.head + query * mask.query;
}

/** Whether the mask lets key `key` through; `row` is from `maskRow`. */
export function maskAttends(
  problem: AttentionProblem,
  mask: Float32Array | Uint8Array | null,
  row: number,
  key: number,
): boolean {
  if (!mask) return true;
  const value = mask[row + key * problem.mask.key]!;
  return problem.maskKind === 'boolean' ? value !== 0 : value !== -Infinity;
}
