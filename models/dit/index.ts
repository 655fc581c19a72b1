/**
 * tfjs-sage-attention/models/dit (Node): diffusion transformers (DiT, PixArt-alpha) in tfjs ops, attention as an argument.
 */
export type {Attention, AttentionOptions} from '../attention.js';
export {ModelError, type ModelErrorPlace} from '../model_error.js';
export {plainAttention} from '../plain_attention.js';
export {SafetensorsError} from '../safetensors/errors.js';
export type {WeightSource} from '../weight_reader.js';
export {type DitConfig, parseDitConfig} from './config.js';
export {Dit, type DitCondition} from './dit.js';
export {loadDit, type LoadDitOptions, loadNoiseSchedule} from './load.js';
export {
  type NoiseSchedule,
  parseNoiseSchedule,
  sampleLatents,
  type SampleOptions,
} from './sample.js';
