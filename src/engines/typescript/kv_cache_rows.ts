/** Attention of the rows of one query head through the pages of a cache: scores of one row at a time, O(tokens) memory. */
import {roundHalfEven} from '../../numerics/formats.js';
import {CACHE_BLOCK, CACHE_P_TOP, quantizeCacheQuery} from '../../numerics/kv_cache.js';
import {TINY} from '../../numerics/operands.js';
import {endOfVisibleKeys, firstVisibleKey, type AttentionProblem} from '../../problem.js';
import type {CacheBuffers} from '../kv_cache.js';
import type {CachePage} from './kv_cache.js';

const {exp, log} = Math;
const LEAST = Number.MIN_VALUE;

/** One head of a cache. */
export interface CacheHead {
  readonly pages: readonly CachePage[];
  /** Of B · Hkv. */
  readonly head: number;
  readonly qkDim: number;
  readonly vDim: number;
  readonly quantised: boolean;
  /** The code of a value of v that is not finite; NaN where v is float32. */
  readonly notFinite: number;
  readonly mean: Float32Array;
}

/** Writes o and lse of the rows of one query head, one in each step. */
export function* cacheHeadRows(
  problem: AttentionProblem,
  buffers: CacheBuffers,
  head: CacheHead,
  batch: number,
  queryHead: number,
): Generator<void> {
  const {qLen, kvLen, qHeads, scale} = problem;
  const {q, o, lse} = buffers;
  const {qkDim, vDim, quantised, mean} = head;
  const scores = new Float64Array(kvLen);
  const codes = new Float64Array(qkDim);
  const sums = new Float64Array(vDim);
  for (let i = 0; i < qLen; i++) {
    const qAt = batch * problem.q.batch + queryHead * problem.q.head + i * problem.q.token;
    const oAt = batch * problem.o.batch + queryHead * problem.o.head + i * problem.o.token;
    const lseAt = (batch * qHeads + queryHead) * qLen + i;
    let factor = scale;
    if (quantised) factor *= quantizeCacheQuery(q, qAt, qkDim, codes);
    else for (let d = 0; d < qkDim; d++) codes[d] = q[qAt + d]!;
    let finite = true;
    let offset = 0;
    for (let d = 0; d < qkDim; d++) {
      const x = q[qAt + d]!;
      if (x - x !== 0) finite = false;
      offset += x * mean[d]!;
    }
    const begin = firstVisibleKey(problem, i);
    const end = endOfVisibleKeys(problem, i);
    const maskAt =
      batch * problem.mask.batch + queryHead * problem.mask.head + i * problem.mask.query;
    const row = scoreRow(problem, buffers.mask, maskAt, head, codes, factor, begin, end, scores);
    if (!row.any || row.poisoned || !finite) {
      o.fill(row.any ? NaN : 0, oAt, oAt + vDim);
      if (lse) lse[lseAt] = row.any ? NaN : -Infinity;
      yield;
      continue;
    }
    let sum = 0;
    for (let j = begin; j < end; j++) {
      // 0 is kept for hidden keys: one that is attended to, however faintly, passes on a NaN of its v.
      sum += scores[j] = scores[j] === -Infinity ? 0 : exp(scores[j]! - row.most) || LEAST;
    }
    sums.fill(0);
    addValues(head, scores, begin, end, sums);
    for (let d = 0; d < vDim; d++) o[oAt + d] = sums[d]! / sum;
    if (lse) lse[lseAt] = row.most + log(sum) + scale * offset;
    yield;
  }
}

/** Scores of keys [begin, end), -Infinity where the mask hides them. */
function scoreRow(
  {maskKind, mask: {key: maskStride}}: AttentionProblem,
  mask: CacheBuffers['mask'],
  maskAt: number,
  {pages, head, qkDim}: CacheHead,
  codes: Float64Array,
  factor: number,
  begin: number,
  end: number,
  scores: Float64Array,
): {most: number; any: boolean; poisoned: boolean} {
  const found = {most: -Infinity, any: false, poisoned: false};
  for (let j = begin; j < end; j++) {
    let added = 0;
    if (mask !== null && maskKind !== 'none') {
      const value = mask[maskAt + j * maskStride]!;
      if (maskKind === 'additive') added = value;
      else if (value === 0) added = -Infinity;
    }
    scores[j] = -Infinity;
    if (added === -Infinity) continue;
    found.any = true;
    // A NaN or an Infinity in the mask.
    if (!(added < Infinity)) found.poisoned = true;
    const {k, kScale, marks} = pages[Math.floor(j / CACHE_BLOCK)]!;
    const at = head * CACHE_BLOCK + (j % CACHE_BLOCK);
    if ((marks[at]! & 1) !== 0) found.poisoned = true;
    let dot = 0;
    for (let d = 0; d < qkDim; d++) dot += codes[d]! * k[at * qkDim + d]!;
    if (kScale.length > 0) dot *= kScale[at]!;
    const s = dot * factor + added;
    scores[j] = s;
    if (!(s <= found.most)) found.most = s;
  }
  return found;
}

/** sums += P v over keys [begin, end), block by block of the cache. */
function addValues(
  {pages, head, vDim, quantised, notFinite}: CacheHead,
  p: Float64Array,
  begin: number,
  end: number,
  sums: Float64Array,
): void {
  for (let page = Math.floor(begin / CACHE_BLOCK); page * CACHE_BLOCK < end; page++) {
    const {v, vScale, marks} = pages[page]!;
    const first = Math.max(begin, page * CACHE_BLOCK);
    const last = Math.min(end, (page + 1) * CACHE_BLOCK);
    const place = head * CACHE_BLOCK - page * CACHE_BLOCK;
    let top = 0;
    if (quantised) {
      for (let j = first; j < last; j++) {
        const weight = p[j]! * vScale[place + j]!;
        if (!(weight <= top)) top = weight;
      }
    }
    for (let j = first; j < last; j++) {
      const at = place + j;
      const marked = (marks[at]! & 2) !== 0;
      let weight = p[j]!;
      if (quantised) {
        weight =
          top < TINY
            ? 0
            : (roundHalfEven((CACHE_P_TOP * weight * vScale[at]!) / top) * top) / CACHE_P_TOP;
      }
      if (marked) addMarked(v, at * vDim, vDim, notFinite, weight, p[j]! > 0, sums);
      else for (let d = 0; d < vDim; d++) sums[d]! += weight * v[at * vDim + d]!;
    }
  }
}

/** The same for a token with values that are not finite: NaN in their channels if the row attends to it. */
function addMarked(
  v: CachePage['v'],
  from: number,
  vDim: number,
  notFinite: number,
  weight: number,
  attends: boolean,
  sums: Float64Array,
): void {
  for (let d = 0; d < vDim; d++) {
    const x = v[from + d]!;
    const bad = x === notFinite || x - x !== 0;
    if (!bad) sums[d]! += weight * x;
    else if (attends) sums[d] = NaN;
  }
}
