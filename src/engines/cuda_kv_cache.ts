/**
 * The key/value cache in the memory of a GPU. What the GPU does not do for lack of memory or kernels, the native engine
 * does from then on: the codes move there, bit for bit.
 */
import type {AttentionProblem} from '../problem.js';
import {encodeProblem, PROBLEM_WORDS} from '../problem.js';
import {SageAttentionError} from '../runtime/errors.js';
import type {CudaCache, NativeAddon} from '../runtime/native_addon.js';
import {cudaEngine, isServedByNative, noteCudaRefusal} from './cuda.js';
import type {CacheBuffers, CacheShape, CacheStore} from './kv_cache.js';
import {nativeEngine, runCancellable, wordFailure} from './native.js';
import {cacheSizes, NativeCacheStore} from './native_kv_cache.js';

/** Why the device holds no caches of this shape; null when it does. */
export function cudaCacheRefusal(addon: NativeAddon, shape: CacheShape): string | null {
  if ((addon as Partial<NativeAddon>).cudaCacheSupports === undefined) {
    return 'the native addon was built before there was such a cache';
  }
  return addon.cudaCacheSupports(...cacheSizes(shape), 0);
}

/**
 * Room for `capacity` tokens is taken at once. Null where the device has none, and `noteCudaRefusal` tells why.
 * @param reason One sentence, why the GPU.
 */
export function createCudaCache(
  addon: NativeAddon,
  shape: CacheShape,
  capacity: number,
  reason: string,
): CacheStore | null {
  try {
    return new CudaCacheStore(addon, addon.cudaCacheCreate(...cacheSizes(shape), capacity), reason);
  } catch (error) {
    if (!isServedByNative(error)) throw wordFailure(error, 'CUDA');
    noteCudaRefusal(error);
    return null;
  }
}

const words = new Float64Array(PROBLEM_WORDS);

class CudaCacheStore implements CacheStore {
  /** The same tokens on the native engine, once the GPU has given up. */
  private moved: NativeCacheStore | null = null;

  constructor(
    private readonly addon: NativeAddon,
    private readonly cache: CudaCache,
    private readonly why: string,
  ) {}

  get engine(): CacheStore['engine'] {
    return this.moved?.engine ?? 'cuda';
  }

  get reason(): string {
    return this.moved?.reason ?? this.why;
  }

  get number(): number | null {
    if (this.moved !== null) return this.moved.number;
    bringUpToDate();
    return this.addon.cudaCacheNumber(this.cache);
  }

  get bytes(): number {
    return this.moved?.bytes ?? this.addon.cudaCacheBytes(this.cache);
  }

  append(k: Float32Array, v: Float32Array, tokens: number): void {
    this.run(
      () => this.addon.cudaCacheAppend(this.cache, k, v, tokens),
      (store) => store.append(k, v, tokens),
    );
  }

  truncate(length: number): void {
    this.run(
      () => this.addon.cudaCacheTruncate(this.cache, length),
      (store) => store.truncate(length),
    );
  }

  fork(): CacheStore {
    return this.run<CacheStore>(
      () => new CudaCacheStore(this.addon, this.addon.cudaCacheFork(this.cache), this.why),
      (store) => store.fork(),
    );
  }

  attend(problem: AttentionProblem, buffers: CacheBuffers): void {
    const {q, mask, o, lse} = buffers;
    this.run(
      () => this.addon.cudaCacheAttend(this.cache, encodeProblem(problem, words), q, mask, o, lse),
      (store) => store.attend(problem, buffers),
    );
  }

  async attendAsync(
    problem: AttentionProblem,
    buffers: CacheBuffers,
    signal?: AbortSignal,
  ): Promise<void> {
    if (this.moved === null) {
      bringUpToDate();
      const {q, mask, o, lse} = buffers;
      try {
        await runCancellable(signal, (cancelled) => {
          const encoded = encodeProblem(problem, words);
          return this.addon.cudaCacheAttendAsync(this.cache, encoded, q, mask, o, lse, cancelled);
        });
        return;
      } catch (error) {
        signal?.throwIfAborted();
        this.move(error instanceof SageAttentionError ? error.cause : error);
      }
    }
    await this.moved!.attendAsync(problem, buffers, signal);
  }

  dispose(): void {
    if (this.moved === null) this.addon.cudaCacheDispose(this.cache);
    else this.moved.dispose();
  }

  /** `onGpu`, or, from its first failure on, `onNative`. */
  private run<T>(onGpu: () => T, onNative: (store: NativeCacheStore) => T): T {
    if (this.moved === null) {
      bringUpToDate();
      try {
        return onGpu();
      } catch (error) {
        this.move(error);
      }
    }
    return onNative(this.moved!);
  }

  /** To the native engine, because of `error`. Errors of the call itself are thrown. */
  private move(error: unknown): void {
    if (!isServedByNative(error)) throw wordFailure(error, 'CUDA');
    noteCudaRefusal(error);
    const because = messageOf(error);
    let held;
    try {
      held = this.addon.cudaCacheToHost(this.cache);
    } catch (lost) {
      throw new SageAttentionError({
        code: 'engine-failed',
        argument: null,
        message: `SageKvCache: the tokens that the cache held on the GPU are lost: ${messageOf(lost)}.`,
        hint: 'Make a new cache and append them again: the next engine serves it.',
        cause: error,
      });
    }
    const reason = `${nativeEngine().reason}; moved there from the GPU: ${because}`;
    this.moved = new NativeCacheStore(this.addon, held, reason);
    this.addon.cudaCacheDispose(this.cache);
  }
}

/** Threads and the limit of device memory, as they are configured now. */
function bringUpToDate(): void {
  nativeEngine();
  cudaEngine();
}

function messageOf(error: unknown): string {
  const {message} = (error ?? {}) as {message?: unknown};
  return typeof message === 'string' ? message : String(error);
}
