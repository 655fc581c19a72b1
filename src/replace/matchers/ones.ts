/** Tensors of ones, from which graphs cut and count triangles. */
import {passesThrough, type GraphView} from '../model_graph.js';

const SHAPING = new Set(['Reshape', 'ExpandDims', 'BroadcastTo', 'Squeeze', 'Cast']);

/** Whether a tensor holds ones only. */
export function isOnes(graph: GraphView, reference: string | undefined): boolean {
  const values = graph.constant(reference)?.values ?? null;
  if (values !== null) return Array.from(values).every((value) => value === 1);
  const node = graph.producer(reference);
  if (node === null) return false;
  const inputs = graph.inputs(node);
  if (node.op === 'Fill') return graph.scalar(inputs[1]) === 1;
  if (node.op === 'OnesLike') return true;
  return (passesThrough(node) || SHAPING.has(node.op)) && isOnes(graph, inputs[0]);
}
