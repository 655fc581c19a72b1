// Browsers and Node: loads a GPT-2 model over HTTP, from files laid out as Hugging Face has them.

import * as tf from '@tensorflow/tfjs-core';
import {parseShardIndex, ShardedSafetensors} from '../safetensors/sharded.js';
import {SafetensorsFile, type TensorStore} from '../safetensors/safetensors.js';
import type {Attention} from './attention.js';
import {parseGpt2Config} from './config.js';
import {Gpt2Error} from './errors.js';
import {Gpt2} from './gpt2.js';
import type {CreateLayerCache} from './kv_cache.js';
import {plainAttention} from './plain_attention.js';

/** How to fetch. */
export interface FetchGpt2Options {
  /** The attention of every layer. Default: `plainAttention` */
  readonly attention?: Attention | undefined;
  /** Makes the KV cache of a layer, such as `(sizes) => new SageKvCache(sizes)`. Default: tensors are concatenated */
  readonly layerCache?: CreateLayerCache | undefined;
  /** Called with the bytes received of the weights so far, and all of them if the server tells. */
  readonly onProgress?: ((received: number, total: number | undefined) => void) | undefined;
  /** Stops the loading. Default: none */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Fetches `config.json` and `model.safetensors` (or, where that does not exist, the shards that
 * `model.safetensors.index.json` lists) and puts the weights on the current backend.
 *
 * @param base URL of the model's directory
 * @returns the model; `dispose` frees its weights
 * @throws Gpt2Error or SafetensorsError naming the file and the field or tensor; the signal's reason
 */
export async function fetchGpt2(base: string, options: FetchGpt2Options = {}): Promise<Gpt2> {
  const directory = base.endsWith('/') ? base : `${base}/`;
  const file = `${directory}config.json`;
  const text = new TextDecoder().decode(await fetchBytes(file, {signal: options.signal}));
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new Gpt2Error('is not JSON', {file, cause});
  }
  const config = parseGpt2Config(json, file);
  const weights = await fetchWeights(directory, options);
  await tf.ready();
  return new Gpt2(config, weights, options.attention ?? plainAttention, options.layerCache);
}

async function fetchWeights(directory: string, options: FetchGpt2Options): Promise<TensorStore> {
  const {signal} = options;
  const single = `${directory}model.safetensors`;
  const response = await request(single, signal);
  if (response.ok) {
    return new SafetensorsFile(await readBody(response, single, options), single);
  }
  if (response.status !== 404) throw unavailable(single, response);
  const indexFile = `${single}.index.json`;
  const text = new TextDecoder().decode(await fetchBytes(indexFile, {signal}));
  const index = parseShardIndex(text, indexFile);
  const shards = new Map<string, TensorStore>();
  let received = 0;
  for (const shard of new Set(index.weightMap.values())) {
    const file = directory + shard;
    const bytes = await fetchBytes(file, options, received);
    received += bytes.length;
    shards.set(shard, new SafetensorsFile(bytes, file));
  }
  return new ShardedSafetensors(index, shards);
}

async function fetchBytes(
  file: string,
  options: FetchGpt2Options,
  before = 0,
): Promise<Uint8Array> {
  const response = await request(file, options.signal);
  if (!response.ok) throw unavailable(file, response);
  return readBody(response, file, options, before);
}

async function request(file: string, signal: AbortSignal | undefined): Promise<Response> {
  try {
    return await fetch(file, {signal: signal ?? null});
  } catch (cause) {
    signal?.throwIfAborted();
    throw new Gpt2Error('cannot be fetched', {file, cause});
  }
}

const unavailable = (file: string, {status, statusText}: Response): Gpt2Error =>
  new Gpt2Error(`cannot be fetched (${`${status} ${statusText}`.trim()})`, {file});

async function readBody(
  response: Response,
  file: string,
  {signal, onProgress}: FetchGpt2Options,
  before = 0,
): Promise<Uint8Array> {
  // A compressed answer is longer than its header says.
  const plain = response.headers.get('content-encoding') === null;
  const length = Number(response.headers.get('content-length') ?? NaN);
  const total = plain && Number.isFinite(length) ? before + length : undefined;
  const chunks: Uint8Array[] = [];
  let received = 0;
  const reader = response.body?.getReader();
  try {
    for (let part = await reader?.read(); part?.done === false; part = await reader?.read()) {
      chunks.push(part.value);
      received += part.value.length;
      onProgress?.(before + received, total);
    }
  } catch (cause) {
    signal?.throwIfAborted();
    throw new Gpt2Error(`broke off after ${received} bytes`, {file, cause});
  }
  const bytes = new Uint8Array(received);
  let begin = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, begin);
    begin += chunk.length;
  }
  return bytes;
}
