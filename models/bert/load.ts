// Node only: loads a BERT encoder from a directory in Hugging Face's layout.

import {existsSync, readFileSync} from 'node:fs';
import {join} from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import type {Attention} from '../attention.js';
import {loadJson, loadJsonIfThere} from '../load_files.js';
import {ModelError} from '../model_error.js';
import {plainAttention} from '../plain_attention.js';
import {openSafetensorsDirectory} from '../safetensors/load_from_directory.js';
import {Bert} from './bert.js';
import {parseBertConfig, parseBertPooling} from './config.js';

/** How to load. */
export interface LoadBertOptions {
  /** The attention of every layer. Default: `plainAttention` */
  readonly attention?: Attention | undefined;
}

/**
 * Loads `config.json`, the safetensors weights (one file, or shards with their index) and, where they are there,
 * sentence-transformers' files that say how to pool, onto the current backend.
 *
 * @param directory path of the model's directory
 * @returns the model; `dispose` frees its weights
 * @throws ModelError or SafetensorsError naming the file and the field or tensor
 */
export async function loadBert(directory: string, options: LoadBertOptions = {}): Promise<Bert> {
  const config = parseBertConfig(
    loadJson(directory, 'config.json'),
    join(directory, 'config.json'),
  );
  const pooling = parseBertPooling(
    {
      pooling: loadJsonIfThere(join(directory, '1_Pooling'), 'config.json'),
      modules: loadList(join(directory, 'modules.json')),
      sentence: loadJsonIfThere(directory, 'sentence_bert_config.json'),
    },
    config,
  );
  const weights = openSafetensorsDirectory(directory);
  await tf.ready();
  return new Bert(config, weights, options.attention ?? plainAttention, pooling);
}

/** modules.json is a list, the only one among these files. */
function loadList(file: string): unknown {
  if (!existsSync(file)) return undefined;
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as unknown;
  } catch (cause) {
    throw new ModelError('cannot be read as JSON', {file, cause});
  }
}
