/** Masks as the first GPT-2 wrote them: scores · b - 1e4 · (1 - b), b being 1 on the keys that are seen. */
import type {GraphNode, GraphView} from '../model_graph.js';
import type {TokenAxis} from './causal_comparison.js';
import {HIDING_VALUE} from './causal_constant.js';
import {indicator, type Indicator} from './indicators.js';

export interface MultipliedMask {
  /** Scores before the mask. */
  readonly scores: string;
  /** scores · b. */
  readonly product: GraphNode;
  readonly reference: string;
  readonly condition: Indicator | null;
  /** What hidden keys get. */
  readonly value: number;
}

/** @param isScores Whether a reference leads to the product of queries and keys. */
export function multipliedMask(
  graph: GraphView,
  node: GraphNode,
  tokenAxis: TokenAxis,
  isScores: (reference: string) => boolean,
): MultipliedMask | null {
  const sign = node.op === 'Sub' ? -1 : 1;
  const [a, b] = graph.inputs(node);
  if (a === undefined || b === undefined) return null;
  const sides = node.op === 'Sub' ? [[a, b] as const] : [[a, b] as const, [b, a] as const];
  for (const [masked, rest] of sides) {
    const product = graph.producer(masked);
    if (product?.op !== 'Mul' || !isScores(masked)) continue;
    const [x, y] = graph.inputs(product);
    if (x === undefined || y === undefined || graph.valueReaders(product).length !== 1) continue;
    const [scores, mask] = isScores(x) ? [x, y] : [y, x];
    if (graph.scalar(mask) !== null) continue;
    const value = hiddenValue(graph, mask, rest);
    if (value === null || sign * value > HIDING_VALUE) continue;
    const condition = indicator(graph, mask, tokenAxis);
    // A mask of other numbers than 0 and 1 would scale the scores.
    if (condition === null && graph.constant(mask) === null) continue;
    return {scores, product, reference: mask, condition, value: sign * value};
  }
  return null;
}

/** c where `rest` is c · (1 - mask). */
function hiddenValue(graph: GraphView, mask: string, rest: string): number | null {
  const masks = graph.constant(mask)?.values ?? null;
  const rests = graph.constant(rest)?.values ?? null;
  if (masks !== null && rests !== null) return constantValue(masks, rests);
  const product = graph.producer(rest);
  if (product?.op !== 'Mul') return null;
  const [x, y] = graph.inputs(product);
  const [factor, difference] = graph.scalar(x) === null ? [y, x] : [x, y];
  const turned = graph.producer(difference);
  const value = graph.scalar(factor);
  if (value === null || turned?.op !== 'Sub') return null;
  const [one, b] = graph.inputs(turned);
  return graph.scalar(one) === 1 && b !== undefined && graph.same(b, mask) ? value : null;
}

function constantValue(masks: ArrayLike<number>, rests: ArrayLike<number>): number | null {
  if (masks.length !== rests.length) return null;
  let value: number | null = null;
  for (let i = 0; i < masks.length; i += 1) {
    const rest = rests[i] as number;
    if (masks[i] === 1 && rest === 0) continue;
    if (masks[i] !== 0 || (value !== null && rest !== value)) return null;
    value = rest;
  }
  return value;
}
