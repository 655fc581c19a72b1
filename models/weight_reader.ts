// Weights under Hugging Face's names: found, checked against the configuration, and put on the current backend in the
// form the models multiply by.

import * as tf from '@tensorflow/tfjs-core';
import type {LinearWeights} from './layers/linear.js';
import type {NormWeights} from './layers/norms.js';
import {ModelError} from './model_error.js';
import type {TensorStore} from './safetensors/safetensors.js';

/** Where weights come from: a `TensorStore`, or anything that answers these. */
export type WeightSource = Pick<TensorStore, 'file' | 'has' | 'entry' | 'float32'>;

/**
 * Makes tensors from weights and remembers them, so that all go at once. Every reader throws ModelError naming file and
 * tensor for a missing tensor or a wrong shape, SafetensorsError for a dtype that is not float.
 */
export class WeightReader {
  private readonly made: tf.Tensor[] = [];

  constructor(readonly source: WeightSource) {}

  /** Bytes of the tensors made so far. */
  get bytes(): number {
    return this.made.reduce((sum, {size}) => sum + 4 * size, 0);
  }

  has(name: string): boolean {
    return this.source.has(name);
  }

  /** The first of the prefixes under which `name` is there; the first of all if it is nowhere. */
  prefixOf(name: string, prefixes: readonly [string, ...string[]]): string {
    return prefixes.find((prefix) => this.has(prefix + name)) ?? prefixes[0];
  }

  /** Values of a tensor whose shape is as expected. */
  values(name: string, shape: readonly number[]): Float32Array {
    if (!this.has(name)) {
      throw new ModelError(`missing; expected shape [${shape.join(', ')}]`, {
        file: this.source.file,
        tensor: name,
      });
    }
    const {shape: came, file} = this.source.entry(name);
    if (came.length !== shape.length || came.some((n, i) => n !== shape[i])) {
      throw new ModelError(
        `has shape [${came.join(', ')}]; by the configuration it should be [${shape.join(', ')}]`,
        {file, tensor: name},
      );
    }
    return this.source.float32(name);
  }

  /** Remembers a tensor made elsewhere. */
  take<T extends tf.Tensor>(tensor: T): T {
    this.made.push(tensor);
    return tensor;
  }

  vector(name: string, length: number): tf.Tensor1D {
    return this.take(tf.tensor1d(this.values(name, [length])));
  }

  matrix(name: string, rows: number, columns: number): tf.Tensor2D {
    return this.matrixOf(this.values(name, [rows, columns]), rows, columns);
  }

  /** A matrix of values that were computed from weights. */
  matrixOf(values: Float32Array, rows: number, columns: number): tf.Tensor2D {
    return this.take(tf.tensor2d(values, [rows, columns]));
  }

  /** A tensor of any shape as one row, [1, size]. */
  flattened(name: string, shape: readonly number[]): tf.Tensor2D {
    const values = this.values(name, shape);
    return this.matrixOf(values, 1, values.length);
  }

  /** The transpose of a matrix that the file holds as [rows, columns]. */
  transposed(name: string, rows: number, columns: number): tf.Tensor2D {
    const values = this.values(name, [rows, columns]);
    return this.take(tf.tidy(() => tf.transpose(tf.tensor2d(values, [rows, columns]))));
  }

  /**
   * A PyTorch linear layer: `<name>.weight` [out, in], transposed here, and `<name>.bias` [out].
   *
   * @param bias whether there is a bias. Default: true
   */
  linear(name: string, input: number, output: number, bias = true): LinearWeights {
    const w = this.transposed(`${name}.weight`, output, input);
    return bias ? {w, b: this.vector(`${name}.bias`, output)} : {w};
  }

  /** A convolution whose stride is its kernel's size, as a linear layer on patches in the order channel, row, column. */
  patches(name: string, channels: number, size: number, output: number): LinearWeights {
    const input = channels * size * size;
    const values = this.values(`${name}.weight`, [output, channels, size, size]);
    const w = this.take(tf.tidy(() => tf.transpose(tf.tensor2d(values, [output, input]))));
    return {w, b: this.vector(`${name}.bias`, output)};
  }

  /** A layer norm: `weight` and `bias`, or `gamma` and `beta` as old files have it. */
  norm(name: string, width: number): NormWeights {
    const old = !this.has(`${name}.weight`) && this.has(`${name}.gamma`);
    return {
      gamma: this.vector(`${name}.${old ? 'gamma' : 'weight'}`, width),
      beta: this.vector(`${name}.${old ? 'beta' : 'bias'}`, width),
    };
  }

  /** Runs `read`; if it throws, what was made is freed. */
  all<T>(read: () => T): T {
    try {
      return read();
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Frees every tensor made. */
  dispose(): void {
    tf.dispose(this.made);
    this.made.length = 0;
  }
}
