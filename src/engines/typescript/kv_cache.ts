/**
 * The key/value cache in TypeScript: the storage and numerics of docs/numerics.md 8 on any machine. Pages of 128 tokens
 * are shared between forks until one of them writes.
 */
import {
  CACHE_BLOCK,
  CACHE_CODES,
  frozenMean,
  quantizeCacheKeys,
  quantizeCacheValues,
  type PackedCachePrecision,
} from '../../numerics/kv_cache.js';
import type {HeadSource} from '../../numerics/operands.js';
import type {AttentionProblem} from '../../problem.js';
import type {CacheBuffers, CacheShape, CacheStore} from '../kv_cache.js';
import {runInSlices} from './event_loop.js';
import {cacheHeadRows, type CacheHead} from './kv_cache_rows.js';

/** 128 tokens of every head: element (head, token, d) at (head · 128 + token) · dim + d. */
export interface CachePage {
  readonly k: Int8Array | Int16Array | Float32Array;
  readonly v: Int8Array | Int16Array | Float32Array;
  readonly kScale: Float32Array;
  readonly vScale: Float32Array;
  /** Bit 0: k of the token is not finite, bit 1: v. */
  readonly marks: Uint8Array;
  /** Caches that read it. */
  readers: number;
}

export class TypescriptCacheStore implements CacheStore {
  readonly engine = 'typescript';
  readonly number = null;
  private pages: CachePage[] = [];
  private length = 0;
  /** [B,Hkv,D], frozen at the first append. */
  private mean: Float32Array;

  constructor(
    private readonly shape: CacheShape,
    readonly reason: string,
  ) {
    this.mean = new Float32Array(shape.batch * shape.kvHeads * shape.qkDim);
  }

  get bytes(): number {
    return this.pages.reduce(
      (sum, {k, v, kScale, vScale, marks}) =>
        sum + [k, v, kScale, vScale, marks].reduce((bytes, array) => bytes + array.byteLength, 0),
      0,
    );
  }

  append(k: Float32Array, v: Float32Array, tokens: number): void {
    if (tokens === 0) return;
    const {qkDim, vDim, precision} = this.shape;
    const first = this.length;
    for (let n = Math.floor(first / CACHE_BLOCK); n * CACHE_BLOCK < first + tokens; n++) {
      this.makeWritable(n);
    }
    for (let head = 0; head < this.heads; head++) {
      const keys = headOf(k, head, tokens, qkDim);
      const values = headOf(v, head, tokens, vDim);
      if (precision === 'exact') this.copy(head, keys, values);
      else this.quantise(head, keys, values, precision);
    }
    this.length = first + tokens;
  }

  truncate(length: number): void {
    const kept = Math.ceil(length / CACHE_BLOCK);
    for (const page of this.pages.splice(kept)) page.readers -= 1;
    this.length = length;
  }

  fork(): CacheStore {
    const fork = new TypescriptCacheStore(this.shape, this.reason);
    fork.pages = [...this.pages];
    for (const page of fork.pages) page.readers += 1;
    fork.length = this.length;
    fork.mean = this.mean.slice();
    return fork;
  }

  attend(problem: AttentionProblem, buffers: CacheBuffers): void {
    for (const steps = this.attendSteps(problem, buffers); !steps.next().done;);
  }

  attendAsync(
    problem: AttentionProblem,
    buffers: CacheBuffers,
    signal?: AbortSignal,
  ): Promise<void> {
    return runInSlices(this.attendSteps(problem, buffers), signal);
  }

  /** A step is a row of q. */
  private *attendSteps(problem: AttentionProblem, buffers: CacheBuffers): Generator<void> {
    const {qkDim, vDim, precision} = this.shape;
    const members = problem.qHeads / problem.kvHeads;
    for (let head = 0; head < this.heads; head++) {
      const view: CacheHead = {
        pages: this.pages,
        head,
        qkDim,
        vDim,
        quantised: precision !== 'exact',
        notFinite: precision === 'exact' ? NaN : CACHE_CODES[precision].notFinite,
        mean: this.mean.subarray(head * qkDim, (head + 1) * qkDim),
      };
      const batch = Math.floor(head / problem.kvHeads);
      const firstHead = (head % problem.kvHeads) * members;
      for (let queryHead = firstHead; queryHead < firstHead + members; queryHead++) {
        yield* cacheHeadRows(problem, buffers, view, batch, queryHead);
      }
    }
  }

  dispose(): void {
    this.truncate(0);
  }

  private get heads(): number {
    return this.shape.batch * this.shape.kvHeads;
  }

  /** Page n exists, and no fork sees what is written to it. */
  private makeWritable(n: number): void {
    const page = this.pages[n];
    if (page !== undefined && page.readers === 1) return;
    if (page === undefined) {
      this.pages[n] = this.newPage();
      return;
    }
    page.readers -= 1;
    const {k, v, kScale, vScale, marks} = page;
    this.pages[n] = {
      k: k.slice(),
      v: v.slice(),
      kScale: kScale.slice(),
      vScale: vScale.slice(),
      marks: marks.slice(),
      readers: 1,
    };
  }

  private newPage(): CachePage {
    const {qkDim, vDim, precision} = this.shape;
    const tokens = this.heads * CACHE_BLOCK;
    const [Keys, Values] = {
      int8: [Int8Array, Int8Array],
      int8_int16: [Int8Array, Int16Array],
      int16: [Int16Array, Int16Array],
      exact: [Float32Array, Float32Array],
    }[precision] as [typeof Float32Array, typeof Float32Array];
    const scales = precision === 'exact' ? 0 : tokens;
    return {
      k: new Keys(tokens * qkDim),
      v: new Values(tokens * vDim),
      kScale: new Float32Array(scales),
      vScale: new Float32Array(scales),
      marks: new Uint8Array(tokens),
      readers: 1,
    };
  }

  private copy(head: number, keys: HeadSource, values: HeadSource): void {
    this.eachToken(head, keys.tokens, (page, at, n) => {
      copyRow(keys, n, page.k, at);
      copyRow(values, n, page.v, at);
      page.marks[at] = (isFiniteRow(keys, n) ? 0 : 1) | (isFiniteRow(values, n) ? 0 : 2);
    });
  }

  private quantise(
    head: number,
    keys: HeadSource,
    values: HeadSource,
    precision: PackedCachePrecision,
  ): void {
    const {qkDim, vDim} = this.shape;
    const mean = this.mean.subarray(head * qkDim, (head + 1) * qkDim);
    if (this.length === 0) mean.set(frozenMean(keys));
    const k = quantizeCacheKeys(keys, mean, precision);
    const v = quantizeCacheValues(values, precision);
    this.eachToken(head, keys.tokens, (page, at, n) => {
      page.k.set(k.codes.subarray(n * qkDim, (n + 1) * qkDim), at * qkDim);
      page.v.set(v.codes.subarray(n * vDim, (n + 1) * vDim), at * vDim);
      page.kScale[at] = k.scale[n]!;
      page.vScale[at] = v.scale[n]!;
      page.marks[at] = k.notFinite[n]! | (v.notFinite[n]! << 1);
    });
  }

  /** Calls `write` with the page and place of each new token n. */
  private eachToken(
    head: number,
    tokens: number,
    write: (page: CachePage, at: number, n: number) => void,
  ): void {
    for (let n = 0; n < tokens; n++) {
      const token = this.length + n;
      const page = this.pages[Math.floor(token / CACHE_BLOCK)]!;
      write(page, head * CACHE_BLOCK + (token % CACHE_BLOCK), n);
    }
  }
}

function headOf(data: Float32Array, head: number, tokens: number, dim: number): HeadSource {
  return {data, offset: head * tokens * dim, tokenStride: dim, tokens, dim};
}

function copyRow({data, offset, dim}: HeadSource, n: number, to: CachePage['v'], at: number): void {
  for (let d = 0; d < dim; d++) to[at * dim + d] = data[offset + n * dim + d]!;
}

function isFiniteRow({data, offset, dim}: HeadSource, n: number): boolean {
  for (let i = offset + n * dim; i < offset + (n + 1) * dim; i++) {
    if (data[i]! - data[i]! !== 0) return false;
  }
  return true;
}
