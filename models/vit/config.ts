// The configuration of a ViT image classifier and of its image processor, checked.

import {ConfigFields} from '../config_fields.js';
import {ACTIVATIONS, type Activation} from '../layers/activations.js';
import type {ResizeFilter} from './resize_image.js';

/** A checked configuration. */
export interface VitConfig {
  /** Height and width of an image, pixels. */
  readonly imageSize: number;
  /** Height and width of a patch, pixels. */
  readonly patchSize: number;
  readonly channels: number;
  readonly width: number;
  readonly layers: number;
  readonly heads: number;
  readonly innerWidth: number;
  readonly activation: Activation;
  readonly layerNormEpsilon: number;
  readonly queryKeyValueBias: boolean;
  /** Names of the classes, by index. */
  readonly labels: readonly string[];
}

/** How pixels are prepared. */
export interface VitProcessor {
  /** Filter of the resizing to the model's size. */
  readonly filter: ResizeFilter;
  /** Factor of the 8-bit values. */
  readonly rescale: number;
  /** Subtracted after rescaling, per channel. */
  readonly mean: readonly number[];
  /** Divides after that, per channel. */
  readonly deviation: readonly number[];
}

/** Classes of a configuration that names none. */
const DEFAULT_LABELS = 2;

/**
 * Reads a parsed config.json.
 *
 * @param file what to call the file in messages. Default: 'config.json'
 * @throws ModelError naming the field that is missing, wrong or asks for something ViT here does not do
 */
export function parseVitConfig(json: unknown, file = 'config.json'): VitConfig {
  const fields = new ConfigFields(json, file);
  if ((fields.value('model_type') ?? 'vit') !== 'vit') throw fields.fail('model_type', '"vit"');
  const width = fields.count('hidden_size');
  const heads = fields.count('num_attention_heads');
  if (width % heads !== 0) {
    throw fields.fail('num_attention_heads', `a divisor of hidden_size, ${width}`);
  }
  const imageSize = fields.count('image_size', 224);
  const patchSize = fields.count('patch_size', 16);
  if (patchSize > imageSize) throw fields.fail('patch_size', `at most image_size, ${imageSize}`);
  return {
    imageSize,
    patchSize,
    channels: fields.count('num_channels', 3),
    width,
    layers: fields.count('num_hidden_layers'),
    heads,
    innerWidth: fields.count('intermediate_size'),
    activation: fields.choice('hidden_act', ACTIVATIONS, 'gelu'),
    layerNormEpsilon: fields.positive('layer_norm_eps', 1e-12),
    queryKeyValueBias: fields.flag('qkv_bias', true),
    labels: readLabels(fields),
  };
}

function readLabels(fields: ConfigFields): readonly string[] {
  const names = fields.object('id2label');
  if (names === undefined) {
    const count = fields.count('num_labels', DEFAULT_LABELS);
    return Array.from({length: count}, (_, i) => `LABEL_${i}`);
  }
  const labels: string[] = [];
  for (let i = 0; names.has(String(i)); i++) {
    const label = names.value(String(i));
    if (typeof label !== 'string') throw names.fail(String(i), 'a name');
    labels.push(label);
  }
  if (labels.length === 0) throw fields.fail('id2label', 'names under "0", "1" and so on');
  return labels;
}

/** The numbers that Pillow gives to filters. */
const FILTERS: ReadonlyMap<unknown, ResizeFilter> = new Map([
  [2, 'bilinear'],
  [3, 'bicubic'],
]);

/**
 * Reads a parsed preprocessor_config.json.
 *
 * @throws ModelError for steps that are not done here, such as cropping
 */
export function parseVitProcessor(
  json: unknown,
  {imageSize, channels}: VitConfig,
  file = 'preprocessor_config.json',
): VitProcessor {
  const fields = new ConfigFields(json, file);
  const perChannel = (field: string, enabled: boolean, neutral: number): readonly number[] => {
    if (!enabled) return new Array<number>(channels).fill(neutral);
    const values = fields.value(field) ?? new Array<number>(channels).fill(0.5);
    const numbers = Array.isArray(values) && values.every((value) => Number.isFinite(value));
    if (!numbers || values.length !== channels) throw fields.fail(field, `${channels} numbers`);
    return values as number[];
  };
  if (!fields.flag('do_resize', true)) throw fields.fail('do_resize', 'true');
  if (fields.flag('do_center_crop', false)) throw fields.fail('do_center_crop', 'false');
  checkSize(fields, imageSize);
  const normalise = fields.flag('do_normalize', true);
  const deviation = perChannel('image_std', normalise, 1);
  if (deviation.includes(0)) throw fields.fail('image_std', 'numbers other than 0');
  return {
    filter: fields.has('resample') ? fields.choice('resample', FILTERS) : 'bilinear',
    rescale: fields.flag('do_rescale', true) ? fields.positive('rescale_factor', 1 / 255) : 1,
    mean: perChannel('image_mean', normalise, 0),
    deviation,
  };
}

/** `size` is a number, or {height, width}; both must be the model's. */
function checkSize(fields: ConfigFields, imageSize: number): void {
  const size = fields.value('size') ?? imageSize;
  if (size === imageSize) return;
  const sides = typeof size === 'object' ? fields.object('size') : undefined;
  if (sides?.value('height') === imageSize && sides.value('width') === imageSize) return;
  throw fields.fail('size', `height and width ${imageSize}, the model's image_size`);
}
