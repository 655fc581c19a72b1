/**
 * Online softmax of one query tile: scores become P relative to the running maximum, rounded to the recipe's format;
 * sums and outputs so far are rescaled when the maximum grows (FlashAttention algorithm 1; docs/numerics.md 5).
 */
import {roundFp16} from '../../numerics/formats.js';
import type {QuantizedQ} from '../../numerics/operands.js';
import {roundP} from '../../numerics/quantize.js';
import type {Recipe} from '../../numerics/recipes.js';
import type {AttentionProblem} from '../../problem.js';
import {exponentiate} from './exponentiate.js';
import type {KeyValueHead} from './head_operands.js';
import type {QueryTile} from './query_tile.js';
import {scoreRow} from './scores.js';
import type {TilePlace} from './scores.js';
import {KEY_GROUP, KEY_TILE} from './tile_sizes.js';

const f32 = Math.fround;

/**
 * Turns the tile's dot products into P, in place, and updates the row state; adds p · V mean.
 * Returns how many keys P · V has to cover (a multiple of 16; P is 0 past the last key), 0 if no row attends to any.
 */
export function softmaxRows(
  problem: AttentionProblem,
  mask: Float32Array | Uint8Array | null,
  tile: QueryTile,
  q: QuantizedQ,
  head: KeyValueHead,
  place: TilePlace,
): number {
  const {recipe} = problem;
  const grouped = Math.ceil(place.keys / KEY_GROUP) * KEY_GROUP;
  let anyAttends = false;
  for (let r = 0; r < tile.rows; r++) {
    const row = tile.scoreRows[r]!;
    if (!scoreRow(problem, mask, tile, q, head, place, r)) {
      row.fill(0, 0, grouped);
      continue;
    }
    anyAttends = true;
    tile.state.attends[r] = 1;
    raiseMaximum(recipe, tile, r, largest(row, place.keys));
    const exactSum = exponentiate(row, 0, grouped, tile.state.max[r]!);
    let sum = exactSum;
    if (recipe.pv !== 'float32') {
      for (let j = 0; j < grouped; j++) row[j] = f32(row[j]!);
      roundP(recipe, row, grouped);
      if (recipe.rowSum === 'quantized') sum = total(row, grouped) / recipe.pTop;
      // A NaN bias makes p NaN, which formats without a NaN would turn into a number.
      if (Number.isNaN(exactSum)) sum = NaN;
    }
    tile.state.sum[r]! += sum;
    tile.state.exactSum[r]! += exactSum;
    if (tile.meanOutput && head.valueMean) {
      const dim = problem.vDim;
      const block = Math.floor(place.firstKey / KEY_TILE) * dim;
      addScaled(tile.meanOutput, r * dim, head.valueMean, block, dim, sum);
    }
  }
  return anyAttends ? grouped : 0;
}

/** The running maximum becomes at least `candidate`; what was summed relative to the old one is scaled down. */
function raiseMaximum(recipe: Recipe, tile: QueryTile, r: number, candidate: number): void {
  const {max, sum, exactSum} = tile.state;
  const before = max[r]!;
  if (!(candidate > before)) return;
  max[r] = candidate;
  if (before === -Infinity) return;
  const factor = Math.exp(before - candidate);
  sum[r]! *= factor;
  exactSum[r]! *= factor;
  const {values, stride} = tile.output;
  const begin = r * stride;
  for (let d = begin; d < begin + stride; d++) values[d]! *= factor;
  if (recipe.pvAccumulator === 'fp16') {
    for (let d = begin; d < begin + stride; d++) values[d] = roundFp16(values[d]!);
  }
  if (!tile.meanOutput) return;
  for (let d = begin; d < begin + stride; d++) tile.meanOutput[d]! *= factor;
}

function largest(row: Float64Array, count: number): number {
  let found = -Infinity;
  for (let j = 0; j < count; j++) {
    const s = row[j]!;
    if (s > found) found = s;
  }
  return found;
}

function total(row: Float64Array, count: number): number {
  let sum = 0;
  for (let j = 0; j < count; j++) sum += row[j]!;
  return sum;
}

function addScaled(
  to: Float64Array,
  toOffset: number,
  from: Float32Array,
  fromOffset: number,
  count: number,
  factor: number,
): void {
  for (let d = 0; d < count; d++) to[toOffset + d]! += from[fromOffset + d]! * factor;
}
