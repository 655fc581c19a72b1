/** What holds the tokens behind a SageKvCache: one interface; implementations on a GPU, native and in TypeScript. */
import type {CachePrecision} from '../numerics/kv_cache.js';
import type {AttentionProblem} from '../problem.js';
import type {ForwardBuffers} from './engine.js';

/** Sizes that never change. */
export interface CacheShape {
  readonly batch: number;
  readonly kvHeads: number;
  readonly qkDim: number;
  readonly vDim: number;
  readonly precision: CachePrecision;
}

/** What attention through the cache reads and writes beside the cache itself. */
export type CacheBuffers = Pick<ForwardBuffers, 'q' | 'mask' | 'o' | 'lse'>;

/** Lengths are kept by the caller; arguments are in range when they get here. */
export interface CacheStore {
  readonly engine: 'cuda' | 'native' | 'typescript';
  /** One sentence: why that engine. */
  readonly reason: string;
  /** By which ops inside TensorFlow find it; null where they cannot. */
  readonly number: number | null;
  /** Bytes of all tokens held, pages shared with forks included. */
  readonly bytes: number;
  /** k [B,Hkv,n,D], v [B,Hkv,n,Dv], contiguous. On failure nothing has changed. */
  append(k: Float32Array, v: Float32Array, tokens: number): void;
  truncate(length: number): void;
  /** A copy that shares what is there until one of the two writes. */
  fork(): CacheStore;
  /** Writes o and lse; `problem.kvLen` is the number of tokens held, its recipe is not read. */
  attend(problem: AttentionProblem, buffers: CacheBuffers): void;
  /** The same off the event loop. The store must neither change nor be disposed meanwhile: use a fork. */
  attendAsync(
    problem: AttentionProblem,
    buffers: CacheBuffers,
    signal?: AbortSignal,
  ): Promise<void>;
  dispose(): void;
}
