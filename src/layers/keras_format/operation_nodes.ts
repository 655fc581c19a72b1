/** Operations of Keras 3, such as `x[:, 0]`, which a file lists among the layers: their call as a KerasOperation. */
import {shapeOf, type ConstantValue, type Operand} from '../keras_operation.js';
import type {KeyPart} from '../operations/item_key.js';
import {
  OPERATIONS,
  type Operation,
  type OperationSettings,
  type SettingKind,
} from '../operations/operation_table.js';
import {isObject, objectAt, textAt, type JsonObject} from './json_values.js';
import {isRef, type TensorRef} from './layer_calls.js';
import type {ModelFile} from './model_errors.js';

/** An operation as the configuration of a KerasOperation, and the tensors that it reads. */
export interface ReadOperation {
  readonly inputs: readonly TensorRef[];
  readonly config: {
    readonly operation: string;
    readonly operands: readonly Operand[];
    readonly settings: OperationSettings;
  };
}

/** Operations with names of tfjs layers that compute something else. */
const LAYER_NAMESAKES: ReadonlySet<string> = new Set(['Average', 'Dot', 'Identity', 'Repeat']);

/** Whether an entry of a Keras 3 file is an operation; layers, some of the same names, say whether they are trained. */
export function isOperation(layer: JsonObject): boolean {
  const className = textAt(layer, 'class_name') ?? '';
  const known = Object.hasOwn(OPERATIONS, className) || LAYER_NAMESAKES.has(className);
  return known && !('trainable' in objectAt(layer, 'config'));
}

const HINT = 'Put it in a layer of its own, or convert the model as a graph model.';

export function readOperation(file: ModelFile, name: string, layer: JsonObject): ReadOperation {
  const className = textAt(layer, 'class_name') ?? '';
  const operation = OPERATIONS[className];
  if (operation === undefined) throw file.unknown(name, className);
  const nodes = Array.isArray(layer.inbound_nodes) ? (layer.inbound_nodes as unknown[]) : [];
  const [node] = nodes;
  if (!isObject(node) || !Array.isArray(node.args)) {
    throw file.invalid(name, 'its inbound_nodes have no args');
  }
  const refuse = (what: string): Error => file.unsupported(name, what, HINT);
  if (nodes.some((other) => JSON.stringify(other) !== JSON.stringify(node))) {
    throw refuse(`the operation ${className} is called more than once, with different arguments`);
  }
  const keyword = Object.entries(objectAt(node, 'kwargs')).find(([, value]) => value !== null);
  if (keyword !== undefined) throw refuse(`${className} is called with \`${keyword[0]}\``);
  const [first, ...rest] = node.args as unknown[];
  const isItem = className === 'GetItem';
  const args =
    operation.operands === 'list' && Array.isArray(first) ? (first as unknown[]) : [first];
  const others = isItem || operation.operands === 'list' ? [] : rest;
  const reader = new OperandReader(className, refuse);
  const operands = [...args, ...others].map((argument) => reader.operand(argument));
  const expected = operation.operands === 'list' ? operands.length : operation.operands;
  const extra = isItem ? rest.length !== 1 : operation.operands === 'list' && rest.length > 0;
  if (operands.length !== expected || reader.inputs.length === 0 || extra) {
    throw refuse(`${className} is called with other arguments than expected`);
  }
  if (operation.arithmetic) reader.checkTypes();
  const settings = readSettings(operation, className, objectAt(layer, 'config'), refuse);
  return {
    inputs: reader.inputs,
    config: {
      operation: className.replace(/^\w/, (letter) => letter.toLowerCase()),
      operands,
      settings: isItem ? {key: readKey(rest[0], refuse)} : settings,
    },
  };
}

/** Tensors and constants among the arguments; the same tensor twice is one input. */
class OperandReader {
  readonly inputs: TensorRef[] = [];
  private readonly types: string[] = [];

  constructor(
    private readonly className: string,
    private readonly refuse: (what: string) => Error,
  ) {}

  operand(argument: unknown): Operand {
    if (!isObject(argument)) {
      if (typeof argument !== 'boolean') this.types.push('');
      return {value: this.constant(argument)};
    }
    const config = objectAt(argument, 'config');
    const dtype = textAt(config, 'dtype') ?? 'float32';
    this.types.push(dtype);
    if (argument.class_name === '__keras_tensor__' && isRef(config.keras_history)) {
      const [layer, node, tensor] = config.keras_history;
      const same = (ref: TensorRef): boolean =>
        ref[0] === layer && ref[1] === node && ref[2] === tensor;
      const known = this.inputs.findIndex(same);
      return {tensor: known >= 0 ? known : this.inputs.push([layer, node, tensor]) - 1};
    }
    if (argument.class_name !== '__numpy__' && argument.class_name !== '__tensor__') {
      throw this.refuse(`${this.className} is called with ${JSON.stringify(argument.class_name)}`);
    }
    return {value: this.constant(config.value, dtype), dtype: this.tfjsType(dtype)};
  }

  /** Sums of bool, and integers that wrap around earlier than tfjs', are none of tfjs. */
  checkTypes(): void {
    const narrow = this.types.find((dtype) => /^u?int(8|16)$/.test(dtype));
    if (narrow !== undefined) throw this.refuse(`${this.className} computes in ${narrow}`);
    if (this.types.every((dtype) => dtype === 'bool')) {
      throw this.refuse(`${this.className} computes with bool`);
    }
  }

  private constant(value: unknown, dtype = ''): ConstantValue {
    const values = [value].flat(Infinity) as unknown[];
    const plain = values.every((item) => typeof item === 'number' || typeof item === 'boolean');
    const size = plain ? shapeOf(value as ConstantValue).reduce((a, b) => a * b, 1) : -1;
    if (size !== values.length) {
      throw this.refuse(`${this.className} is called with a value that is no tensor and no number`);
    }
    if (/int/.test(dtype) && values.some((item) => Math.abs(Number(item)) >= 2 ** 31)) {
      throw this.refuse(`${this.className} is called with integers of more than 32 bits`);
    }
    return value as ConstantValue;
  }

  private tfjsType(dtype: string): 'float32' | 'int32' | 'bool' {
    if (dtype === 'bool') return 'bool';
    if (/^u?int\d+$/.test(dtype)) return 'int32';
    if (/^b?float\d+$/.test(dtype)) return 'float32';
    throw this.refuse(`${this.className} is called with ${dtype}, which tfjs has not`);
  }
}

/** Settings that do not name a number, a list or the like: the name and policy of every operation. */
const IGNORED: ReadonlySet<string> = new Set(['name']);

function readSettings(
  {settings: kinds}: Operation,
  className: string,
  config: JsonObject,
  refuse: (what: string) => Error,
): OperationSettings {
  const settings: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(config)) {
    const kind = kinds[name];
    if (IGNORED.has(name) || (kind === undefined && value === null)) continue;
    const read = kind === undefined ? undefined : readSetting(kind, value);
    if (read === undefined) {
      throw refuse(`${className} with ${name}: ${JSON.stringify(value)} is not known here`);
    }
    settings[name] = read;
  }
  for (const [name, kind] of Object.entries(kinds)) {
    const needed = kind === 'axis' || kind === 'sizes' || kind === 'dtype';
    if (needed && !(name in settings)) throw refuse(`${className} has no ${name}`);
  }
  return settings;
}

/** undefined: no value of that kind. */
function readSetting(kind: SettingKind, value: unknown): unknown {
  const isList = Array.isArray(value) && (value as unknown[]).every(Number.isInteger);
  switch (kind) {
    case 'axis':
      return Number.isInteger(value) ? value : undefined;
    case 'axes':
      return value === null || Number.isInteger(value) || isList ? value : undefined;
    case 'sizes':
      return isList ? value : undefined;
    case 'flag':
      return typeof value === 'boolean' ? value : undefined;
    case 'dtype':
      if (value === 'bool') return value;
      if (value === 'int32' || value === 'int64') return 'int32';
      return typeof value === 'string' && /^b?float\d+$/.test(value) ? 'float32' : undefined;
    case 'unset':
      return value === null ? value : undefined;
  }
}

/** Keras writes `x[:, 0]` as a list of parts, and a key of one part as that part. */
function readKey(key: unknown, refuse: (what: string) => Error): KeyPart[] {
  const parts = (Array.isArray(key) ? (key as unknown[]) : [key]).map((part): KeyPart => {
    if (part === null) return {newAxis: true};
    if (Number.isInteger(part)) return {index: part as number};
    if (isObject(part)) {
      const config = objectAt(part, 'config');
      if (part.class_name === '__ellipsis__') return {ellipsis: true};
      if (part.class_name === '__numpy__' && Number.isInteger(config.value)) {
        return {index: config.value as number};
      }
      const [start, stop, step] = [config.start, config.stop, config.step].map(bound);
      if (part.class_name === '__slice__' && step !== 0) {
        if (start !== undefined && stop !== undefined && step !== undefined) {
          return {start, stop, step};
        }
      }
    }
    throw refuse('GetItem has a key other than whole numbers, slices, `...` and None');
  });
  if (parts.filter((part) => 'ellipsis' in part).length > 1) {
    throw refuse('GetItem has more than one `...` in its key');
  }
  return parts;
}

/** A bound of a slice; undefined when it is neither a whole number nor left out. */
function bound(value: unknown): number | null | undefined {
  if (value === null) return null;
  if (Number.isInteger(value)) return value as number;
  const inner =
    isObject(value) && value.class_name === '__numpy__' ? objectAt(value, 'config') : {};
  return Number.isInteger(inner.value) ? (inner.value as number) : undefined;
}
