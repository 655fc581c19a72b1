/**
 * Conditions as graphs write them: a bool, or 0 and 1 as floats, turned round by LogicalNot or 1 - x. What is behind
 * such wrappings is a triangle that the op knows by name, or any tensor.
 */
import {passesThrough, typeName, type GraphNode, type GraphView} from '../model_graph.js';
import type {CausalKind} from '../../problem.js';
import {causalComparison, type TokenAxis} from './causal_comparison.js';
import {constantTriangle} from './causal_constant.js';
import {isOnes} from './ones.js';

export interface Indicator {
  /** The triangle that it is; null for any other condition. */
  readonly corner: Exclude<CausalKind, 'none'> | null;
  /** Where the condition (or `reference`, as bool) is true: on keys that are seen (or not). Triangles: true = seen. */
  readonly inverted: boolean;
  /** A tensor with the condition, and how it is turned against it. */
  readonly reference: string;
  /** tfjs' own MatrixBandPart leaves the upper triangle in, so that the model has not been causal so far. */
  readonly isBandPart: boolean;
}

const MAX_WRAPPINGS = 12;

const SHAPING = new Set(['Reshape', 'ExpandDims', 'BroadcastTo', 'Squeeze']);

/**
 * @param reference A bool, or a tensor of 0 and 1.
 * @returns null when nothing says that it is a condition.
 */
export function indicator(
  graph: GraphView,
  reference: string,
  tokenAxis: TokenAxis,
): Indicator | null {
  let current = reference;
  let inverted = false;
  let isBool = false;
  for (let i = 0; i < MAX_WRAPPINGS; i += 1) {
    const constant = constantTriangle(graph.constant(current));
    if (constant?.kind === 'indicator') {
      return {
        corner: constant.corner,
        inverted: inverted !== constant.hides,
        reference,
        isBandPart: false,
      };
    }
    const node = graph.producer(current);
    if (node === null) break;
    const inputs = graph.inputs(node);
    if (isBandPart(graph, node)) {
      return {corner: 'top_left', inverted, reference, isBandPart: true};
    }
    const corner = causalComparison(graph, node, tokenAxis);
    if (corner !== null) {
      return {
        corner: corner.corner,
        inverted: inverted !== corner.hides,
        reference,
        isBandPart: false,
      };
    }
    const next = unwrapped(graph, node);
    if (next === null) {
      isBool ||= COMPARISONS.has(node.op) || givesBool(node);
      break;
    }
    if (next.isBool) isBool = true;
    if (next.turns) inverted = !inverted;
    current = next.reference ?? inputs[0] ?? '';
  }
  // Some other condition: known to be one only if a bool was met.
  return isBool ? {corner: null, inverted: false, reference, isBandPart: false} : null;
}

const COMPARISONS = new Set([
  'Greater',
  'GreaterEqual',
  'Less',
  'LessEqual',
  'Equal',
  'NotEqual',
  'LogicalAnd',
  'LogicalOr',
]);

function givesBool(node: GraphNode): boolean {
  return typeName(node, 'dtype') === 'DT_BOOL' || typeName(node, 'Tcond') === 'DT_BOOL';
}

interface Unwrapped {
  /** undefined: the first input. */
  readonly reference?: string | undefined;
  readonly turns?: boolean;
  readonly isBool?: boolean;
}

/** One wrapping less; null when there is none. */
function unwrapped(graph: GraphView, node: GraphNode): Unwrapped | null {
  const inputs = graph.inputs(node);
  if (passesThrough(node) || SHAPING.has(node.op)) return {};
  switch (node.op) {
    case 'Cast': {
      const isBool = [typeName(node, 'SrcT'), typeName(node, 'DstT')].includes('DT_BOOL');
      return {isBool};
    }
    case 'LogicalNot':
      return {turns: true, isBool: true};
    case 'Sub':
      return graph.scalar(inputs[0]) === 1 ? {reference: inputs[1], turns: true} : null;
    case 'StridedSlice':
      // Only new axes: x[None, None].
      return isNewAxes(graph, node) ? {} : null;
    default:
      return null;
  }
}

/** Whether a StridedSlice takes everything and only adds axes in front. */
function isNewAxes(graph: GraphView, node: GraphNode): boolean {
  const begin = graph.list(graph.inputs(node)[1]);
  const number = (name: string) => Number(node.attr?.[name]?.i ?? 0);
  if (begin === null || number('shrink_axis_mask') !== 0) return false;
  const added = number('new_axis_mask');
  const whole = number('begin_mask') & number('end_mask');
  const ellipsis = number('ellipsis_mask');
  const axes = begin.map((_, i) => 1 << i);
  const firstTaken = axes.findIndex((bit) => (added & bit) === 0);
  return axes.every((bit, i) =>
    (added & bit) !== 0 ? firstTaken < 0 || i < firstTaken : ((whole | ellipsis) & bit) !== 0,
  );
}

/** The lower triangle cut out of ones. */
function isBandPart(graph: GraphView, node: GraphNode): boolean {
  if (node.op !== 'MatrixBandPart' && node.op !== 'BatchMatrixBandPart') return false;
  const [source, lower, upper] = graph.inputs(node);
  return graph.scalar(lower) === -1 && graph.scalar(upper) === 0 && isOnes(graph, source);
}
