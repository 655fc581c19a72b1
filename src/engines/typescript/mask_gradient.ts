/**
 * The gradient of an additive mask: dS, summed over the axes along which the mask is broadcast (stride 0).
 * A tile is summed in float64 along a broadcast axis before it is added, so float32 additions stay few.
 */
import type {AttentionProblem} from '../../problem.js';
import type {TilePlace} from './scores.js';
import type {Panel} from './tile_product.js';
import {maskRow} from './visible_keys.js';

/** Adds one tile of dS, [rows, place.keys], whose first row is query `firstQuery`. */
export function addMaskGradient(
  problem: AttentionProblem,
  dMask: Float32Array,
  dScores: Panel,
  firstQuery: number,
  rows: number,
  place: TilePlace,
): void {
  const {query: queryStride, key: keyStride} = problem.mask;
  const start = maskRow(problem, place.batch, place.head, firstQuery) + place.firstKey * keyStride;
  if (queryStride === 0) {
    addColumnSums(dMask, start, keyStride, dScores, rows, place.keys);
    return;
  }
  for (let r = 0; r < rows; r++) {
    const from = r * dScores.stride;
    const to = start + r * queryStride;
    if (keyStride === 0) {
      dMask[to]! += sumOf(dScores.values, from, place.keys);
    } else {
      for (let j = 0; j < place.keys; j++) dMask[to + j * keyStride]! += dScores.values[from + j]!;
    }
  }
}

/** The mask has no query axis: its gradient is the sum of the columns, or of everything if it has no key axis either. */
function addColumnSums(
  dMask: Float32Array,
  start: number,
  keyStride: number,
  dScores: Panel,
  rows: number,
  keys: number,
): void {
  const columns = new Float64Array(keys);
  for (let r = 0; r < rows; r++) {
    const from = r * dScores.stride;
    for (let j = 0; j < keys; j++) columns[j]! += dScores.values[from + j]!;
  }
  if (keyStride === 0) dMask[start]! += sumOf(columns, 0, keys);
  else for (let j = 0; j < keys; j++) dMask[start + j * keyStride]! += columns[j]!;
}

function sumOf(values: Float64Array, begin: number, count: number): number {
  let sum = 0;
  for (let i = begin; i < begin + count; i++) sum += values[i]!;
  return sum;
}
