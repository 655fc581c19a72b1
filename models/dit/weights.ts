// The weights of diffusion transformers under diffusers' names.

import type * as tf from '@tensorflow/tfjs-core';
import type {LinearWeights} from '../layers/linear.js';
import type {WeightReader} from '../weight_reader.js';
import type {DitConfig} from './config.js';
import {gridPositions, TIMESTEP_CHANNELS} from './sinusoids.js';

/** Two linear layers with an activation between them. */
export interface TwoLayers {
  readonly into: LinearWeights;
  readonly out: LinearWeights;
}

/** The projections of one attention. */
export interface AttentionWeights {
  readonly q: LinearWeights;
  readonly k: LinearWeights;
  readonly v: LinearWeights;
  readonly out: LinearWeights;
}

/** What a condition does to a block. */
export type Modulation =
  /** DiT: the condition of this block, and its projection to 6 * width. */
  | {
      readonly kind: 'zero';
      readonly timestep: TwoLayers;
      /** [labels + 1, width] */
      readonly labels: tf.Tensor2D;
      readonly projection: LinearWeights;
    }
  /** PixArt: an offset to what all blocks share, [1, 6 * width]. */
  | {readonly kind: 'single'; readonly table: tf.Tensor2D};

/** One transformer block. */
export interface DitBlock {
  readonly modulation: Modulation;
  readonly attention: AttentionWeights;
  /** Cross attention to the caption; undefined in DiT. */
  readonly cross: AttentionWeights | undefined;
  readonly mlp: TwoLayers;
}

/** PixArt: the condition that all blocks share. */
export interface SharedCondition {
  readonly timestep: TwoLayers;
  /** To 6 * width. */
  readonly projection: LinearWeights;
  /** Caption vectors to the model's width; undefined if they are as wide. */
  readonly caption: TwoLayers | undefined;
  /** Shift and scale of the last norm, each [1, width]. */
  readonly outTable: tf.Tensor2D;
}

/** The whole model. */
export interface DitWeights {
  readonly patches: LinearWeights;
  /** [patches, width]; computed, not stored. */
  readonly positions: tf.Tensor2D;
  readonly blocks: readonly DitBlock[];
  readonly shared: SharedCondition | undefined;
  /** DiT: projection of the condition to shift and scale of the last norm. */
  readonly outCondition: LinearWeights | undefined;
  readonly out: LinearWeights;
}

/** Numbers that a condition gives to a block: shift, scale and gate, for attention and for the MLP. */
const MODULATIONS = 6;

/** Width of the MLP's hidden layer, in widths of the model. */
const MLP_RATIO = 4;

/** Reads and checks every weight. */
export function readDitWeights(reader: WeightReader, config: DitConfig): DitWeights {
  const {width, layers, inputChannels, outputChannels, patchSize, sampleSize} = config;
  const pixArt = config.condition === 'caption';
  const side = sampleSize / patchSize;
  const outputs = patchSize * patchSize * outputChannels;
  return reader.all(() => ({
    patches: reader.patches('pos_embed.proj', inputChannels, patchSize, width),
    positions: reader.matrixOf(
      gridPositions(side, width, config.positionScale),
      side * side,
      width,
    ),
    blocks: Array.from({length: layers}, (_, i) => readBlock(reader, config, i)),
    shared: pixArt ? readShared(reader, config) : undefined,
    outCondition: pixArt ? undefined : reader.linear('proj_out_1', width, 2 * width),
    out: reader.linear(pixArt ? 'proj_out' : 'proj_out_2', width, outputs),
  }));
}

function readBlock(reader: WeightReader, config: DitConfig, index: number): DitBlock {
  const {width, labels} = config;
  const block = `transformer_blocks.${index}`;
  const pixArt = config.condition === 'caption';
  const attention = (name: string): AttentionWeights => {
    const part = (projection: string): LinearWeights =>
      reader.linear(`${block}.${name}.${projection}`, width, width, config.attentionBias);
    const out = reader.linear(`${block}.${name}.to_out.0`, width, width);
    return {q: part('to_q'), k: part('to_k'), v: part('to_v'), out};
  };
  const inner = MLP_RATIO * width;
  return {
    modulation: pixArt
      ? {
          kind: 'single',
          table: reader.flattened(`${block}.scale_shift_table`, [MODULATIONS, width]),
        }
      : {
          kind: 'zero',
          timestep: readTimestep(reader, `${block}.norm1.emb.timestep_embedder`, width),
          labels: reader.matrix(
            `${block}.norm1.emb.class_embedder.embedding_table.weight`,
            labels + 1,
            width,
          ),
          projection: reader.linear(`${block}.norm1.linear`, width, MODULATIONS * width),
        },
    attention: attention('attn1'),
    cross: pixArt ? attention('attn2') : undefined,
    mlp: {
      into: reader.linear(`${block}.ff.net.0.proj`, width, inner),
      out: reader.linear(`${block}.ff.net.2`, inner, width),
    },
  };
}

function readShared(reader: WeightReader, {width, captionWidth}: DitConfig): SharedCondition {
  return {
    timestep: readTimestep(reader, 'adaln_single.emb.timestep_embedder', width),
    projection: reader.linear('adaln_single.linear', width, MODULATIONS * width),
    caption:
      captionWidth === undefined
        ? undefined
        : {
            into: reader.linear('caption_projection.linear_1', captionWidth, width),
            out: reader.linear('caption_projection.linear_2', width, width),
          },
    outTable: reader.flattened('scale_shift_table', [2, width]),
  };
}

function readTimestep(reader: WeightReader, name: string, width: number): TwoLayers {
  return {
    into: reader.linear(`${name}.linear_1`, TIMESTEP_CHANNELS, width),
    out: reader.linear(`${name}.linear_2`, width, width),
  };
}
