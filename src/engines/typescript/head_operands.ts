/**
 * One head's operands in the form that the tile loops read: quantised codes as float64 rows.
 * Keys stand as [tokens, dims]; values stand channel by channel within each key tile, so that P · V is a product of rows too.
 * Memory is O(N) per head in flight.
 */
import type {AttentionProblem} from '../../problem.js';
import type {HeadSource, QuantizedQ} from '../../numerics/operands.js';
import type {ChannelBalance} from '../../numerics/channel_balance.js';
import {channelBalance, quantizeK, quantizeQ, quantizeV} from '../../numerics/quantize.js';
import type {ForwardBuffers} from '../engine.js';
import {keyTileWidth} from './tile_sizes.js';

/** Tokens transposed together: 8 float64 are one cache line, and tiles are multiples of 16. */
const STRIP = 8;

/** Keys and values of one batch entry and key/value head. */
export interface KeyValueHead {
  /** Padded head_dim of the codes of q and k. */
  readonly dims: number;
  /** Powers of two per channel of q and k; null where the recipe has none. */
  readonly balance: ChannelBalance | null;
  /** [kvLen, dims]. */
  readonly keys: Float64Array;
  /** [kvLen]. */
  readonly keyScale: Float32Array;
  /** [qkDim], null unless K is smoothed. */
  readonly keyMean: Float32Array | null;
  /** [kvLen, qkDim], k' before quantisation; null unless Q is smoothed. */
  readonly smoothedKeys: Float64Array | null;
  /** [tiles, vDim, tileWidth], zero past the last token. */
  readonly valuesByChannel: Float64Array;
  readonly tileWidth: number;
  /** [vDim]. */
  readonly channelScale: Float32Array;
  /** [ceil(kvLen / 128), vDim], null unless V is smoothed. */
  readonly valueMean: Float32Array | null;
  /** Tokens of k that hold a NaN or an Infinity. */
  readonly poisonedKeys: readonly number[];
  /** Tokens of v that hold one; the channels are in `valueFlags`. */
  readonly poisonedValues: readonly number[];
  /** [kvLen · vDim], 1 where v is not finite; null when all of v is finite. */
  readonly valueFlags: Uint8Array | null;
}

/** Where head `head` of batch entry `batch` lies in k. */
export function keySource(
  problem: AttentionProblem,
  k: Float32Array,
  batch: number,
  head: number,
): HeadSource {
  return {
    data: k,
    offset: batch * problem.k.batch + head * problem.k.head,
    tokenStride: problem.k.token,
    tokens: problem.kvLen,
    dim: problem.qkDim,
  };
}

/** Where head `head` of batch entry `batch` lies in v. */
export function valueSource(
  problem: AttentionProblem,
  v: Float32Array,
  batch: number,
  head: number,
): HeadSource {
  return {
    data: v,
    offset: batch * problem.v.batch + head * problem.v.head,
    tokenStride: problem.v.token,
    tokens: problem.kvLen,
    dim: problem.vDim,
  };
}

/** Where query head `head` of batch entry `batch` lies in q. */
export function querySource(
  problem: AttentionProblem,
  q: Float32Array,
  batch: number,
  head: number,
): HeadSource {
  return {
    data: q,
    offset: batch * problem.q.batch + head * problem.q.head,
    tokenStride: problem.q.token,
    tokens: problem.qLen,
    dim: problem.qkDim,
  };
}

/** Quantises k and v of one key/value head by the problem's recipe. */
export function prepareKeyValueHead(
  problem: AttentionProblem,
  buffers: ForwardBuffers,
  batch: number,
  head: number,
): KeyValueHead {
  const group = problem.qHeads / problem.kvHeads;
  const queries = Array.from({length: group}, (_, g) =>
    querySource(problem, buffers.q, batch, head * group + g),
  );
  const source = keySource(problem, buffers.k, batch, head);
  const balance = channelBalance(problem.recipe, source, queries);
  const k = quantizeK(problem.recipe, source, balance);
  const v = quantizeV(problem.recipe, valueSource(problem, buffers.v, batch, head));
  const tileWidth = keyTileWidth(problem.kvLen);
  return {
    dims: k.dims,
    balance,
    keys: new Float64Array(k.codes),
    keyScale: k.scale,
    keyMean: k.mean,
    smoothedKeys: k.smoothed && new Float64Array(k.smoothed),
    valuesByChannel: channelRows(v.codes, v.tokenScale, problem.kvLen, problem.vDim, tileWidth),
    tileWidth,
    channelScale: v.channelScale,
    valueMean: v.mean,
    poisonedKeys: flaggedTokens(k.notFinite, problem.kvLen, 1),
    poisonedValues: v.notFinite ? flaggedTokens(v.notFinite, problem.kvLen, problem.vDim) : [],
    valueFlags: v.notFinite,
  };
}

/** Quantises one query head by the problem's recipe and the balance of its key/value head. */
export function prepareQueryHead(
  problem: AttentionProblem,
  buffers: ForwardBuffers,
  batch: number,
  head: number,
  balance: ChannelBalance | null,
): QuantizedQ {
  return quantizeQ(problem.recipe, querySource(problem, buffers.q, batch, head), balance);
}

/**
 * [tokens, dim] to [tiles, dim, tileWidth], each token times its scale if it has one.
 * A scale per block of tokens multiplies exactly here: codes have 8 bits, scales 24, a float64 holds 53.
 */
export function channelRows(
  values: Float32Array,
  tokenScale: Float32Array | null,
  tokens: number,
  dim: number,
  tileWidth: number,
): Float64Array {
  const rows = new Float64Array(Math.ceil(tokens / tileWidth) * dim * tileWidth);
  for (let first = 0; first < tokens; first += STRIP) {
    const tile = Math.floor(first / tileWidth);
    const to = tile * dim * tileWidth + (first - tile * tileWidth);
    const strip = Math.min(STRIP, tokens - first);
    for (let d = 0; d < dim; d++) {
      for (let t = 0; t < strip; t++) {
        rows[to + d * tileWidth + t] = values[(first + t) * dim + d]!;
      }
    }
    if (!tokenScale) continue;
    for (let d = 0; d < dim; d++) {
      for (let t = 0; t < strip; t++) rows[to + d * tileWidth + t]! *= tokenScale[first + t]!;
    }
  }
  return rows;
}

/** The tokens, in order, with a flag among their `perToken` flags. */
function flaggedTokens(flags: Uint8Array, tokens: number, perToken: number): number[] {
  const found: number[] = [];
  for (let t = 0; t < tokens; t++) {
    for (let d = 0; d < perToken; d++) {
      if (flags[t * perToken + d] === 0) continue;
      found.push(t);
      break;
    }
  }
  return found;
}
