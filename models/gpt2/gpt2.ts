// GPT-2 (Radford et al. 2019; Hugging Face layout) in tfjs ops, on any backend. Attention is passed in, so the same
// model runs with plain ops and with any attention kernel.

import * as tf from '@tensorflow/tfjs-core';
import {generateTokens, type GenerateOptions} from '../generate.js';
import {LayeredKvCache} from '../layered_kv_cache.js';
import {mergeHeads, splitHeads} from '../layers/heads.js';
import {TensorKvCache} from '../tensor_kv_cache.js';
import type {Attention} from './attention.js';
import type {Gpt2Config} from './config.js';
import {Gpt2Error} from './errors.js';
import {checkIds} from './ids.js';
import type {CreateLayerCache, Gpt2Cache} from './kv_cache.js';
import {layerNorm, linear, mlp} from './layers.js';
import {plainAttention} from './plain_attention.js';
import {likeliest} from './sampling.js';
import {
  type BlockWeights,
  type Gpt2WeightSource,
  type Gpt2Weights,
  type LinearWeights,
  readGpt2Weights,
} from './weights.js';

/** What `score` finds, one entry for each id but the first. */
export interface Gpt2Score {
  /** -ln p(id | the ids before it). */
  readonly negativeLogLikelihood: Float32Array;
  /** The likeliest id there; -1 where the logits hold NaN (the loss is NaN too). */
  readonly likeliest: Int32Array;
}

/** Logits computed at a time while scoring: 4 MiB, so that a large vocabulary times a long text is never held whole. */
const SCORED_LOGITS = 1 << 20;

/** A GPT-2 model with its weights on a backend. */
export class Gpt2 {
  private readonly weights: Gpt2Weights;
  private disposed = false;

  /**
   * @param config from `parseGpt2Config`
   * @param source tensors under Hugging Face's names, with or without the `transformer.` prefix
   * @param attention the attention of every layer. Default: `plainAttention`
   * @param layerCache makes the KV cache of a layer. Default: none, tensors are concatenated
   * @throws Gpt2Error if a weight is missing or has the wrong shape
   */
  constructor(
    readonly config: Gpt2Config,
    source: Gpt2WeightSource,
    private readonly attention: Attention = plainAttention,
    private readonly layerCache?: CreateLayerCache,
  ) {
    this.weights = readGpt2Weights(source, config);
  }

  /** An empty KV cache for `logits`; dispose it after use. */
  createCache(): Gpt2Cache {
    return this.layerCache === undefined
      ? new TensorKvCache()
      : new LayeredKvCache(this.layerCache);
  }

  /**
   * Logits of the token after each id.
   *
   * @param ids token ids, [batch, length], int32; rows of equal length, at least one id each
   * @param cache continues the sequences in it, and takes up the new ids
   * @returns [batch, length, vocab], float32
   * @throws Gpt2Error for ids that are no tokens, or more of them than the model has positions
   */
  logits(ids: readonly (readonly number[])[] | tf.Tensor2D, cache?: Gpt2Cache): tf.Tensor3D {
    const rows = this.rows(ids, cache);
    return tf.tidy(() => {
      const logits = tf.matMul(this.hidden(rows, cache), this.weights.head);
      return tf.reshape(logits, [rows.length, -1, this.config.vocabSize]);
    });
  }

  /**
   * The loss of each id given those before it, and the likeliest id in its place.
   *
   * @param ids one sequence of at most `config.positions` ids
   */
  score(ids: readonly number[]): Gpt2Score {
    const rows = this.rows([ids]);
    const {vocabSize} = this.config;
    const count = ids.length - 1;
    const losses = new Float32Array(count);
    const best = new Int32Array(count);
    const hidden = tf.tidy(() => this.hidden(rows));
    try {
      const step = Math.max(1, Math.floor(SCORED_LOGITS / vocabSize));
      for (let begin = 0; begin < count; begin += step) {
        const length = Math.min(step, count - begin);
        const block = this.scoredLogits(hidden, begin, length);
        for (let i = 0; i < length; i++) {
          const row = block.subarray(i * vocabSize, (i + 1) * vocabSize);
          const target = ids[begin + i + 1] as number;
          const loss = logSumExp(row) - (row[target] as number);
          losses[begin + i] = loss;
          best[begin + i] = Number.isNaN(loss) ? -1 : likeliest(row);
        }
      }
    } finally {
      hidden.dispose();
    }
    return {negativeLogLikelihood: losses, likeliest: best};
  }

  /**
   * -ln p(id | the ids before it), for each id but the first.
   *
   * @param ids one sequence of at most `config.positions` ids
   * @returns ids.length - 1 losses in nats
   */
  negativeLogLikelihood(ids: readonly number[]): Float32Array {
    return this.score(ids).negativeLogLikelihood;
  }

  /**
   * Continues a text with a KV cache.
   *
   * @param ids the text so far (after what is cached), at least one id
   * @returns the new ids only
   * @throws Gpt2Error before anything is computed if the text could outgrow the context: cached + ids.length +
   *   maxNewTokens - 1 <= config.positions must hold (the last new token is never fed back). Positions are learned, so
   *   nothing slides: shorten the text instead
   */
  async generate(ids: readonly number[], options: GenerateOptions): Promise<number[]> {
    const {positions, vocabSize} = this.config;
    const lastLogits = (fed: readonly number[], cache: Gpt2Cache): tf.Tensor1D =>
      this.lastLogits(fed, cache);
    const createCache = (): Gpt2Cache => this.createCache();
    return generateTokens({positions, vocabSize, createCache, lastLogits}, ids, options);
  }

  /** Frees the weights; the model cannot be used afterwards. */
  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    const {tokens, positions, blocks, finalNorm, head} = this.weights;
    tf.dispose([tokens, positions, head, {...finalNorm}]);
    for (const block of blocks) {
      for (const part of Object.values(block)) tf.dispose({...part});
    }
  }

  private rows(
    ids: readonly (readonly number[])[] | tf.Tensor2D,
    cache?: Gpt2Cache,
  ): readonly (readonly number[])[] {
    if (this.disposed) throw new Gpt2Error('the model is disposed');
    return checkIds(ids, this.config, cache);
  }

  /** Logits of the rows [begin, begin + length) of the hidden state, one after the other. */
  private scoredLogits(hidden: tf.Tensor2D, begin: number, length: number): Float32Array {
    const logits = tf.tidy(() =>
      tf.matMul(tf.slice(hidden, [begin, 0], [length, -1]), this.weights.head),
    );
    // Read outside the tidy, which would walk through every number of an array it is to return.
    try {
      return logits.dataSync<'float32'>();
    } finally {
      logits.dispose();
    }
  }

  /** [vocab]: logits after the last id of one sequence. */
  private lastLogits(ids: readonly number[], cache: Gpt2Cache): tf.Tensor1D {
    const rows = this.rows([ids], cache);
    return tf.tidy(() => {
      const hidden = this.hidden(rows, cache);
      const last: tf.Tensor2D = tf.slice(hidden, [hidden.shape[0] - 1, 0], [1, -1]);
      return tf.reshape(tf.matMul(last, this.weights.head), [-1]);
    });
  }

  /** [batch * length, width]: the input of the output projection. Called inside a tidy. */
  private hidden(ids: readonly (readonly number[])[], cache?: Gpt2Cache): tf.Tensor2D {
    const {tokens, positions, blocks, finalNorm} = this.weights;
    const {width, layerNormEpsilon} = this.config;
    const batch = ids.length;
    const length = ids[0]?.length ?? 0;
    try {
      const embedded = tf.gather(tokens, tf.tensor1d(ids.flat(), 'int32'));
      const places = tf.slice(positions, [cache?.length ?? 0, 0], [length, width]);
      const sum = tf.add(tf.reshape(embedded, [batch, length, width]), places);
      let x: tf.Tensor2D = tf.reshape(sum, [batch * length, width]);
      blocks.forEach((block, layer) => {
        const before = x;
        // A tidy for each block: the peak is one block's intermediates, not those of all.
        x = tf.tidy(() => this.block(before, block, layer, batch, cache));
        before.dispose();
      });
      const result = layerNorm(x, finalNorm, layerNormEpsilon);
      cache?.commit();
      return result;
    } catch (error) {
      cache?.rollBack();
      throw error;
    }
  }

  /** One transformer block, [batch * length, width] to the same. */
  private block(
    x: tf.Tensor2D,
    weights: BlockWeights,
    layer: number,
    batch: number,
    cache?: Gpt2Cache,
  ): tf.Tensor2D {
    const {layerNormEpsilon, activation} = this.config;
    const attended = this.attend(
      layerNorm(x, weights.norm1, layerNormEpsilon),
      weights,
      layer,
      batch,
      cache,
    );
    const middle: tf.Tensor2D = tf.add(x, linear(attended, weights.attentionOut));
    const mlpInput = layerNorm(middle, weights.norm2, layerNormEpsilon);
    return tf.add(middle, mlp(mlpInput, weights.mlpIn, weights.mlpOut, activation));
  }

  /** The heads side by side, [batch * length, width], before their output projection. */
  private attend(
    x: tf.Tensor2D,
    weights: BlockWeights,
    layer: number,
    batch: number,
    cache?: Gpt2Cache,
  ): tf.Tensor2D {
    const {heads, attentionScale} = this.config;
    const toHeads = (part: LinearWeights): tf.Tensor4D => splitHeads(linear(x, part), batch, heads);
    const q = toHeads(weights.q);
    const k = toHeads(weights.k);
    const v = toHeads(weights.v);
    const options = {
      isCausal: 'bottom_right',
      scale: attentionScale[layer] as number,
    } as const;
    const o =
      cache === undefined
        ? this.attention(q, k, v, options)
        : cache.attend(layer, q, k, v, this.attention, options);
    if (o.shape.join() !== q.shape.join()) {
      throw new Gpt2Error(
        `returned shape [${o.shape.join(', ')}]; expected that of q, [${q.shape.join(', ')}]`,
        {
          field: 'attention',
        },
      );
    }
    return mergeHeads(o);
  }
}

/** ln(sum(exp(x))), summed in float64. */
function logSumExp(x: Float32Array): number {
  // Looked up once: inside a vm context, as in jest, a global costs more than the exp itself.
  const {exp} = Math;
  let max = -Infinity;
  for (let i = 0; i < x.length; i++) if ((x[i] as number) > max) max = x[i] as number;
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += exp((x[i] as number) - max);
  return max + Math.log(sum);
}
