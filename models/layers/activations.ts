// Activations of the models' MLPs, and the names that config.json files give them.

import * as tf from '@tensorflow/tfjs-core';
import {linear, type LinearWeights} from './linear.js';

/** `gelu_tanh` is GELU by tanh, `gelu` the exact one by erf, `silu` is x sigmoid(x). */
export type Activation = 'gelu_tanh' | 'gelu' | 'relu' | 'silu';

/** The names of Hugging Face's files. */
export const ACTIVATIONS: ReadonlyMap<unknown, Activation> = new Map([
  ['gelu', 'gelu'],
  ['gelu_new', 'gelu_tanh'],
  ['gelu_fast', 'gelu_tanh'],
  ['gelu_pytorch_tanh', 'gelu_tanh'],
  ['relu', 'relu'],
  ['silu', 'silu'],
  ['swish', 'silu'],
]);

const FUNCTIONS: Readonly<Record<Activation, (x: tf.Tensor2D) => tf.Tensor2D>> = {
  gelu_tanh: geluTanh,
  gelu,
  relu: (x) => tf.relu(x),
  silu,
};

/** Applies an activation. */
export function activate(x: tf.Tensor2D, activation: Activation): tf.Tensor2D {
  return FUNCTIONS[activation](x);
}

/** The MLP of a transformer block: linear, activation, linear. */
export function mlp(
  x: tf.Tensor2D,
  into: LinearWeights,
  out: LinearWeights,
  activation: Activation,
): tf.Tensor2D {
  if (activation === 'relu') return linear(linear(x, into, 'relu'), out);
  return linear(activate(linear(x, into), activation), out);
}

/** sqrt(8 / pi): twice the sqrt(2 / pi) of the tanh form, see `geluTanh`. */
const TWICE_ROOT_2_OVER_PI = Math.sqrt(8 / Math.PI);

/** Weight of the cubic term of the tanh form of GELU (Hendrycks and Gimpel 2016). */
const CUBIC = 0.044715;

/**
 * GELU by tanh: x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3). Since (1 + tanh(u)) / 2 = sigmoid(2u), it is
 * computed as x sigmoid(2u): the same function, five times faster on wasm, whose sigmoid is vectorised and tanh not.
 */
export function geluTanh(x: tf.Tensor2D): tf.Tensor2D {
  const slope = tf.add(tf.mul(tf.square(x), TWICE_ROOT_2_OVER_PI * CUBIC), TWICE_ROOT_2_OVER_PI);
  return tf.mul(x, tf.sigmoid(tf.mul(x, slope)));
}

/** Exact GELU: x/2 (1 + erf(x / sqrt(2))). */
export function gelu(x: tf.Tensor2D): tf.Tensor2D {
  return tf.mul(tf.mul(x, 0.5), tf.add(tf.erf(tf.mul(x, Math.SQRT1_2)), 1));
}

/** SiLU: x sigmoid(x). */
export function silu(x: tf.Tensor2D): tf.Tensor2D {
  return tf.mul(x, tf.sigmoid(x));
}
