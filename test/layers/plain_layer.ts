/** MultiHeadAttention and GroupQueryAttention written down once more, by matMul and softmax, as the tests' reference. */
import * as tf from '@tensorflow/tfjs-core';

export interface PlainCall {
  query: tf.Tensor;
  value?: tf.Tensor;
  key?: tf.Tensor;
  /** bool, broadcastable to [B,H,T,S]. */
  mask?: tf.Tensor;
  gate?: boolean;
}

/** By name: `query/kernel` and the others. */
export type Weights = Readonly<Record<string, tf.Tensor>>;

export function weightsOf(layer: {
  name: string;
  weights: {originalName: string; read(): tf.Tensor}[];
}): Weights {
  return Object.fromEntries(
    layer.weights.map((weight) => [
      weight.originalName.slice(weight.originalName.indexOf('/') + 1),
      weight.read(),
    ]),
  );
}

/** Output [B,T,width] and scores [B,H,T,S]. */
export function plainLayer(
  weights: Weights,
  {query, value = query, key = value, mask, gate = false}: PlainCall,
): [output: tf.Tensor, scores: tf.Tensor] {
  const project = (name: string, x: tf.Tensor): tf.Tensor => {
    const kernel = weights[`${name}/kernel`] as tf.Tensor;
    const [width = 1, heads = 1, dim = 1] = kernel.shape;
    const wide = kernel.reshape([1, width, heads * dim]);
    const [batch = 1, tokens = 1] = x.shape;
    const projected = tf
      .matMul(x, tf.tile(wide, [batch, 1, 1]))
      .reshape([batch, tokens, heads, dim]);
    const bias = weights[`${name}/bias`];
    return (bias === undefined ? projected : tf.add(projected, bias)).transpose([0, 2, 1, 3]);
  };
  const q = project('query', query);
  const heads = q.shape[1] as number;
  const repeat = (x: tf.Tensor): tf.Tensor => {
    const times = heads / (x.shape[1] as number);
    const parts = tf.unstack(x, 1).flatMap((head) => new Array<tf.Tensor>(times).fill(head));
    return tf.stack(parts, 1);
  };
  const k = repeat(project('key', key));
  const v = repeat(project('value', value));
  const logits = tf.mul(tf.matMul(q, k, false, true), 1 / Math.sqrt(q.shape[3] as number));
  const scores = tf.softmax(mask === undefined ? logits : tf.where(mask, logits, -1e9));
  let attended = tf.matMul(scores, v);
  if (gate) attended = tf.mul(attended, tf.sigmoid(project('gate', query)));
  const kernel = weights['attention_output/kernel'] as tf.Tensor;
  const [, dim = 1, width = 1] = kernel.shape;
  const [batch = 1, , tokens = 1] = attended.shape;
  const rows = attended.transpose([0, 2, 1, 3]).reshape([batch * tokens, heads * dim]);
  const product = tf
    .matMul(rows as tf.Tensor2D, kernel.reshape([heads * dim, width]) as tf.Tensor2D)
    .reshape([batch, tokens, width]);
  const bias = weights['attention_output/bias'];
  return [bias === undefined ? product : tf.add(product, bias), scores];
}
