/**
 * Backward attention, tile by tile, exact arithmetic from the saved o and lse: memory O(N) beside a mask's gradient.
 * dK and dV of a key/value head are summed in float64 over all its query heads and written once.
 */
import type {AttentionProblem, TokenStrides} from '../../problem.js';
import type {BackwardBuffers} from '../engine.js';
import {addTileGradients} from './backward_tile.js';
import {GradientTile, readGradientHead, rowOffset} from './gradient_operands.js';
import type {GradientHead} from './gradient_operands.js';
import {addMaskGradient} from './mask_gradient.js';
import {QUERY_TILE} from './tile_sizes.js';
import {visibleToTile} from './visible_keys.js';

/** Computes dQ, dK, dV and, if wanted, dMask. Yields after each key tile. */
export function* backwardTiles(
  problem: AttentionProblem,
  buffers: BackwardBuffers,
): Generator<void, void, void> {
  const {qLen, kvLen, qkDim, vDim, scale} = problem;
  buffers.dMask?.fill(0);
  const headsPerGroup = problem.qHeads / problem.kvHeads;
  const tile = new GradientTile(problem);
  for (let batch = 0; batch < problem.batch; batch++) {
    for (let kvHead = 0; kvHead < problem.kvHeads; kvHead++) {
      const head = readGradientHead(problem, buffers, batch, kvHead);
      yield;
      for (let member = 0; member < headsPerGroup; member++) {
        const queryHead = kvHead * headsPerGroup + member;
        for (let firstQuery = 0; firstQuery < qLen; firstQuery += QUERY_TILE) {
          yield* differentiateQueryTile(problem, buffers, tile, head, batch, queryHead, firstQuery);
        }
      }
      writeRows(buffers.dK, problem.k, batch, kvHead, 0, kvLen, qkDim, head.dKeys, scale);
      writeRows(buffers.dV, problem.v, batch, kvHead, 0, kvLen, vDim, head.dValues, 1);
    }
  }
}

function* differentiateQueryTile(
  problem: AttentionProblem,
  buffers: BackwardBuffers,
  tile: GradientTile,
  head: GradientHead,
  batch: number,
  queryHead: number,
  firstQuery: number,
): Generator<void, void, void> {
  const {qkDim, scale} = problem;
  const rows = Math.min(QUERY_TILE, problem.qLen - firstQuery);
  tile.begin(problem, buffers, batch, queryHead, firstQuery, rows);
  const visible = visibleToTile(problem, firstQuery, rows);
  const {tileWidth} = head;
  const firstTile = Math.floor(visible.begin / tileWidth);
  for (let keyTile = firstTile; keyTile * tileWidth < visible.end; keyTile++) {
    const firstKey = keyTile * tileWidth;
    const keys = Math.min(tileWidth, visible.end - firstKey);
    const place = {batch, head: queryHead, firstKey, keys};
    addTileGradients(problem, buffers.mask, tile, head, place);
    if (buffers.dMask) {
      addMaskGradient(problem, buffers.dMask, tile.dScores, firstQuery, rows, place);
    }
    yield;
  }
  const {values} = tile.dQueries;
  writeRows(buffers.dQ, problem.q, batch, queryHead, firstQuery, rows, qkDim, values, scale);
}

/** Writes `rows` rows of a head's gradient, from token `first` on, times `factor`. */
function writeRows(
  to: Float32Array,
  strides: TokenStrides,
  batch: number,
  head: number,
  first: number,
  rows: number,
  dim: number,
  from: Float64Array,
  factor: number,
): void {
  for (let r = 0; r < rows; r++) {
    const row = rowOffset(strides, batch, head, first + r);
    for (let d = 0; d < dim; d++) to[row + d] = from[r * dim + d]! * factor;
  }
}
