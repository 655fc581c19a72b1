/**
 * tfjs-sage-attention/models/gpt2 (Node): GPT-2 in tfjs ops with attention as an argument, loaded from Hugging Face
 * files, and the bytes-as-tokens of the model js-gpt that comes with the package.
 */
export type {Attention, AttentionOptions} from './attention.js';
export {bitsPerByte, cutWindows, decodeBytes, encodeBytes, END_OF_TEXT, WINDOW} from './bytes.js';
export {parseGpt2Config, type Gpt2Activation, type Gpt2Config} from './config.js';
export {Gpt2Error, type Gpt2ErrorPlace} from './errors.js';
export {Gpt2, type Gpt2Score} from './gpt2.js';
export type {GenerateOptions} from '../generate.js';
export type {CreateLayerCache, Gpt2Cache, LayerCache, LayerCacheSizes} from './kv_cache.js';
export {loadGpt2, type LoadGpt2Options} from './load.js';
export {plainAttention} from './plain_attention.js';
export {createSampler, type Sampler, type SamplingOptions} from './sampling.js';
export type {Gpt2WeightSource} from './weights.js';
export {SafetensorsError} from '../safetensors/errors.js';
