// The parts of a transformer block beside attention, on [rows, width] matrices: 2-D products take the fast path of
// every backend, batched ones do not.

import type * as tf from '@tensorflow/tfjs-core';
import {type Activation, mlp as activatedMlp} from '../layers/activations.js';
import type {Gpt2Activation} from './config.js';
import type {LinearWeights} from './weights.js';

export {linear} from '../layers/linear.js';
export {layerNorm} from '../layers/norms.js';

const ACTIVATIONS: Readonly<Record<Gpt2Activation, Activation>> = {
  gelu_new: 'gelu_tanh',
  gelu: 'gelu',
  relu: 'relu',
};

/** The MLP: linear, activation, linear. */
export function mlp(
  x: tf.Tensor2D,
  into: LinearWeights,
  out: LinearWeights,
  activation: Gpt2Activation,
): tf.Tensor2D {
  return activatedMlp(x, into, out, ACTIVATIONS[activation]);
}
