/** What the axes of the tensors around a product of queries and keys count: queries, keys, or head_dim. */
import {spellLetters} from '../attention_plan.js';
import type {GraphNode, GraphView} from '../model_graph.js';
import type {TokenAxis} from './causal_comparison.js';
import type {FoundProduct} from './product_search.js';
import {rankOf} from './rank_of.js';

export interface TokenAxes {
  readonly tokenAxis: TokenAxis;
  /** Whether [reference, axis from the right] is head_dim of q or k. */
  readonly isDepth: (entry: readonly [reference: string, axis: number]) => boolean;
}

const SAME_SHAPE = new Set([
  'Mul',
  'RealDiv',
  'Div',
  'Add',
  'AddV2',
  'Sub',
  'SelectV2',
  'Select',
  'Identity',
  'Cast',
  'Maximum',
]);

/**
 * @param interior Nodes on the way to the softmax, which have the shape of the scores; null: those that are reached
 *   from the product through arithmetic.
 */
export function tokenAxes(
  graph: GraphView,
  {product, node: productNode, permutation}: FoundProduct,
  interior: ReadonlySet<GraphNode> | null,
): TokenAxes {
  const scoreNodes = interior ?? downstream(graph, productNode);
  const operands = [
    ...graph.inputs(productNode).map((reference) => ({reference, letters: ''})),
    product.q,
    product.k,
  ];
  const letterOf = (reference: string, axis: number): string | null => {
    const node = graph.producer(reference);
    if (node !== null && scoreNodes.has(node)) {
      // Which of them come before a Transpose and which behind it is not told.
      return permutation === null ? fromRight(product.scores, axis) : null;
    }
    for (const operand of operands) {
      if (!graph.same(operand.reference, reference)) continue;
      const letters = operand.letters || asWritten(graph, productNode, reference);
      const rank = rankOf(graph, reference);
      const spelled = rank === null ? letters : spellLetters(letters, rank);
      return fromRight(spelled, axis);
    }
    return null;
  };
  return {
    tokenAxis(reference, axis) {
      const letter = letterOf(reference, axis);
      return letter === 's' || letter === 't' ? letter : null;
    },
    isDepth: ([reference, axis]) => letterOf(reference, axis) === 'd',
  };
}

function fromRight(letters: string, axis: number): string | null {
  const letter = letters[letters.length + axis];
  return letter === undefined || letter === '.' ? null : letter;
}

/** Letters of an operand as it enters the product, in front of which Transpose nodes were folded away. */
function asWritten(graph: GraphView, node: GraphNode, reference: string): string {
  if (node.op === 'Einsum') return '';
  const isFirst = graph.same(graph.inputs(node)[0] ?? '', reference);
  const turned = (name: string) =>
    node.attr?.[`adj_${name}`]?.b === true ||
    node.attr?.[`transpose_${name === 'x' ? 'a' : 'b'}`]?.b === true;
  if (isFirst) return turned('x') ? '...ds' : '...sd';
  return turned('y') ? '...td' : '...dt';
}

function downstream(graph: GraphView, start: GraphNode): Set<GraphNode> {
  const found = new Set([start]);
  const waiting = [start];
  for (let node = waiting.pop(); node !== undefined && found.size < 64; node = waiting.pop()) {
    for (const {node: reader, isControl} of graph.consumers(node)) {
      if (isControl || found.has(reader) || !SAME_SHAPE.has(reader.op)) continue;
      found.add(reader);
      waiting.push(reader);
    }
  }
  return found;
}
