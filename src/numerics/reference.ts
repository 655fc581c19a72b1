/**
 * Attention in float64, the judge of every engine: `referenceAttention` computes any recipe exactly as docs/numerics.md
 * says, with P against the final row maximum; `exactAttention` quantises nothing. Memory beside the outputs: O(N).
 */
import type {AttentionProblem} from '../problem.js';
import {accumulatePv} from './reference_accumulators.js';
import {collectKeys, emptyResult, headOffset, makeRowKeys, rowsOf} from './reference_rows.js';
import type {AttentionResult, MaskData, RowKeys} from './reference_rows.js';
import {channelBalance, quantizeK, quantizeQ, quantizeV, roundP} from './quantize.js';
import type {QuantizedK, QuantizedQ, QuantizedV} from './quantize.js';

export {referenceGradients} from './reference_gradients.js';
export type {ReferenceGradients} from './reference_gradients.js';
export type {AttentionResult, MaskData} from './reference_rows.js';

const {exp, floor, fround, log, max} = Math;
const {isFinite, isNaN} = Number;
/** Tokens per mean of v. */
const V_MEAN_TOKENS = 128;

/**
 * Any recipe in float64: quantised operands bit for bit as specified, exact integer dot products, float64 softmax.
 * Inputs are laid out by the problem's strides; `mask` is null when `maskKind` is `none`.
 * @param rows Query rows to compute, all of them by default; other rows of o stay 0, of lse -Infinity.
 */
export function referenceAttention(
  problem: AttentionProblem,
  q: Float32Array,
  k: Float32Array,
  v: Float32Array,
  mask: MaskData,
  rows?: readonly number[],
): AttentionResult {
  const {recipe, qLen, kvLen, qkDim, vDim} = problem;
  const result = emptyResult(problem);
  const scratch = makeScratch(problem);
  const groupSize = problem.qHeads / problem.kvHeads;
  const wanted = rowsOf(problem, rows);
  const source = (
    data: Float32Array,
    strides: AttentionProblem['q'],
    b: number,
    h: number,
    tokens: number,
    dim: number,
  ) => ({data, offset: headOffset(strides, b, h), tokenStride: strides.token, tokens, dim});
  for (let b = 0; b < problem.batch; b++) {
    for (let kvHead = 0; kvHead < problem.kvHeads; kvHead++) {
      const kSource = source(k, problem.k, b, kvHead, kvLen, qkDim);
      const qSources = Array.from({length: groupSize}, (_, g) =>
        source(q, problem.q, b, kvHead * groupSize + g, qLen, qkDim),
      );
      const balance = channelBalance(recipe, kSource, qSources);
      const kHead = quantizeK(recipe, kSource, balance);
      const vHead = quantizeV(recipe, source(v, problem.v, b, kvHead, kvLen, vDim));
      for (const [g, qSource] of qSources.entries()) {
        const h = kvHead * groupSize + g;
        const qHead = quantizeQ(recipe, qSource, balance);
        const meanScores = new MeanScores(qHead, kHead, qkDim);
        for (const i of wanted) {
          collectKeys(problem, mask, b, h, i, scratch.row);
          if (scratch.row.count === 0) continue;
          const o = result.o.subarray(headOffset(problem.o, b, h) + i * problem.o.token);
          let lse = attendRow(problem, i, qHead, kHead, vHead, meanScores.ofRow(i), scratch, o);
          const at = headOffset(problem.q, b, h) + i * problem.q.token;
          if (kHead.mean) lse += problem.scale * dot(q, at, kHead.mean, 0, qkDim);
          result.lse[(b * problem.qHeads + h) * qLen + i] = lse;
        }
      }
    }
  }
  return result;
}

/** Arrays of one row, reused. */
interface Scratch {
  readonly row: RowKeys;
  /** [kvLen], p by key, 0 where not attended. */
  readonly p: Float64Array;
  /** [kvLen], rounded P by key. */
  readonly rounded: Float64Array;
}

function makeScratch(problem: AttentionProblem): Scratch {
  return {
    row: makeRowKeys(problem),
    p: new Float64Array(problem.kvLen),
    rounded: new Float64Array(problem.kvLen),
  };
}

/** Writes o of one row that attends to `scratch.row`; returns its lse of the smoothed scores. */
function attendRow(
  problem: AttentionProblem,
  i: number,
  q: QuantizedQ,
  k: QuantizedK,
  v: QuantizedV,
  meanScores: Float64Array | null,
  scratch: Scratch,
  o: Float64Array,
): number {
  const {recipe, vDim, kvLen} = problem;
  const {keys, bias, count} = scratch.row;
  const {p, rounded} = scratch;
  let poisoned = q.notFinite[i] === 1;
  let rowMax = -Infinity;
  p.fill(0);
  for (let n = 0; n < count; n++) {
    const j = keys[n]!;
    if (k.notFinite[j] === 1) poisoned = true;
    const codes = dot(q.codes, i * q.dims, k.codes, j * k.dims, q.dims);
    const product = codes * q.scale[i]! * k.scale[j]! + (meanScores ? meanScores[j]! : 0);
    const score = problem.scale * product + bias[n]!;
    p[j] = score;
    rowMax = max(rowMax, score);
  }
  if (poisoned) {
    o.fill(NaN, 0, vDim);
    return NaN;
  }
  for (let n = 0; n < count; n++) p[keys[n]!] = fround(exp(p[keys[n]!]! - rowMax));
  rounded.set(p);
  roundP(recipe, rounded, kvLen);

  // What the denominator sums, and with it the weights of the means of v.
  const quantisedSum = recipe.rowSum === 'quantized';
  let rowSum = 0;
  // lse counts the unrounded p: rounding 255 p drops whatever lies below 1/510, which in long rows is much.
  let exactSum = 0;
  const meanPart = new Float64Array(vDim);
  for (let n = 0; n < count; n++) {
    const j = keys[n]!;
    const weight = quantisedSum ? rounded[j]! / recipe.pTop : p[j]!;
    rowSum += weight;
    exactSum += p[j]!;
    if (!v.mean) continue;
    const mean = floor(j / V_MEAN_TOKENS) * vDim;
    for (let d = 0; d < vDim; d++) meanPart[d]! += weight * v.mean[mean + d]!;
  }
  const sum = accumulatePv(recipe, rounded, v, vDim);
  for (let d = 0; d < vDim; d++) {
    o[d] = ((sum[d]! / recipe.pTop) * v.channelScale[d]! + meanPart[d]!) / rowSum;
  }
  if (v.notFinite) {
    for (let n = 0; n < count; n++) {
      for (let d = 0; d < vDim; d++) if (v.notFinite[keys[n]! * vDim + d] === 1) o[d] = NaN;
    }
  }
  return rowMax + log(exactSum);
}

/** What smoothing took out of the scores of a block of rows: mean · k', one number per key (SageAttention2 3.1). */
class MeanScores {
  private block = -1;
  private readonly scores: Float64Array;

  constructor(
    private readonly q: QuantizedQ,
    private readonly k: QuantizedK,
    private readonly dim: number,
  ) {
    this.scores = new Float64Array(k.scale.length);
  }

  /** The numbers of row i's block, [kvLen]; null when Q is not smoothed. */
  ofRow(i: number): Float64Array | null {
    const {mean, meanRows} = this.q;
    const {smoothed} = this.k;
    if (!mean || !smoothed) return null;
    const block = floor(i / meanRows);
    if (block !== this.block) {
      this.block = block;
      for (let j = 0; j < this.scores.length; j++) {
        this.scores[j] = dot(mean, block * this.dim, smoothed, j * this.dim, this.dim);
      }
    }
    return this.scores;
  }
}

type Numbers = Float32Array | Float64Array;

function dot(a: Numbers, aOffset: number, b: Numbers, bOffset: number, count: number): number {
  let sum = 0;
  for (let d = 0; d < count; d++) sum += a[aOffset + d]! * b[bOffset + d]!;
  return sum;
}

/** Attention in float64 with nothing quantised: the truth that recipes are measured against. `rows` as above. */
export function exactAttention(
  problem: AttentionProblem,
  q: Numbers,
  k: Numbers,
  v: Numbers,
  mask: MaskData,
  rows?: readonly number[],
): AttentionResult {
  const {qkDim, vDim} = problem;
  const result = emptyResult(problem);
  const row = makeRowKeys(problem);
  const p = new Float64Array(problem.kvLen);
  const groupSize = problem.qHeads / problem.kvHeads;
  for (let b = 0; b < problem.batch; b++) {
    for (let h = 0; h < problem.qHeads; h++) {
      const kvHead = floor(h / groupSize);
      const kBase = headOffset(problem.k, b, kvHead);
      const vBase = headOffset(problem.v, b, kvHead);
      for (const i of rowsOf(problem, rows)) {
        collectKeys(problem, mask, b, h, i, row);
        if (row.count === 0) continue;
        const qAt = headOffset(problem.q, b, h) + i * problem.q.token;
        let rowMax = -Infinity;
        for (let n = 0; n < row.count; n++) {
          const product = dot(q, qAt, k, kBase + row.keys[n]! * problem.k.token, qkDim);
          // Finite float32 operands cannot overflow float64: one of them was not finite, and poisons the row.
          p[n] = isFinite(product) ? problem.scale * product + row.bias[n]! : NaN;
          rowMax = max(rowMax, p[n]!);
        }
        let rowSum = 0;
        for (let n = 0; n < row.count; n++) {
          p[n] = exp(p[n]! - rowMax);
          rowSum += p[n]!;
        }
        const poisoned = isNaN(rowSum);
        const oAt = headOffset(problem.o, b, h) + i * problem.o.token;
        for (let d = 0; d < vDim; d++) {
          let sum = 0;
          let finite = !poisoned;
          for (let n = 0; n < row.count; n++) {
            const x = v[vBase + row.keys[n]! * problem.v.token + d]!;
            finite &&= isFinite(x);
            sum += p[n]! * x;
          }
          result.o[oAt + d] = finite ? sum / rowSum : NaN;
        }
        result.lse[(b * problem.qHeads + h) * problem.qLen + i] = rowMax + log(rowSum);
      }
    }
  }
  return result;
}
