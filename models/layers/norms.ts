// Normalisation of rows, [rows, width].

import * as tf from '@tensorflow/tfjs-core';

/** Scale and shift of a layer norm, [width] each. */
export interface NormWeights {
  readonly gamma: tf.Tensor1D;
  readonly beta: tf.Tensor1D;
}

/** Layer norm over the last axis: (x - mean) / sqrt(variance + epsilon) * gamma + beta. */
export function layerNorm(
  x: tf.Tensor2D,
  {gamma, beta}: NormWeights,
  epsilon: number,
): tf.Tensor2D {
  return tf.add(tf.mul(normalise(x, epsilon), gamma), beta);
}

/** Layer norm without scale and shift: (x - mean) / sqrt(variance + epsilon). */
export function normalise(x: tf.Tensor2D, epsilon: number): tf.Tensor2D {
  const centred = tf.sub(x, tf.mean(x, 1, true));
  const variance = tf.mean(tf.square(centred), 1, true);
  return tf.mul(centred, tf.rsqrt(tf.add(variance, epsilon)));
}

/** RMS norm over the last axis (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + epsilon) * gamma. */
export function rmsNorm<T extends tf.Tensor>(x: T, gamma: tf.Tensor1D, epsilon: number): T {
  const meanSquare = tf.mean(tf.square(x), -1, true);
  return tf.mul(tf.mul(x, tf.rsqrt(tf.add(meanSquare, epsilon))), gamma);
}
