// Diffusion transformers in tfjs ops, on any backend, with attention passed in: DiT (Peebles and Xie 2023), whose blocks
// are modulated by timestep and class (adaLN-zero), and PixArt-alpha (Chen et al. 2023), whose blocks share the timestep's
// modulation and attend to a caption. Layout of diffusers.

import * as tf from '@tensorflow/tfjs-core';
import type {Attention} from '../attention.js';
import {activate, mlp} from '../layers/activations.js';
import {attendHeads, splitHeads} from '../layers/heads.js';
import {linear} from '../layers/linear.js';
import {normalise} from '../layers/norms.js';
import {cutPatches, joinPatches} from '../layers/patches.js';
import {ModelError} from '../model_error.js';
import {plainAttention} from '../plain_attention.js';
import {checkPaddingMask, type TokenRows} from '../token_rows.js';
import {WeightReader, type WeightSource} from '../weight_reader.js';
import type {DitConfig} from './config.js';
import {timestepWaves, TIMESTEP_CHANNELS} from './sinusoids.js';
import {
  type AttentionWeights,
  type DitBlock,
  type DitWeights,
  readDitWeights,
  type TwoLayers,
} from './weights.js';

/** What an image is to show. */
export interface DitCondition {
  /** DiT: a class for each image, below `config.labels`; `config.labels` itself stands for no class. */
  readonly labels?: readonly number[] | undefined;
  /** PixArt: vectors of a text for each image, [batch, tokens, caption_channels], float32. */
  readonly caption?: tf.Tensor3D | undefined;
  /** PixArt: [batch, tokens], 1 = token, 0 = padding. Default: all tokens */
  readonly captionMask?: TokenRows | undefined;
}

/** Epsilon of the norms before attention in DiT and of the last one, which config.json does not hold. */
const FIXED_EPSILON = 1e-6;

/** One pass: what every block needs beside its input. */
interface Pass {
  readonly batch: number;
  readonly waves: tf.Tensor2D;
  readonly labels: tf.Tensor1D | undefined;
  /** PixArt: the timestep, [batch, width], and its projection, [batch, 6 * width]. */
  readonly timestep: tf.Tensor2D | undefined;
  readonly shared: tf.Tensor2D | undefined;
  /** [batch * tokens, width] */
  readonly caption: tf.Tensor2D | undefined;
  readonly captionMask: tf.Tensor | undefined;
}

/** A diffusion transformer with its weights on a backend. */
export class Dit {
  private readonly reader: WeightReader;
  private readonly weights: DitWeights;
  private disposed = false;

  /**
   * @param config from `parseDitConfig`
   * @param source tensors under diffusers' names
   * @param attention the attention of every layer, self and cross. Default: `plainAttention`
   * @throws ModelError if a weight is missing or has the wrong shape
   */
  constructor(
    readonly config: DitConfig,
    source: WeightSource,
    private readonly attention: Attention = plainAttention,
  ) {
    this.reader = new WeightReader(source);
    this.weights = readDitWeights(this.reader, config);
  }

  /**
   * What the model predicts of noisy latents.
   *
   * @param latents [batch, in_channels, sample_size, sample_size], float32
   * @param timesteps one for each image
   * @returns [batch, out_channels, sample_size, sample_size], float32
   * @throws ModelError for shapes and conditions that do not fit the model
   */
  predict(
    latents: tf.Tensor4D,
    timesteps: readonly number[],
    condition: DitCondition,
  ): tf.Tensor4D {
    this.check(latents, timesteps, condition);
    const {patchSize, sampleSize, width, condition: kind} = this.config;
    const {patches, positions, blocks, out} = this.weights;
    const batch = latents.shape[0];
    const side = sampleSize / patchSize;
    return tf.tidy(() => {
      const shift = kind === 'label' ? 1 : 0;
      const waves = tf.tensor2d(timestepWaves(timesteps, shift), [batch, TIMESTEP_CHANNELS]);
      const pass = this.prepare(waves, batch, condition);
      const embedded = linear(cutPatches(latents, patchSize), patches);
      const placed = tf.add(tf.reshape(embedded, [batch, side * side, width]), positions);
      let x: tf.Tensor2D = tf.reshape(placed, [batch * side * side, width]);
      for (const block of blocks) {
        const before = x;
        // A tidy for each block: the peak is one block's intermediates, not those of all.
        x = tf.tidy(() => this.block(before, block, pass));
        before.dispose();
      }
      const [outShift, outScale] = this.outModulation(pass);
      const last = modulate(normalise(x, FIXED_EPSILON), batch, outShift, outScale);
      return joinPatches(linear(last, out), batch, side, side, patchSize);
    });
  }

  /** Frees the weights; the model cannot be used afterwards. */
  dispose(): void {
    this.disposed = true;
    this.reader.dispose();
  }

  private check(
    latents: tf.Tensor4D,
    timesteps: readonly number[],
    {labels, caption, captionMask}: DitCondition,
  ): void {
    if (this.disposed) throw new ModelError('the model is disposed');
    const {
      inputChannels,
      sampleSize,
      condition,
      labels: classes,
      width,
      captionWidth,
    } = this.config;
    const fail = (field: string, message: string): ModelError => new ModelError(message, {field});
    const [batch, ...rest] = latents.shape;
    if (rest.join() !== [inputChannels, sampleSize, sampleSize].join() || batch === 0) {
      throw fail(
        'latents',
        `have shape [${latents.shape.join(', ')}]; expected ` +
          `[batch, ${inputChannels}, ${sampleSize}, ${sampleSize}]`,
      );
    }
    if (timesteps.length !== batch || !timesteps.every((step) => Number.isFinite(step))) {
      throw fail('timesteps', `are [${timesteps.join(', ')}]; expected ${batch} finite numbers`);
    }
    if (condition === 'label') {
      const fits = (label: number): boolean =>
        Number.isSafeInteger(label) && label >= 0 && label <= classes;
      if (labels?.length !== batch || !labels.every(fits)) {
        const came = labels === undefined ? 'missing' : `[${labels.join(', ')}]`;
        throw fail('labels', `are ${came}; expected ${batch} classes from 0 to ${classes}`);
      }
      return;
    }
    const wide = captionWidth ?? width;
    if (caption?.rank !== 3 || caption.shape[0] !== batch || caption.shape[2] !== wide) {
      const came = caption === undefined ? 'missing' : `[${caption.shape.join(', ')}]`;
      throw fail('caption', `is ${came}; expected [${batch}, tokens, ${wide}]`);
    }
    if (captionMask !== undefined) checkPaddingMask(captionMask, batch, caption.shape[1]);
  }

  private prepare(waves: tf.Tensor2D, batch: number, condition: DitCondition): Pass {
    const {shared} = this.weights;
    const {labels, caption, captionMask} = condition;
    const nothing = {timestep: undefined, shared: undefined, caption: undefined};
    if (shared === undefined) {
      const ids = tf.tensor1d([...(labels ?? [])], 'int32');
      return {batch, waves, labels: ids, ...nothing, captionMask: undefined};
    }
    const timestep = timestepVector(waves, shared.timestep);
    const vectors = caption as tf.Tensor3D;
    const rows: tf.Tensor2D = tf.reshape(vectors, [-1, vectors.shape[2]]);
    const projection = shared.caption;
    return {
      batch,
      waves,
      labels: undefined,
      timestep,
      shared: linear(activate(timestep, 'silu'), shared.projection),
      caption:
        projection === undefined ? rows : mlp(rows, projection.into, projection.out, 'gelu_tanh'),
      captionMask:
        captionMask === undefined
          ? undefined
          : tf.tensor(captionMask.flat(), [batch, 1, 1, vectors.shape[1]], 'bool'),
    };
  }

  /** One block, [batch * patches, width] to the same. */
  private block(x: tf.Tensor2D, weights: DitBlock, pass: Pass): tf.Tensor2D {
    const {activation, normEpsilon, condition} = this.config;
    const {batch} = pass;
    const [shift1, scale1, gate1, shift2, scale2, gate2] = blockModulation(weights, pass);
    const firstEpsilon = condition === 'label' ? FIXED_EPSILON : normEpsilon;
    const input = modulate(normalise(x, firstEpsilon), batch, shift1, scale1);
    const attended = this.attend(input, input, weights.attention, batch, undefined);
    let middle: tf.Tensor2D = tf.add(x, gated(attended, batch, gate1));
    if (weights.cross !== undefined) {
      const caption = pass.caption as tf.Tensor2D;
      const told = this.attend(middle, caption, weights.cross, batch, pass.captionMask);
      middle = tf.add(middle, told);
    }
    const mlpInput = modulate(normalise(middle, normEpsilon), batch, shift2, scale2);
    const inner = mlp(mlpInput, weights.mlp.into, weights.mlp.out, activation);
    return tf.add(middle, gated(inner, batch, gate2));
  }

  /** Attention of the rows to others of the same image, with its output projection. */
  private attend(
    x: tf.Tensor2D,
    to: tf.Tensor2D,
    weights: AttentionWeights,
    batch: number,
    mask: tf.Tensor | undefined,
  ): tf.Tensor2D {
    const {heads, headDim} = this.config;
    const q = splitHeads(linear(x, weights.q), batch, heads);
    const k = splitHeads(linear(to, weights.k), batch, heads);
    const v = splitHeads(linear(to, weights.v), batch, heads);
    const scale = 1 / Math.sqrt(headDim);
    const attended = attendHeads(this.attention, q, k, v, {isCausal: false, scale, mask});
    return linear(attended, weights.out);
  }

  /** Shift and scale of the last norm, [batch or 1, width] each. */
  private outModulation(pass: Pass): [tf.Tensor2D, tf.Tensor2D] {
    const {shared, outCondition, blocks} = this.weights;
    if (shared !== undefined) {
      const timestep = pass.timestep as tf.Tensor2D;
      const [shift, scale] = tf.split(shared.outTable, 2, 1) as [tf.Tensor2D, tf.Tensor2D];
      return [tf.add(timestep, shift), tf.add(timestep, scale)];
    }
    const condition = labelCondition(blocks[0] as DitBlock, pass);
    const both = linear(
      activate(condition, 'silu'),
      outCondition as NonNullable<typeof outCondition>,
    );
    return tf.split(both, 2, 1) as [tf.Tensor2D, tf.Tensor2D];
  }
}

type Part = tf.Tensor2D;
type SixParts = [Part, Part, Part, Part, Part, Part];

/** The six numbers per channel that a condition gives to a block, [batch, width] each. */
function blockModulation(weights: DitBlock, pass: Pass): SixParts {
  const {modulation} = weights;
  const all: tf.Tensor2D =
    modulation.kind === 'single'
      ? tf.add(pass.shared as tf.Tensor2D, modulation.table)
      : linear(activate(labelCondition(weights, pass), 'silu'), modulation.projection);
  return tf.split(all, 6, 1) as SixParts;
}

/** Timestep and class of a DiT block as one vector per image, [batch, width]. */
function labelCondition({modulation}: DitBlock, {waves, labels}: Pass): tf.Tensor2D {
  if (modulation.kind !== 'zero') throw new ModelError('a block without labels was asked for them');
  const classes = tf.gather(modulation.labels, labels as tf.Tensor1D);
  return tf.add(timestepVector(waves, modulation.timestep), classes);
}

function timestepVector(waves: tf.Tensor2D, {into, out}: TwoLayers): tf.Tensor2D {
  return mlp(waves, into, out, 'silu');
}

/** x (1 + scale) + shift, both per image and channel. */
function modulate(
  x: tf.Tensor2D,
  batch: number,
  shift: tf.Tensor2D,
  scale: tf.Tensor2D,
): tf.Tensor2D {
  const perImage = (part: tf.Tensor2D): tf.Tensor3D => tf.expandDims(part, 1);
  const images = tf.reshape(x, [batch, -1, x.shape[1]]);
  const scaled = tf.mul(images, tf.add(perImage(scale), 1));
  return tf.reshape(tf.add(scaled, perImage(shift)), x.shape);
}

function gated(x: tf.Tensor2D, batch: number, gate: tf.Tensor2D): tf.Tensor2D {
  const images = tf.reshape(x, [batch, -1, x.shape[1]]);
  return tf.reshape(tf.mul(images, tf.expandDims(gate, 1)), x.shape);
}
