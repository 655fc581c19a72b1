// Rotary position embedding (Su et al. 2021) in Hugging Face's form: channel i turns with channel i + head_dim / 2.

import * as tf from '@tensorflow/tfjs-core';
import type {ConfigFields} from '../config_fields.js';

/** How the frequencies were stretched for longer contexts. */
export type RotaryScaling =
  | {readonly kind: 'none'}
  /** All frequencies divided by `factor`. */
  | {readonly kind: 'linear'; readonly factor: number}
  /**
   * Llama 3.1: frequencies whose wave is longer than `originalPositions / lowFactor` tokens are divided by `factor`,
   * those shorter than `originalPositions / highFactor` stay, between them it passes smoothly.
   */
  | {
      readonly kind: 'llama3';
      readonly factor: number;
      readonly lowFactor: number;
      readonly highFactor: number;
      readonly originalPositions: number;
    };

/** The rotary embedding of a model. */
export interface RotaryConfig {
  readonly base: number;
  readonly scaling: RotaryScaling;
}

/** Hugging Face's default of `rope_theta`. */
const DEFAULT_BASE = 10000;

/**
 * Reads `rope_theta` and `rope_scaling`, or the `rope_parameters` that newer files hold in their place.
 *
 * @throws ModelError for kinds that are not computed here
 */
export function parseRotary(fields: ConfigFields): RotaryConfig {
  const newer = fields.object('rope_parameters');
  const scaling = newer ?? fields.object('rope_scaling');
  const base = (newer?.has('rope_theta') === true ? newer : fields).positive(
    'rope_theta',
    DEFAULT_BASE,
  );
  const part = scaling?.value('partial_rotary_factor') ?? fields.value('partial_rotary_factor');
  if ((part ?? 1) !== 1) throw fields.fail('partial_rotary_factor', '1 (whole heads are turned)');
  if (scaling === undefined) return {base, scaling: {kind: 'none'}};
  const field = scaling.has('rope_type') ? 'rope_type' : 'type';
  const kind = scaling.value(field) ?? 'default';
  switch (kind) {
    case 'default':
      return {base, scaling: {kind: 'none'}};
    case 'linear':
      return {base, scaling: {kind: 'linear', factor: scaling.positive('factor')}};
    case 'llama3': {
      const lowFactor = scaling.positive('low_freq_factor');
      const highFactor = scaling.positive('high_freq_factor');
      if (highFactor <= lowFactor) {
        throw scaling.fail('high_freq_factor', `a number above low_freq_factor, ${lowFactor}`);
      }
      const originalPositions = scaling.count('original_max_position_embeddings');
      const factor = scaling.positive('factor');
      return {base, scaling: {kind: 'llama3', factor, lowFactor, highFactor, originalPositions}};
    }
    default:
      throw scaling.fail(field, '"default", "linear" or "llama3"');
  }
}

/** Radians per token of each of the head_dim / 2 pairs of channels. */
export function rotaryFrequencies({base, scaling}: RotaryConfig, headDim: number): Float64Array {
  return Float64Array.from({length: headDim / 2}, (_, i) => {
    const frequency = base ** ((-2 * i) / headDim);
    if (scaling.kind === 'none') return frequency;
    if (scaling.kind === 'linear') return frequency / scaling.factor;
    const {factor, lowFactor, highFactor, originalPositions} = scaling;
    // How often the wave fits into the original context.
    const turns = (originalPositions * frequency) / (2 * Math.PI);
    const kept = Math.min(1, Math.max(0, (turns - lowFactor) / (highFactor - lowFactor)));
    return ((1 - kept) * frequency) / factor + kept * frequency;
  });
}

/** Cosines and sines of the turns, [batch or 1, 1, length, head_dim]. */
export interface RotaryTurns {
  readonly cos: tf.Tensor4D;
  readonly sin: tf.Tensor4D;
}

/**
 * Turns of the tokens at these positions. Computed in float64, so that late positions are as exact as early ones.
 *
 * @param positions [batch or 1, length]
 */
export function rotaryTurns(
  frequencies: Float64Array,
  positions: readonly (readonly number[])[],
): RotaryTurns {
  const {cos, sin} = Math;
  const half = frequencies.length;
  const length = positions[0]?.length ?? 0;
  const cosines = new Float32Array(positions.length * length * 2 * half);
  const sines = new Float32Array(cosines.length);
  let begin = 0;
  for (const row of positions) {
    for (const position of row) {
      for (let i = 0; i < half; i++) {
        const angle = position * (frequencies[i] as number);
        cosines[begin + i] = cosines[begin + half + i] = cos(angle);
        sines[begin + half + i] = sin(angle);
        // The first half gets -sin: rotation is then x * cos + swapped(x) * sin.
        sines[begin + i] = -(sines[begin + half + i] as number);
      }
      begin += 2 * half;
    }
  }
  const shape: [number, number, number, number] = [positions.length, 1, length, 2 * half];
  return {cos: tf.tensor4d(cosines, shape), sin: tf.tensor4d(sines, shape)};
}

/**
 * Turns every head of every token.
 *
 * @param x [batch, heads, length, head_dim]
 */
export function rotate(x: tf.Tensor4D, {cos, sin}: RotaryTurns): tf.Tensor4D {
  const half = x.shape[3] / 2;
  const [first, second] = tf.split(x, [half, half], 3) as [tf.Tensor4D, tf.Tensor4D];
  return tf.add(tf.mul(x, cos), tf.mul(tf.concat([second, first], 3), sin));
}
