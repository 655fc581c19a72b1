/** Every option of sageAttention: what it takes and, behind `@ts-expect-error`, what it refuses. */
import type * as tf from '@tensorflow/tfjs-core';
import type {SageAttentionOptions} from 'tfjs-sage-attention';

type Options = SageAttentionOptions;

declare const mask: tf.Tensor;

/** A new option must get its lines in this file: this list is compared with the interface below. */
const tested = [
  'isCausal',
  'mask',
  'scale',
  'layout',
  'precision',
  'smoothQ',
  'smoothK',
  'smoothV',
  'granularity',
  'pvAccumulator',
  'windowSize',
  'variant',
  'returnLse',
] as const;
type Untested = Exclude<keyof Options, (typeof tested)[number]>;
export const noneIsUntested: [Untested] extends [never] ? true : Untested = true;

export const nothing: Options = {};
export const everythingUndefined: {[K in keyof Options]-?: undefined} & Options = {
  isCausal: undefined,
  mask: undefined,
  scale: undefined,
  layout: undefined,
  precision: undefined,
  smoothQ: undefined,
  smoothK: undefined,
  smoothV: undefined,
  granularity: undefined,
  pvAccumulator: undefined,
  windowSize: undefined,
  variant: undefined,
  returnLse: undefined,
};

export const isCausal: Options[] = [
  {isCausal: true},
  {isCausal: false},
  {isCausal: 'top_left'},
  {isCausal: 'bottom_right'},
];
// @ts-expect-error: not an alignment
export const isCausalWord: Options = {isCausal: 'left'};
// @ts-expect-error: a boolean, not a number
export const isCausalNumber: Options = {isCausal: 1};

export const masks: Options[] = [{mask}, {mask: [[true, false]]}, {mask: [[0, -Infinity]]}];
// @ts-expect-error: a tensor or nested arrays
export const maskObject: Options = {mask: {causal: true}};

export const scale: Options = {scale: 0.125};
// @ts-expect-error: a number, not its text
export const scaleText: Options = {scale: '0.125'};

export const layouts: Options[] = [{layout: 'HND'}, {layout: 'NHD'}];
// @ts-expect-error: the layouts are HND and NHD
export const layoutOther: Options = {layout: 'BHND'};

export const precisions: Options[] = [
  {precision: 'auto'},
  {precision: 'exact'},
  {precision: 'int16'},
  {precision: 'int8_int16'},
  {precision: 'int8_bf16'},
  {precision: 'int8_fp16'},
  {precision: 'int8_fp8'},
  {precision: 'int8'},
  {precision: 'int4_fp8'},
  {precision: 'fp4'},
  {precision: 'fp4_fp8'},
];
// @ts-expect-error: not a recipe
export const precisionOther: Options = {precision: 'fp16'};

export const smoothing: Options[] = [
  {smoothQ: true, smoothK: true, smoothV: true},
  {smoothQ: false, smoothK: false, smoothV: false},
];
// @ts-expect-error: true or false
export const smoothQWord: Options = {smoothQ: 'block'};
// @ts-expect-error: true or false
export const smoothKNumber: Options = {smoothK: 128};
// @ts-expect-error: true or false
export const smoothVNull: Options = {smoothV: null};

export const granularities: Options[] = [
  {granularity: 'per_token'},
  {granularity: 'per_warp'},
  {granularity: 'per_thread'},
  {granularity: 'per_block'},
];
// @ts-expect-error: not a granularity
export const granularityOther: Options = {granularity: 'per_tensor'};

export const accumulators: Options[] = [
  {pvAccumulator: 'fp32'},
  {pvAccumulator: 'fp16'},
  {pvAccumulator: 'fp16+fp32'},
  {pvAccumulator: 'fp32+fp32'},
  {pvAccumulator: 'fp32+fp16'},
];
// @ts-expect-error: not an accumulator of a published kernel
export const accumulatorOther: Options = {pvAccumulator: 'fp64'};

export const windows: Options[] = [{windowSize: [128, 0]}, {windowSize: [-1, -1] as const}];
// @ts-expect-error: two sides
export const windowOneSide: Options = {windowSize: [128]};
// @ts-expect-error: a pair
export const windowNumber: Options = {windowSize: 128};

export const variants: Options[] = [{variant: 'tuned'}, {variant: 'paper'}];
// @ts-expect-error: not a variant
export const variantOther: Options = {variant: 'fast'};

export const returnLse: Options[] = [{returnLse: true}, {returnLse: false}];
// @ts-expect-error: true or false
export const returnLseWord: Options = {returnLse: 'yes'};

// @ts-expect-error: misspelt
export const misspelt: Options = {casual: true};
