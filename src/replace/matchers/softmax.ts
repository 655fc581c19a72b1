/**
 * Where attention begins to be looked for: Softmax nodes, and softmax spelled out as exponentials over their sum, the
 * division in front of the product with the values or behind it.
 */
import {flag, passesThrough, type GraphNode, type GraphView} from '../model_graph.js';
import {rankOf} from './rank_of.js';

/** A softmax over the last axis. */
export interface SoftmaxMatch {
  /** `Softmax`, or the `Exp` of a decomposed one. */
  readonly anchor: GraphNode;
  /** Reference to what it is taken of. */
  readonly scores: string;
  /** The node whose output goes into the product with the values: probabilities, or exponentials yet to be divided. */
  readonly result: GraphNode;
  /** Nodes that vanish with it. */
  readonly interior: ReadonlySet<GraphNode>;
  /** The sum, where the division comes behind the product with the values. */
  readonly lateSum: GraphNode | null;
}

/** A place to look at: a softmax, or why it is none. */
export type SoftmaxCandidate = SoftmaxMatch | {readonly anchor: GraphNode; readonly reason: string};

/** Every softmax of a graph and what almost is one. */
export function findSoftmaxes(graph: GraphView): SoftmaxCandidate[] {
  const found: SoftmaxCandidate[] = [];
  for (const node of graph.nodes) {
    if (node.op === 'Softmax') {
      const scores = graph.inputs(node)[0];
      if (scores === undefined) continue;
      found.push({anchor: node, scores, result: node, interior: new Set([node]), lateSum: null});
    } else if (node.op === 'LogSoftmax') {
      found.push({anchor: node, reason: 'a log-softmax, whose logarithms are wanted'});
    } else if (node.op === 'Exp') {
      const candidate = decomposed(graph, node);
      if (candidate !== null) found.push(candidate);
    }
  }
  return found;
}

/** null when an exponential has nothing of a softmax. */
function decomposed(graph: GraphView, exp: GraphNode): SoftmaxCandidate | null {
  const readers = graph.valueReaders(exp);
  const sum = readers.find(({op}) => op === 'Sum');
  if (sum === undefined || !reducesLastAxis(graph, sum)) return null;
  const interior = new Set([exp, sum]);
  const scores = belowMaximum(graph, exp, interior);
  const others = readers.filter((node) => node !== sum);
  const [other] = others;
  if (other === undefined || others.length > 1) {
    return {anchor: exp, reason: 'its exponentials are read by more than one node'};
  }
  if (!keepsAxis(graph, sum)) {
    return {anchor: exp, reason: 'the sum of its exponentials is spread over other axes than keys'};
  }
  const sums = spread(graph, sum, interior);
  if (sums === null) return {anchor: exp, reason: 'the sum of its exponentials is read elsewhere'};
  const denominators = graph.valueReaders(sums);
  const divides = (node: GraphNode | undefined) =>
    node !== undefined &&
    (node.op === 'RealDiv' || node.op === 'Div') &&
    graph.producer(graph.inputs(node)[1]) === sums;
  if (denominators.length !== 1 || !divides(denominators[0])) {
    return {
      anchor: exp,
      reason: 'its exponentials are not divided by their sum alone (softmax with an extra term)',
    };
  }
  if (divides(other) && graph.producer(graph.inputs(other)[0]) === exp) {
    interior.add(other);
    return {anchor: exp, scores, result: other, interior, lateSum: null};
  }
  return {anchor: exp, scores, result: exp, interior, lateSum: sums};
}

/** What exp(x - max(x)) is taken of; exp(x) alone is the same softmax. */
function belowMaximum(graph: GraphView, exp: GraphNode, interior: Set<GraphNode>): string {
  const input = graph.inputs(exp)[0] ?? '';
  const difference = graph.producer(input);
  if (difference?.op !== 'Sub' || graph.valueReaders(difference).length !== 1) return input;
  const [scores, maximum] = graph.inputs(difference);
  if (scores === undefined) return input;
  const passed: GraphNode[] = [];
  let node = graph.producer(maximum);
  for (let i = 0; node !== null && i < 8; i += 1) {
    passed.push(node);
    if (node.op === 'Max') {
      const source = graph.inputs(node)[0] ?? '';
      if (!graph.same(source, scores) || !reducesLastAxis(graph, node)) return input;
      if (!keepsAxis(graph, node)) return input;
      for (const one of [difference, ...passed]) interior.add(one);
      return scores;
    }
    // A lower bound keeps -Infinity - -Infinity from becoming NaN and changes nothing else.
    const isBound = node.op === 'Maximum';
    if (!isBound && !passesThrough(node) && !isReshaping(node)) return input;
    const inputs = graph.inputs(node);
    const isConstant = isBound && graph.scalar(inputs[0]) !== null;
    if (isBound && (graph.scalar(inputs[isConstant ? 0 : 1]) ?? 0) > -1e30) return input;
    node = graph.producer(inputs[isConstant ? 1 : 0]);
  }
  return input;
}

const RESHAPING = new Set(['Reshape', 'ExpandDims', 'BroadcastTo', 'Squeeze']);

function isReshaping({op}: GraphNode): boolean {
  return RESHAPING.has(op);
}

/** The last of the nodes that only give a sum back its axis; null when something else reads along the way. */
function spread(graph: GraphView, sum: GraphNode, interior: Set<GraphNode>): GraphNode | null {
  let node = sum;
  for (;;) {
    const readers = graph.valueReaders(node);
    const [reader] = readers;
    if (reader === undefined || readers.length > 1 || graph.isKept(node)) return null;
    if (!passesThrough(reader) && !isReshaping(reader)) return node;
    interior.add(reader);
    node = reader;
  }
}

/** Whether the reduced axis stays, or comes back at once, with one element. */
function keepsAxis(graph: GraphView, reduction: GraphNode): boolean {
  let node = reduction;
  for (let i = 0; i < 8 && !flag(node, 'keep_dims'); i += 1) {
    const [reader] = graph.valueReaders(node);
    if (reader === undefined) return false;
    const inputs = graph.inputs(reader);
    if (reader.op === 'ExpandDims')
      return graph.scalar(inputs[1]) === -1 || endsWithOne(graph, reader);
    if (reader.op === 'Reshape') return graph.list(inputs[1])?.at(-1) === 1;
    if (!passesThrough(reader) && reader.op !== 'Maximum') return false;
    node = reader;
  }
  return flag(node, 'keep_dims');
}

/** An ExpandDims by a positive axis that becomes the last. */
function endsWithOne(graph: GraphView, node: GraphNode): boolean {
  const [source, axis] = graph.inputs(node);
  const rank = rankOf(graph, source);
  return rank !== null && graph.scalar(axis) === rank;
}

/** Whether a reduction runs over the last axis and no other. */
function reducesLastAxis(graph: GraphView, node: GraphNode): boolean {
  const [source, axes] = graph.inputs(node);
  const axis = graph.scalar(axes);
  if (axis === null) return false;
  if (axis === -1) return true;
  const rank = rankOf(graph, source);
  return rank !== null && axis === rank - 1 && (flag(node, 'keep_dims') || axis > 0);
}
