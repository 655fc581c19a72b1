/**
 * Scores of one query tile against one key tile: s = scale · (codes · codes · scales + Q mean · k') + mask.
 * Keys that a row does not attend to get -Infinity.
 */
import type {QuantizedQ} from '../../numerics/operands.js';
import {endOfVisibleKeys, firstVisibleKey} from '../../problem.js';
import type {AttentionProblem} from '../../problem.js';
import type {KeyValueHead} from './head_operands.js';
import type {QueryTile} from './query_tile.js';
import {addProduct} from './tile_product.js';
import {maskRow} from './visible_keys.js';

// Constants of the module: where a program runs inside a vm context (jest), every use of a global is a slow look-up.
const f32 = Math.fround;
/** The score of a key that is not attended to. */
const HIDDEN = -Infinity;

/** Where the tile stands in the call. */
export interface TilePlace {
  readonly batch: number;
  /** Query head. */
  readonly head: number;
  readonly firstKey: number;
  /** Keys of the tile that exist and that some row of the tile may see. */
  readonly keys: number;
}

/** Fills the tile's `scores` with dot products of codes, and its `meanScores`. */
export function multiplyQueriesByKeys(tile: QueryTile, head: KeyValueHead, place: TilePlace): void {
  const {firstKey, keys} = place;
  tile.scores.values.fill(0);
  const codes = {values: head.keys, offset: firstKey * head.dims, stride: head.dims};
  addProduct(tile.queries, tile.rows, codes, keys, head.dims, tile.scores);
  const {queryMeans, meanScores} = tile;
  if (!queryMeans || !meanScores || !head.smoothedKeys) return;
  meanScores.values.fill(0);
  const dim = queryMeans.stride;
  const smoothed = {values: head.smoothedKeys, offset: firstKey * dim, stride: dim};
  addProduct(queryMeans, queryMeans.values.length / dim, smoothed, keys, dim, meanScores);
}

/** Turns the dot products of row `r` into scores. Returns whether the row attends to any key of the tile. */
export function scoreRow(
  problem: AttentionProblem,
  mask: Float32Array | Uint8Array | null,
  tile: QueryTile,
  q: QuantizedQ,
  head: KeyValueHead,
  place: TilePlace,
  r: number,
): boolean {
  const row = tile.scoreRows[r]!;
  const query = tile.firstQuery + r;
  const begin = beginInTile(problem, query, place);
  const end = endInTile(problem, query, place);
  row.fill(HIDDEN, 0, begin);
  row.fill(HIDDEN, Math.max(begin, end));
  if (begin >= end) return false;
  scaleDots(row, begin, end, q.scale[query]! * problem.scale, head.keyScale, place.firstKey);
  if (tile.meanScores) {
    const {values, stride} = tile.meanScores;
    const block = Math.floor(query / q.meanRows) - Math.floor(tile.firstQuery / q.meanRows);
    addMeanScores(row, begin, end, values, block * stride, problem.scale);
  }
  return applyMask(problem, mask, row, begin, end, query, place);
}

/** The first key of the tile that the query may see by causality and window, counted from the tile's first. */
export function beginInTile(problem: AttentionProblem, query: number, place: TilePlace): number {
  return Math.min(Math.max(firstVisibleKey(problem, query) - place.firstKey, 0), place.keys);
}

/** One past the last such key; not above `beginInTile` if there is none. */
export function endInTile(problem: AttentionProblem, query: number, place: TilePlace): number {
  return Math.min(endOfVisibleKeys(problem, query) - place.firstKey, place.keys);
}

/** Adds the mask to the scores begin .. end - 1 of a row, -Infinity where it hides a key. Returns whether any key is left. */
export function applyMask(
  problem: AttentionProblem,
  mask: Float32Array | Uint8Array | null,
  row: Float64Array,
  begin: number,
  end: number,
  query: number,
  place: TilePlace,
): boolean {
  if (!mask) return begin < end;
  const {key: stride} = problem.mask;
  const offset = maskRow(problem, place.batch, place.head, query) + place.firstKey * stride;
  return problem.maskKind === 'additive'
    ? addMask(row, begin, end, mask as Float32Array, offset, stride)
    : hideMasked(row, begin, end, mask as Uint8Array, offset, stride);
}

function scaleDots(
  row: Float64Array,
  begin: number,
  end: number,
  rowScale: number,
  keyScale: Float32Array,
  firstKey: number,
): void {
  for (let j = begin; j < end; j++) row[j] = row[j]! * rowScale * keyScale[firstKey + j]!;
}

function addMeanScores(
  row: Float64Array,
  begin: number,
  end: number,
  meanScores: Float64Array,
  offset: number,
  scale: number,
): void {
  for (let j = begin; j < end; j++) row[j]! += f32(meanScores[offset + j]!) * scale;
}

/** Additive mask: -Infinity hides a key, whatever its score. */
function addMask(
  row: Float64Array,
  begin: number,
  end: number,
  mask: Float32Array,
  offset: number,
  stride: number,
): boolean {
  let attends = false;
  for (let j = begin; j < end; j++) {
    const bias = mask[offset + j * stride]!;
    if (bias === HIDDEN) {
      row[j] = HIDDEN;
    } else {
      row[j]! += bias;
      attends = true;
    }
  }
  return attends;
}

/** Boolean mask: 0 hides a key. */
function hideMasked(
  row: Float64Array,
  begin: number,
  end: number,
  mask: Uint8Array,
  offset: number,
  stride: number,
): boolean {
  let attends = false;
  for (let j = begin; j < end; j++) {
    if (mask[offset + j * stride] === 0) row[j] = HIDDEN;
    else attends = true;
  }
  return attends;
}
