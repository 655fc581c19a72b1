/** tfjs-sage-attention/models/gpt2/browser: GPT-2 as in `models/gpt2`, with a loader that fetches in place of Node's. */
export type {GenerateOptions} from '../generate.js';
export {SafetensorsError} from '../safetensors/errors.js';
export type {Attention, AttentionOptions} from './attention.js';
export {bitsPerByte, cutWindows, decodeBytes, encodeBytes, END_OF_TEXT, WINDOW} from './bytes.js';
export {parseGpt2Config, type Gpt2Activation, type Gpt2Config} from './config.js';
export {Gpt2Error, type Gpt2ErrorPlace} from './errors.js';
export {fetchGpt2, type FetchGpt2Options} from './fetch.js';
export {Gpt2, type Gpt2Score} from './gpt2.js';
export type {CreateLayerCache, Gpt2Cache, LayerCache, LayerCacheSizes} from './kv_cache.js';
export {plainAttention} from './plain_attention.js';
export {createSampler, type Sampler, type SamplingOptions} from './sampling.js';
export type {Gpt2WeightSource} from './weights.js';
