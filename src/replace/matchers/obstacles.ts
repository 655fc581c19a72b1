/** What stands between product and softmax, in words for the report. */
import type {GraphNode} from '../model_graph.js';

export function describeObstacle(node: GraphNode): string {
  switch (node.op) {
    case 'Tanh':
      return `the scores are capped by '${node.name}' (soft cap)`;
    case 'ConcatV2':
      return `the softmax has columns that are no keys ('${node.name}')`;
    case 'Einsum':
    case 'MatMul':
    case 'BatchMatMul':
    case 'BatchMatMulV2':
    case 'BatchMatMulV3':
      return `the scores are mixed by '${node.name}'`;
    case 'Transpose':
      return `the axes of the scores are exchanged by '${node.name}' (softmax over queries)`;
    default:
      return `between product and softmax stands '${node.name}' (${node.op})`;
  }
}
