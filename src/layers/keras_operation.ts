/** An operation of Keras 3 between the layers of a loaded model, such as `x[:, 0]` or `x * 2`, as a layer of tfjs. */
import * as tf from '@tensorflow/tfjs-core';
import * as tfl from '@tensorflow/tfjs-layers';
import {SageAttentionError} from '../runtime/errors.js';
import type {LayerArgs} from './attention_layer.js';
import {ShapeProblem, type Shape} from './operations/operation_shapes.js';
import {OPERATIONS, type Operation, type OperationSettings} from './operations/operation_table.js';

/** Numbers of a constant, nested by its axes. */
export type ConstantValue = number | boolean | readonly ConstantValue[];

/** One argument: the place of a tensor in the list of inputs, or a constant. */
export type Operand =
  | {readonly tensor: number}
  | {
      readonly value: ConstantValue;
      /** Default: as Python's numbers, the type of the tensors beside it. */
      readonly dtype?: 'float32' | 'int32' | 'bool';
    };

export interface KerasOperationArgs extends LayerArgs {
  /** Keras' class name, its first letter small: strings of a saved model lose their capitals. */
  operation: string;
  operands: readonly Operand[];
  settings: OperationSettings;
}

/** Has no weights, and passes no Keras mask on, as in Keras 3. */
export class KerasOperation extends tfl.layers.Layer {
  /** @nocollapse */
  static className = 'KerasOperation';
  private readonly operationName: string;
  private readonly operands: readonly Operand[];
  private readonly settings: OperationSettings;
  private readonly operation: Operation;

  constructor(args: KerasOperationArgs) {
    super(args);
    const found = OPERATIONS[operationClass(args.operation)];
    if (found === undefined || !Array.isArray(args.operands)) {
      throw new SageAttentionError({
        code: 'unknown-layer',
        argument: this.name,
        message: `${this.name}: there is no operation \`${args.operation}\`.`,
        hint: 'Convert the model as a graph model.',
      });
    }
    this.operation = found;
    this.operationName = args.operation;
    this.operands = args.operands;
    this.settings = args.settings;
  }

  override computeOutputShape(inputShape: Shape | Shape[]): Shape {
    const shapes = (Array.isArray(inputShape[0]) ? inputShape : [inputShape]) as Shape[];
    const ofOperands = this.operands.map((operand) =>
      'tensor' in operand ? (shapes[operand.tensor] ?? []) : shapeOf(operand.value),
    );
    return this.wordProblems(() => this.operation.shape(ofOperands, this.settings));
  }

  override call(inputs: tf.Tensor | tf.Tensor[]): tf.Tensor {
    const tensors = Array.isArray(inputs) ? inputs : [inputs];
    return tf.tidy(() =>
      this.wordProblems(() => this.operation.compute(this.operandTensors(tensors), this.settings)),
    );
  }

  override computeMask(): tf.Tensor {
    return null as unknown as tf.Tensor;
  }

  override getConfig(): tf.serialization.ConfigDict {
    return {
      ...super.getConfig(),
      operation: this.operationName,
      operands: this.operands as unknown as tf.serialization.ConfigDictArray,
      settings: this.settings as unknown as tf.serialization.ConfigDict,
    };
  }

  private operandTensors(tensors: readonly tf.Tensor[]): tf.Tensor[] {
    // The condition of Where says nothing about the type of what it chooses.
    const beside = this.operation === OPERATIONS.Where ? this.operands.slice(1) : this.operands;
    const types = beside.flatMap((operand) =>
      'tensor' in operand ? (tensors[operand.tensor]?.dtype ?? []) : (operand.dtype ?? []),
    );
    const integers = types.length > 0 && !types.includes('float32');
    return this.operands.map((operand) => {
      if ('tensor' in operand) return tensors[operand.tensor] as tf.Tensor;
      const {value} = operand;
      const dtype = operand.dtype ?? typeOf(value, integers);
      return tf.tensor(value as tf.TensorLike, shapeOf(value), dtype);
    });
  }

  private wordProblems<T>(run: () => T): T {
    try {
      return run();
    } catch (cause) {
      if (!(cause instanceof ShapeProblem)) throw cause;
      throw new SageAttentionError({
        code: 'shape-mismatch',
        argument: this.name,
        message: `${this.name}: ${operationClass(this.operationName)}: ${cause.message}.`,
        hint: 'Run the model on inputs of the shapes that it was made for.',
        cause,
      });
    }
  }
}

/** Keras' name of the class: `getItem` is GetItem. */
function operationClass(operation: unknown): string {
  return typeof operation === 'string'
    ? operation.replace(/^\w/, (letter) => letter.toUpperCase())
    : '';
}

/** The shape of a constant. */
export function shapeOf(value: ConstantValue): number[] {
  return Array.isArray(value)
    ? [value.length, ...shapeOf((value[0] as ConstantValue | undefined) ?? 0)]
    : [];
}

const MAX_INT32 = 2 ** 31 - 1;

/** The type of Python's numbers beside integers (or booleans), or beside floats. */
function typeOf(value: ConstantValue, integers: boolean): 'float32' | 'int32' | 'bool' {
  const values = flatten(value);
  if (values.every((item) => typeof item === 'boolean')) return 'bool';
  const fits = (item: number | boolean): boolean =>
    Number.isInteger(Number(item)) && Math.abs(Number(item)) <= MAX_INT32;
  return integers && values.every(fits) ? 'int32' : 'float32';
}

function flatten(value: ConstantValue): (number | boolean)[] {
  return Array.isArray(value)
    ? (value as readonly ConstantValue[]).flatMap(flatten)
    : [value as number | boolean];
}
