/** Triangles that the converter has folded into constants. */
import type {CausalKind} from '../../problem.js';
import {sizeOf, type GraphConstant} from '../model_graph.js';

export type ConstantTriangle = {readonly corner: Exclude<CausalKind, 'none'>} & (
  | {
      readonly kind: 'indicator';
      /** 1 on the keys that are not seen. */
      readonly hides: boolean;
    }
  | {
      readonly kind: 'penalty';
      /** What is added behind the diagonal. */
      readonly value: number;
    }
);

/** A value that hides a key: softmax leaves it no weight beside any score of a trained model. */
export const HIDING_VALUE = -9999;

/** null when a constant is no triangle. Leading axes must be 1. */
export function constantTriangle(constant: GraphConstant | null): ConstantTriangle | null {
  if (constant === null || constant.shape.length < 2) return null;
  const {shape} = constant;
  const [rows, columns] = shape.slice(-2) as [number, number];
  if (rows < 2 || columns < 2 || sizeOf(shape) !== rows * columns) return null;
  const {values} = constant;
  if (values === null) return null;
  const hidden = values[columns - 1] as number;
  const seen = values[(rows - 1) * columns] as number;
  if (hidden === seen) return null;
  for (const corner of ['top_left', 'bottom_right'] as const) {
    const offset = corner === 'top_left' ? 0 : columns - rows;
    if (!isTriangle(values, rows, columns, offset, seen, hidden)) continue;
    if (seen === 0 && hidden <= HIDING_VALUE) return {corner, kind: 'penalty', value: hidden};
    if (seen === 1 && hidden === 0) return {corner, kind: 'indicator', hides: false};
    if (seen === 0 && hidden === 1) return {corner, kind: 'indicator', hides: true};
  }
  return null;
}

function isTriangle(
  values: ArrayLike<number>,
  rows: number,
  columns: number,
  offset: number,
  seen: number,
  hidden: number,
): boolean {
  for (let i = 0; i < rows; i += 1) {
    for (let j = 0; j < columns; j += 1) {
      if (values[i * columns + j] !== (j <= i + offset ? seen : hidden)) return false;
    }
  }
  return true;
}
