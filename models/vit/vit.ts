// The Vision Transformer (Dosovitskiy et al. 2020; Hugging Face layout) as an image classifier, in tfjs ops on any
// backend, with attention passed in.

import * as tf from '@tensorflow/tfjs-core';
import type {Attention} from '../attention.js';
import {mlp} from '../layers/activations.js';
import {attendHeads, splitHeads} from '../layers/heads.js';
import {linear} from '../layers/linear.js';
import {layerNorm} from '../layers/norms.js';
import {cutPatches} from '../layers/patches.js';
import {ModelError} from '../model_error.js';
import {plainAttention} from '../plain_attention.js';
import {WeightReader, type WeightSource} from '../weight_reader.js';
import type {VitConfig, VitProcessor} from './config.js';
import {checkImage, type PixelImage, resizeImage} from './resize_image.js';
import {readVitWeights, type VitBlock, type VitWeights} from './weights.js';

/** A class and how likely the model finds it. */
export interface VitClass {
  readonly label: string;
  readonly index: number;
  /** In [0, 1]; all classes sum to 1. */
  readonly probability: number;
}

/** Patches beside the class token: [CLS] and nothing else. */
const EXTRA_TOKENS = 1;

/** A ViT classifier with its weights on a backend. */
export class Vit {
  private readonly reader: WeightReader;
  private readonly weights: VitWeights;
  private disposed = false;

  /**
   * @param config from `parseVitConfig`
   * @param processor from `parseVitProcessor`
   * @param source tensors under Hugging Face's names
   * @param attention the attention of every layer. Default: `plainAttention`
   * @throws ModelError if a weight is missing or has the wrong shape
   */
  constructor(
    readonly config: VitConfig,
    readonly processor: VitProcessor,
    source: WeightSource,
    private readonly attention: Attention = plainAttention,
  ) {
    this.reader = new WeightReader(source);
    this.weights = readVitWeights(this.reader, config);
  }

  /**
   * Resizes, rescales and normalises an image of any size.
   *
   * @returns [1, channels, height, width], float32, as `logits` takes it
   */
  prepare(image: PixelImage): tf.Tensor4D {
    const {imageSize, channels} = this.config;
    const {filter, rescale, mean, deviation} = this.processor;
    checkImage(image);
    if (image.channels !== channels) {
      throw new ModelError(`has ${image.channels} channels; the model takes ${channels}`, {
        field: 'image',
      });
    }
    const {data} = resizeImage(image, imageSize, imageSize, filter);
    const pixels = imageSize * imageSize;
    const values = new Float32Array(channels * pixels);
    for (let c = 0; c < channels; c++) {
      const centre = mean[c] as number;
      const spread = deviation[c] as number;
      for (let i = 0; i < pixels; i++) {
        values[c * pixels + i] = ((data[i * channels + c] as number) * rescale - centre) / spread;
      }
    }
    return tf.tensor4d(values, [1, channels, imageSize, imageSize]);
  }

  /**
   * Logits of the classes.
   *
   * @param pixels prepared images, [batch, channels, height, width], float32
   * @returns [batch, labels], float32
   * @throws ModelError for another shape
   */
  logits(pixels: tf.Tensor4D): tf.Tensor2D {
    if (this.disposed) throw new ModelError('the model is disposed');
    const {imageSize, patchSize, channels, width, layerNormEpsilon} = this.config;
    const [batch, ...rest] = pixels.shape;
    if (rest.join() !== [channels, imageSize, imageSize].join() || batch === 0) {
      throw new ModelError(
        `have shape [${pixels.shape.join(', ')}]; expected [batch, ${channels}, ${imageSize}, ${imageSize}]`,
        {field: 'pixels'},
      );
    }
    return tf.tidy(() => {
      // A remainder that fills no patch is not looked at, as by a convolution without padding.
      const used = imageSize - (imageSize % patchSize);
      const whole = used === imageSize;
      const seen = whole ? pixels : tf.slice(pixels, [0, 0, 0, 0], [batch, channels, used, used]);
      let x = this.embeddings(seen, batch);
      for (const block of this.weights.blocks) {
        const before = x;
        // A tidy for each block: the peak is one block's intermediates, not those of all.
        x = tf.tidy(() => this.block(before, block, batch));
        before.dispose();
      }
      const tokens = tf.reshape(x, [batch, -1, width]);
      const first: tf.Tensor2D = tf.reshape(tf.slice(tokens, 0, [batch, 1, width]), [batch, width]);
      return linear(layerNorm(first, this.weights.norm, layerNormEpsilon), this.weights.classifier);
    });
  }

  /**
   * The likeliest classes of an image, the first first.
   *
   * @param count most classes. Default: 5
   */
  async classify(image: PixelImage, count = 5): Promise<VitClass[]> {
    const probabilities = tf.tidy(() => tf.softmax(this.logits(this.prepare(image))));
    const values = (await probabilities
      .data()
      .finally(() => probabilities.dispose())) as Float32Array;
    return Array.from(values, (probability, index) => ({
      label: this.config.labels[index] as string,
      index,
      probability,
    }))
      .sort((a, b) => b.probability - a.probability)
      .slice(0, count);
  }

  /** Frees the weights; the model cannot be used afterwards. */
  dispose(): void {
    this.disposed = true;
    this.reader.dispose();
  }

  /** [batch * (patches + 1), width] */
  private embeddings(pixels: tf.Tensor4D, batch: number): tf.Tensor2D {
    const {patchSize, width} = this.config;
    const {classToken, positions, patches} = this.weights;
    const embedded = linear(cutPatches(pixels, patchSize), patches);
    const count = positions.shape[0];
    const placed = tf.add(tf.reshape(embedded, [batch, count, width]), positions);
    const first = tf.tile(tf.reshape(classToken, [1, EXTRA_TOKENS, width]), [batch, 1, 1]);
    return tf.reshape(tf.concat([first, placed], 1), [batch * (count + EXTRA_TOKENS), width]);
  }

  /** One block with its norms before attention and MLP, [batch * tokens, width] to the same. */
  private block(x: tf.Tensor2D, weights: VitBlock, batch: number): tf.Tensor2D {
    const {heads, width, activation, layerNormEpsilon} = this.config;
    const normed = layerNorm(x, weights.norm1, layerNormEpsilon);
    const [q, k, v] = [weights.q, weights.k, weights.v].map((part) =>
      splitHeads(linear(normed, part), batch, heads),
    ) as [tf.Tensor4D, tf.Tensor4D, tf.Tensor4D];
    const attended = attendHeads(this.attention, q, k, v, {
      isCausal: false,
      scale: 1 / Math.sqrt(width / heads),
    });
    const middle: tf.Tensor2D = tf.add(x, linear(attended, weights.attentionOut));
    const mlpInput = layerNorm(middle, weights.norm2, layerNormEpsilon);
    return tf.add(middle, mlp(mlpInput, weights.mlpIn, weights.mlpOut, activation));
  }
}
