/**
 * Forward attention, tile by tile: never a matrix of queries by keys (FlashAttention algorithm 1 with the recipes of
 * docs/numerics.md). Keys and values of a key/value head are quantised once and serve all its query heads.
 */
import type {QuantizedQ} from '../../numerics/operands.js';
import type {AttentionProblem} from '../../problem.js';
import type {ForwardBuffers} from '../engine.js';
import {accumulateOutput, accumulatorOf} from './accumulators.js';
import {prepareKeyValueHead, prepareQueryHead} from './head_operands.js';
import type {KeyValueHead} from './head_operands.js';
import {QueryTile} from './query_tile.js';
import {multiplyQueriesByKeys} from './scores.js';
import {softmaxRows} from './softmax_rows.js';
import {QUERY_TILE} from './tile_sizes.js';
import {visibleToTile} from './visible_keys.js';
import {writeEmptyRow, writeOutput} from './write_output.js';

/** Computes o and lse. Yields after each piece of work (a head's quantisation, a key tile), so that callers may pause or stop. */
export function* forwardTiles(
  problem: AttentionProblem,
  buffers: ForwardBuffers,
): Generator<void, void, void> {
  if (problem.qLen === 0) return;
  if (problem.kvLen === 0) {
    writeEmptyOutput(problem, buffers);
    return;
  }
  const headsPerGroup = problem.qHeads / problem.kvHeads;
  let tile: QueryTile | null = null;
  for (let batch = 0; batch < problem.batch; batch++) {
    for (let kvHead = 0; kvHead < problem.kvHeads; kvHead++) {
      const head = prepareKeyValueHead(problem, buffers, batch, kvHead);
      yield;
      for (let member = 0; member < headsPerGroup; member++) {
        const queryHead = kvHead * headsPerGroup + member;
        const q = prepareQueryHead(problem, buffers, batch, queryHead, head.balance);
        tile ??= new QueryTile(problem, q.dims);
        yield;
        for (let firstQuery = 0; firstQuery < problem.qLen; firstQuery += QUERY_TILE) {
          yield* computeQueryTile(problem, buffers, tile, q, head, batch, queryHead, firstQuery);
        }
      }
    }
  }
}

/** All key tiles that the queries from `firstQuery` on see, then their rows of o and lse. */
function* computeQueryTile(
  problem: AttentionProblem,
  buffers: ForwardBuffers,
  tile: QueryTile,
  q: QuantizedQ,
  head: KeyValueHead,
  batch: number,
  queryHead: number,
  firstQuery: number,
): Generator<void, void, void> {
  const rows = Math.min(QUERY_TILE, problem.qLen - firstQuery);
  tile.begin(q, firstQuery, rows);
  const accumulator = accumulatorOf(problem.recipe);
  const visible = visibleToTile(problem, firstQuery, rows);
  const {tileWidth} = head;
  const firstTile = Math.floor(visible.begin / tileWidth);
  for (let keyTile = firstTile; keyTile * tileWidth < visible.end; keyTile++) {
    const firstKey = keyTile * tileWidth;
    const keys = Math.min(tileWidth, visible.end - firstKey);
    const place = {batch, head: queryHead, firstKey, keys};
    multiplyQueriesByKeys(tile, head, place);
    const covered = softmaxRows(problem, buffers.mask, tile, q, head, place);
    if (covered > 0) accumulateOutput(accumulator, tile, head, keyTile, covered);
    yield;
  }
  writeOutput(problem, buffers, tile, q, head, batch, queryHead);
}

/** Without keys every row attends to nothing. */
function writeEmptyOutput(problem: AttentionProblem, buffers: ForwardBuffers): void {
  for (let batch = 0; batch < problem.batch; batch++) {
    for (let head = 0; head < problem.qHeads; head++) {
      for (let query = 0; query < problem.qLen; query++) {
        writeEmptyRow(problem, buffers, batch, head, query);
      }
    }
  }
}
