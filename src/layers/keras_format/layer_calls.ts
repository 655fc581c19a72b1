/**
 * Calls of a layer in a model file, in the two ways that Keras writes them: Keras 2 and tfjs as lists of
 * [layer, node, tensor, keywords], Keras 3 as positional and keyword arguments with tensors among them.
 */
import {
  TENSOR_ROLES,
  withoutRepeats,
  type CallArguments,
  type TensorRole,
} from '../call_arguments.js';
import {isObject} from './json_values.js';
import type {ModelFile} from './model_errors.js';

/** An output of a layer: its name, the number of the call, the number of the output. */
export type TensorRef = readonly [layer: string, node: number, tensor: number];

/** One call of a layer: the tensors, and for an attention layer what they are and its flags. */
export interface LayerCall {
  readonly inputs: readonly TensorRef[];
  readonly attention: CallArguments | null;
  /** Keras 3: the call names the mask of its input, so it has it whatever ran before. */
  readonly isMasked?: boolean;
}

/** Attention layers whose tensors have roles: the others take one list. */
export type CallStyle = 'named attention' | 'listed attention' | 'plain';

export function callStyle(className: string): CallStyle {
  if (className === 'MultiHeadAttention' || className === 'GroupQueryAttention') {
    return 'named attention';
  }
  return className === 'Attention' || className === 'AdditiveAttention'
    ? 'listed attention'
    : 'plain';
}

/** Positional arguments of Keras' call, in order. */
const POSITIONS: readonly TensorRole[] = [
  'query',
  'value',
  'key',
  'queryMask',
  'valueMask',
  'keyMask',
  'attentionMask',
];

/** Says of which class a layer of the model is; null for a class that is no layer of tfjs, such as an operation. */
export type LayerClassOf = (layer: string) => string | null;

const FLAGS = {
  use_causal_mask: 'useCausalMask',
  return_attention_scores: 'returnAttentionScores',
} as const;

/** All calls of a layer. */
export function readCalls(
  file: ModelFile,
  layer: string,
  className: string,
  inboundNodes: unknown,
  layerClassOf: LayerClassOf,
): LayerCall[] {
  if (inboundNodes == null) return [];
  if (!Array.isArray(inboundNodes)) {
    throw file.invalid(layer, 'its inbound_nodes are no list');
  }
  return (inboundNodes as unknown[]).map((node) => {
    const {positional, keywords} = Array.isArray(node)
      ? keras2Node(file, layer, node as unknown[])
      : keras3Node(file, layer, node);
    return readCall(file, layer, callStyle(className), positional, keywords, layerClassOf);
  });
}

interface Node {
  /** Each argument as the tensors in it. */
  readonly positional: readonly (readonly TensorRef[])[];
  readonly keywords: ReadonlyMap<string, TensorRef | readonly TensorRef[] | boolean | null>;
}

function readCall(
  file: ModelFile,
  layer: string,
  style: CallStyle,
  positional: Node['positional'],
  keywords: Node['keywords'],
  layerClassOf: LayerClassOf,
): LayerCall {
  const inputs: TensorRef[] = [];
  const places: Partial<Record<TensorRole, number>> = {};
  const flags: {useCausalMask?: boolean; returnAttentionScores?: boolean} = {};
  let isMasked = false;
  if (style === 'named attention' && (positional[0]?.length ?? 0) > 1) {
    // Saved by tfjs: one list, of which the layer's settings say what it holds.
    return {inputs: positional.flat(), attention: null};
  }
  if (style === 'named attention') {
    positional.forEach(([ref], position) => {
      const role = POSITIONS[position];
      if (ref === undefined || role === undefined) return;
      places[role] = inputs.push(ref) - 1;
    });
  } else {
    inputs.push(...positional.flat());
  }
  for (const [name, value] of keywords) {
    if (value === null || value === false) continue;
    const flag = FLAGS[name as keyof typeof FLAGS] as
      (typeof FLAGS)[keyof typeof FLAGS] | undefined;
    const role = TENSOR_ROLES.find((known) => snakeCase(known) === name);
    if (style !== 'plain' && flag !== undefined && value === true) flags[flag] = true;
    else if (style === 'named attention' && role !== undefined && isRef(value)) {
      places[role] = inputs.push(value) - 1;
    } else if (name === 'initial_state' && value !== true) {
      inputs.push(...(isRef(value) ? [value] : value));
    } else if (name === 'inputs' && value !== true) {
      inputs.unshift(...(isRef(value) ? [value] : value));
    } else if (name === 'mask' && value !== true) {
      // Keras 3 also writes the operations that make masks; here masks follow their tensors.
      const makers = (isRef(value) ? [value] : value).map(([maker]) => layerClassOf(maker));
      if (makers.every((maker) => maker === null)) {
        isMasked = true;
        continue;
      }
      throw file.unsupported(
        layer,
        'its mask is a tensor of its own',
        'Use an Embedding with mask_zero, a Masking layer or an attention_mask.',
      );
    } else if (name !== 'training' && name !== 'mask') {
      throw file.unsupported(
        layer,
        `it is called with \`${name}\`, which tfjs cannot pass`,
        'Convert the model as a graph model.',
      );
    }
  }
  if (style === 'plain') return {inputs, attention: null, isMasked};
  if (style === 'listed attention') {
    LISTED.slice(0, inputs.length).forEach((role, i) => (places[role] = i));
  }
  const {tensors, places: unique} = withoutRepeats(inputs, places, sameRef);
  return {inputs: tensors, attention: {inputs: unique, ...flags}};
}

const LISTED: readonly TensorRole[] = ['query', 'value', 'key'];

function sameRef(a: TensorRef, b: TensorRef): boolean {
  return a.every((part, i) => part === b[i]);
}

/** `[["x", 0, 0, {"value": ["y", 0, 0]}], ...]`: the tensors of one list, keywords repeated with each. */
function keras2Node(file: ModelFile, layer: string, node: unknown[]): Node {
  const entries = (isRef(node) ? [node] : node) as unknown[];
  const refs: TensorRef[] = [];
  const keywords = new Map<string, TensorRef | readonly TensorRef[] | boolean | null>();
  for (const entry of entries) {
    if (!Array.isArray(entry) || !isRef(entry)) {
      throw file.invalid(layer, 'an inbound node is no [layer, node, tensor]');
    }
    refs.push([entry[0], entry[1], entry[2]]);
    const own = (entry as readonly unknown[])[3];
    for (const [name, value] of Object.entries(isObject(own) ? own : {})) {
      keywords.set(snakeCase(name), keyword(value));
    }
  }
  return {positional: [refs], keywords};
}

/** `{"args": [tensor, [tensor, ...]], "kwargs": {"key": tensor}}`. */
function keras3Node(file: ModelFile, layer: string, node: unknown): Node {
  if (!isObject(node) || !Array.isArray(node.args)) {
    throw file.invalid(layer, 'an inbound node has no args');
  }
  const positional = (node.args as unknown[]).map((argument) => {
    const found = tensorsIn(argument);
    if (found.length === 0 && argument !== null) {
      throw file.unsupported(
        layer,
        'it is called with a value in place of a tensor',
        'Convert the model as a graph model.',
      );
    }
    return found;
  });
  const keywords = new Map<string, TensorRef | readonly TensorRef[] | boolean | null>();
  for (const [name, value] of Object.entries(isObject(node.kwargs) ? node.kwargs : {})) {
    const found = tensorsIn(value);
    const single = isObject(value) ? found[0] : undefined;
    keywords.set(name, single ?? (found.length > 0 ? found : keyword(value)));
  }
  return {positional, keywords};
}

/** Tensors of an argument of Keras 3: one, or a list or dictionary of them. */
function tensorsIn(argument: unknown): TensorRef[] {
  if (Array.isArray(argument)) return argument.flatMap(tensorsIn);
  if (!isObject(argument)) return [];
  if (argument.class_name !== '__keras_tensor__') return Object.values(argument).flatMap(tensorsIn);
  const {config} = argument;
  const history = isObject(config) ? config.keras_history : null;
  return isRef(history) ? [[history[0], history[1], history[2]]] : [];
}

function keyword(value: unknown): TensorRef | readonly TensorRef[] | boolean | null {
  if (value == null || typeof value === 'boolean') return value ?? null;
  if (isRef(value)) return [value[0], value[1], value[2]];
  if (Array.isArray(value) && value.length > 0 && value.every(isRef)) return value;
  // Any other value only says that the keyword is there.
  return true;
}

export function isRef(value: unknown): value is TensorRef {
  return (
    Array.isArray(value) &&
    value.length >= 3 &&
    typeof value[0] === 'string' &&
    Number.isInteger(value[1]) &&
    Number.isInteger(value[2])
  );
}

/** Inputs or outputs of a model: one reference, a list, or a dictionary of references. */
export function refsOf(file: ModelFile, value: unknown): TensorRef[] {
  if (isRef(value)) return [[value[0], value[1], value[2]]];
  if (Array.isArray(value)) return value.flatMap((item) => refsOf(file, item));
  if (isObject(value)) {
    // Keras sorts the keys of a dictionary.
    return Object.keys(value)
      .sort()
      .flatMap((key) => refsOf(file, value[key]));
  }
  throw file.invalid(null, 'its input_layers or output_layers are no [layer, node, tensor]');
}

export function snakeCase(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** Calls of one layer as one: a layer of tfjs runs alike wherever it is used. */
export function sameForAll(
  file: ModelFile,
  layer: string,
  calls: readonly LayerCall[],
): CallArguments | null {
  const first = calls[0]?.attention ?? null;
  const text = JSON.stringify(first);
  if (calls.some(({attention}) => JSON.stringify(attention) !== text)) {
    throw file.unsupported(
      layer,
      'it is called more than once, with different arguments',
      'tfjs runs every use of a layer alike; give each use a layer of its own.',
    );
  }
  return first;
}
