/**
 * The state of one query tile while key tiles pass by: its queries, scores, running maxima, sums and outputs.
 * Allocated once per call and reused for every tile of every head.
 */
import type {QuantizedQ} from '../../numerics/operands.js';
import type {AttentionProblem} from '../../problem.js';
import {ACCUMULATOR_SPAN, accumulatorOf} from './accumulators.js';
import type {Panel} from './tile_product.js';
import {keyTileWidth, QUERY_TILE} from './tile_sizes.js';

/** What softmax needs of a row beside its scores. */
export interface RowState {
  /** Largest score so far, natural-log domain; -Infinity at the start. */
  readonly max: Float64Array;
  /** Sum so far of what the recipe's row sum adds up, relative to `max`. */
  readonly sum: Float64Array;
  /** Sum so far of the unrounded p, which lse counts. */
  readonly exactSum: Float64Array;
  /** 1 once the row attends to a key. */
  readonly attends: Uint8Array;
}

export class QueryTile {
  /** Rows in use; the last tile may be short. */
  rows = 0;
  /** First query of the tile. */
  firstQuery = 0;
  readonly state: RowState;
  /** [QUERY_TILE, dims] codes. */
  readonly queries: Panel;
  /** [QUERY_TILE, tileWidth] dot products, then scores, then P. */
  readonly scores: Panel;
  /** Row r of `scores`, as `roundP` takes it. */
  readonly scoreRows: readonly Float64Array[];
  /** [QUERY_TILE, vDim] sums of P · V in units of their codes. */
  readonly output: Panel;
  /** [QUERY_TILE, vDim] sums inside one accumulator step, where the recipe has a second level. */
  readonly partial: Panel;
  /** [QUERY_TILE, vDim] sums of p · V mean; null unless V is smoothed. */
  readonly meanOutput: Float64Array | null;
  /** [blocks of the tile, qkDim] means of Q; null unless Q is smoothed. */
  readonly queryMeans: Panel | null;
  /** [blocks of the tile, tileWidth] mean · k'. */
  readonly meanScores: Panel | null;

  constructor(problem: AttentionProblem, dims: number) {
    const {qLen, qkDim, vDim, kvLen, recipe} = problem;
    const rows = Math.min(QUERY_TILE, qLen);
    const width = keyTileWidth(kvLen);
    const matrix = (count: number, stride: number): Panel => ({
      values: new Float64Array(count * stride),
      offset: 0,
      stride,
    });
    this.queries = matrix(rows, dims);
    this.scores = matrix(rows, width);
    this.scoreRows = Array.from({length: rows}, (_, r) =>
      this.scores.values.subarray(r * width, (r + 1) * width),
    );
    this.output = matrix(rows, vDim);
    const twoLevels = accumulatorOf(recipe)?.span === ACCUMULATOR_SPAN;
    this.partial = matrix(twoLevels ? rows : 0, vDim);
    this.meanOutput = recipe.smoothV > 0 ? new Float64Array(rows * vDim) : null;
    const blocks = recipe.smoothQ > 0 ? Math.ceil(rows / recipe.smoothQ) : 0;
    this.queryMeans = blocks > 0 ? matrix(blocks, qkDim) : null;
    this.meanScores = blocks > 0 ? matrix(blocks, width) : null;
    this.state = {
      max: new Float64Array(rows),
      sum: new Float64Array(rows),
      exactSum: new Float64Array(rows),
      attends: new Uint8Array(rows),
    };
  }

  /** Starts the tile of queries firstQuery .. firstQuery + rows - 1 of one head. */
  begin(q: QuantizedQ, firstQuery: number, rows: number): void {
    this.firstQuery = firstQuery;
    this.rows = rows;
    const first = firstQuery * q.dims;
    this.queries.values.set(q.codes.subarray(first, first + rows * q.dims));
    if (q.mean && this.queryMeans) {
      const dim = this.queryMeans.stride;
      const begin = Math.floor(firstQuery / q.meanRows) * dim;
      const end = Math.ceil((firstQuery + rows) / q.meanRows) * dim;
      this.queryMeans.values.set(q.mean.subarray(begin, end));
    }
    this.output.values.fill(0);
    this.meanOutput?.fill(0);
    this.state.max.fill(-Infinity);
    this.state.sum.fill(0);
    this.state.exactSum.fill(0);
    this.state.attends.fill(0);
  }
}
