/** What a recipe costs on the user's own tensors. */
import * as tf from '@tensorflow/tfjs-core';
import {sageAttentionAsync, type SageAttentionAsyncOptions} from '../ops/sage_attention_async.js';
import {compareArrays, type AccuracyMetrics} from './metrics.js';

/** Options of `sageAttentionAsync`; `returnLse` has no meaning here. */
export type CompareAttentionOptions = Omit<SageAttentionAsyncOptions, 'returnLse'>;

/**
 * Runs attention by `options` and by `precision: 'exact'` on the same tensors and compares the outputs.
 *
 * ```js
 * const {cosine, relativeL1} = await compareAttention(q, k, v, {precision: 'fp4', isCausal: true});
 * ```
 *
 * @param options As of `sageAttentionAsync`, without `returnLse`.
 * @returns A promise of `{cosine, relativeL1, rmse, maxAbs}`; misuse rejects with a SageAttentionError.
 */
export async function compareAttention(
  q: tf.Tensor | tf.TensorLike,
  k: tf.Tensor | tf.TensorLike,
  v: tf.Tensor | tf.TensorLike,
  options: CompareAttentionOptions = {},
): Promise<AccuracyMetrics> {
  const outputs = await attendBothWays(q, k, v, options);
  try {
    const [actual, expected] = await Promise.all(outputs.map((output) => output.data()));
    return compareArrays(actual ?? [], expected ?? []);
  } finally {
    tf.dispose(outputs);
  }
}

/** o by the options and o by `exact`. Both start at once, so that the caller may dispose the inputs. */
async function attendBothWays(
  q: tf.Tensor | tf.TensorLike,
  k: tf.Tensor | tf.TensorLike,
  v: tf.Tensor | tf.TensorLike,
  options: CompareAttentionOptions,
): Promise<tf.Tensor[]> {
  const {isCausal, mask, scale, layout, windowSize, signal} = options;
  const settled = await Promise.allSettled<tf.Tensor>([
    sageAttentionAsync(q, k, v, {...options, returnLse: false}),
    sageAttentionAsync(q, k, v, {
      isCausal,
      mask,
      scale,
      layout,
      windowSize,
      signal,
      precision: 'exact',
    }),
  ]);
  const failed = settled.find((result) => result.status === 'rejected');
  const outputs = settled.flatMap((result) =>
    result.status === 'fulfilled' ? [result.value] : [],
  );
  if (failed === undefined) return outputs;
  tf.dispose(outputs);
  throw failed.reason;
}
