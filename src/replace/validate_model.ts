/** What is wrong with a graph model as it was read: the first fault, with the node or weight that has it. */
import type * as tf from '@tensorflow/tfjs-core';
import {SageAttentionError} from '../runtime/errors.js';
import {
  parseReference,
  sizeOf,
  type GraphFunction,
  type GraphNode,
  type GraphTopology,
} from './model_graph.js';

/** The parts of a model that are looked at. */
export type ModelParts = Pick<tf.io.ModelArtifacts, 'modelTopology' | 'weightSpecs' | 'weightData'>;

/** One sentence on the first fault; null when there is none. */
export function findFault({modelTopology, weightSpecs, weightData}: ModelParts): string | null {
  const topology = modelTopology as (Partial<GraphTopology> & Record<string, unknown>) | undefined;
  if (topology === undefined || topology === null || typeof topology !== 'object') {
    return 'it has no modelTopology';
  }
  if (!Array.isArray(topology.node)) {
    return 'model_config' in topology || 'class_name' in topology
      ? 'it is a layers model, which the entry tfjs-sage-attention/layers loads'
      : 'its modelTopology has no list of nodes';
  }
  const weights = new Set(weightSpecs?.map(({name}) => name) ?? []);
  const functions: readonly Partial<GraphFunction>[] = topology.library?.function ?? [];
  return (
    faultOfNodes(topology.node, [], weights) ??
    functions
      .map(({nodeDef, signature}) =>
        faultOfNodes(nodeDef ?? [], signature?.inputArg?.map(({name}) => name) ?? [], weights),
      )
      .find((fault) => fault !== null) ??
    faultOfWeights(weightSpecs ?? [], weightData)
  );
}

function faultOfNodes(
  nodes: readonly GraphNode[],
  given: readonly string[],
  weights: ReadonlySet<string>,
): string | null {
  const names = new Set<string>(given);
  for (const [i, node] of nodes.entries()) {
    if (typeof node !== 'object' || node === null || typeof node.name !== 'string') {
      return `node number ${i} has no name`;
    }
    if (typeof node.op !== 'string') return `node '${node.name}' has no op`;
    const {input} = node as {input?: unknown};
    if (
      input !== undefined &&
      !(Array.isArray(input) && input.every((r) => typeof r === 'string'))
    ) {
      return `the inputs of node '${node.name}' are no list of names`;
    }
    if (names.has(node.name)) return `node '${node.name}' is there twice`;
    names.add(node.name);
  }
  for (const node of nodes) {
    for (const reference of node.input ?? []) {
      const {name} = parseReference(reference);
      if (!names.has(name)) return `node '${node.name}' reads '${name}', which is not there`;
    }
    if (node.op === 'Const' && !weights.has(node.name)) {
      return `node '${node.name}' is a constant without a weight`;
    }
  }
  return null;
}

const BYTES: Readonly<Record<string, number>> = {
  float32: 4,
  int32: 4,
  bool: 1,
  uint8: 1,
  uint16: 2,
  float16: 2,
  complex64: 8,
};

function faultOfWeights(
  specs: readonly tf.io.WeightsManifestEntry[],
  data: tf.io.ModelArtifacts['weightData'],
): string | null {
  if (data === undefined) return null;
  const parts = Array.isArray(data) ? data : [data];
  const available = parts.reduce((sum, {byteLength}) => sum + byteLength, 0);
  let needed = 0;
  for (const {name, shape, dtype, quantization} of specs) {
    const bytes = BYTES[quantization?.dtype ?? dtype];
    // Texts have lengths of their own.
    if (bytes === undefined) return null;
    needed += bytes * sizeOf(shape);
    if (needed > available) {
      return `its weights end within '${name}', after ${available} bytes`;
    }
  }
  return null;
}

/** The error for a model that cannot be read or rewritten. `file` names it. */
export function invalidModel(
  operation: string,
  file: string,
  fault: string,
  cause?: unknown,
): SageAttentionError {
  return new SageAttentionError({
    code: 'invalid-model',
    argument: null,
    message: `${operation}: ${file} is no graph model that can be read: ${fault}.`,
    hint: 'Convert it again with tensorflowjs_converter, or fetch all of its files again.',
    cause,
  });
}
