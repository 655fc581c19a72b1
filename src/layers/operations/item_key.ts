/** Python's `x[key]`: numbers, slices, `...` and None. */
import * as tf from '@tensorflow/tfjs-core';
import {ShapeProblem, spell, type Shape} from './operation_shapes.js';

/** One part of a key; null = left out. */
export type KeyPart =
  | {readonly index: number}
  | {readonly start: number | null; readonly stop: number | null; readonly step: number | null}
  | {readonly ellipsis: true}
  | {readonly newAxis: true};

/** What becomes of one axis; `axis` is that of the input, null where the key makes a new one. */
interface AxisPart {
  readonly axis: number | null;
  readonly part: KeyPart;
}

const ALL: KeyPart = {start: null, stop: null, step: null};

/** The key with a part for each axis of the input. */
function partsFor(key: readonly KeyPart[], shape: Shape): AxisPart[] {
  const named = key.filter((part) => !('ellipsis' in part) && !('newAxis' in part)).length;
  const left = shape.length - named;
  if (left < 0) {
    throw new ShapeProblem(`the key has ${named} indices and ${spell(shape)} ${shape.length} axes`);
  }
  const rest = new Array<KeyPart>(left).fill(ALL);
  const at = key.findIndex((part) => 'ellipsis' in part);
  const parts = at < 0 ? [...key, ...rest] : [...key.slice(0, at), ...rest, ...key.slice(at + 1)];
  let axis = 0;
  return parts.map((part) => ({part, axis: 'newAxis' in part ? null : axis++}));
}

/** The indices that a slice takes out of `size`: the first, how many, and how far apart. */
function range(
  {start, stop, step}: Exclude<KeyPart, {index: number} | {ellipsis: true} | {newAxis: true}>,
  size: number,
): {first: number; count: number; step: number} {
  const by = step ?? 1;
  const low = by > 0 ? 0 : -1;
  const high = by > 0 ? size : size - 1;
  const bound = (value: number | null, otherwise: number): number =>
    value === null ? otherwise : Math.min(high, Math.max(low, value < 0 ? value + size : value));
  const first = bound(start, by > 0 ? low : high);
  const end = bound(stop, by > 0 ? high : low);
  return {first, count: Math.max(0, Math.ceil((end - first) / by)), step: by};
}

function indexIn(index: number, size: number): number {
  if (index < -size || index >= size) {
    throw new ShapeProblem(`index ${index} is outside of an axis of ${size}`);
  }
  return index < 0 ? index + size : index;
}

export function itemShape(shape: Shape, key: readonly KeyPart[]): Shape {
  return partsFor(key, shape).flatMap(({axis, part}) => {
    const size = axis === null ? 1 : (shape[axis] ?? null);
    if ('index' in part) {
      if (size !== null) indexIn(part.index, size);
      return [];
    }
    if (!('start' in part)) return [size];
    const whole = part.start === null && part.stop === null && Math.abs(part.step ?? 1) === 1;
    if (size === null || whole) return [size];
    return [range(part, size).count];
  });
}

export function getItem(x: tf.Tensor, key: readonly KeyPart[]): tf.Tensor {
  const shape = itemShape(x.shape, key) as number[];
  if (shape.includes(0)) return tf.zeros(shape, x.dtype);
  const begin: number[] = x.shape.map(() => 0);
  const size = [...x.shape];
  const picked: {axis: number; indices: number[]}[] = [];
  for (const {axis, part} of partsFor(key, x.shape)) {
    if (axis === null) continue;
    const length = x.shape[axis] ?? 0;
    if ('index' in part) {
      begin[axis] = indexIn(part.index, length);
      size[axis] = 1;
    } else if ('start' in part) {
      const {first, count, step} = range(part, length);
      if (step === 1) {
        begin[axis] = first;
        size[axis] = count;
      } else {
        // gather has gradients; a strided slice has none in tfjs.
        picked.push({axis, indices: Array.from({length: count}, (_, i) => first + i * step)});
      }
    }
  }
  const sliced = tf.slice(x, begin, size);
  const found = picked.reduce(
    (rest: tf.Tensor, {axis, indices}) => tf.gather(rest, tf.tensor1d(indices, 'int32'), axis),
    sliced,
  );
  return tf.reshape(found, shape);
}
