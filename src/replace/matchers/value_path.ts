/** The way from the softmax to the product with the values, and what may follow it: a late division, a Transpose. */
import {passesThrough, type GraphNode, type GraphView} from '../model_graph.js';
import {afterTranspose, isProduct, valueProduct, type ValueProduct} from './products.js';
import type {SoftmaxMatch} from './softmax.js';

export interface ValuePath {
  readonly product: ValueProduct;
  /** The node that the attention takes the place of. */
  readonly output: GraphNode;
  /** Nodes that vanish; not the output itself. */
  readonly interior: ReadonlySet<GraphNode>;
  /** A number by which the probabilities are multiplied. */
  readonly factor: number;
  /** Condition by which probabilities of hidden keys are made 0 once more; null when there is none. */
  readonly zeroed: string | null;
  /** Shape of a Reshape between softmax and product; null when there is none. */
  readonly reshape: string | null;
}

const MAX_NODES = 8;

const BETWEEN = new Set(['Mul', 'Reshape', 'SelectV2', 'Select']);

/**
 * The nodes between a softmax and a product, before it is known which letters the scores have.
 * @returns null where no product follows.
 */
export function nodeBehind(graph: GraphView, result: GraphNode): GraphNode | null {
  let node = result;
  for (let i = 0; i < MAX_NODES; i += 1) {
    const readers = graph.valueReaders(node).filter(({op}) => op !== 'Sum');
    const [reader] = readers;
    if (reader === undefined || readers.length > 1) return null;
    if (isProduct(reader)) return reader;
    if (!passesThrough(reader) && !BETWEEN.has(reader.op)) return null;
    node = reader;
  }
  return null;
}

/** @returns The path, or why there is none. */
export function valuePath(
  graph: GraphView,
  softmax: SoftmaxMatch,
  scores: string,
): ValuePath | string {
  const interior = new Set<GraphNode>();
  let node = softmax.result;
  let factor = 1;
  let reshape: string | null = null;
  let zeroed: string | null = null;
  for (let i = 0; i < MAX_NODES; i += 1) {
    if (graph.isKept(node)) return `the probabilities ('${node.name}') are an output of the model`;
    const readers = graph.valueReaders(node).filter((reader) => !softmax.interior.has(reader));
    const [reader] = readers;
    if (reader === undefined) return 'nothing reads the probabilities';
    if (readers.length > 1) {
      const names = readers.map(({name}) => `'${name}'`).join(', ');
      return `the probabilities are read by more than one node (${names})`;
    }
    interior.add(node);
    if (isProduct(reader)) {
      const product = valueProduct(graph, reader, node.name, scores);
      if (typeof product === 'string') return product;
      const end = afterwards(graph, softmax, reader, product, interior, scores);
      return typeof end === 'string' ? end : {...end, factor, reshape, zeroed};
    }
    const inputs = graph.inputs(reader);
    if (reader.op === 'Reshape' && reshape === null) {
      reshape = inputs[1] ?? '';
    } else if (reader.op === 'Mul') {
      const other = graph.producer(inputs[0]) === node ? inputs[1] : inputs[0];
      const value = graph.scalar(other);
      if (value === null) {
        return `the probabilities are multiplied by data in '${reader.name}' (a gate, or dropout that is switched on)`;
      }
      factor *= value;
    } else if (isZeroing(graph, reader, node) && zeroed === null) {
      zeroed = inputs[0] ?? '';
    } else if (!passesThrough(reader)) {
      return `the probabilities go into '${reader.name}' (${reader.op}), not into a product with values`;
    }
    node = reader;
  }
  return 'the way from the softmax to the product with the values is too long';
}

/** Keras makes what a mask hides 0 behind the softmax too, so that a row that sees nothing gives 0. */
function isZeroing(graph: GraphView, node: GraphNode, probabilities: GraphNode): boolean {
  if (node.op !== 'SelectV2' && node.op !== 'Select') return false;
  const [, seen, hidden] = graph.inputs(node);
  const values = graph.constant(hidden)?.values ?? null;
  const isZero = values !== null && Array.from(values).every((value) => value === 0);
  return isZero && graph.producer(seen) === probabilities;
}

/** What follows the product and may vanish into the attention. */
function afterwards(
  graph: GraphView,
  softmax: SoftmaxMatch,
  productNode: GraphNode,
  product: ValueProduct,
  interior: Set<GraphNode>,
  scores: string,
): Pick<ValuePath, 'product' | 'output' | 'interior'> | string {
  let output = productNode;
  if (softmax.lateSum !== null) {
    if (product.out !== scores.replace('t', 'e')) {
      return 'the sums of the exponentials have their axes in another order than the output';
    }
    // Found by the softmax' matcher: the one reader of the sum divides this product by it.
    const division = graph.valueReaders(softmax.lateSum)[0] as GraphNode;
    interior.add(productNode);
    output = division;
  }
  const readers = graph.consumers(output);
  const [only] = readers;
  if (only === undefined || readers.length > 1 || only.isControl || graph.isKept(output)) {
    return {product, output, interior};
  }
  const transpose = only.node;
  const permutation = transpose.op === 'Transpose' ? graph.list(graph.inputs(transpose)[1]) : null;
  const out = permutation === null ? null : afterTranspose(product.out, permutation);
  if (out === null || only.position !== 0) return {product, output, interior};
  interior.add(output);
  return {product: {...product, out}, output: transpose, interior};
}
