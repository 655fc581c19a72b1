// Node only: loads a GPT-2 model from a directory in Hugging Face's layout.

import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import {openSafetensorsDirectory} from '../safetensors/load_from_directory.js';
import {reasonOf} from '../safetensors/safetensors.js';
import type {Attention} from './attention.js';
import {parseGpt2Config} from './config.js';
import {Gpt2Error} from './errors.js';
import {Gpt2} from './gpt2.js';
import type {CreateLayerCache} from './kv_cache.js';
import {plainAttention} from './plain_attention.js';

/** How to load. */
export interface LoadGpt2Options {
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
 * @throws Gpt2Error or SafetensorsError naming the file and the field or tensor
 */
export async function loadGpt2(directory: string, options: LoadGpt2Options = {}): Promise<Gpt2> {
  const file = join(directory, 'config.json');
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(file, 'utf8'));
  } catch (cause) {
    throw new Gpt2Error(`cannot be read as JSON (${reasonOf(cause)})`, {file, cause});
  }
  const config = parseGpt2Config(json, file);
  const weights = openSafetensorsDirectory(directory);
  await tf.ready();
  return new Gpt2(config, weights, options.attention ?? plainAttention, options.layerCache);
}
