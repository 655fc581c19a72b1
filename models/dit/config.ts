// The configuration of a diffusion transformer: the fields of diffusers' config.json that change what is computed, checked.

import {ConfigFields} from '../config_fields.js';
import type {Activation} from '../layers/activations.js';

/** A checked configuration. */
export interface DitConfig {
  /** `label`: DiT, conditioned by a class; `caption`: PixArt, by cross attention to a text's vectors. */
  readonly condition: 'label' | 'caption';
  /** Height and width of a latent image. */
  readonly sampleSize: number;
  readonly patchSize: number;
  readonly inputChannels: number;
  /** Twice the input's where the model predicts a variance beside the noise. */
  readonly outputChannels: number;
  readonly heads: number;
  readonly headDim: number;
  /** heads * headDim. */
  readonly width: number;
  readonly layers: number;
  readonly activation: Activation;
  readonly normEpsilon: number;
  readonly attentionBias: boolean;
  /** DiT: number of classes; the id after the last stands for none. */
  readonly labels: number;
  /** PixArt: width of the text's vectors; undefined if they come as wide as the model. */
  readonly captionWidth: number | undefined;
  /** PixArt: how far position embeddings are stretched. */
  readonly positionScale: number;
}

const ACTIVATIONS: ReadonlyMap<unknown, Activation> = new Map([
  ['gelu-approximate', 'gelu_tanh'],
  ['gelu', 'gelu'],
]);

/** The forms of adaptive layer norm: one projection per block (DiT), one for all blocks (PixArt). */
const CONDITIONS: ReadonlyMap<unknown, DitConfig['condition']> = new Map([
  ['ada_norm_zero', 'label'],
  ['ada_norm_single', 'caption'],
]);

/** Latent size from which PixArt stretches positions; and the one at which it takes the picture's size as a condition. */
const POSITION_BASE = 64;
const SIZE_CONDITION = 128;

/**
 * Reads a parsed config.json of a DiTTransformer2DModel, a PixArtTransformer2DModel or the Transformer2DModel of old.
 *
 * @param file what to call the file in messages. Default: 'config.json'
 * @throws ModelError naming the field that is missing, wrong or asks for something that is not done here
 */
export function parseDitConfig(json: unknown, file = 'config.json'): DitConfig {
  const fields = new ConfigFields(json, file);
  const condition = fields.choice('norm_type', CONDITIONS);
  const pixArt = condition === 'caption';
  const heads = fields.count('num_attention_heads');
  const headDim = fields.count('attention_head_dim');
  const width = heads * headDim;
  if (width % 4 !== 0) throw fields.fail('attention_head_dim', 'a width that 4 divides');
  const inputChannels = fields.count('in_channels');
  const sampleSize = fields.count('sample_size');
  const patchSize = fields.count('patch_size', 2);
  if (sampleSize % patchSize !== 0) {
    throw fields.fail('patch_size', `a divisor of sample_size, ${sampleSize}`);
  }
  if (fields.flag('norm_elementwise_affine', false)) {
    throw fields.fail('norm_elementwise_affine', 'false (the condition scales and shifts)');
  }
  if (pixArt) checkPixArt(fields, sampleSize, width);
  return {
    condition,
    sampleSize,
    patchSize,
    inputChannels,
    outputChannels: fields.count('out_channels', inputChannels),
    heads,
    headDim,
    width,
    layers: fields.count('num_layers'),
    activation: fields.choice('activation_fn', ACTIVATIONS, 'gelu-approximate'),
    normEpsilon: fields.positive('norm_eps', pixArt ? 1e-6 : 1e-5),
    attentionBias: fields.flag('attention_bias', true),
    labels: fields.count('num_embeds_ada_norm', 1000),
    captionWidth:
      pixArt && fields.has('caption_channels') ? fields.count('caption_channels') : undefined,
    positionScale: pixArt
      ? fields.positive('interpolation_scale', Math.max(1, Math.floor(sampleSize / POSITION_BASE)))
      : 1,
  };
}

function checkPixArt(fields: ConfigFields, sampleSize: number, width: number): void {
  if (fields.flag('use_additional_conditions', sampleSize === SIZE_CONDITION)) {
    throw fields.fail('use_additional_conditions', 'false (no resolution and aspect ratio)');
  }
  if (fields.count('cross_attention_dim', width) !== width) {
    throw fields.fail('cross_attention_dim', `${width}, the model's width`);
  }
}
