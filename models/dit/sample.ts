// Images out of noise: DDIM (Song et al. 2020) without added noise, with classifier-free guidance (Ho and Salimans 2022).

import * as tf from '@tensorflow/tfjs-core';
import {ConfigFields} from '../config_fields.js';
import {ModelError} from '../model_error.js';
import type {Dit} from './dit.js';

/** The noise that the model was trained to remove. */
export interface NoiseSchedule {
  /** Share of the signal's variance after each training step, falling from 1 towards 0. */
  readonly alphaProducts: Float64Array;
}

/** Fields of a schedule that have one value here. */
const ONLY: readonly (readonly [field: string, computed: unknown])[] = [
  ['trained_betas', undefined],
  ['prediction_type', 'epsilon'],
  ['clip_sample', false],
  ['thresholding', false],
  ['set_alpha_to_one', true],
  ['steps_offset', 0],
  ['timestep_spacing', 'leading'],
  ['rescale_betas_zero_snr', false],
];

/**
 * Reads a parsed scheduler_config.json; `{}` gives DiT's: 1,000 steps, betas linear from 0.0001 to 0.02.
 *
 * @throws ModelError for schedules that are not computed here
 */
export function parseNoiseSchedule(json: unknown, file = 'scheduler_config.json'): NoiseSchedule {
  const fields = new ConfigFields(json, file);
  const steps = fields.count('num_train_timesteps', 1000);
  const first = fields.positive('beta_start', 1e-4);
  const last = fields.positive('beta_end', 0.02);
  const curves = new Map<unknown, 1 | 2>([
    ['linear', 1],
    ['scaled_linear', 2],
  ]);
  for (const [field, computed] of ONLY) {
    if ((fields.value(field) ?? computed) !== computed) {
      throw fields.fail(field, JSON.stringify(computed));
    }
  }
  const power = fields.choice('beta_schedule', curves, 'linear');
  const low = first ** (1 / power);
  const high = last ** (1 / power);
  let product = 1;
  const alphaProducts = Float64Array.from({length: steps}, (_, i) => {
    const beta = (low + ((high - low) * i) / Math.max(1, steps - 1)) ** power;
    product *= 1 - beta;
    return product;
  });
  return {alphaProducts};
}

/** How to sample. */
export interface SampleOptions {
  /** Class of each image. */
  readonly labels: readonly number[];
  /** Steps from noise to image, at most those of the schedule. Default: 25 */
  readonly steps?: number | undefined;
  /** 1 = the model as it stands; above it, away from what it gives without a class. Default: 4 */
  readonly guidance?: number | undefined;
  /** Seed of the noise, a whole number. Default: 0 */
  readonly seed?: number | undefined;
  /** The noise to begin with, [labels.length, in_channels, sample_size, sample_size]; not disposed. Default: drawn */
  readonly noise?: tf.Tensor4D | undefined;
  /** Called after each step with its number, from 1. */
  readonly onStep?: ((step: number, steps: number) => void | Promise<void>) | undefined;
}

/**
 * Draws latents of the classes.
 *
 * @param model a DiT; models that take captions are refused
 * @returns [labels.length, in_channels, sample_size, sample_size], float32
 * @throws ModelError for options out of their range
 */
export async function sampleLatents(
  model: Dit,
  schedule: NoiseSchedule,
  options: SampleOptions,
): Promise<tf.Tensor4D> {
  const {labels, steps = 25, guidance = 4, seed = 0, noise, onStep} = options;
  const {condition, inputChannels, sampleSize} = model.config;
  const {alphaProducts} = schedule;
  const fail = (field: string, message: string): ModelError => new ModelError(message, {field});
  if (condition !== 'label') throw fail('model', 'takes captions; expected one that takes classes');
  if (labels.length === 0) throw fail('labels', 'hold no class; expected at least one');
  if (!Number.isSafeInteger(steps) || steps < 1 || steps > alphaProducts.length) {
    throw fail('steps', `is ${steps}; expected a whole number from 1 to ${alphaProducts.length}`);
  }
  if (!Number.isFinite(guidance)) throw fail('guidance', `is ${guidance}; expected a number`);
  if (!Number.isSafeInteger(seed)) throw fail('seed', `is ${seed}; expected a whole number`);

  const shape: [number, number, number, number] = [
    labels.length,
    inputChannels,
    sampleSize,
    sampleSize,
  ];
  let latents: tf.Tensor4D =
    noise === undefined ? tf.randomNormal(shape, 0, 1, 'float32', seed) : tf.clone(noise);
  const stride = Math.floor(alphaProducts.length / steps);
  try {
    for (let step = steps - 1; step >= 0; step--) {
      const time = step * stride;
      const before = latents;
      // The last step leaves no noise.
      const next = time - stride >= 0 ? (alphaProducts[time - stride] as number) : 1;
      latents = tf.tidy(() => {
        const predicted = predictNoise(model, before, time, labels, guidance);
        return denoise(before, predicted, alphaProducts[time] as number, next);
      });
      before.dispose();
      await onStep?.(steps - step, steps);
    }
    return latents;
  } catch (error) {
    latents.dispose();
    throw error;
  }
}

/** The model's noise, led away from that of no class. */
function predictNoise(
  model: Dit,
  latents: tf.Tensor4D,
  time: number,
  labels: readonly number[],
  guidance: number,
): tf.Tensor4D {
  const {inputChannels, labels: none} = model.config;
  const size = [-1, inputChannels, -1, -1];
  const times = labels.map(() => time);
  if (guidance === 1) return tf.slice(model.predict(latents, times, {labels}), 0, size);
  const both = model.predict(tf.concat([latents, latents], 0), [...times, ...times], {
    labels: [...labels, ...labels.map(() => none)],
  });
  const [led, free] = tf.split(tf.slice(both, 0, size), 2, 0) as [tf.Tensor4D, tf.Tensor4D];
  return tf.add(free, tf.mul(tf.sub(led, free), guidance));
}

/** One step of DDIM: the image as predicted, noised again to the next level. */
function denoise(
  latents: tf.Tensor4D,
  noise: tf.Tensor4D,
  alpha: number,
  next: number,
): tf.Tensor4D {
  const image = tf.div(tf.sub(latents, tf.mul(noise, Math.sqrt(1 - alpha))), Math.sqrt(alpha));
  return tf.add(tf.mul(image, Math.sqrt(next)), tf.mul(noise, Math.sqrt(1 - next)));
}
