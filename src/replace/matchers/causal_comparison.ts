/**
 * Triangles that a graph computes while it runs: positions of queries compared with positions of keys, both from
 * ranges (or running sums of ones) and shapes. Positions are linear: a·i + b·j + lengths + constant.
 */
import type {CausalKind} from '../../problem.js';
import {flag, integer, passesThrough, type GraphNode, type GraphView} from '../model_graph.js';
import {slicedShape} from './scalar_values.js';
import {isOnes} from './ones.js';

/** Whether an axis of a tensor, counted from the right, has the length of the queries (`s`), of the keys (`t`), or neither. */
export type TokenAxis = (reference: string, axis: number) => 's' | 't' | null;

export interface CausalCondition {
  readonly corner: Exclude<CausalKind, 'none'>;
  /** True on the keys that are not seen. */
  readonly hides: boolean;
}

interface Position {
  /** Factor of the index along the last axis but one. */
  readonly i: number;
  /** Factor of the index along the last axis. */
  readonly j: number;
  /** Factors of lengths: `s`, `t`, or the reference of a number that is neither. */
  readonly lengths: ReadonlyMap<string, number>;
  readonly constant: number;
}

/** The triangle that a comparison makes; null when it makes none. */
export function causalComparison(
  graph: GraphView,
  node: GraphNode,
  tokenAxis: TokenAxis,
): CausalCondition | null {
  const sign = SIGNS.get(node.op);
  if (sign === undefined) return null;
  const [a, b] = graph.inputs(node);
  const left = position(graph, a, tokenAxis);
  const right = position(graph, b, tokenAxis);
  if (left === null || right === null) return null;
  // True where difference >= 0.
  let difference = plus(left, right, -1);
  if (sign.strict) difference = {...difference, constant: difference.constant - sign.factor};
  if (sign.factor < 0) difference = scaled(difference, -1);
  if (difference.i === 1 && difference.j === -1) return atOffset(difference, false);
  if (difference.i !== -1 || difference.j !== 1) return null;
  // Hidden where j - i + x >= 0, so seen where i - j - x - 1 >= 0.
  const seen = scaled(difference, -1);
  return atOffset({...seen, constant: seen.constant - 1}, true);
}

/** `a op b` as factor·(a - b) - (strict ? 1 : 0) >= 0. */
const SIGNS: ReadonlyMap<string, {factor: 1 | -1; strict: boolean}> = new Map([
  ['GreaterEqual', {factor: 1, strict: false}],
  ['Greater', {factor: 1, strict: true}],
  ['LessEqual', {factor: -1, strict: false}],
  ['Less', {factor: -1, strict: true}],
]);

/** Seen where i - j + offset >= 0. */
function atOffset({lengths, constant}: Position, hides: boolean): CausalCondition | null {
  if (constant !== 0) return null;
  const left = [...lengths].filter(([, factor]) => factor !== 0);
  if (left.length === 0) return {corner: 'top_left', hides};
  const isBottomRight = left.length === 2 && lengths.get('t') === 1 && lengths.get('s') === -1;
  return isBottomRight ? {corner: 'bottom_right', hides} : null;
}

const MAX_DEPTH = 14;

function position(
  graph: GraphView,
  reference: string | undefined,
  tokenAxis: TokenAxis,
  depth = 0,
): Position | null {
  const number = graph.scalar(reference);
  if (number !== null) return {...NOWHERE, constant: number};
  const node = graph.producer(reference);
  if (node === null || reference === undefined || depth > MAX_DEPTH) return null;
  const inputs = graph.inputs(node);
  const of = (i: number) => position(graph, inputs[i], tokenAxis, depth + 1);
  if (passesThrough(node) || node.op === 'Cast') return of(0);
  switch (node.op) {
    case 'Const':
      return constantRange(graph, reference);
    case 'Range':
      return graph.scalar(inputs[2]) === 1 ? along('j', of(0)) : null;
    case 'Add':
    case 'AddV2':
      return sum(of(0), of(1), 1);
    case 'Sub':
      return sum(of(0), of(1), -1);
    case 'ExpandDims':
      return graph.scalar(inputs[1]) === -1 || isLastOfTwo(graph, node) ? upright(of(0)) : of(0);
    case 'Reshape': {
      const last = lastEntry(graph, inputs[1]);
      return last === 1 ? upright(of(0)) : isFlat(graph, inputs[1]) ? of(0) : null;
    }
    case 'Cumsum':
      return cumulative(graph, node);
    case 'StridedSlice':
      return sliced(graph, node, of(0), tokenAxis);
    default:
      return null;
  }
}

const NOWHERE: Position = {i: 0, j: 0, lengths: new Map(), constant: 0};

function along(axis: 'i' | 'j', start: Position | null): Position | null {
  return start === null || start.i !== 0 || start.j !== 0 ? null : {...start, [axis]: 1};
}

/** A vector as a column: what ran along the last axis runs along the one before it. */
function upright(x: Position | null): Position | null {
  return x === null || x.i !== 0 ? null : {...x, i: x.j, j: 0};
}

function plus(a: Position, b: Position, factor: number): Position {
  const lengths = new Map(a.lengths);
  for (const [name, times] of b.lengths) {
    lengths.set(name, (lengths.get(name) ?? 0) + factor * times);
  }
  return {
    i: a.i + factor * b.i,
    j: a.j + factor * b.j,
    lengths,
    constant: a.constant + factor * b.constant,
  };
}

function sum(a: Position | null, b: Position | null, factor: number): Position | null {
  return a === null || b === null ? null : plus(a, b, factor);
}

function scaled(x: Position, factor: number): Position {
  return plus(NOWHERE, x, factor);
}

/** 0, 1, 2, ... as a row or a column. */
function constantRange(graph: GraphView, reference: string): Position | null {
  const constant = graph.constant(reference);
  const values = constant?.values ?? null;
  if (constant === null || values === null || values.length < 2) return null;
  const start = values[0] as number;
  for (let n = 1; n < values.length; n += 1) if (values[n] !== start + n) return null;
  const last = constant.shape.length - 1;
  const {shape} = constant;
  if (shape[last] === values.length) return {...NOWHERE, j: 1, constant: start};
  return shape[last] === 1 && shape[last - 1] === values.length
    ? {...NOWHERE, i: 1, constant: start}
    : null;
}

/** Running sums of ones count from 1. */
function cumulative(graph: GraphView, node: GraphNode): Position | null {
  const [source, axis] = graph.inputs(node);
  if (flag(node, 'exclusive', 'reverse') || !isOnes(graph, source)) return null;
  const at = graph.scalar(axis);
  if (at === -1) return {...NOWHERE, j: 1, constant: 1};
  return at === -2 ? {...NOWHERE, i: 1, constant: 1} : null;
}

function isLastOfTwo(graph: GraphView, node: GraphNode): boolean {
  const [source, axis] = graph.inputs(node);
  const inner = graph.producer(source);
  return graph.scalar(axis) === 1 && inner?.op === 'Range';
}

/** The last number of a shape; null when it is computed. */
function lastEntry(graph: GraphView, shape: string | undefined): number | null {
  const constant = graph.list(shape);
  if (constant !== null) return constant[constant.length - 1] ?? null;
  const pack = graph.producer(shape);
  return pack?.op === 'Pack' ? graph.scalar(graph.inputs(pack).at(-1)) : null;
}

/** Whether a shape has 1 everywhere but in its last entry. */
function isFlat(graph: GraphView, shape: string | undefined): boolean {
  const constant = graph.list(shape);
  if (constant !== null) return constant.slice(0, -1).every((size) => size === 1);
  const pack = graph.producer(shape);
  if (pack?.op !== 'Pack') return false;
  return graph
    .inputs(pack)
    .slice(0, -1)
    .every((size) => graph.scalar(size) === 1);
}

/** `shape(x)[axis]`, or new axes around a range. */
function sliced(
  graph: GraphView,
  node: GraphNode,
  inner: Position | null,
  tokenAxis: TokenAxis,
): Position | null {
  const shape = slicedShape(graph, node);
  if (shape !== null) {
    const name = tokenAxis(shape.of, shape.axis) ?? `${shape.of}[${shape.axis}]`;
    return {...NOWHERE, lengths: new Map([[name, 1]])};
  }
  if (inner === null || integer(node, 'shrink_axis_mask') !== 0) return null;
  const begin = graph.list(graph.inputs(node)[1]);
  const added = integer(node, 'new_axis_mask');
  const whole = integer(node, 'begin_mask') & integer(node, 'end_mask');
  const ellipsis = integer(node, 'ellipsis_mask');
  if (begin === null || added === 0) return null;
  const bits = begin.map((_, n) => 1 << n);
  if (!bits.every((bit) => ((added | whole | ellipsis) & bit) !== 0)) return null;
  const last = bits[bits.length - 1] as number;
  return (added & last) !== 0 ? upright(inner) : inner;
}
