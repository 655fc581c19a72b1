/**
 * Operands of the backward pass as float64 rows of tokens and rows of channels: each of its five products is then a
 * product of rows. Values that are not finite count as 0 (docs/numerics.md 2): what they spoil is marked by NaN in the
 * saved o and lse, which reaches the gradients of the rows that attend to them and no others.
 */
import {readHead} from '../../numerics/operands.js';
import type {AttentionProblem, TokenStrides} from '../../problem.js';
import type {BackwardBuffers} from '../engine.js';
import {channelRows, keySource, valueSource} from './head_operands.js';
import type {Panel} from './tile_product.js';
import {keyTileWidth, QUERY_TILE} from './tile_sizes.js';
import {lseIndex, outputRow} from './write_output.js';

/** Keys and values of one key/value head, and the sums of their gradients over its query heads. */
export interface GradientHead {
  readonly tileWidth: number;
  /** [kvLen, qkDim]. */
  readonly keys: Float64Array;
  /** [tiles, qkDim, tileWidth]. */
  readonly keysByChannel: Float64Array;
  /** [kvLen, vDim]. */
  readonly values: Float64Array;
  /** [kvLen, qkDim], before the factor `scale`. */
  readonly dKeys: Float64Array;
  /** [kvLen, vDim]. */
  readonly dValues: Float64Array;
}

/** Reads k and v of one key/value head. */
export function readGradientHead(
  problem: AttentionProblem,
  buffers: BackwardBuffers,
  batch: number,
  head: number,
): GradientHead {
  const {kvLen, qkDim, vDim} = problem;
  const tileWidth = keyTileWidth(kvLen);
  const keys = readHead(keySource(problem, buffers.k, batch, head)).values;
  const values = readHead(valueSource(problem, buffers.v, batch, head)).values;
  return {
    tileWidth,
    keys: new Float64Array(keys),
    keysByChannel: channelRows(keys, null, kvLen, qkDim, tileWidth),
    values: new Float64Array(values),
    dKeys: new Float64Array(kvLen * qkDim),
    dValues: new Float64Array(kvLen * vDim),
  };
}

/** Queries of one tile with what is saved and given for them, and the sum of dQ. */
export class GradientTile {
  rows = 0;
  firstQuery = 0;
  /** [QUERY_TILE, qkDim] and [qkDim, QUERY_TILE]. */
  readonly queries: Panel;
  readonly queriesByChannel: Panel;
  /** [QUERY_TILE, vDim] and [vDim, QUERY_TILE]. */
  readonly dOutput: Panel;
  readonly dOutputByChannel: Panel;
  /** [QUERY_TILE]. */
  readonly lse: Float64Array;
  /** [QUERY_TILE], sum of dO · o, less dLse: dS = p · (dO · v - delta). */
  readonly delta: Float64Array;
  /** [QUERY_TILE], 1 where dO holds a NaN or an Infinity. */
  readonly poisoned: Uint8Array;
  /** [QUERY_TILE, tileWidth]: P, and dO · Vᵀ that becomes dS. */
  readonly p: Panel;
  readonly dScores: Panel;
  /** [tileWidth, QUERY_TILE]: the same two by key. */
  readonly pByKey: Panel;
  readonly dScoresByKey: Panel;
  /** [QUERY_TILE, qkDim], before the factor `scale`. */
  readonly dQueries: Panel;

  constructor(problem: AttentionProblem) {
    const {qkDim, vDim} = problem;
    const rows = Math.min(QUERY_TILE, problem.qLen);
    const width = keyTileWidth(problem.kvLen);
    const matrix = (count: number, stride: number): Panel => ({
      values: new Float64Array(count * stride),
      offset: 0,
      stride,
    });
    this.queries = matrix(rows, qkDim);
    this.queriesByChannel = matrix(qkDim, rows);
    this.dOutput = matrix(rows, vDim);
    this.dOutputByChannel = matrix(vDim, rows);
    this.lse = new Float64Array(rows);
    this.delta = new Float64Array(rows);
    this.poisoned = new Uint8Array(rows);
    this.p = matrix(rows, width);
    this.dScores = matrix(rows, width);
    this.pByKey = matrix(width, rows);
    this.dScoresByKey = matrix(width, rows);
    this.dQueries = matrix(rows, qkDim);
  }

  /** Reads the queries firstQuery .. firstQuery + rows - 1 of one head, and zeroes the sum of dQ. */
  begin(
    problem: AttentionProblem,
    buffers: BackwardBuffers,
    batch: number,
    head: number,
    firstQuery: number,
    rows: number,
  ): void {
    this.rows = rows;
    this.firstQuery = firstQuery;
    const {qkDim, vDim} = problem;
    const qFrom = rowOffset(problem.q, batch, head, firstQuery);
    readRows(buffers.q, qFrom, problem.q.token, rows, qkDim, this.queries, this.queriesByChannel);
    const dOFrom = outputRow(problem, batch, head, firstQuery);
    const {dOutput, dOutputByChannel} = this;
    this.poisoned.fill(0);
    readRows(
      buffers.dO,
      dOFrom,
      problem.o.token,
      rows,
      vDim,
      dOutput,
      dOutputByChannel,
      this.poisoned,
    );
    for (let r = 0; r < rows; r++) {
      const at = lseIndex(problem, batch, head, firstQuery + r);
      this.lse[r] = buffers.lse[at]!;
      const from = dOFrom + r * problem.o.token;
      let delta = buffers.dLse ? -buffers.dLse[at]! : 0;
      for (let d = 0; d < vDim; d++) delta += buffers.dO[from + d]! * buffers.o[from + d]!;
      this.delta[r] = delta;
    }
    this.dQueries.values.fill(0);
  }
}

/** Where row `token` of a head starts. */
export function rowOffset(
  strides: TokenStrides,
  batch: number,
  head: number,
  token: number,
): number {
  return batch * strides.batch + head * strides.head + token * strides.token;
}

/** Copies rows into a matrix and its transpose; values that are not finite become 0, and their rows are flagged. */
function readRows(
  data: Float32Array,
  from: number,
  tokenStride: number,
  rows: number,
  dim: number,
  to: Panel,
  transposed: Panel,
  flags?: Uint8Array,
): void {
  for (let r = 0; r < rows; r++) {
    for (let d = 0; d < dim; d++) {
      let x = data[from + r * tokenStride + d]!;
      // NaN - NaN and Infinity - Infinity are NaN.
      if (x - x !== 0) {
        x = 0;
        if (flags) flags[r] = 1;
      }
      to.values[r * to.stride + d] = x;
      transposed.values[d * transposed.stride + r] = x;
    }
  }
}
