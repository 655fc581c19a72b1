/** Shapes of operations on tensors whose batch, or any other size, may be unknown (null). */
import type * as tfl from '@tensorflow/tfjs-layers';

export type Shape = tfl.Shape;

/** What an operation cannot do with the shapes that it gets. The layer puts its name in front. */
export class ShapeProblem extends Error {}

/** An axis counted from 0. */
export function axisOf(axis: number, rank: number): number {
  if (axis < -rank || axis >= rank) {
    throw new ShapeProblem(`axis ${axis} is outside of the ${rank} axes of its input`);
  }
  return axis < 0 ? axis + rank : axis;
}

/** Axes counted from 0; null means all of them. */
export function axesOf(
  axes: number | readonly number[] | null | undefined,
  rank: number,
): number[] {
  if (axes == null) return Array.from({length: rank}, (_, i) => i);
  return (typeof axes === 'number' ? [axes] : axes).map((axis) => axisOf(axis, rank));
}

/** The shape that elementwise operations give. An unknown size beside a size above 1 can only be that size. */
export function broadcast(shapes: readonly Shape[]): Shape {
  const rank = Math.max(0, ...shapes.map(({length}) => length));
  return Array.from({length: rank}, (_, axis) => {
    const sizes = shapes
      .map((shape) => shape[axis - rank + shape.length])
      .filter((size) => size !== undefined && size !== 1);
    const known = new Set(sizes.filter((size) => size !== null));
    if (known.size > 1) {
      throw new ShapeProblem(`shapes ${shapes.map(spell).join(' and ')} do not broadcast`);
    }
    const [size] = known;
    return size ?? (sizes.length > 0 ? null : 1);
  });
}

export function reduced(
  shape: Shape,
  axes: number | readonly number[] | null | undefined,
  keepdims: boolean,
): Shape {
  const gone = new Set(axesOf(axes, shape.length));
  return keepdims
    ? shape.map((size, axis) => (gone.has(axis) ? 1 : size))
    : shape.filter((_, axis) => !gone.has(axis));
}

export function squeezed(shape: Shape, axes: number | readonly number[] | null | undefined): Shape {
  if (axes == null) return shape.filter((size) => size !== 1);
  const gone = axesOf(axes, shape.length);
  for (const axis of gone) {
    const size = shape[axis];
    if (size !== 1 && size !== null) {
      throw new ShapeProblem(`axis ${axis} of ${spell(shape)} cannot be squeezed`);
    }
  }
  return shape.filter((_, axis) => !gone.includes(axis));
}

export function expanded(shape: Shape, axes: number | readonly number[]): Shape {
  const count = typeof axes === 'number' ? 1 : axes.length;
  const added = new Set(axesOf(axes, shape.length + count));
  const sizes = [...shape];
  return Array.from({length: shape.length + count}, (_, axis) =>
    added.has(axis) ? 1 : (sizes.shift() ?? null),
  );
}

/** At most one of `sizes` is -1. */
export function reshaped(shape: Shape, sizes: readonly number[]): Shape {
  const known = sizes.filter((size) => size !== -1).reduce((a, b) => a * b, 1);
  const open = sizes.length - sizes.filter((size) => size !== -1).length;
  const total = shape.includes(null) ? null : (shape as number[]).reduce((a, b) => a * b, 1);
  const rest = total === null ? null : total / known;
  const fits = rest === null || (open === 1 ? Number.isInteger(rest) : rest === 1);
  if (open > 1 || !fits) {
    throw new ShapeProblem(`${spell(shape)} cannot be reshaped to ${spell([...sizes])}`);
  }
  return sizes.map((size) => (size === -1 ? rest : size));
}

export function transposed(shape: Shape, order: readonly number[]): Shape {
  if (new Set(order).size !== shape.length || order.length !== shape.length) {
    throw new ShapeProblem(`axes [${order.join(',')}] are no order of the axes of ${spell(shape)}`);
  }
  return order.map((axis) => shape[axis] ?? null);
}

export function concatenated(shapes: readonly Shape[], axis: number): Shape {
  const rank = shapes[0]?.length ?? 0;
  const along = axisOf(axis, rank);
  const other = (shape: Shape): Shape => shape.map((size, i) => (i === along ? 1 : size));
  const rests = shapes.map(other);
  for (const shape of shapes) {
    const fits =
      shape.length === rank &&
      shape.every((size, i) => {
        const first = shapes[0]?.[i];
        return i === along || size === first || size === null || first === null;
      });
    if (!fits) throw new ShapeProblem(`shapes ${shapes.map(spell).join(' and ')} do not join`);
  }
  const sizes = shapes.map((shape) => shape[along] ?? null);
  const size = sizes.includes(null) ? null : (sizes as number[]).reduce((a, b) => a + b, 0);
  return broadcast(rests).map((rest, i) => (i === along ? size : rest));
}

export function multiplied(a: Shape, b: Shape): Shape {
  const [rows, inner] = a.slice(-2);
  const [depth, columns] = b.slice(-2);
  if (a.length < 2 || b.length < 2) {
    throw new ShapeProblem(`${spell(a)} times ${spell(b)}: each needs two axes or more`);
  }
  if (inner !== depth && inner !== null && depth !== null) {
    throw new ShapeProblem(`${spell(a)} times ${spell(b)}: the inner sizes differ`);
  }
  return [...broadcast([a.slice(0, -2), b.slice(0, -2)]), rows ?? null, columns ?? null];
}

export function spell(shape: Shape): string {
  return `[${shape.map((size) => size ?? 'null').join(',')}]`;
}
