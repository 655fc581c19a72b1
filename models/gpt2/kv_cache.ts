// The cache of GPT-2: 8 * layers * width * length bytes per sequence.

export {KvCache as Gpt2Cache, type LayerKeysValues} from '../kv_cache.js';
