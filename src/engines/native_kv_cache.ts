/** The key/value cache of the native engine: pages in the addon's memory, read in place by its kernels. */
import type {CachePrecision} from '../numerics/kv_cache.js';
import {encodeProblem, PROBLEM_WORDS, type AttentionProblem} from '../problem.js';
import type {NativeAddon, NativeCache} from '../runtime/native_addon.js';
import type {CacheBuffers, CacheShape, CacheStore} from './kv_cache.js';
import {nativeEngine, runCancellable, wordFailure} from './native.js';

/** The addon's numbers of how k and v are held. */
const FORMS: Readonly<Record<CachePrecision, number>> = {
  exact: 0,
  int8: 1,
  int8_int16: 2,
  int16: 3,
};

/** Room for `capacity` tokens is taken at once. */
export function createNativeCache(
  addon: NativeAddon,
  shape: CacheShape,
  capacity: number,
  reason: string,
): CacheStore {
  const cache = worded(() => addon.cacheCreate(...cacheSizes(shape), capacity));
  return new NativeCacheStore(addon, cache, reason);
}

/** A shape as the addon takes it. */
export function cacheSizes({
  batch,
  kvHeads,
  qkDim,
  vDim,
  precision,
}: CacheShape): [batch: number, kvHeads: number, qkDim: number, vDim: number, form: number] {
  return [batch, kvHeads, qkDim, vDim, FORMS[precision]];
}

const words = new Float64Array(PROBLEM_WORDS);

export class NativeCacheStore implements CacheStore {
  readonly engine = 'native';

  constructor(
    private readonly addon: NativeAddon,
    private readonly cache: NativeCache,
    readonly reason: string,
  ) {}

  get number(): number | null {
    if ((this.addon as Partial<NativeAddon>).cacheNumber === undefined) return null;
    return worded(() => this.addon.cacheNumber(this.cache));
  }

  get bytes(): number {
    return worded(() => this.addon.cacheBytes(this.cache));
  }

  append(k: Float32Array, v: Float32Array, tokens: number): void {
    nativeEngine(); // brings threads and instruction set up to date
    worded(() => this.addon.cacheAppend(this.cache, k, v, tokens));
  }

  truncate(length: number): void {
    worded(() => this.addon.cacheTruncate(this.cache, length));
  }

  fork(): CacheStore {
    return new NativeCacheStore(
      this.addon,
      worded(() => this.addon.cacheFork(this.cache)),
      this.reason,
    );
  }

  attend(problem: AttentionProblem, {q, mask, o, lse}: CacheBuffers): void {
    nativeEngine();
    worded(() =>
      this.addon.cacheAttend(this.cache, encodeProblem(problem, words), q, mask, o, lse),
    );
  }

  async attendAsync(
    problem: AttentionProblem,
    {q, mask, o, lse}: CacheBuffers,
    signal?: AbortSignal,
  ): Promise<void> {
    nativeEngine();
    await runCancellable(signal, (cancelled) => {
      const encoded = encodeProblem(problem, words);
      return this.addon.cacheAttendAsync(this.cache, encoded, q, mask, o, lse, cancelled);
    });
  }

  dispose(): void {
    worded(() => this.addon.cacheDispose(this.cache));
  }
}

function worded<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw wordFailure(error);
  }
}
