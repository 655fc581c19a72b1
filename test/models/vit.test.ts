// ViT against transformers' answers and Pillow's resizing.

import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import '@tensorflow/tfjs-backend-wasm';
import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import type {Attention} from '../../models/attention.js';
import {ModelError} from '../../models/model_error.js';
import {plainAttention} from '../../models/plain_attention.js';
import {parseVitConfig, parseVitProcessor} from '../../models/vit/config.js';
import {loadVit} from '../../models/vit/load.js';
import {type PixelImage, type ResizeFilter, resizeImage} from '../../models/vit/resize_image.js';
import type {Vit} from '../../models/vit/vit.js';
import {
  fixture,
  goldenOf,
  LOGIT_TOLERANCE,
  maxDifference,
  recipeAttention,
  RECIPES,
  relativeL1,
} from './golden.js';

interface Golden {
  pixels: number[];
  logits: number[];
  resized: {width: number; height: number; filter: ResizeFilter; data: number[]}[];
}

const golden = goldenOf<Golden>('vit');
const HEADER = 'P6\n57 41\n255\n'.length;
const image: PixelImage = {
  width: 57,
  height: 41,
  channels: 3,
  data: readFileSync(join(fixture('vit'), 'image.ppm')).subarray(HEADER),
};

tf.env().set('IS_TEST', true);

async function withVit<T>(
  attention: Attention,
  action: (model: Vit) => T | Promise<T>,
): Promise<T> {
  const model = await loadVit(fixture('vit'), {attention});
  try {
    return await action(model);
  } finally {
    model.dispose();
  }
}

function logitsOf(model: Vit, pictures: readonly PixelImage[] = [image]): Float32Array {
  return tf.tidy(() => {
    const pixels = tf.concat(pictures.map((picture) => model.prepare(picture)));
    return model.logits(pixels).dataSync<'float32'>();
  });
}

describe.each(['cpu', 'wasm'])('on backend %s', (backend) => {
  let before: number;
  beforeAll(async () => {
    await tf.setBackend(backend);
    before = tf.memory().numTensors;
  });
  afterEach(() => expect(tf.memory().numTensors).toBe(before));

  test.each([
    ['plain', plainAttention],
    ['exact', recipeAttention('exact')],
  ] as const)('logits of an image, %s attention', (_, attention) =>
    withVit(attention, (model) => {
      expect(maxDifference(logitsOf(model), golden.logits)).toBeLessThan(LOGIT_TOLERANCE);
    }),
  );

  test('images of a batch do not mix', () =>
    withVit(plainAttention, (model) => {
      const flipped = {...image, data: Uint8Array.from(image.data).reverse()};
      const both = logitsOf(model, [flipped, image]);
      expect(maxDifference(both.subarray(12), golden.logits)).toBeLessThan(LOGIT_TOLERANCE);
      expect(maxDifference(both.subarray(0, 12), golden.logits)).toBeGreaterThan(0.1);
    }));

  test('the likeliest classes by name', () =>
    withVit(plainAttention, async (model) => {
      const classes = await model.classify(image, 3);
      const order = golden.logits
        .map((_, i) => i)
        .sort((a, b) => golden.logits[b]! - golden.logits[a]!);
      expect(classes.map(({index}) => index)).toEqual(order.slice(0, 3));
      expect(classes.map(({label}) => label)).toEqual(
        order.slice(0, 3).map((i) => model.config.labels[i]),
      );
      const all = await model.classify(image, 100);
      expect(all.length).toBe(12);
      expect(all.reduce((sum, {probability}) => sum + probability, 0)).toBeCloseTo(1, 5);
    }));

  test('every recipe stays within its bound of exact', async () => {
    const exact = await withVit(recipeAttention('exact'), (model) => logitsOf(model));
    for (const {precision, bound} of RECIPES) {
      const quantised = await withVit(recipeAttention(precision), (model) => logitsOf(model));
      const error = relativeL1(quantised, exact);
      expect(error).toBeLessThan(bound);
      expect(error).toBeGreaterThan(0);
    }
  });
});

test('resizing gives the pixels of the reference', () => {
  expect([...resizeImage(image, 33, 33, 'bilinear').data]).toEqual(golden.pixels);
  for (const {width, height, filter, data} of golden.resized) {
    expect([...resizeImage(image, width, height, filter).data]).toEqual(data);
  }
  expect([...resizeImage(image, 57, 41, 'bicubic').data]).toEqual([...image.data]);
});

describe('what it says', () => {
  const stored = JSON.parse(readFileSync(join(fixture('vit'), 'config.json'), 'utf8')) as object;
  const config = parseVitConfig(stored);

  test.each([
    ['model_type', 'deit', /"vit"/],
    ['num_attention_heads', 5, /divisor of hidden_size, 48/],
    ['patch_size', 34, /at most image_size, 33/],
    ['id2label', {1: 'a'}, /under "0", "1"/],
    ['id2label', {0: 5}, /id2label.0: is 5; expected a name/],
  ])('config %s = %p', (field, value, message) => {
    expect(() => parseVitConfig({...stored, [field]: value})).toThrow(ModelError);
    expect(() => parseVitConfig({...stored, [field]: value})).toThrow(message);
  });

  test('processor files', () => {
    expect(parseVitProcessor({}, config)).toEqual({
      filter: 'bilinear',
      rescale: 1 / 255,
      mean: [0.5, 0.5, 0.5],
      deviation: [0.5, 0.5, 0.5],
    });
    expect(parseVitProcessor({size: 33, resample: 3, do_normalize: false}, config)).toMatchObject({
      filter: 'bicubic',
      mean: [0, 0, 0],
      deviation: [1, 1, 1],
    });
    const parse = (json: object) => () => parseVitProcessor(json, config);
    expect(parse({size: 224})).toThrow(/size: is 224; expected height and width 33/);
    expect(parse({size: {shortest_edge: 33}})).toThrow(/size/);
    expect(parse({do_center_crop: true})).toThrow(/do_center_crop/);
    expect(parse({resample: 1})).toThrow(/resample/);
    expect(parse({image_std: [1, 0, 1]})).toThrow(/image_std/);
    expect(parse({image_mean: [1]})).toThrow(/3 numbers/);
  });

  test('pictures and pixels that do not fit', async () => {
    await tf.setBackend('cpu');
    await withVit(plainAttention, (model) => {
      const held = tf.memory().numTensors;
      expect(() => model.prepare({...image, height: 40})).toThrow(/has 7011 values/);
      expect(() =>
        model.prepare({width: 0, height: 1, channels: 3, data: new Uint8Array(0)}),
      ).toThrow(/image/);
      const grey = {width: 2, height: 2, channels: 1, data: new Uint8Array(4)};
      expect(() => model.prepare(grey)).toThrow(/has 1 channels; the model takes 3/);
      const pixels = tf.zeros<tf.Rank.R4>([1, 3, 32, 33]);
      expect(() => model.logits(pixels)).toThrow(/have shape \[1, 3, 32, 33\]/);
      pixels.dispose();
      expect(tf.memory().numTensors).toBe(held);
    });
  });
});
