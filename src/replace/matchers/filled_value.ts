/** Tensors of one number, such as what hides a key. */
import {passesThrough, type GraphView} from '../model_graph.js';

/** The number that fills a tensor; null when it holds others. */
export function filledValue(graph: GraphView, reference: string): number | null {
  const scalar = graph.scalar(reference);
  if (scalar !== null) return scalar;
  const values = graph.constant(reference)?.values ?? null;
  if (values !== null) {
    const first = values[0] ?? null;
    return first !== null && Array.from(values).every((value) => value === first) ? first : null;
  }
  const node = graph.producer(reference);
  if (node === null) return null;
  const inputs = graph.inputs(node);
  if (node.op === 'Fill') return graph.scalar(inputs[1]);
  if (passesThrough(node) || ['Reshape', 'BroadcastTo', 'ExpandDims', 'Tile'].includes(node.op)) {
    return filledValue(graph, inputs[0] ?? '');
  }
  return null;
}
