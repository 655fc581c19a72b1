/** The operations of Keras 3 that a loaded model may have between its layers, on tfjs ops, with Keras' types. */
import * as tf from '@tensorflow/tfjs-core';
import {getItem, itemShape, type KeyPart} from './item_key.js';
import {
  axesOf,
  axisOf,
  broadcast,
  concatenated,
  expanded,
  multiplied,
  reduced,
  reshaped,
  squeezed,
  transposed,
  type Shape,
} from './operation_shapes.js';

/** Settings of all operations, by Keras' names. */
export interface OperationSettings {
  readonly axis?: number | readonly number[] | null;
  readonly keepdims?: boolean | null;
  readonly newshape?: readonly number[];
  readonly axes?: readonly number[] | null;
  readonly axis1?: number;
  readonly axis2?: number;
  readonly approximate?: boolean;
  /** The type to cast to, as tfjs names it. */
  readonly dtype?: 'float32' | 'int32' | 'bool';
  readonly key?: readonly KeyPart[];
}

/** `axis`: a number; `axes`: a number, several, or null = all; `sizes`: numbers; `unset`: nothing but null. */
export type SettingKind = 'axis' | 'axes' | 'sizes' | 'flag' | 'dtype' | 'unset';

export interface Operation {
  /** How many tensors and constants it takes; `list`: as many as its first argument lists. */
  readonly operands: number | 'list';
  readonly settings: Readonly<Record<string, SettingKind>>;
  /** Computes numbers, for which bool and narrow integers have rules of their own in Keras. */
  readonly arithmetic: boolean;
  readonly shape: (shapes: readonly Shape[], settings: OperationSettings) => Shape;
  readonly compute: (operands: readonly tf.Tensor[], settings: OperationSettings) => tf.Tensor;
}

type Unary = (x: tf.Tensor) => tf.Tensor;
type Binary = (a: tf.Tensor, b: tf.Tensor) => tf.Tensor;

const float: Unary = (x) => tf.cast(x, 'float32');
const bool: Unary = (x) => tf.cast(x, 'bool');
const isFloat = (x: tf.Tensor): boolean => x.dtype === 'float32';

const TYPES = ['bool', 'int32', 'float32'] as const;

/** All in the widest of their types. */
function alike(tensors: readonly tf.Tensor[]): tf.Tensor[] {
  const widest = Math.max(...tensors.map(({dtype}) => TYPES.indexOf(dtype as 'bool')));
  return tensors.map((tensor) => tf.cast(tensor, TYPES[widest] ?? 'float32'));
}

function unary(compute: Unary): Operation {
  return {
    operands: 1,
    settings: {},
    arithmetic: true,
    shape: ([x = []]) => x,
    compute: ([x]) => compute(x as tf.Tensor),
  };
}

function binary(compute: Binary, arithmetic = true): Operation {
  return {
    operands: 2,
    settings: {},
    arithmetic,
    shape: broadcast,
    compute: ([a, b]) => compute(a as tf.Tensor, b as tf.Tensor),
  };
}

function comparison(compute: Binary): Operation {
  return binary((a, b) => {
    const [x, y] = alike([a, b]);
    return compute(x as tf.Tensor, y as tf.Tensor);
  }, false);
}

function reduction(
  compute: (x: tf.Tensor, axes: number[], keepdims: boolean) => tf.Tensor,
  {arithmetic = true, settings = {} as Readonly<Record<string, SettingKind>>} = {},
): Operation {
  return {
    operands: 1,
    settings: {axis: 'axes', keepdims: 'flag', ...settings},
    arithmetic,
    shape: ([x = []], {axis, keepdims}) => reduced(x, axis, keepdims === true),
    compute: ([x], {axis, keepdims}) =>
      compute(x as tf.Tensor, axesOf(axis, (x as tf.Tensor).rank), keepdims === true),
  };
}

/** Same numbers, another shape. */
function view(
  settings: Operation['settings'],
  shape: (x: Shape, settings: OperationSettings) => Shape,
): Operation {
  return {
    operands: 1,
    settings,
    arithmetic: false,
    shape: ([x = []], given) => shape(x, given),
    compute: ([x], given) =>
      tf.reshape(x as tf.Tensor, shape((x as tf.Tensor).shape, given) as number[]),
  };
}

function reordered(
  settings: Operation['settings'],
  order: (rank: number, settings: OperationSettings) => number[],
): Operation {
  return {
    operands: 1,
    settings,
    arithmetic: false,
    shape: ([x = []], given) => transposed(x, order(x.length, given)),
    compute: ([x], given) => tf.transpose(x as tf.Tensor, order((x as tf.Tensor).rank, given)),
  };
}

const negative: Unary = (x) => (isFloat(x) ? tf.neg(x) : tf.sub(tf.scalar(0, 'int32'), x));

function softmax(x: tf.Tensor, axis: number): tf.Tensor {
  if (axisOf(axis, x.rank) === x.rank - 1) return tf.softmax(float(x));
  const powers = tf.exp(tf.sub(x, tf.max(x, axis, true)));
  return tf.div(powers, tf.sum(powers, axis, true));
}

function gelu(x: tf.Tensor, approximate: boolean): tf.Tensor {
  const inner = approximate
    ? tf.tanh(tf.mul(Math.sqrt(2 / Math.PI), tf.add(x, tf.mul(0.044715, tf.mul(x, tf.mul(x, x))))))
    : tf.erf(tf.mul(x, Math.SQRT1_2));
  return tf.mul(tf.mul(0.5, x), tf.add(1, inner));
}

/** A number for an axis: one that the file lacks is Keras' -1. */
const single = (axis: OperationSettings['axis']): number => (typeof axis === 'number' ? axis : -1);

/** By Keras' class names. */
export const OPERATIONS: Readonly<Record<string, Operation>> = {
  GetItem: {
    operands: 1,
    settings: {},
    arithmetic: false,
    shape: ([x = []], {key = []}) => itemShape(x, key),
    compute: ([x], {key = []}) => getItem(x as tf.Tensor, key),
  },

  Add: binary(tf.add),
  Subtract: binary(tf.sub),
  Multiply: binary(tf.mul),
  Divide: binary((a, b) => tf.div(float(a), float(b))),
  TrueDivide: binary((a, b) => tf.div(float(a), float(b))),
  FloorDivide: binary(tf.floorDiv),
  Mod: binary(tf.mod),
  Power: binary(tf.pow),
  Maximum: binary(tf.maximum),
  Minimum: binary(tf.minimum),
  Matmul: {...binary((a, b) => tf.matMul(a, b)), shape: ([a = [], b = []]) => multiplied(a, b)},

  Equal: comparison(tf.equal),
  NotEqual: comparison(tf.notEqual),
  Greater: comparison(tf.greater),
  GreaterEqual: comparison(tf.greaterEqual),
  Less: comparison(tf.less),
  LessEqual: comparison(tf.lessEqual),
  LogicalAnd: binary((a, b) => tf.logicalAnd(bool(a), bool(b)), false),
  LogicalOr: binary((a, b) => tf.logicalOr(bool(a), bool(b)), false),
  LogicalNot: {...unary((x) => tf.logicalNot(bool(x))), arithmetic: false},
  Where: {
    operands: 3,
    settings: {},
    arithmetic: false,
    shape: broadcast,
    compute: ([condition, ...branches]) => {
      const [yes, no] = alike(branches);
      return tf.where(bool(condition as tf.Tensor), yes as tf.Tensor, no as tf.Tensor);
    },
  },

  Negative: unary(negative),
  Absolute: unary((x) => (isFloat(x) ? tf.abs(x) : tf.maximum(x, negative(x)))),
  Square: unary((x) => tf.mul(x, x)),
  Sqrt: unary((x) => tf.sqrt(float(x))),
  Rsqrt: unary((x) => tf.rsqrt(float(x))),
  Exp: unary((x) => tf.exp(float(x))),
  Log: unary((x) => tf.log(float(x))),
  Sin: unary((x) => tf.sin(float(x))),
  Cos: unary((x) => tf.cos(float(x))),
  Tanh: unary((x) => tf.tanh(float(x))),
  Sigmoid: unary((x) => tf.sigmoid(float(x))),
  Silu: unary((x) => tf.mul(float(x), tf.sigmoid(float(x)))),
  Relu: unary((x) => tf.relu(x)),
  Gelu: {
    ...unary(float),
    settings: {approximate: 'flag'},
    compute: ([x], {approximate}) => gelu(float(x as tf.Tensor), approximate !== false),
  },
  Softmax: {
    ...unary(float),
    settings: {axis: 'axis'},
    compute: ([x], {axis}) => softmax(float(x as tf.Tensor), single(axis)),
  },
  Cast: {
    ...unary(float),
    settings: {dtype: 'dtype'},
    arithmetic: false,
    compute: ([x], {dtype = 'float32'}) => tf.cast(x as tf.Tensor, dtype),
  },
  ZerosLike: {...unary((x) => tf.zerosLike(x)), settings: {dtype: 'unset'}, arithmetic: false},
  OnesLike: {...unary((x) => tf.onesLike(x)), settings: {dtype: 'unset'}, arithmetic: false},

  Mean: reduction((x, axes, keepdims) => tf.mean(float(x), axes, keepdims), {arithmetic: false}),
  Sum: reduction((x, axes, keepdims) => tf.sum(x, axes, keepdims), {arithmetic: false}),
  Max: reduction((x, axes, keepdims) => tf.max(x, axes, keepdims), {settings: {initial: 'unset'}}),
  Min: reduction((x, axes, keepdims) => tf.min(x, axes, keepdims), {settings: {initial: 'unset'}}),
  Any: reduction((x, axes, keepdims) => tf.any(bool(x), axes, keepdims), {arithmetic: false}),
  All: reduction((x, axes, keepdims) => tf.all(bool(x), axes, keepdims), {arithmetic: false}),

  Squeeze: view({axis: 'axes'}, (x, {axis}) => squeezed(x, axis)),
  ExpandDims: view({axis: 'axes'}, (x, {axis}) => expanded(x, axis ?? 0)),
  Reshape: view({newshape: 'sizes'}, (x, {newshape = []}) => reshaped(x, newshape)),
  Transpose: reordered({axes: 'axes'}, (rank, {axes}) =>
    axes == null ? axesOf(null, rank).reverse() : axesOf(axes, rank),
  ),
  Swapaxes: reordered({axis1: 'axis', axis2: 'axis'}, (rank, {axis1 = 0, axis2 = 0}) => {
    const order = axesOf(null, rank);
    const [a, b] = [axisOf(axis1, rank), axisOf(axis2, rank)];
    [order[a], order[b]] = [b, a];
    return order;
  }),
  Flip: {
    ...unary(float),
    settings: {axis: 'axes'},
    arithmetic: false,
    compute: ([x], {axis}) => tf.reverse(x as tf.Tensor, axesOf(axis, (x as tf.Tensor).rank)),
  },
  Concatenate: {
    operands: 'list',
    settings: {axis: 'axis'},
    arithmetic: false,
    shape: (shapes, {axis}) => concatenated(shapes, single(axis)),
    compute: (tensors, {axis}) =>
      tf.concat(alike(tensors), axisOf(single(axis), tensors[0]?.rank ?? 0)),
  },
  Stack: {
    operands: 'list',
    settings: {axis: 'axis'},
    arithmetic: false,
    shape: (shapes, {axis}) =>
      concatenated(
        shapes.map((shape) => expanded(shape, single(axis))),
        single(axis),
      ),
    compute: (tensors, {axis}) =>
      tf.stack(alike(tensors), axisOf(single(axis), (tensors[0]?.rank ?? 0) + 1)),
  },
};
