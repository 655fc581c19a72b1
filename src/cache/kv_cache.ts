/** A key/value cache for decoding: tokens are appended once, in the form that attention reads. */
import * as tf from '@tensorflow/tfjs-core';
import {chooseCacheEngine} from '../engines/choose_cache_engine.js';
import {lastCudaRefusal} from '../engines/cuda.js';
import {createCudaCache} from '../engines/cuda_kv_cache.js';
import type {CacheStore} from '../engines/kv_cache.js';
import {nativeEngine} from '../engines/native.js';
import {createNativeCache} from '../engines/native_kv_cache.js';
import {TypescriptCacheStore} from '../engines/typescript/kv_cache.js';
import {appendInTensorflow, attendInTensorflow} from '../kernels/kv_cache_op.js';
import type {CachePrecision} from '../numerics/kv_cache.js';
import {splitSignal} from '../ops/signal_option.js';
import {attentionTensor} from '../ops/tensor_arguments.js';
import {SageAttentionError} from '../runtime/errors.js';
import {loadAddon} from '../runtime/load_addon.js';
import {isEmptyCall, prepareAttend, requireShape, type AttendCall} from './attend_call.js';
import {
  checkCacheOptions,
  requireSize,
  type CheckedCacheOptions,
  type SageKvCacheAttendAsyncOptions,
  type SageKvCacheAttendOptions,
  type SageKvCacheOptions,
} from './cache_options.js';

export type {
  SageKvCacheAttendAsyncOptions,
  SageKvCacheAttendOptions,
  SageKvCacheOptions,
} from './cache_options.js';

const CLASS = 'SageKvCache';

/**
 * Keys and values of the tokens of one attention layer, and attention over them (docs/kv_cache.md).
 *
 * ```js
 * const cache = new SageKvCache({batch: 1, heads: 32, kvHeads: 8, headDim: 128});
 * cache.append(k, v);           // the prompt, [1, 8, n, 128]
 * let o = cache.attend(q);      // [1, 32, n, 128]; query i sees tokens 0..i
 * cache.append(k1, v1);         // the next token, [1, 8, 1, 128]
 * o = cache.attend(q1);         // [1, 32, 1, 128]
 * cache.dispose();
 * ```
 *
 * Works on every tfjs backend. The engine is chosen when a cache is made: `cuda` where it is required or tensors lie on
 * a GPU, else the native engine, else TypeScript. Not differentiable. tf.memory() does not count it: `bytes` tells its size.
 */
export class SageKvCache {
  /** How k and v are held. */
  readonly precision: CachePrecision;
  private store: CacheStore | null;
  private tokens = 0;
  private readonly options: CheckedCacheOptions;

  /**
   * @param options batch, heads, headDim; kvHeads (default: heads), valueDim (default: headDim), precision (default
   *   `'auto'`), capacity in tokens (default 0).
   * @throws SageAttentionError `invalid-option`, `unknown-option`, `unsupported-engine`, `engine-failed`.
   */
  constructor(options: SageKvCacheOptions) {
    this.options = checkCacheOptions(CLASS, options);
    this.precision = this.options.precision;
    this.store = createStore(this.options);
  }

  /** Tokens held. */
  get length(): number {
    return this.tokens;
  }

  /** Which engine holds the tokens and computes: `'cuda'`, `'native'` or `'typescript'`. */
  get engine(): CacheStore['engine'] {
    return this.held('engine').engine;
  }

  /** One sentence: why that engine, and not another. */
  get engineReason(): string {
    return this.held('engineReason').reason;
  }

  /** Bytes of all tokens held, reserved room and pages shared with forks included. */
  get bytes(): number {
    return this.held('bytes').bytes;
  }

  /** Whether `dispose` was called. */
  get isDisposed(): boolean {
    return this.store === null;
  }

  /**
   * Adds tokens. Unless `precision` is `'exact'`, the first append freezes the channel means of k that are taken out before
   * quantising (any constant is exact under softmax), so let it be the prompt rather than one token.
   *
   * @param k float32 [batch, kvHeads, n, headDim]; n may be 0.
   * @param v float32 [batch, kvHeads, n, valueDim].
   * @returns The cache.
   */
  append(k: tf.Tensor | tf.TensorLike, v: tf.Tensor | tf.TensorLike): this {
    const operation = `${CLASS}.append`;
    const store = this.held('append');
    const {headDim, valueDim, batch, kvHeads} = this.options;
    tidyUnlessTensors([k, v], () => {
      const $k = attentionTensor(operation, 'k', k);
      const $v = attentionTensor(operation, 'v', v);
      const n = $k.shape[2] ?? 0;
      requireShape(operation, 'k', $k, [batch, kvHeads, n, headDim]);
      requireShape(operation, 'v', $v, [batch, kvHeads, n, valueDim]);
      if (n === 0 || !appendInTensorflow(store, $k, $v)) {
        store.append(floatsOf($k), floatsOf($v), n);
      }
      this.tokens += n;
    });
    return this;
  }

  /**
   * Attention of new queries over all tokens held.
   *
   * @param q float32 [batch, heads, n, headDim]: by default query i sees the tokens up to length - n + i.
   * @param options isCausal (default `'bottom_right'`), mask, scale, windowSize, returnLse: as in `sageAttention`, with
   *   kv_len = `length`.
   * @returns o, float32 [batch, heads, n, valueDim]; with `returnLse` `[o, lse]`, lse [batch, heads, n].
   * @throws SageAttentionError for every misuse; docs/errors.md lists the codes.
   */
  attend(
    q: tf.Tensor | tf.TensorLike,
    options?: SageKvCacheAttendOptions & {returnLse?: false | undefined},
  ): tf.Tensor4D;
  attend(
    q: tf.Tensor | tf.TensorLike,
    options: SageKvCacheAttendOptions & {returnLse: true},
  ): [o: tf.Tensor4D, lse: tf.Tensor3D];
  attend(
    q: tf.Tensor | tf.TensorLike,
    options?: SageKvCacheAttendOptions,
  ): tf.Tensor4D | [o: tf.Tensor4D, lse: tf.Tensor3D];
  attend(
    q: tf.Tensor | tf.TensorLike,
    options?: SageKvCacheAttendOptions,
  ): tf.Tensor4D | [o: tf.Tensor4D, lse: tf.Tensor3D] {
    const operation = `${CLASS}.attend`;
    const store = this.held('attend');
    return tidyUnlessTensors([q, options?.mask], () => {
      const call = prepareAttend(operation, this.options, this.tokens, q, options);
      const {mask, o, lse} = call;
      if (!isEmptyCall(call)) {
        const outputs = attendInTensorflow(store, call.problem, call.q, mask);
        if (outputs !== null) return onlyOrBoth(outputs);
        const values = (mask?.dataSync() ?? null) as Float32Array | Uint8Array | null;
        store.attend(call.problem, {q: floatsOf(call.q), mask: values, o, lse});
      }
      return resultsOf(call);
    });
  }

  /**
   * `attend` that computes off the event loop: native threads, or slices of a few milliseconds in TypeScript. It attends
   * to the tokens held when it is called; the cache may be changed or disposed, q and the mask disposed, right after.
   * Its results belong to no tf.tidy(): dispose them yourself.
   *
   * @param options As of `attend`, and `signal`: an abort rejects with its reason.
   * @returns A promise of what `attend` returns. Misuse rejects with a SageAttentionError.
   */
  async attendAsync(
    q: tf.Tensor | tf.TensorLike,
    options?: SageKvCacheAttendAsyncOptions & {returnLse?: false | undefined},
  ): Promise<tf.Tensor4D>;
  async attendAsync(
    q: tf.Tensor | tf.TensorLike,
    options: SageKvCacheAttendAsyncOptions & {returnLse: true},
  ): Promise<[o: tf.Tensor4D, lse: tf.Tensor3D]>;
  async attendAsync(
    q: tf.Tensor | tf.TensorLike,
    options?: SageKvCacheAttendAsyncOptions,
  ): Promise<tf.Tensor4D | [o: tf.Tensor4D, lse: tf.Tensor3D]>;
  async attendAsync(
    q: tf.Tensor | tf.TensorLike,
    options?: SageKvCacheAttendAsyncOptions,
  ): Promise<tf.Tensor4D | [o: tf.Tensor4D, lse: tf.Tensor3D]> {
    const operation = `${CLASS}.attendAsync`;
    const store = this.held('attendAsync');
    const {signal, opOptions} = splitSignal<SageKvCacheAttendOptions>(operation, options);
    signal?.throwIfAborted();
    const call = keepInputs(() =>
      prepareAttend(operation, this.options, this.tokens, q, opOptions),
    );
    let fork: CacheStore | null = null;
    try {
      if (isEmptyCall(call)) return resultsOf(call);
      // A GPU computes beside the event loop anyway.
      const outputs =
        store.engine === 'cuda' ? attendInTensorflow(store, call.problem, call.q, call.mask) : null;
      if (outputs !== null) {
        const kept = outputs.map((output) => tf.keep(output));
        // The work is on its way and cannot be called back, but whoever aborts in this turn gets no result.
        await Promise.resolve();
        if (signal?.aborted === true) tf.dispose(kept);
        signal?.throwIfAborted();
        return onlyOrBoth(kept);
      }
      fork = store.fork();
      const {mask, o, lse} = call;
      const [queries, values] = await Promise.all([
        call.q.data<'float32'>(),
        mask === null ? null : mask.data(),
      ]);
      const buffers = {q: queries, mask: values as Float32Array | Uint8Array | null, o, lse};
      await fork.attendAsync(call.problem, buffers, signal);
      return resultsOf(call);
    } finally {
      fork?.dispose();
      tf.dispose([call.q, ...(call.mask === null ? [] : [call.mask])]);
    }
  }

  /**
   * Forgets all tokens from `length` on, as after a rejected draft. At 0 the next append freezes new means.
   * @throws SageAttentionError `invalid-option` unless 0 <= length <= `this.length`.
   */
  truncate(length: number): this {
    const store = this.held('truncate');
    requireSize(`${CLASS}.truncate`, 'length', length, 0, this.tokens);
    store.truncate(length);
    this.tokens = length;
    return this;
  }

  /** A cache with the same tokens that goes its own way, as for a beam. Memory is shared until one of the two writes. */
  fork(): SageKvCache {
    const store = this.held('fork').fork();
    const fork = Object.create(SageKvCache.prototype) as {
      -readonly [K in keyof SageKvCache]: SageKvCache[K];
    } & SageKvCache;
    Object.assign(fork, {
      precision: this.precision,
      options: this.options,
      tokens: this.tokens,
      store,
    });
    return fork;
  }

  /** Frees the memory. Calling it again does nothing; any other use throws `disposed-cache`. */
  dispose(): void {
    this.store?.dispose();
    this.store = null;
    this.tokens = 0;
  }

  private held(method: string): CacheStore {
    if (this.store !== null) return this.store;
    throw new SageAttentionError({
      code: 'disposed-cache',
      argument: null,
      message: `${CLASS}.${method}: the cache has been disposed.`,
      hint: 'Make a new one, or fork() it before disposing it.',
    });
  }
}

/** The store of the engine that is chosen, or of the next one where that has no memory. */
function createStore({
  batch,
  kvHeads,
  headDim,
  valueDim,
  precision,
  capacity,
}: CheckedCacheOptions): CacheStore {
  const shape = {batch, kvHeads, qkDim: headDim, vDim: valueDim, precision};
  const choice = chooseCacheEngine(tf.getBackend(), shape);
  const {engine: native, reason} = nativeEngine();
  const {addon} = loadAddon();
  if (choice === null) {
    throw new SageAttentionError({
      code: 'unsupported-engine',
      argument: 'engine',
      message: `${CLASS}: engine 'native' is required and not available: ${reason}.`,
      hint: `configureSageAttention({engine: 'auto'}) lets the package choose.`,
    });
  }
  if (choice.engine === 'cuda' && addon !== null) {
    const store = createCudaCache(addon, shape, capacity, choice.reason);
    if (store !== null) return store;
    const why = `${reason}; not on a GPU: ${lastCudaRefusal()}`;
    if (native !== null) return createNativeCache(addon, shape, capacity, why);
  }
  if (choice.engine === 'native' && addon !== null) {
    return createNativeCache(addon, shape, capacity, choice.reason);
  }
  return new TypescriptCacheStore(shape, choice.reason);
}

/** A call whose tensors are its own, whatever happens to those that were given. */
function keepInputs(prepare: () => AttendCall): AttendCall {
  let kept: AttendCall | null = null;
  tf.tidy(() => {
    const call = prepare();
    const own = (tensor: tf.Tensor): tf.Tensor => tf.keep(tf.clone(tensor));
    kept = {...call, q: own(call.q), mask: call.mask === null ? null : own(call.mask)};
  });
  return kept as unknown as AttendCall;
}

/** o, or o and lse. */
function onlyOrBoth(outputs: tf.Tensor[]): tf.Tensor4D | [o: tf.Tensor4D, lse: tf.Tensor3D] {
  const [o, lse] = outputs as [tf.Tensor4D, tf.Tensor3D?];
  return lse === undefined ? o : [o, lse];
}

/** What was computed, as tensors. */
function resultsOf({
  problem: {batch, qHeads, qLen, vDim},
  o,
  lse,
}: AttendCall): tf.Tensor4D | [o: tf.Tensor4D, lse: tf.Tensor3D] {
  const output = tensorOf(o, [batch, qHeads, qLen, vDim]) as tf.Tensor4D;
  if (lse === null) return output;
  return [output, tensorOf(lse, [batch, qHeads, qLen]) as tf.Tensor3D];
}

/** tf.tensor without its checks. */
function tensorOf(values: Float32Array, shape: number[]): tf.Tensor {
  return tf.engine().makeTensor(values, shape, 'float32');
}

/** `run`, in a tidy if any of its arguments may become a tensor that nobody else would dispose. */
function tidyUnlessTensors<T extends tf.TensorContainer>(
  given: readonly unknown[],
  run: () => T,
): T {
  const own = given.every((value) => value === undefined || value instanceof tf.Tensor);
  return own ? run() : tf.tidy(run);
}

/** The tensor's values on the host; read, never written. */
function floatsOf(tensor: tf.Tensor): Float32Array {
  return tensor.dataSync() as Float32Array;
}
