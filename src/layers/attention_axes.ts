/**
 * Attention over any axes as attention over one. Keras projects [B, d1, ..., dn, width] to heads and attends over some
 * of d1..dn; the others are like more heads. So the attended axes fold into tokens, the others into heads, and back.
 */
import * as tf from '@tensorflow/tfjs-core';
import {SageAttentionError} from '../runtime/errors.js';

/** Which axes are attended over, and which are not. All counted in the input [B, d1, ..., dn, width]. */
export interface AttentionAxes {
  readonly attended: readonly number[];
  readonly others: readonly number[];
}

/**
 * @param axes As Keras takes them: a number or a list, negative from the end of the projected tensor's tokens; null =
 *   all of d1..dn.
 * @param rank Of the input, [B, d1, ..., dn, width].
 */
export function attentionAxes(
  layer: string,
  axes: number | readonly number[] | null,
  rank: number,
): AttentionAxes {
  const inner = Array.from({length: Math.max(rank - 2, 0)}, (_, i) => i + 1);
  const given = axes === null ? inner : typeof axes === 'number' ? [axes] : [...axes];
  const attended = given.map((axis) => (axis < 0 ? rank + axis : axis));
  const valid = attended.length > 0 && attended.every((axis) => inner.includes(axis));
  if (!valid || new Set(attended).size !== attended.length) {
    throw new SageAttentionError({
      code: 'invalid-option',
      argument: 'attentionAxes',
      message: `${layer}: \`attentionAxes\` is [${given.join(', ')}] for inputs of rank ${rank}, expected axes from 1 to ${rank - 2}, each once.`,
      hint: 'Inputs are [batch, ...axes, width]; neither batch nor width can be attended over.',
    });
  }
  return {attended, others: inner.filter((axis) => !attended.includes(axis))};
}

/** Whether inputs are plain [B, tokens, width]. */
export function isPlain({attended, others}: AttentionAxes): boolean {
  return attended.length === 1 && others.length === 0;
}

const sizesAt = (shape: readonly number[], axes: readonly number[]): number[] =>
  axes.map((axis) => shape[axis] ?? 1);

const product = (sizes: readonly number[]): number => sizes.reduce((a, b) => a * b, 1);

/** Projected [B, d1, ..., dn, H, D] to [B, tokens, others x H, D]. */
export function foldAxes(x: tf.Tensor, axes: AttentionAxes): tf.Tensor4D {
  if (isPlain(axes)) return x as tf.Tensor4D;
  const {shape, rank} = x;
  const [batch = 1] = shape;
  const moved = tf.transpose(x, [0, ...axes.attended, ...axes.others, rank - 2, rank - 1]);
  const tokens = product(sizesAt(shape, axes.attended));
  const heads = product(sizesAt(shape, axes.others)) * (shape[rank - 2] ?? 1);
  return tf.reshape(moved, [batch, tokens, heads, shape[rank - 1] ?? 1]);
}

/** The way back; `like` is the projected query. */
export function unfoldAxes(o: tf.Tensor4D, axes: AttentionAxes, like: tf.Tensor): tf.Tensor {
  if (isPlain(axes)) return o;
  const {shape, rank} = like;
  const order = [0, ...axes.attended, ...axes.others, rank - 2, rank - 1];
  const wide = tf.reshape(o, [...sizesAt(shape, order.slice(0, -1)), o.shape[3]]);
  return tf.transpose(
    wide,
    order.map((_, axis) => order.indexOf(axis)),
  );
}

/** Scores [B, others x H, T, S] to Keras' [B, ...others, H, ...query axes, ...key axes]. */
export function unfoldScores(
  scores: tf.Tensor4D,
  axes: AttentionAxes,
  query: tf.Tensor,
  key: tf.Tensor,
): tf.Tensor {
  if (isPlain(axes)) return scores;
  const {shape, rank} = query;
  return tf.reshape(scores, [
    ...sizesAt(shape, [0, ...axes.others, rank - 2]),
    ...sizesAt(shape, axes.attended),
    ...sizesAt(key.shape, axes.attended),
  ]);
}

/**
 * Keras' attention mask, bool, to [B|1, others x H|1, T|1, S|1]. Its last axes are those of queries and keys; what comes
 * before is aligned from the left with [B, ...others, H], and missing axes are 1.
 */
export function foldMask(
  layer: string,
  mask: tf.Tensor,
  axes: AttentionAxes,
  query: tf.Tensor,
): tf.Tensor4D {
  const count = axes.attended.length;
  const leading = mask.rank - 2 * count;
  const full = sizesAt(query.shape, [0, ...axes.others, query.rank - 2]);
  if (leading < 0 || leading > full.length) {
    throw new SageAttentionError({
      code: 'shape-mismatch',
      argument: 'attentionMask',
      message: `${layer}: \`attentionMask\` has rank ${mask.rank} (shape [${mask.shape.join(',')}]), expected ${2 * count + 1} to ${2 * count + full.length}: [batch, queries, keys], with heads in between or without.`,
      hint: 'Add the missing axes with expandDims(); axes of 1 broadcast.',
    });
  }
  const head = [...mask.shape.slice(0, leading)];
  while (head.length < full.length) head.push(1);
  const [batch = 1, ...inner] = head;
  const queries = mask.shape.slice(leading, leading + count);
  const keys = mask.shape.slice(leading + count);
  const whole = inner.every((size) => size === 1) || inner.every((size, i) => size === full[i + 1]);
  const even = whole
    ? mask
    : tf.tile(tf.reshape(mask, [...head, ...queries, ...keys]), [
        1,
        ...inner.map((size, i) => (size === 1 ? (full[i + 1] ?? 1) : 1)),
        ...queries.map(() => 1),
        ...keys.map(() => 1),
      ]);
  const heads = whole ? product(inner) : product(full.slice(1));
  return tf.reshape(even, [batch, heads, product(queries), product(keys)]);
}
