/** A key/value cache for decoding: tokens are appended once, in the form that attention reads. */
import * as tf from '@tensorflow/tfjs-core';
import type {CacheStore} from '../engines/kv_cache.js';
import {nativeEngine} from '../engines/native.js';
import {createNativeCache} from '../engines/native_kv_cache.js';
import {TypescriptCacheStore} from '../engines/typescript/kv_cache.js';
import {resolveRecipe, type Recipe} from '../numerics/recipes.js';
import type {CachePrecision} from '../numerics/kv_cache.js';
import {attentionTensor, maskStrides, maskTensor, tokenStrides} from '../ops/tensor_arguments.js';
import type {AttentionProblem} from '../problem.js';
import {sageConfig} from '../runtime/config.js';
import {SageAttentionError} from '../runtime/errors.js';
import {loadAddon} from '../runtime/load_addon.js';
import {
  checkAttendOptions,
  checkCacheOptions,
  requireSize,
  type CheckedCacheOptions,
  type SageKvCacheAttendOptions,
  type SageKvCacheOptions,
} from './cache_options.js';

export type {SageKvCacheAttendOptions, SageKvCacheOptions} from './cache_options.js';

const CLASS = 'SageKvCache';
/** Not read by a cache; a problem has one. */
const NO_RECIPE = resolveRecipe('exact', {}) as Recipe;
const NO_MASK = {batch: 0, head: 0, query: 0, key: 0};

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
 * Works on every tfjs backend; the arithmetic runs on the CPU, by the native engine where there is one. Not
 * differentiable. tf.memory() does not count it: `bytes` tells its size.
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

  /** Which engine computes: `'native'` or `'typescript'`. */
  get engine(): CacheStore['engine'] {
    return this.held('engine').engine;
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
   * Adds tokens. With precision `'int8'` the first append freezes the channel means of k that are taken out before
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
    tf.tidy(() => {
      const $k = attentionTensor(operation, 'k', k);
      const $v = attentionTensor(operation, 'v', v);
      const n = $k.shape[2] ?? 0;
      requireShape(operation, 'k', $k, [batch, kvHeads, n, headDim]);
      requireShape(operation, 'v', $v, [batch, kvHeads, n, valueDim]);
      store.append(floatsOf($k), floatsOf($v), n);
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
    const checked = checkAttendOptions(operation, options);
    const {batch, heads, kvHeads, headDim, valueDim} = this.options;
    return tf.tidy(() => {
      const $q = attentionTensor(operation, 'q', q);
      const qLen = $q.shape[2] ?? 0;
      requireShape(operation, 'q', $q, [batch, heads, qLen, headDim]);
      const sizes = {
        batch,
        qHeads: heads,
        kvHeads,
        qLen,
        kvLen: this.tokens,
        qkDim: headDim,
        vDim: valueDim,
      };
      const mask = checked.mask === null ? null : maskTensor(operation, checked.mask);
      const problem: AttentionProblem = {
        ...sizes,
        q: tokenStrides(heads, qLen, headDim, 'HND'),
        k: tokenStrides(kvHeads, this.tokens, headDim, 'HND'),
        v: tokenStrides(kvHeads, this.tokens, valueDim, 'HND'),
        o: tokenStrides(heads, qLen, valueDim, 'HND'),
        scale: Number.isNaN(checked.scale) ? 1 / Math.sqrt(headDim) : checked.scale,
        causal: checked.causal,
        windowLeft: checked.windowLeft,
        windowRight: checked.windowRight,
        maskKind: mask === null ? 'none' : mask.dtype === 'bool' ? 'boolean' : 'additive',
        mask: mask === null ? NO_MASK : maskStrides(operation, mask.shape, 4, sizes),
        wantLse: checked.returnLse,
        recipe: NO_RECIPE,
      };
      const rows = batch * heads * qLen;
      const o = new Float32Array(rows * valueDim);
      const lse = checked.returnLse ? new Float32Array(rows) : null;
      if (this.tokens === 0) lse?.fill(-Infinity);
      else if (rows > 0) {
        store.attend(problem, {
          q: floatsOf($q),
          mask: mask === null ? null : (mask.dataSync() as Float32Array | Uint8Array),
          o,
          lse,
        });
      }
      const output = tf.tensor4d(o, [batch, heads, qLen, valueDim]);
      if (lse === null) return output;
      return [output, tf.tensor3d(lse, [batch, heads, qLen])] as [tf.Tensor4D, tf.Tensor3D];
    });
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

/** The native engine's cache, also beside the engine `cuda`; TypeScript's where there is none or it is required. */
function createStore({
  batch,
  kvHeads,
  headDim,
  valueDim,
  precision,
  capacity,
}: CheckedCacheOptions): CacheStore {
  const shape = {batch, kvHeads, qkDim: headDim, vDim: valueDim, precision};
  const {engine: required} = sageConfig();
  const {engine, reason} = nativeEngine();
  const {addon} = loadAddon();
  if (engine !== null && addon !== null && ['auto', 'native', 'cuda'].includes(required)) {
    return createNativeCache(addon, shape, capacity);
  }
  if (required === 'native') {
    throw new SageAttentionError({
      code: 'unsupported-engine',
      argument: 'engine',
      message: `${CLASS}: engine 'native' is required and not available: ${reason}.`,
      hint: `configureSageAttention({engine: 'auto'}) lets the package choose.`,
    });
  }
  return new TypescriptCacheStore(shape);
}

/** The tensor's values on the host; read, never written. */
function floatsOf(tensor: tf.Tensor): Float32Array {
  return tensor.dataSync() as Float32Array;
}

function requireShape(
  operation: string,
  name: 'q' | 'k' | 'v',
  tensor: tf.Tensor,
  wanted: readonly number[],
): void {
  if (tensor.rank !== 4) {
    throw new SageAttentionError({
      code: 'unsupported-rank',
      argument: name,
      message: `${operation}: \`${name}\` has rank ${tensor.rank} (shape [${tensor.shape}]), expected rank 4.`,
      hint: 'Reshape it to [batch, heads, tokens, head_dim].',
    });
  }
  if (tensor.shape.every((size, axis) => size === wanted[axis])) return;
  throw new SageAttentionError({
    code: 'shape-mismatch',
    argument: name,
    message: `${operation}: \`${name}\` has shape [${tensor.shape}], expected [${wanted}].`,
    hint: 'The sizes of a cache are those it was made with; q, k and v are [batch, heads, tokens, head_dim].',
  });
}
