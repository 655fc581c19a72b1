/**
 * Gradients of one query tile against one key tile, from the saved lse (FlashAttention 2, 3.2):
 *   P = exp(scale · Q·Kᵀ + mask - lse);  dP = dO·Vᵀ;  dS = P · (dP - delta);
 *   dV += Pᵀ·dO;  dK += dSᵀ·Q;  dQ += dS·K  (dQ and dK before the factor `scale`);  dMask += dS.
 * Rows are queries, columns keys; the transposed copies make every product one of contiguous rows.
 */
import type {AttentionProblem} from '../../problem.js';
import {exponentiate} from './exponentiate.js';
import type {GradientHead, GradientTile} from './gradient_operands.js';
import {applyMask, beginInTile, endInTile} from './scores.js';
import type {TilePlace} from './scores.js';
import {addProduct} from './tile_product.js';
import type {Panel} from './tile_product.js';

/** Adds the tile's share to dQ of `tile` and to dK and dV of `head`; leaves dS, 0 where not attended, in `tile.dScores`. */
export function addTileGradients(
  problem: AttentionProblem,
  mask: Float32Array | Uint8Array | null,
  tile: GradientTile,
  head: GradientHead,
  place: TilePlace,
): void {
  const {qkDim, vDim} = problem;
  const {firstKey, keys} = place;
  const {rows} = tile;
  const keyRows = {values: head.keys, offset: firstKey * qkDim, stride: qkDim};
  const valueRows = {values: head.values, offset: firstKey * vDim, stride: vDim};
  tile.p.values.fill(0);
  addProduct(tile.queries, rows, keyRows, keys, qkDim, tile.p);
  tile.dScores.values.fill(0);
  addProduct(tile.dOutput, rows, valueRows, keys, vDim, tile.dScores);
  for (let r = 0; r < rows; r++) {
    restoreProbabilities(problem, mask, tile, place, r);
    differentiateSoftmax(tile, r, keys);
  }
  transpose(tile.p, rows, keys, tile.pByKey);
  transpose(tile.dScores, rows, keys, tile.dScoresByKey);

  const dValueRows = {...valueRows, values: head.dValues};
  addProduct(tile.pByKey, keys, tile.dOutputByChannel, vDim, rows, dValueRows);
  const dKeyRows = {...keyRows, values: head.dKeys};
  addProduct(tile.dScoresByKey, keys, tile.queriesByChannel, qkDim, rows, dKeyRows);
  const channels = {
    values: head.keysByChannel,
    offset: (firstKey / head.tileWidth) * qkDim * head.tileWidth,
    stride: head.tileWidth,
  };
  addProduct(tile.dScores, rows, channels, qkDim, keys, tile.dQueries);
}

/** Row r of Q·Kᵀ becomes P; 0 where the row does not attend, also where its lse is NaN. */
function restoreProbabilities(
  problem: AttentionProblem,
  mask: Float32Array | Uint8Array | null,
  tile: GradientTile,
  place: TilePlace,
  r: number,
): void {
  const {values, stride} = tile.p;
  const row = values.subarray(r * stride, (r + 1) * stride);
  const query = tile.firstQuery + r;
  const lse = tile.lse[r]!;
  const begin = beginInTile(problem, query, place);
  const end = endInTile(problem, query, place);
  for (let j = begin; j < end; j++) row[j]! *= problem.scale;
  if (lse === -Infinity || !applyMask(problem, mask, row, begin, end, query, place)) {
    row.fill(0);
    return;
  }
  row.fill(0, 0, begin);
  row.fill(0, end);
  if (!Number.isNaN(lse)) {
    exponentiate(row, begin, end, lse);
    return;
  }
  for (let j = begin; j < end; j++) row[j] = row[j] === -Infinity ? 0 : NaN;
}

/** Row r of dP becomes dS. A NaN of delta must not reach keys that the row does not attend to. */
function differentiateSoftmax(tile: GradientTile, r: number, keys: number): void {
  const p = tile.p.values;
  const dScores = tile.dScores.values;
  const delta = tile.delta[r]!;
  const first = r * tile.p.stride;
  for (let i = first; i < first + keys; i++) {
    dScores[i] = p[i] === 0 ? 0 : p[i]! * (dScores[i]! - delta);
  }
  if (tile.poisoned[r] === 0) return;
  for (let i = first; i < first + keys; i++) {
    if (p[i] !== 0) p[i] = NaN;
  }
}

function transpose(from: Panel, rows: number, columns: number, to: Panel): void {
  const source = from.values;
  const target = to.values;
  for (let r = 0; r < rows; r++) {
    const row = r * from.stride;
    for (let j = 0; j < columns; j++) target[j * to.stride + r] = source[row + j]!;
  }
}
