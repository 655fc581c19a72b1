/** Triangles that are added to the scores: a number times what is not seen, such as -1e9 · (1 - triangle). */
import type {CausalKind} from '../../problem.js';
import {passesThrough, type GraphView} from '../model_graph.js';
import type {TokenAxis} from './causal_comparison.js';
import {indicator} from './indicators.js';

export interface Penalty {
  readonly corner: Exclude<CausalKind, 'none'>;
  readonly value: number;
  readonly isBandPart: boolean;
}

const SHAPING = new Set(['Reshape', 'ExpandDims']);

/** null when a tensor is no such triangle. */
export function penalty(
  graph: GraphView,
  reference: string,
  tokenAxis: TokenAxis,
  depth = 0,
): Penalty | null {
  const node = graph.producer(reference);
  if (node === null || depth > 6) return null;
  const inputs = graph.inputs(node);
  if (passesThrough(node) || SHAPING.has(node.op)) {
    return penalty(graph, inputs[0] ?? '', tokenAxis, depth + 1);
  }
  if (node.op === 'Mul') {
    const first = graph.scalar(inputs[0]);
    const value = first ?? graph.scalar(inputs[1]);
    const hidden = inputs[first === null ? 0 : 1];
    if (value === null || hidden === undefined) return null;
    const known = indicator(graph, hidden, tokenAxis);
    if (known?.corner == null || !known.inverted) return null;
    return {corner: known.corner, value, isBandPart: known.isBandPart};
  }
  if (node.op === 'SelectV2' || node.op === 'Select') {
    const [condition, a, b] = inputs;
    const known = condition === undefined ? null : indicator(graph, condition, tokenAxis);
    if (known?.corner == null) return null;
    const [seen, hidden] = known.inverted ? [b, a] : [a, b];
    const value = graph.scalar(hidden);
    if (graph.scalar(seen) !== 0 || value === null) return null;
    return {corner: known.corner, value, isBandPart: known.isBandPart};
  }
  return null;
}
