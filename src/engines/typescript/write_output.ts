/** The end of a query tile: division by the row sums, lse, and the rules for values that are not finite (docs/numerics.md 2). */
import type {QuantizedQ} from '../../numerics/operands.js';
import {endOfVisibleKeys, firstVisibleKey} from '../../problem.js';
import type {AttentionProblem} from '../../problem.js';
import type {ForwardBuffers} from '../engine.js';
import type {KeyValueHead} from './head_operands.js';
import type {QueryTile} from './query_tile.js';
import {maskAttends, maskRow} from './visible_keys.js';

/** Writes o, and lse if wanted, of all rows of the tile. Rows that attend to nothing: o = 0, lse = -Infinity. */
export function writeOutput(
  problem: AttentionProblem,
  buffers: ForwardBuffers,
  tile: QueryTile,
  q: QuantizedQ,
  head: KeyValueHead,
  batch: number,
  queryHead: number,
): void {
  const {vDim} = problem;
  for (let r = 0; r < tile.rows; r++) {
    const query = tile.firstQuery + r;
    if (tile.state.attends[r] === 0) {
      writeEmptyRow(problem, buffers, batch, queryHead, query);
      continue;
    }
    const to = outputRow(problem, batch, queryHead, query);
    const poisoned =
      q.notFinite[query] === 1 ||
      (head.poisonedKeys.length > 0 &&
        head.poisonedKeys.some((key) => attends(problem, buffers, batch, queryHead, query, key)));
    if (poisoned) buffers.o.fill(NaN, to, to + vDim);
    else writeRow(problem, buffers.o, to, tile, head, r);
    for (const key of head.poisonedValues) {
      if (!attends(problem, buffers, batch, queryHead, query, key)) continue;
      for (let d = 0; d < vDim; d++) {
        if (head.valueFlags?.[key * vDim + d] === 1) buffers.o[to + d] = NaN;
      }
    }
    if (!buffers.lse) continue;
    const logSum = tile.state.max[r]! + Math.log(tile.state.exactSum[r]!);
    const withMean = logSum + meanShift(problem, buffers.q, batch, queryHead, query, head.keyMean);
    buffers.lse[lseIndex(problem, batch, queryHead, query)] = poisoned ? NaN : withMean;
  }
}

/** A row that attends to nothing: o = 0, lse = -Infinity. */
export function writeEmptyRow(
  problem: AttentionProblem,
  buffers: ForwardBuffers,
  batch: number,
  head: number,
  query: number,
): void {
  const to = outputRow(problem, batch, head, query);
  buffers.o.fill(0, to, to + problem.vDim);
  if (buffers.lse) buffers.lse[lseIndex(problem, batch, head, query)] = -Infinity;
}

/** Where the row of query `query` starts in o and dO. */
export function outputRow(
  problem: AttentionProblem,
  batch: number,
  head: number,
  query: number,
): number {
  return batch * problem.o.batch + head * problem.o.head + query * problem.o.token;
}

/** Where query `query` stands in lse and dLse. */
export function lseIndex(
  problem: AttentionProblem,
  batch: number,
  head: number,
  query: number,
): number {
  return (batch * problem.qHeads + head) * problem.qLen + query;
}

function writeRow(
  problem: AttentionProblem,
  o: Float32Array,
  to: number,
  tile: QueryTile,
  head: KeyValueHead,
  r: number,
): void {
  const {vDim, recipe} = problem;
  const inverse = 1 / tile.state.sum[r]!;
  const {values} = tile.output;
  const {meanOutput} = tile;
  const from = r * vDim;
  for (let d = 0; d < vDim; d++) {
    const codes = (values[from + d]! / recipe.pTop) * head.channelScale[d]!;
    o[to + d] = (meanOutput ? codes + meanOutput[from + d]! : codes) * inverse;
  }
}

/** scale · q · (mean of k): what K smoothing took out of every score of the row. */
function meanShift(
  problem: AttentionProblem,
  q: Float32Array,
  batch: number,
  head: number,
  query: number,
  keyMean: Float32Array | null,
): number {
  if (!keyMean) return 0;
  const from = batch * problem.q.batch + head * problem.q.head + query * problem.q.token;
  let sum = 0;
  for (let d = 0; d < keyMean.length; d++) sum += q[from + d]! * keyMean[d]!;
  return problem.scale * sum;
}

function attends(
  problem: AttentionProblem,
  buffers: ForwardBuffers,
  batch: number,
  head: number,
  query: number,
  key: number,
): boolean {
  if (key < firstVisibleKey(problem, query) || key >= endOfVisibleKeys(problem, query))
    return false;
  return maskAttends(problem, buffers.mask, maskRow(problem, batch, head, query), key);
}
