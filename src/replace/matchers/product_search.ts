/** Looks upwards from a tensor for the product of queries and keys that it is made of. */
import {passesThrough, type GraphNode, type GraphView} from '../model_graph.js';
import {isProduct, scoreProduct, type ScoreProduct} from './products.js';

export interface FoundProduct {
  readonly node: GraphNode;
  readonly product: ScoreProduct;
  /** Of a Transpose that was met; null for none. */
  readonly permutation: readonly number[] | null;
}

/** Deep enough for every model seen. */
const MAX_DEPTH = 24;

const ON_THE_WAY = new Set(['Add', 'AddV2', 'Sub', 'Mul', 'RealDiv', 'Div', 'Maximum']);

/** Whether scores may pass a node on their way to the softmax. */
export function isOnTheWay(node: GraphNode): boolean {
  return (
    passesThrough(node) ||
    ON_THE_WAY.has(node.op) ||
    ['Reshape', 'Transpose', 'SelectV2', 'Select'].includes(node.op)
  );
}

/** null where no input leads to one. @param permutation Of a Transpose nearer to the softmax. */
export function findProduct(
  graph: GraphView,
  reference: string | undefined,
  permutation: readonly number[] | null,
  depth = 0,
): FoundProduct | null {
  const node = graph.producer(reference);
  if (node === null || depth > MAX_DEPTH) return null;
  if (isProduct(node)) {
    const product = scoreProduct(graph, node, permutation);
    return typeof product === 'string' ? null : {node, product, permutation};
  }
  if (!isOnTheWay(node)) return null;
  const inputs = graph.inputs(node);
  if (node.op === 'Transpose') {
    const own = graph.list(inputs[1]);
    if (own === null || permutation !== null) return null;
    return findProduct(graph, inputs[0], own, depth + 1);
  }
  const [from, to] = operands(node);
  for (const input of inputs.slice(from, to)) {
    const found = findProduct(graph, input, permutation, depth + 1);
    if (found !== null) return found;
  }
  return null;
}

/** Which inputs can be scores: neither shapes nor conditions. */
function operands({op}: GraphNode): [from: number, to: number] {
  if (op === 'Reshape') return [0, 1];
  return op === 'SelectV2' || op === 'Select' ? [1, 3] : [0, 2];
}
