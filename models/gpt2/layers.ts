// The parts of a transformer block beside attention, on [rows, width] matrices: 2-D products take the fast path of
// every backend, batched ones do not.

import * as tf from '@tensorflow/tfjs-core';
import type {Gpt2Activation} from './config.js';
import type {LinearWeights, NormWeights} from './weights.js';

/** Layer norm over the last axis: (x - mean) / sqrt(variance + epsilon) * gamma + beta. */
export function layerNorm(
  x: tf.Tensor2D,
  {gamma, beta}: NormWeights,
  epsilon: number,
): tf.Tensor2D {
  const centred = tf.sub(x, tf.mean(x, 1, true));
  const variance = tf.mean(tf.square(centred), 1, true);
  const normalised: tf.Tensor2D = tf.mul(centred, tf.rsqrt(tf.add(variance, epsilon)));
  return tf.add(tf.mul(normalised, gamma), beta);
}

/** x w + b in one kernel, with an activation that tfjs can fuse. */
export function linear(
  x: tf.Tensor2D,
  {w, b}: LinearWeights,
  activation: 'linear' | 'relu' = 'linear',
): tf.Tensor2D {
  return tf.fused.matMul({a: x, b: w, bias: b, activation}) as tf.Tensor2D;
}

/** The MLP: linear, activation, linear. */
export function mlp(
  x: tf.Tensor2D,
  into: LinearWeights,
  out: LinearWeights,
  activation: Gpt2Activation,
): tf.Tensor2D {
  if (activation === 'relu') return linear(linear(x, into, 'relu'), out);
  const hidden = linear(x, into);
  return linear(activation === 'gelu_new' ? geluNew(hidden) : gelu(hidden), out);
}

/** sqrt(8 / pi): twice the sqrt(2 / pi) of the tanh form, see `geluNew`. */
const TWICE_ROOT_2_OVER_PI = Math.sqrt(8 / Math.PI);

/** Weight of the cubic term of the tanh form of GELU (Hendrycks and Gimpel 2016). */
const CUBIC = 0.044715;

/**
 * GELU by tanh: x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3). Since (1 + tanh(u)) / 2 = sigmoid(2u), it is
 * computed as x sigmoid(2u): the same function, five times faster on wasm, whose sigmoid is vectorised and tanh not.
 */
export function geluNew(x: tf.Tensor2D): tf.Tensor2D {
  const slope = tf.add(tf.mul(tf.square(x), TWICE_ROOT_2_OVER_PI * CUBIC), TWICE_ROOT_2_OVER_PI);
  return tf.mul(x, tf.sigmoid(tf.mul(x, slope)));
}

/** Exact GELU: x/2 (1 + erf(x / sqrt(2))). */
export function gelu(x: tf.Tensor2D): tf.Tensor2D {
  return tf.mul(tf.mul(x, 0.5), tf.add(tf.erf(tf.mul(x, Math.SQRT1_2)), 1));
}
