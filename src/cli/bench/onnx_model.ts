/**
 * ONNX models of a single attention node, written byte by byte: the few protobuf messages that such a model needs.
 * Field numbers: onnx.proto3 of ONNX, https://github.com/onnx/onnx.
 */

/** An input or output of the model; a name with dimensions. */
export interface OnnxValue {
  readonly name: string;
  readonly type: 'float32' | 'int32';
  readonly dims: readonly number[];
}

export interface OnnxNode {
  readonly operator: string;
  /** '' for ONNX' own operators. */
  readonly domain: string;
  /** '' stands for an optional input that is left out. */
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes: Readonly<Record<string, OnnxAttribute>>;
}

export type OnnxAttribute = {readonly int: number} | {readonly float: number};

/** Of the file format; ONNX Runtime reads this one and older ones. */
const IR_VERSION = 10;
/** The first operator set that has `Attention`. */
const OPERATOR_SET = 23;
const MICROSOFT_OPERATOR_SET = 1;

/** TensorProto.DataType. */
const DATA_TYPES = {float32: 1, int32: 6} as const;
/** AttributeProto.AttributeType. */
const FLOAT_ATTRIBUTE = 1;
const INT_ATTRIBUTE = 2;

/** A model of one node, as `InferenceSession.create` reads it. */
export function encodeOnnxModel(
  node: OnnxNode,
  inputs: readonly OnnxValue[],
  outputs: readonly OnnxValue[],
): Uint8Array {
  const graph = [
    ...field(1, encodeNode(node)),
    ...field(2, text('attention')),
    ...inputs.flatMap((value) => field(11, encodeValue(value))),
    ...outputs.flatMap((value) => field(12, encodeValue(value))),
  ];
  return Uint8Array.from([
    ...integer(1, IR_VERSION),
    ...field(7, graph),
    ...field(8, encodeOperatorSet('', OPERATOR_SET)),
    ...field(8, encodeOperatorSet('com.microsoft', MICROSOFT_OPERATOR_SET)),
  ]);
}

function encodeNode({operator, domain, inputs, outputs, attributes}: OnnxNode): number[] {
  return [
    ...inputs.flatMap((name) => field(1, text(name))),
    ...outputs.flatMap((name) => field(2, text(name))),
    ...field(4, text(operator)),
    ...Object.entries(attributes).flatMap(([name, value]) =>
      field(5, encodeAttribute(name, value)),
    ),
    ...field(7, text(domain)),
  ];
}

function encodeAttribute(name: string, value: OnnxAttribute): number[] {
  if ('int' in value) {
    return [...field(1, text(name)), ...integer(3, value.int), ...integer(20, INT_ATTRIBUTE)];
  }
  const bytes = new Uint8Array(new Float32Array([value.float]).buffer);
  return [...field(1, text(name)), ...tag(2, 5), ...bytes, ...integer(20, FLOAT_ATTRIBUTE)];
}

function encodeValue({name, type, dims}: OnnxValue): number[] {
  const shape = dims.flatMap((dim) => field(1, integer(1, dim)));
  const tensor = [...integer(1, DATA_TYPES[type]), ...field(2, shape)];
  return [...field(1, text(name)), ...field(2, field(1, tensor))];
}

function encodeOperatorSet(domain: string, version: number): number[] {
  return [...field(1, text(domain)), ...integer(2, version)];
}

function text(value: string): number[] {
  return [...new TextEncoder().encode(value)];
}

/** A length-delimited field. */
function field(number: number, bytes: readonly number[]): number[] {
  return [...tag(number, 2), ...varint(bytes.length), ...bytes];
}

/** A whole number >= 0 as a varint field. */
function integer(number: number, value: number): number[] {
  return [...tag(number, 0), ...varint(value)];
}

function tag(number: number, wireType: number): number[] {
  return varint(number * 8 + wireType);
}

/** Seven bits a byte, the low ones first. */
function varint(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  while (rest >= 128) {
    bytes.push((rest % 128) + 128);
    rest = Math.floor(rest / 128);
  }
  return [...bytes, rest];
}
