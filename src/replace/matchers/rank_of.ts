/** How many axes a tensor has, where the graph itself says so. */
import {flag, text, type GraphShape, type GraphView} from '../model_graph.js';

const MAX_DEPTH = 40;

const UNARY = new Set([
  'Identity',
  'Cast',
  'StopGradient',
  'Softmax',
  'Exp',
  'Tanh',
  'Relu',
  'Neg',
  'Sqrt',
  'Rsqrt',
  'LogicalNot',
  'Elu',
  'Sigmoid',
  'Erf',
  'Square',
]);

const BROADCASTING = new Set([
  'Add',
  'AddV2',
  'Sub',
  'Mul',
  'RealDiv',
  'Div',
  'Maximum',
  'Minimum',
  'SelectV2',
  'Select',
  'BiasAdd',
  'BatchMatMul',
  'BatchMatMulV2',
  'BatchMatMulV3',
]);

/** null when it cannot be told. */
export function rankOf(graph: GraphView, reference: string | undefined, depth = 0): number | null {
  const node = graph.producer(reference);
  if (node === null || depth > MAX_DEPTH) return null;
  const inputs = graph.inputs(node);
  const of = (i: number) => rankOf(graph, inputs[i], depth + 1);
  if (node.op === 'Const') return graph.constant(reference)?.shape.length ?? null;
  if (UNARY.has(node.op)) return of(0);
  if (BROADCASTING.has(node.op)) {
    const ranks = inputs.map((_, i) => of(i));
    return ranks.every((rank) => rank !== null) ? Math.max(...ranks) : null;
  }
  switch (node.op) {
    case 'Placeholder':
      return rankOfShape(node.attr?.['shape']?.shape);
    case 'MatMul':
    case '_FusedMatMul':
      return 2;
    case 'Einsum':
      return text(node, 'equation')?.split('->')[1]?.trim().length ?? null;
    case 'Reshape':
    case 'BroadcastTo':
    case 'Fill': {
      const shape = inputs[node.op === 'Fill' ? 0 : 1];
      const constant = graph.constant(shape);
      if (constant !== null) return constant.shape[0] ?? null;
      const pack = graph.producer(shape);
      return pack?.op === 'Pack' ? graph.inputs(pack).length : null;
    }
    case 'Transpose':
      return graph.list(inputs[1])?.length ?? of(0);
    case 'Max':
    case 'Sum': {
      const inner = of(0);
      const axes = graph.constant(inputs[1]);
      if (inner === null || axes === null) return null;
      return flag(node, 'keep_dims') ? inner : inner - (axes.shape[0] ?? 1);
    }
    case 'ExpandDims': {
      const inner = of(0);
      return inner === null ? null : inner + 1;
    }
    default:
      return null;
  }
}

function rankOfShape(shape: GraphShape | undefined): number | null {
  if (shape === undefined || shape.unknownRank === true) return null;
  return shape.dim?.length ?? 0;
}
