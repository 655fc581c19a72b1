// Affine maps of rows. Weights are kept [in, out]: a product with a transposed factor is many times slower on wasm.

import * as tf from '@tensorflow/tfjs-core';

/** x w + b, with w [in, out] and b [out]; b may be missing. */
export interface LinearWeights {
  readonly w: tf.Tensor2D;
  readonly b?: tf.Tensor1D | undefined;
}

/** x w + b in one kernel, with an activation that tfjs can fuse. */
export function linear(
  x: tf.Tensor2D,
  {w, b}: LinearWeights,
  activation: 'linear' | 'relu' = 'linear',
): tf.Tensor2D {
  if (b === undefined && activation === 'linear') return tf.matMul(x, w);
  return tf.fused.matMul({
    a: x,
    b: w,
    ...(b === undefined ? {} : {bias: b}),
    activation,
  }) as tf.Tensor2D;
}
