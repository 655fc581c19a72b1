// The weights of GPT-2 under Hugging Face's names: found, checked and turned into the tensors the model multiplies by.

import * as tf from '@tensorflow/tfjs-core';
import type {TensorStore} from '../safetensors/safetensors.js';
import type {Gpt2Config} from './config.js';
import {Gpt2Error} from './errors.js';

/** Where weights come from: a `TensorStore`, or anything that answers these. */
export type Gpt2WeightSource = Pick<TensorStore, 'file' | 'has' | 'entry' | 'float32'>;

/** Scale and shift of a layer norm, [width]. */
export interface NormWeights {
  readonly gamma: tf.Tensor1D;
  readonly beta: tf.Tensor1D;
}

/** x w + b, with w [in, out] and b [out]. */
export interface LinearWeights {
  readonly w: tf.Tensor2D;
  readonly b: tf.Tensor1D;
}

/** One transformer block. */
export interface BlockWeights {
  readonly norm1: NormWeights;
  readonly q: LinearWeights;
  readonly k: LinearWeights;
  readonly v: LinearWeights;
  readonly attentionOut: LinearWeights;
  readonly norm2: NormWeights;
  readonly mlpIn: LinearWeights;
  readonly mlpOut: LinearWeights;
}

/** The whole model. */
export interface Gpt2Weights {
  /** [vocab, width] */
  readonly tokens: tf.Tensor2D;
  /** [positions, width] */
  readonly positions: tf.Tensor2D;
  readonly blocks: readonly BlockWeights[];
  readonly finalNorm: NormWeights;
  /** [width, vocab]: transposed once here, as a product with a transposed factor is 13 times slower on wasm. */
  readonly head: tf.Tensor2D;
}

/** Prefix of the names in files saved from GPT2LMHeadModel; files saved from GPT2Model have none. */
const PREFIX = 'transformer.';

/**
 * Reads every weight, checks its shape against the configuration and puts it on the current backend.
 *
 * @throws Gpt2Error naming file and tensor for a missing tensor or a wrong shape; SafetensorsError for a dtype that is
 *   not float
 */
export function readGpt2Weights(source: Gpt2WeightSource, config: Gpt2Config): Gpt2Weights {
  const {vocabSize, positions, width, innerWidth, layers, tiedHead} = config;
  const prefix = source.has(`${PREFIX}wte.weight`) ? PREFIX : '';
  const made: tf.Tensor[] = [];

  const checked = (name: string, shape: readonly number[]): Float32Array => {
    if (!source.has(name)) {
      throw new Gpt2Error(`missing; expected shape [${shape.join(', ')}]`, {
        file: source.file,
        tensor: name,
      });
    }
    const {shape: came, file} = source.entry(name);
    if (came.length !== shape.length || came.some((n, i) => n !== shape[i])) {
      throw new Gpt2Error(
        `has shape [${came.join(', ')}]; by the configuration it should be [${shape.join(', ')}]`,
        {file, tensor: name},
      );
    }
    return source.float32(name);
  };
  const matrix = (name: string, rows: number, columns: number): tf.Tensor2D => {
    const tensor = tf.tensor2d(checked(name, [rows, columns]), [rows, columns]);
    made.push(tensor);
    return tensor;
  };
  const vector = (name: string, length: number): tf.Tensor1D => {
    const tensor = tf.tensor1d(checked(name, [length]));
    made.push(tensor);
    return tensor;
  };
  const norm = (name: string): NormWeights => ({
    gamma: vector(`${name}.weight`, width),
    beta: vector(`${name}.bias`, width),
  });
  const linear = (name: string, rows: number, columns: number): LinearWeights => ({
    w: matrix(`${name}.weight`, rows, columns),
    b: vector(`${name}.bias`, columns),
  });
  // The file holds the three projections side by side. Apart, each is a product whose result needs no split: on wasm
  // every slice copies the whole tensor out of the heap first.
  const queryKeyValue = (name: string): Pick<BlockWeights, 'q' | 'k' | 'v'> => {
    const w = checked(`${name}.weight`, [width, 3 * width]);
    const b = checked(`${name}.bias`, [3 * width]);
    const part = (index: number): LinearWeights => {
      const columns = new Float32Array(width * width);
      for (let row = 0; row < width; row++) {
        const begin = (3 * row + index) * width;
        columns.set(w.subarray(begin, begin + width), row * width);
      }
      const linear = {
        w: tf.tensor2d(columns, [width, width]),
        b: tf.tensor1d(b.slice(index * width, (index + 1) * width)),
      };
      made.push(linear.w, linear.b);
      return linear;
    };
    return {q: part(0), k: part(1), v: part(2)};
  };
  const head = (): tf.Tensor2D => {
    const name = tiedHead ? `${prefix}wte.weight` : 'lm_head.weight';
    const values = checked(name, [vocabSize, width]);
    const tensor = tf.tidy(() => tf.transpose(tf.tensor2d(values, [vocabSize, width])));
    made.push(tensor);
    return tensor;
  };

  try {
    return {
      tokens: matrix(`${prefix}wte.weight`, vocabSize, width),
      positions: matrix(`${prefix}wpe.weight`, positions, width),
      blocks: Array.from({length: layers}, (_, i) => {
        const block = `${prefix}h.${i}`;
        return {
          norm1: norm(`${block}.ln_1`),
          ...queryKeyValue(`${block}.attn.c_attn`),
          attentionOut: linear(`${block}.attn.c_proj`, width, width),
          norm2: norm(`${block}.ln_2`),
          mlpIn: linear(`${block}.mlp.c_fc`, width, innerWidth),
          mlpOut: linear(`${block}.mlp.c_proj`, innerWidth, width),
        };
      }),
      finalNorm: norm(`${prefix}ln_f`),
      head: head(),
    };
  } catch (error) {
    tf.dispose(made);
    throw error;
  }
}
