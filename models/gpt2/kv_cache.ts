// The cache of GPT-2.

export type {KvCache as Gpt2Cache} from '../kv_cache.js';
export type {CreateLayerCache, LayerCache, LayerCacheSizes} from '../kv_cache.js';
