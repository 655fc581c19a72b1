// Node only: loads a diffusion transformer from a directory in diffusers' layout.

import {existsSync} from 'node:fs';
import {join} from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import type {Attention} from '../attention.js';
import {loadJson, loadJsonIfThere} from '../load_files.js';
import {plainAttention} from '../plain_attention.js';
import {openSafetensorsDirectory} from '../safetensors/load_from_directory.js';
import {parseDitConfig} from './config.js';
import {Dit} from './dit.js';
import {type NoiseSchedule, parseNoiseSchedule} from './sample.js';

/** How to load. */
export interface LoadDitOptions {
  /** The attention of every layer, self and cross. Default: `plainAttention` */
  readonly attention?: Attention | undefined;
}

/** What diffusers calls the weights. */
const WEIGHTS = 'diffusion_pytorch_model';

/**
 * Loads `config.json` and `diffusion_pytorch_model.safetensors` (or its shards) onto the current backend.
 *
 * @param directory path of the transformer's directory, or of a pipeline's that has it as `transformer`
 * @returns the model; `dispose` frees its weights
 * @throws ModelError or SafetensorsError naming the file and the field or tensor
 */
export async function loadDit(directory: string, options: LoadDitOptions = {}): Promise<Dit> {
  const inner = join(directory, 'transformer');
  const home = existsSync(inner) ? inner : directory;
  const config = parseDitConfig(loadJson(home, 'config.json'), join(home, 'config.json'));
  const weights = openSafetensorsDirectory(home, WEIGHTS);
  await tf.ready();
  return new Dit(config, weights, options.attention ?? plainAttention);
}

/**
 * Loads the noise schedule of a pipeline: `scheduler/scheduler_config.json` beside the transformer or, where that is not
 * there, DiT's own.
 */
export function loadNoiseSchedule(directory: string): NoiseSchedule {
  const name = 'scheduler_config.json';
  for (const home of [join(directory, 'scheduler'), join(directory, '..', 'scheduler')]) {
    const json = loadJsonIfThere(home, name);
    if (json !== undefined) return parseNoiseSchedule(json, join(home, name));
  }
  return parseNoiseSchedule({});
}
