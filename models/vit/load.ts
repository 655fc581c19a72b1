// Node only: loads a ViT classifier from a directory in Hugging Face's layout.

import {join} from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import type {Attention} from '../attention.js';
import {loadJson, loadJsonIfThere} from '../load_files.js';
import {plainAttention} from '../plain_attention.js';
import {openSafetensorsDirectory} from '../safetensors/load_from_directory.js';
import {parseVitConfig, parseVitProcessor} from './config.js';
import {Vit} from './vit.js';

/** How to load. */
export interface LoadVitOptions {
  /** The attention of every layer. Default: `plainAttention` */
  readonly attention?: Attention | undefined;
}

/**
 * Loads `config.json`, `preprocessor_config.json` if it is there (else pixels go to [-1, 1]) and the safetensors weights
 * onto the current backend.
 *
 * @param directory path of the model's directory
 * @returns the model; `dispose` frees its weights
 * @throws ModelError or SafetensorsError naming the file and the field or tensor
 */
export async function loadVit(directory: string, options: LoadVitOptions = {}): Promise<Vit> {
  const config = parseVitConfig(loadJson(directory, 'config.json'), join(directory, 'config.json'));
  const name = 'preprocessor_config.json';
  const processor = parseVitProcessor(
    loadJsonIfThere(directory, name) ?? {},
    config,
    join(directory, name),
  );
  const weights = openSafetensorsDirectory(directory);
  await tf.ready();
  return new Vit(config, processor, weights, options.attention ?? plainAttention);
}
