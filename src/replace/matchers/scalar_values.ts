/** Numbers by which scores are scaled: constants, and roots of the head_dim that the graph computes from a shape. */
import type {Scalar} from '../attention_plan.js';
import {integer, passesThrough, type GraphNode, type GraphView} from '../model_graph.js';
import {rankOf} from './rank_of.js';

/** Whether a reference is one of the tensors whose last axis is head_dim, and which axis that is from the right. */
export type DepthAxis = (reference: string, axis: number) => boolean;

const MAX_DEPTH = 8;

/** The number behind a reference as factor · head_dim^power; null when it is another or none. */
export function scalarValue(
  graph: GraphView,
  reference: string | undefined,
  isDepth: DepthAxis,
  depth = 0,
): Scalar | null {
  const constant = graph.scalar(reference);
  if (constant !== null) return {factor: constant, power: 0};
  const node = graph.producer(reference);
  if (node === null || depth > MAX_DEPTH) return null;
  const inputs = graph.inputs(node);
  const value = (i: number) => scalarValue(graph, inputs[i], isDepth, depth + 1);
  if (passesThrough(node) || node.op === 'Cast' || isSqueeze(node)) return value(0);
  switch (node.op) {
    case 'StridedSlice': {
      const axis = slicedShape(graph, node);
      return axis !== null && isDepth(axis.of, axis.axis) ? {factor: 1, power: 1} : null;
    }
    case 'Sqrt':
      return raised(value(0), 0.5);
    case 'Rsqrt':
      return raised(value(0), -0.5);
    case 'Reciprocal':
    case 'Inv':
      return raised(value(0), -1);
    case 'Pow': {
      const exponent = graph.scalar(inputs[1]);
      return exponent === null ? null : raised(value(0), exponent);
    }
    case 'Mul':
      return product(value(0), value(1));
    case 'RealDiv':
    case 'Div':
      return product(value(0), raised(value(1), -1));
    default:
      return null;
  }
}

function isSqueeze({op}: GraphNode): boolean {
  return op === 'Squeeze';
}

export function product(a: Scalar | null, b: Scalar | null): Scalar | null {
  if (a === null || b === null) return null;
  return {factor: a.factor * b.factor, power: a.power + b.power};
}

export function raised(x: Scalar | null, exponent: number): Scalar | null {
  if (x === null) return null;
  const factor = x.factor ** exponent;
  return Number.isFinite(factor) ? {factor, power: x.power * exponent} : null;
}

export interface SlicedShape {
  /** The tensor whose shape is asked for. */
  readonly of: string;
  /** Counted from the right: -1 is the last. */
  readonly axis: number;
}

/** Reads `shape(x)[axis]`; null when it is another slice, or the rank of x is unknown and the axis counted from the left. */
export function slicedShape(graph: GraphView, node: GraphNode): SlicedShape | null {
  const [vector, begin] = graph.inputs(node);
  if (node.op !== 'StridedSlice' || integer(node, 'shrink_axis_mask') !== 1) return null;
  const shape = graph.producer(vector);
  const start = graph.scalar(begin);
  const of = shape?.op === 'Shape' ? graph.inputs(shape)[0] : undefined;
  if (of === undefined || start === null) return null;
  if (start < 0) return {of, axis: start};
  const rank = rankOf(graph, of);
  return rank === null ? null : {of, axis: start - rank};
}
