/** Making the op reachable as `q.sageAttention(k, v)` everywhere and as `tf.sageAttention` where modules are open. */
import * as tf from '@tensorflow/tfjs-core';
import {platform} from '#platform';
import {sageAttention} from './ops/sage_attention.js';
import type {SageAttentionOptions} from './ops/options.js';
import {describeValue, SageAttentionError} from './runtime/errors.js';

declare module '@tensorflow/tfjs-core/dist/tensor.js' {
  interface Tensor<R extends tf.Rank = tf.Rank> {
    /** `sageAttention(this, k, v, options)`: attention with this tensor as q. */
    sageAttention(
      k: tf.Tensor | tf.TensorLike,
      v: tf.Tensor | tf.TensorLike,
      options?: SageAttentionOptions & {returnLse?: false | undefined},
    ): tf.Tensor<R>;
    sageAttention(
      k: tf.Tensor | tf.TensorLike,
      v: tf.Tensor | tf.TensorLike,
      options: SageAttentionOptions & {returnLse: true},
    ): [o: tf.Tensor<R>, lse: tf.Tensor];
    sageAttention(
      k: tf.Tensor | tf.TensorLike,
      v: tf.Tensor | tf.TensorLike,
      options?: SageAttentionOptions,
    ): tf.Tensor<R> | [o: tf.Tensor<R>, lse: tf.Tensor];
  }
}

/** What `install` adds to a tfjs namespace. */
export interface SageAttentionNamespace {
  readonly sageAttention: typeof sageAttention;
}

/** Packages whose CommonJS module objects are open. `tfjs` built on an open `tfjs-core` inherits from it. */
const TFJS_PACKAGES = [
  '@tensorflow/tfjs-core',
  '@tensorflow/tfjs',
  '@tensorflow/tfjs-node',
  '@tensorflow/tfjs-node-gpu',
];

const METHOD = {
  value(
    this: tf.Tensor,
    k: tf.Tensor | tf.TensorLike,
    v: tf.Tensor | tf.TensorLike,
    options?: SageAttentionOptions,
  ) {
    return sageAttention(this, k, v, options);
  },
  writable: true,
  configurable: true,
};

const EXPORT = {value: sageAttention, writable: true, enumerable: true, configurable: true};

/**
 * Adds `sageAttention` to a tfjs namespace and to its tensors.
 *
 * ```js
 * const tf = install(await import('@tensorflow/tfjs'));
 * tf.sageAttention(q, k, v);
 * ```
 *
 * @param namespace What `require` or `import * as` gave for a tfjs package.
 * @returns The same object where it can be extended; a frozen ES module namespace stays as it is, and the result is
 *   an object that inherits from it.
 * @throws SageAttentionError `invalid-option` when it is no tfjs namespace.
 */
export function install<T extends object>(namespace: T): T & SageAttentionNamespace {
  const {Tensor} = (namespace ?? {}) as {Tensor?: {prototype?: object}};
  if (typeof namespace !== 'object' || typeof Tensor?.prototype !== 'object') {
    throw new SageAttentionError({
      code: 'invalid-option',
      argument: 'namespace',
      message: `install: \`namespace\` is ${describeValue(namespace)}, expected the tfjs namespace.`,
      hint: `Pass what require('@tensorflow/tfjs') or import * as tf gave.`,
    });
  }
  Object.defineProperty(Tensor.prototype, 'sageAttention', METHOD);
  if (!Object.isExtensible(namespace)) {
    return Object.create(namespace, {sageAttention: EXPORT}) as T & SageAttentionNamespace;
  }
  return Object.defineProperty(namespace, 'sageAttention', EXPORT) as T & SageAttentionNamespace;
}

/** At import: every tensor gets the method, and tfjs packages that CommonJS has loaded get the function. */
export function installEverywhere(): void {
  Object.defineProperty(tf.Tensor.prototype, 'sageAttention', METHOD);
  for (const name of TFJS_PACKAGES) {
    const loaded = platform.loadedModule(name);
    if (typeof loaded !== 'object' || loaded === null || !Object.isExtensible(loaded)) continue;
    Object.defineProperty(loaded, 'sageAttention', EXPORT);
  }
}
