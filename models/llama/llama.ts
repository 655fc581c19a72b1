// Llama (Touvron et al. 2023) and its relatives in tfjs ops, on any backend: RMS norm, rotary positions, grouped heads,
// gated MLP, KV cache. Attention is passed in.

import * as tf from '@tensorflow/tfjs-core';
import type {Attention} from '../attention.js';
import {generateTokens, type GenerateOptions} from '../generate.js';
import type {CreateLayerCache, KvCache} from '../kv_cache.js';
import {LayeredKvCache} from '../layered_kv_cache.js';
import {activate} from '../layers/activations.js';
import {mergeAttended, splitHeads} from '../layers/heads.js';
import {linear} from '../layers/linear.js';
import {rmsNorm} from '../layers/norms.js';
import {ModelError} from '../model_error.js';
import {plainAttention} from '../plain_attention.js';
import {TensorKvCache} from '../tensor_kv_cache.js';
import {checkPaddingMask, checkTokenRows, type TokenRows} from '../token_rows.js';
import {WeightReader, type WeightSource} from '../weight_reader.js';
import type {LlamaConfig} from './config.js';
import {rotaryFrequencies, rotaryTurns, type RotaryTurns, rotate} from './rotary.js';
import {type LlamaBlock, type LlamaWeights, readLlamaWeights} from './weights.js';

/** What goes with the ids. */
export interface LlamaInputs {
  /** Continues the sequences in it, and takes up the new ids. Default: none */
  readonly cache?: KvCache | undefined;
  /**
   * [batch, cached + length]: 1 = token, 0 = padding, on either side. Positions count tokens only. Default: all tokens
   */
  readonly mask?: TokenRows | undefined;
}

/** One pass: what every block needs beside its input. */
interface Pass {
  readonly batch: number;
  readonly turns: RotaryTurns;
  readonly mask: tf.Tensor | undefined;
  readonly cache: KvCache | undefined;
}

/** A Llama model with its weights on a backend. */
export class Llama {
  private readonly reader: WeightReader;
  private readonly weights: LlamaWeights;
  private readonly frequencies: Float64Array;
  private disposed = false;

  /**
   * @param config from `parseLlamaConfig`
   * @param source tensors under Hugging Face's names, with or without the `model.` prefix
   * @param attention the attention of every layer. Default: `plainAttention`
   * @param layerCache makes the KV cache of a layer. Default: none, tensors are concatenated
   * @throws ModelError if a weight is missing or has the wrong shape
   */
  constructor(
    readonly config: LlamaConfig,
    source: WeightSource,
    private readonly attention: Attention = plainAttention,
    private readonly layerCache?: CreateLayerCache,
  ) {
    this.reader = new WeightReader(source);
    this.weights = readLlamaWeights(this.reader, config);
    this.frequencies = rotaryFrequencies(config.rotary, config.headDim);
  }

  /** An empty KV cache for `logits`; dispose it after use. */
  createCache(): KvCache {
    return this.layerCache === undefined
      ? new TensorKvCache()
      : new LayeredKvCache(this.layerCache);
  }

  /**
   * Logits of the token after each id.
   *
   * @param ids token ids, [batch, length], int32; rows of equal length, at least one id each
   * @returns [batch, length, vocab], float32; rows of padding hold numbers that mean nothing
   * @throws ModelError for ids or masks that do not fit, or more ids than the model has positions
   */
  logits(ids: TokenRows, inputs: LlamaInputs = {}): tf.Tensor3D {
    return tf.tidy(() => {
      const logits = tf.matMul(this.hidden(ids, inputs), this.weights.head);
      return tf.reshape(logits, [ids.length, -1, this.config.vocabSize]);
    });
  }

  /**
   * Continues a text with a KV cache.
   *
   * @param ids the text so far (after what is cached), at least one id
   * @returns the new ids only
   * @throws ModelError before anything is computed if the text could outgrow the context: cached + ids.length +
   *   maxNewTokens - 1 <= config.positions must hold
   */
  async generate(ids: readonly number[], options: GenerateOptions): Promise<number[]> {
    const {positions, vocabSize} = this.config;
    const lastLogits = (fed: readonly number[], cache: KvCache): tf.Tensor1D =>
      tf.tidy(() => {
        const hidden = this.hidden([fed], {cache});
        const last: tf.Tensor2D = tf.slice(hidden, [hidden.shape[0] - 1, 0], [1, -1]);
        return tf.reshape(tf.matMul(last, this.weights.head), [-1]);
      });
    const createCache = (): KvCache => this.createCache();
    return generateTokens({positions, vocabSize, createCache, lastLogits}, ids, options);
  }

  /** Frees the weights; the model cannot be used afterwards. */
  dispose(): void {
    this.disposed = true;
    this.reader.dispose();
  }

  /** [batch * length, width]: the input of the output projection. Called inside a tidy. */
  private hidden(ids: TokenRows, {cache, mask}: LlamaInputs): tf.Tensor2D {
    const pass = this.prepare(ids, cache, mask);
    const {tokens, blocks, finalNorm} = this.weights;
    try {
      let x: tf.Tensor2D = tf.gather(tokens, tf.tensor1d(ids.flat(), 'int32'));
      blocks.forEach((block, layer) => {
        const before = x;
        // A tidy for each block: the peak is one block's intermediates, not those of all.
        x = tf.tidy(() => this.block(before, block, layer, pass));
        before.dispose();
      });
      const result = rmsNorm(x, finalNorm, this.config.normEpsilon);
      cache?.commit();
      return result;
    } catch (error) {
      cache?.rollBack();
      throw error;
    }
  }

  /** Checks the call; turns and mask of the new rows. */
  private prepare(ids: TokenRows, cache: KvCache | undefined, mask: TokenRows | undefined): Pass {
    if (this.disposed) throw new ModelError('the model is disposed');
    const {vocabSize, positions} = this.config;
    const past = cache?.length ?? 0;
    checkTokenRows(ids, vocabSize, positions - past);
    const batch = ids.length;
    const length = ids[0]?.length ?? 0;
    if (cache?.batch !== undefined && cache.batch !== batch) {
      throw new ModelError(`hold ${batch} sequences; the cache holds ${cache.batch}`, {
        field: 'ids',
      });
    }
    if (mask === undefined || !checkPaddingMask(mask, batch, past + length)) {
      const places = Array.from({length}, (_, i) => past + i);
      return {batch, turns: rotaryTurns(this.frequencies, [places]), mask: undefined, cache};
    }
    const places = mask.map((row) => {
      let seen = 0;
      return row.map((entry) => (entry === 1 ? seen++ : 0)).slice(past);
    });
    return {
      batch,
      turns: rotaryTurns(this.frequencies, places),
      mask: tf.tensor(mask.flat(), [batch, 1, 1, past + length], 'bool'),
      cache,
    };
  }

  /** One decoder block, [batch * length, width] to the same. */
  private block(x: tf.Tensor2D, weights: LlamaBlock, layer: number, pass: Pass): tf.Tensor2D {
    const {normEpsilon, activation} = this.config;
    const normed = rmsNorm(x, weights.norm1, normEpsilon);
    const attended = this.attend(normed, weights, layer, pass);
    const middle: tf.Tensor2D = tf.add(x, linear(attended, weights.attentionOut));
    const mlpInput = rmsNorm(middle, weights.norm2, normEpsilon);
    const gate = activate(linear(mlpInput, weights.gate), activation);
    const inner: tf.Tensor2D = tf.mul(gate, linear(mlpInput, weights.up));
    return tf.add(middle, linear(inner, weights.down));
  }

  /** The heads side by side, [batch * length, heads * head_dim], before their output projection. */
  private attend(x: tf.Tensor2D, weights: LlamaBlock, layer: number, pass: Pass): tf.Tensor2D {
    const {heads, kvHeads, headDim, normEpsilon, windows} = this.config;
    const {batch, turns, mask, cache} = pass;
    const normed = (part: tf.Tensor4D, gamma: tf.Tensor1D | undefined): tf.Tensor4D =>
      gamma === undefined ? part : rmsNorm(part, gamma, normEpsilon);
    const newQ = splitHeads(linear(x, weights.q), batch, heads);
    const newK = splitHeads(linear(x, weights.k), batch, kvHeads);
    const q = rotate(normed(newQ, weights.qNorm), turns);
    const k = rotate(normed(newK, weights.kNorm), turns);
    const v = splitHeads(linear(x, weights.v), batch, kvHeads);
    const window = windows[layer] as number;
    const length = (cache?.length ?? 0) + k.shape[2];
    const options = {
      isCausal: 'bottom_right',
      scale: 1 / Math.sqrt(headDim),
      mask,
      ...(window < length ? {windowSize: [window - 1, -1] as const} : {}),
    } as const;
    const o =
      cache === undefined
        ? this.attention(q, k, v, options)
        : cache.attend(layer, q, k, v, this.attention, options);
    return mergeAttended(q, o);
  }
}
