// Node only: loads Llama and its relatives from a directory in Hugging Face's layout.

import {join} from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import type {Attention} from '../attention.js';
import type {CreateLayerCache} from '../kv_cache.js';
import {loadJson} from '../load_files.js';
import {plainAttention} from '../plain_attention.js';
import {openSafetensorsDirectory} from '../safetensors/load_from_directory.js';
import {parseLlamaConfig} from './config.js';
import {Llama} from './llama.js';

/** How to load. */
export interface LoadLlamaOptions {
  /** The attention of every layer. Default: `plainAttention` */
  readonly attention?: Attention | undefined;
  /** Makes the KV cache of a layer, such as `(sizes) => new SageKvCache(sizes)`. Default: tensors are concatenated */
  readonly layerCache?: CreateLayerCache | undefined;
}

/**
 * Loads `config.json` and the safetensors weights (one file, or shards with their index) onto the current backend.
 *
 * @param directory path of the model's directory
 * @returns the model; `dispose` frees its weights
 * @throws ModelError or SafetensorsError naming the file and the field or tensor
 */
export async function loadLlama(directory: string, options: LoadLlamaOptions = {}): Promise<Llama> {
  const config = parseLlamaConfig(
    loadJson(directory, 'config.json'),
    join(directory, 'config.json'),
  );
  const weights = openSafetensorsDirectory(directory);
  await tf.ready();
  return new Llama(config, weights, options.attention ?? plainAttention, options.layerCache);
}
