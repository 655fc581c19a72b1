// Diffusion transformers against diffusers' answers: one pass, captions with padding, sampling, recipes, misuse.

import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import '@tensorflow/tfjs-backend-wasm';
import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import type {Attention} from '../../models/attention.js';
import {parseDitConfig} from '../../models/dit/config.js';
import type {Dit, DitCondition} from '../../models/dit/dit.js';
import {loadDit, loadNoiseSchedule} from '../../models/dit/load.js';
import {parseNoiseSchedule, sampleLatents} from '../../models/dit/sample.js';
import {ModelError} from '../../models/model_error.js';
import {plainAttention} from '../../models/plain_attention.js';
import {
  fixture,
  goldenOf,
  LOGIT_TOLERANCE,
  maxDifference,
  read,
  recipeAttention,
  RECIPES,
  relativeL1,
} from './golden.js';

interface Golden {
  latents: number[];
  timesteps: number[];
  predicted: number[];
}

interface DitGolden extends Golden {
  labels: number[];
  sampled: {labels: number[]; steps: number; guidance: number; latents: number[]};
}

interface PixArtGolden extends Golden {
  caption: number[];
  caption_mask: number[][];
}

const dit = goldenOf<DitGolden>('dit');
const pixArt = goldenOf<PixArtGolden>('pixart');

tf.env().set('IS_TEST', true);

async function withModel<T>(
  name: string,
  attention: Attention,
  action: (model: Dit) => T | Promise<T>,
): Promise<T> {
  const model = await loadDit(fixture(name), {attention});
  try {
    return await action(model);
  } finally {
    model.dispose();
  }
}

/** The model's answer to the golden inputs, with a condition in place of theirs if one is given. */
function predict(model: Dit, change: DitCondition = {}): Float32Array {
  return tf.tidy(() => {
    if (model.config.condition === 'label') {
      const latents = tf.tensor4d(dit.latents, [2, 3, 6, 6]);
      const condition = {labels: dit.labels, ...change};
      return model.predict(latents, dit.timesteps, condition).dataSync<'float32'>();
    }
    const latents = tf.tensor4d(pixArt.latents, [2, 4, 6, 6]);
    const caption = tf.tensor3d(pixArt.caption, [2, 7, 20]);
    const condition = {caption, captionMask: pixArt.caption_mask, ...change};
    return model.predict(latents, pixArt.timesteps, condition).dataSync<'float32'>();
  });
}

const expectedOf = (name: string): number[] => (name === 'dit' ? dit : pixArt).predicted;

describe.each(['cpu', 'wasm'])('on backend %s', (backend) => {
  let before: number;
  beforeAll(async () => {
    await tf.setBackend(backend);
    before = tf.memory().numTensors;
  });
  afterEach(() => expect(tf.memory().numTensors).toBe(before));

  test.each([
    ['dit', 'plain', plainAttention],
    ['dit', 'exact', recipeAttention('exact')],
    ['pixart', 'plain', plainAttention],
    ['pixart', 'exact', recipeAttention('exact')],
  ] as const)('%s: one pass, %s attention', (name, _, attention) =>
    withModel(name, attention, (model) => {
      expect(maxDifference(predict(model), expectedOf(name))).toBeLessThan(LOGIT_TOLERANCE);
    }),
  );

  test('dit: six guided steps from noise', () =>
    withModel('dit', recipeAttention('exact'), async (model) => {
      const {labels, steps, guidance, latents} = dit.sampled;
      const noise = tf.tensor4d(dit.latents, [2, 3, 6, 6]);
      const seen: number[] = [];
      const sampled = await sampleLatents(model, loadNoiseSchedule(fixture('dit')), {
        labels,
        steps,
        guidance,
        noise,
        onStep: (step) => void seen.push(step),
      });
      expect(seen).toEqual([1, 2, 3, 4, 5, 6]);
      // Six passes amplify what float32 loses in each; a step to a level beside the right one costs ten times that.
      expect(relativeL1(read(sampled), latents)).toBeLessThan(1e-4);
      noise.dispose();
    }));

  test.each(['dit', 'pixart'])('%s: every recipe stays within its bound of exact', async (name) => {
    const exact = await withModel(name, recipeAttention('exact'), (model) => predict(model));
    for (const {precision, bound} of RECIPES) {
      const quantised = await withModel(name, recipeAttention(precision), (model) =>
        predict(model),
      );
      const error = relativeL1(quantised, exact);
      expect(error).toBeLessThan(bound);
      expect(error).toBeGreaterThan(0);
    }
  });
});

describe('conditions matter', () => {
  beforeAll(() => tf.setBackend('wasm'));

  test('another class, a caption without its mask', async () => {
    const far = 10 * LOGIT_TOLERANCE;
    await withModel('dit', plainAttention, (model) => {
      expect(maxDifference(predict(model, {labels: [4, 10]}), dit.predicted)).toBeGreaterThan(far);
    });
    await withModel('pixart', plainAttention, (model) => {
      const unmasked = predict(model, {captionMask: undefined});
      expect(maxDifference(unmasked, pixArt.predicted)).toBeGreaterThan(far);
    });
  });

  test('sampling: the same seed gives the same latents, another gives others', () =>
    withModel('dit', plainAttention, async (model) => {
      const schedule = parseNoiseSchedule({});
      const draw = async (seed: number): Promise<Float32Array> =>
        read(await sampleLatents(model, schedule, {labels: [1], steps: 2, guidance: 1, seed}));
      const first = await draw(5);
      expect(await draw(5)).toEqual(first);
      expect(await draw(6)).not.toEqual(first);
      expect(first.every((value) => Number.isFinite(value))).toBe(true);
    }));
});

describe('what it says', () => {
  const readConfig = (...parts: string[]): object =>
    JSON.parse(readFileSync(join(fixture(parts[0]!), ...parts.slice(1)), 'utf8')) as object;
  const stored = readConfig('dit', 'transformer', 'config.json');

  test.each([
    ['norm_type', 'layer_norm', /one of ada_norm_zero, ada_norm_single/],
    ['activation_fn', 'geglu', /one of gelu-approximate, gelu/],
    ['sample_size', 7, /patch_size.*divisor of sample_size, 7/],
    ['attention_head_dim', 7, /width that 4 divides/],
    ['norm_elementwise_affine', true, /norm_elementwise_affine/],
  ])('config %s = %p', (field, value, message) => {
    expect(() => parseDitConfig({...stored, [field]: value})).toThrow(ModelError);
    expect(() => parseDitConfig({...stored, [field]: value})).toThrow(message);
  });

  test('a caption model that wants more than captions', () => {
    const config = readConfig('pixart', 'config.json');
    const extra = {...config, use_additional_conditions: true};
    expect(() => parseDitConfig(extra)).toThrow(/use_additional_conditions/);
    expect(() => parseDitConfig({...config, cross_attention_dim: 16})).toThrow(/32, the model's/);
  });

  test.each([
    ['beta_schedule', 'squaredcos_cap_v2'],
    ['prediction_type', 'v_prediction'],
    ['clip_sample', true],
    ['timestep_spacing', 'trailing'],
  ])('schedule %s = %p', (field, value) => {
    expect(() => parseNoiseSchedule({[field]: value})).toThrow(new RegExp(field));
  });

  test('schedules fall from near 1 to near 0', () => {
    for (const beta_schedule of ['linear', 'scaled_linear']) {
      const {alphaProducts} = parseNoiseSchedule({beta_schedule});
      expect(alphaProducts.length).toBe(1000);
      expect(alphaProducts[0]).toBeCloseTo(0.9999, 10);
      expect(alphaProducts[999]).toBeLessThan(0.01);
    }
  });

  test('calls that do not fit', async () => {
    await tf.setBackend('cpu');
    await withModel('dit', plainAttention, async (model) => {
      const latents = tf.zeros<tf.Rank.R4>([1, 3, 6, 6]);
      const small = tf.zeros<tf.Rank.R4>([1, 3, 6, 4]);
      const held = tf.memory().numTensors;
      expect(() => model.predict(small, [1], {labels: [1]})).toThrow(/latents: have shape/);
      expect(() => model.predict(latents, [1, 2], {labels: [1]})).toThrow(/timesteps/);
      expect(() => model.predict(latents, [1], {})).toThrow(/labels: are missing/);
      expect(() => model.predict(latents, [1], {labels: [11]})).toThrow(/from 0 to 10/);
      const schedule = parseNoiseSchedule({});
      const sample = (options: object) => sampleLatents(model, schedule, {labels: [1], ...options});
      await expect(sample({labels: []})).rejects.toThrow(/labels/);
      await expect(sample({steps: 0})).rejects.toThrow(/1 to 1000/);
      await expect(sample({guidance: NaN})).rejects.toThrow(/guidance/);
      await expect(sample({seed: 0.5})).rejects.toThrow(/seed/);
      const stop = sample({
        steps: 4,
        guidance: 1,
        onStep: (step: number) => {
          if (step === 2) throw new Error('stopped');
        },
      });
      await expect(stop).rejects.toThrow('stopped');
      expect(tf.memory().numTensors).toBe(held);
      tf.dispose([latents, small]);
    });
    await withModel('pixart', plainAttention, async (model) => {
      const latents = tf.zeros<tf.Rank.R4>([1, 4, 6, 6]);
      const caption = tf.zeros<tf.Rank.R3>([1, 3, 19]);
      expect(() => model.predict(latents, [1], {})).toThrow(/caption: is missing/);
      expect(() => model.predict(latents, [1], {caption})).toThrow(/expected \[1, tokens, 20\]/);
      tf.dispose([latents, caption]);
      await expect(sampleLatents(model, parseNoiseSchedule({}), {labels: [1]})).rejects.toThrow(
        /takes captions/,
      );
    });
  });
});
