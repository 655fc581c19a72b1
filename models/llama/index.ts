/**
 * tfjs-sage-attention/models/llama (Node): Llama, Mistral, Qwen2, Qwen3 and SmolLM in tfjs ops, attention as an argument.
 */
export type {Attention, AttentionOptions} from '../attention.js';
export type {GenerateOptions} from '../generate.js';
export type {CreateLayerCache, KvCache, LayerCache, LayerCacheSizes} from '../kv_cache.js';
export {loadTokenizer} from '../load_files.js';
export {ModelError, type ModelErrorPlace} from '../model_error.js';
export {plainAttention} from '../plain_attention.js';
export {SafetensorsError} from '../safetensors/errors.js';
export {createSampler, type Sampler, type SamplingOptions} from '../sampling.js';
export {createTokenizer, type TextTokenizer} from '../tokenizer.js';
export type {WeightSource} from '../weight_reader.js';
export {type LlamaConfig, parseLlamaConfig} from './config.js';
export {Llama, type LlamaInputs} from './llama.js';
export {loadLlama, type LoadLlamaOptions} from './load.js';
export {type RotaryConfig, rotaryFrequencies, type RotaryScaling} from './rotary.js';
