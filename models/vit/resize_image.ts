// Resizing as Pillow does it, which trained models expect, to the last bit: a filter as wide as the reduction, so that
// nothing aliases, with weights of 22 bits, one axis after the other, rounded to 8 bits after each.

import {ModelError} from '../model_error.js';

/** Triangle, or the cubic with a = -1/2. */
export type ResizeFilter = 'bilinear' | 'bicubic';

/** 8-bit pixels in rows, channels side by side. */
export interface PixelImage {
  readonly width: number;
  readonly height: number;
  readonly channels: number;
  /** width * height * channels values. */
  readonly data: Uint8Array | Uint8ClampedArray;
}

/** Weights of the source pixels [begin, begin + weights.length) for one pixel of the result. */
interface Taps {
  readonly begin: number;
  readonly weights: Float64Array;
}

/** Fixed point of the weights. */
const ONE = 2 ** 22;

const SUPPORT: Readonly<Record<ResizeFilter, number>> = {bilinear: 1, bicubic: 2};

const CURVES: Readonly<Record<ResizeFilter, (x: number) => number>> = {
  bilinear: (x) => Math.max(0, 1 - Math.abs(x)),
  bicubic: (x) => {
    const t = Math.abs(x);
    if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
    return t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
  },
};

/**
 * Resizes an image.
 *
 * @throws ModelError for an image without pixels, or with another number of values than its size says
 */
export function resizeImage(
  image: PixelImage,
  width: number,
  height: number,
  filter: ResizeFilter,
): PixelImage {
  checkImage(image);
  const {channels} = image;
  const wide = resizeRows(image.data, image.height, image.width, width, channels, filter);
  // The other axis: every row as one pixel of width * channels values.
  const data = resizeRows(wide, 1, image.height, height, width * channels, filter);
  return {width, height, channels, data};
}

/** @throws ModelError for an image that is empty or whose data do not fit its size */
export function checkImage({width, height, channels, data}: PixelImage): void {
  const values = width * height * channels;
  if (!(values > 0) || data.length !== values) {
    throw new ModelError(
      `has ${data.length} values; ${width} x ${height} pixels of ${channels} channels have ${values}`,
      {field: 'image'},
    );
  }
}

/** Resizes the middle axis of [rows, length, channels]. */
function resizeRows(
  data: Uint8Array | Uint8ClampedArray,
  rows: number,
  length: number,
  newLength: number,
  channels: number,
  filter: ResizeFilter,
): Uint8ClampedArray {
  if (length === newLength) return new Uint8ClampedArray(data);
  const taps = makeTaps(length, newLength, filter);
  // Its stores clamp.
  const result = new Uint8ClampedArray(rows * newLength * channels);
  const floor = Math.floor;
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < newLength; i++) {
      const {begin, weights} = taps[i] as Taps;
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        for (let j = 0; j < weights.length; j++) {
          const index = (row * length + begin + j) * channels + c;
          sum += (weights[j] as number) * (data[index] as number);
        }
        result[(row * newLength + i) * channels + c] = floor(sum / ONE + 0.5);
      }
    }
  }
  return result;
}

function makeTaps(length: number, newLength: number, filter: ResizeFilter): Taps[] {
  const scale = length / newLength;
  const stretch = Math.max(1, scale);
  const support = SUPPORT[filter] * stretch;
  const curve = CURVES[filter];
  return Array.from({length: newLength}, (_, i) => {
    const centre = (i + 0.5) * scale;
    const begin = Math.max(0, Math.floor(centre - support + 0.5));
    const end = Math.min(length, Math.floor(centre + support + 0.5));
    const weights = Float64Array.from({length: end - begin}, (__, j) =>
      curve((begin + j - centre + 0.5) / stretch),
    );
    const sum = weights.reduce((a, b) => a + b, 0);
    return {begin, weights: weights.map((weight) => roundFromZero((weight / sum) * ONE))};
  });
}

/** To the nearest integer, halves away from 0. */
function roundFromZero(x: number): number {
  return x < 0 ? -Math.floor(0.5 - x) : Math.floor(x + 0.5);
}
