// Images to rows of patches and back. A row holds a patch in the order channel, row, column, as PyTorch's convolutions do.

import * as tf from '@tensorflow/tfjs-core';

/**
 * [batch, channels, height, width] to [batch * patches, channels * size * size]; patches in rows, from the top left.
 *
 * @param size height and width of a patch, divisors of the image's
 */
export function cutPatches(image: tf.Tensor4D, size: number): tf.Tensor2D {
  const [batch, channels, height, width] = image.shape;
  const rows = height / size;
  const columns = width / size;
  // Two steps of rank 5, as not every backend transposes more axes.
  const bands = tf.transpose(
    tf.reshape(image, [batch, channels, rows, size, width]),
    [0, 2, 1, 3, 4],
  );
  const cells = tf.transpose(
    tf.reshape(bands, [batch * rows, channels * size, columns, size]),
    [0, 2, 1, 3],
  );
  return tf.reshape(cells, [batch * rows * columns, channels * size * size]);
}

/**
 * The inverse for rows in the order row, column, channel, as diffusion transformers give them:
 * [batch * rows * columns, size * size * channels] to [batch, channels, rows * size, columns * size].
 */
export function joinPatches(
  x: tf.Tensor2D,
  batch: number,
  rows: number,
  columns: number,
  size: number,
): tf.Tensor4D {
  const channels = x.shape[1] / (size * size);
  const cells = tf.transpose(
    tf.reshape(x, [batch * rows, columns, size, size * channels]),
    [0, 2, 1, 3],
  );
  const image: tf.Tensor4D = tf.reshape(cells, [batch, rows * size, columns * size, channels]);
  return tf.transpose<tf.Tensor4D>(image, [0, 3, 1, 2]);
}
