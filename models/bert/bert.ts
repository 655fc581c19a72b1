// BERT (Devlin et al. 2018; Hugging Face layout) as an encoder of texts, in tfjs ops on any backend, with attention passed
// in. Embeddings of texts as sentence-transformers computes them: pooled token vectors, scaled to length 1.

import * as tf from '@tensorflow/tfjs-core';
import type {Attention} from '../attention.js';
import {mlp} from '../layers/activations.js';
import {attendHeads, splitHeads} from '../layers/heads.js';
import {linear} from '../layers/linear.js';
import {layerNorm} from '../layers/norms.js';
import {ModelError} from '../model_error.js';
import {plainAttention} from '../plain_attention.js';
import {checkPaddingMask, checkTokenRows, type TokenRows} from '../token_rows.js';
import {WeightReader, type WeightSource} from '../weight_reader.js';
import type {BertConfig, BertPooling} from './config.js';
import {type BertBlock, type BertWeights, readBertWeights} from './weights.js';

/** What goes with the ids. */
export interface BertInputs {
  /** [batch, length]: 1 = token, 0 = padding. Default: all tokens */
  readonly mask?: TokenRows | undefined;
  /** [batch, length]: 0 for the first text of a pair, 1 for the second. Default: 0 */
  readonly types?: TokenRows | undefined;
}

/** A BERT encoder with its weights on a backend. */
export class Bert {
  private readonly reader: WeightReader;
  private readonly weights: BertWeights;
  private disposed = false;

  /**
   * @param config from `parseBertConfig`
   * @param source tensors under Hugging Face's names, with or without the `bert.` prefix
   * @param attention the attention of every layer. Default: `plainAttention`
   * @param pooling how `embed` pools. Default: normalised mean
   * @throws ModelError if a weight is missing or has the wrong shape
   */
  constructor(
    readonly config: BertConfig,
    source: WeightSource,
    private readonly attention: Attention = plainAttention,
    readonly pooling: BertPooling = {kind: 'mean', normalise: true, maxLength: config.positions},
  ) {
    this.reader = new WeightReader(source);
    this.weights = readBertWeights(this.reader, config);
  }

  /**
   * The vectors of the last layer.
   *
   * @param ids token ids, [batch, length], int32; rows of equal length
   * @returns [batch, length, width], float32; rows of padding hold numbers that mean nothing
   * @throws ModelError for ids, types or masks that do not fit
   */
  hidden(ids: TokenRows, {mask, types}: BertInputs = {}): tf.Tensor3D {
    if (this.disposed) throw new ModelError('the model is disposed');
    const {vocabSize, positions, typeVocabSize, width} = this.config;
    checkTokenRows(ids, vocabSize, positions);
    const batch = ids.length;
    const length = ids[0]?.length ?? 0;
    if (types !== undefined) {
      checkTokenRows(types, typeVocabSize, positions, 'types');
      if (types.length !== batch || types[0]?.length !== length) {
        throw new ModelError(`have another shape than ids, [${batch}, ${length}]`, {
          field: 'types',
        });
      }
    }
    const hides = mask !== undefined && checkPaddingMask(mask, batch, length);
    return tf.tidy(() => {
      const keys = hides ? tf.tensor(mask.flat(), [batch, 1, 1, length], 'bool') : undefined;
      let x = this.embeddings(ids, types);
      for (const block of this.weights.blocks) {
        const before = x;
        // A tidy for each block: the peak is one block's intermediates, not those of all.
        x = tf.tidy(() => this.block(before, block, batch, keys));
        before.dispose();
      }
      return tf.reshape(x, [batch, length, width]);
    });
  }

  /**
   * One vector per row, pooled as `pooling` says.
   *
   * @returns [batch, width], float32
   */
  embed(ids: TokenRows, inputs: BertInputs = {}): tf.Tensor2D {
    return tf.tidy(() => {
      const hidden = this.hidden(ids, inputs);
      const pooled =
        this.pooling.kind === 'cls' ? firstToken(hidden) : maskedMean(hidden, inputs.mask);
      if (!this.pooling.normalise) return pooled;
      const norm = tf.sqrt(tf.sum(tf.square(pooled), 1, true));
      return tf.div(pooled, tf.maximum(norm, 1e-12));
    });
  }

  /** Frees the weights; the model cannot be used afterwards. */
  dispose(): void {
    this.disposed = true;
    this.reader.dispose();
  }

  /** [batch * length, width] */
  private embeddings(ids: TokenRows, types: TokenRows | undefined): tf.Tensor2D {
    const {tokens, positions, types: typeTable, norm} = this.weights;
    const {width, layerNormEpsilon} = this.config;
    const batch = ids.length;
    const length = ids[0]?.length ?? 0;
    const words = tf.gather(tokens, tf.tensor1d(ids.flat(), 'int32'));
    const kinds =
      types === undefined
        ? tf.slice(typeTable, [0, 0], [1, width])
        : tf.gather(typeTable, tf.tensor1d(types.flat(), 'int32'));
    const places = tf.slice(positions, [0, 0], [length, width]);
    const sum = tf.add(tf.reshape(tf.add(words, kinds), [batch, length, width]), places);
    return layerNorm(tf.reshape(sum, [batch * length, width]), norm, layerNormEpsilon);
  }

  /** One block with its norms behind the sums, [batch * length, width] to the same. */
  private block(
    x: tf.Tensor2D,
    weights: BertBlock,
    batch: number,
    mask: tf.Tensor | undefined,
  ): tf.Tensor2D {
    const {heads, width, activation, layerNormEpsilon} = this.config;
    const [q, k, v] = [weights.q, weights.k, weights.v].map((part) =>
      splitHeads(linear(x, part), batch, heads),
    ) as [tf.Tensor4D, tf.Tensor4D, tf.Tensor4D];
    const attended = attendHeads(this.attention, q, k, v, {
      isCausal: false,
      scale: 1 / Math.sqrt(width / heads),
      mask,
    });
    const sum: tf.Tensor2D = tf.add(x, linear(attended, weights.attentionOut));
    const middle = layerNorm(sum, weights.norm1, layerNormEpsilon);
    const inner = mlp(middle, weights.mlpIn, weights.mlpOut, activation);
    return layerNorm(tf.add(middle, inner), weights.norm2, layerNormEpsilon);
  }
}

function firstToken(hidden: tf.Tensor3D): tf.Tensor2D {
  const [batch, , width] = hidden.shape;
  return tf.reshape(tf.slice(hidden, [0, 0, 0], [batch, 1, width]), [batch, width]);
}

function maskedMean(hidden: tf.Tensor3D, mask: TokenRows | undefined): tf.Tensor2D {
  if (mask === undefined) return tf.mean(hidden, 1);
  const weights = tf.tensor2d(mask.map((row) => [...row]));
  const [batch, length] = weights.shape;
  // Chosen, not multiplied by 0: what padding holds must not matter, whatever it is.
  const kept = tf.where(
    tf.cast(tf.reshape(weights, [batch, length, 1]), 'bool'),
    hidden,
    tf.zerosLike(hidden),
  );
  return tf.div(tf.sum(kept, 1), tf.sum(weights, 1, true));
}
