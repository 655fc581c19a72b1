/** The models' entries: what they load, what they take, and that an attention of this package fits them all. */
import * as tf from '@tensorflow/tfjs-core';
import {sageAttention, SageKvCache} from 'tfjs-sage-attention';
import * as bert from 'tfjs-sage-attention/models/bert';
import * as dit from 'tfjs-sage-attention/models/dit';
import * as gpt2 from 'tfjs-sage-attention/models/gpt2';
import * as gpt2Browser from 'tfjs-sage-attention/models/gpt2/browser';
import * as llama from 'tfjs-sage-attention/models/llama';
import * as vit from 'tfjs-sage-attention/models/vit';

const attention: llama.Attention = (q, k, v, options) =>
  sageAttention(q, k, v, {...options, precision: 'int8_fp8'});

export async function embeddings(directory: string): Promise<Float32Array[]> {
  const model = await bert.loadBert(directory, {attention});
  const tokenizer: bert.TextTokenizer = bert.loadTokenizer(directory);
  const hidden: tf.Tensor3D = model.hidden([[1, 2]], {mask: [[1, 0]]});
  hidden.dispose();
  return bert.embedTexts(model, tokenizer, ['text'], {batch: 2});
}

export async function classes(directory: string): Promise<vit.VitClass[]> {
  const model = await vit.loadVit(directory, {attention});
  const image: vit.PixelImage = {width: 1, height: 1, channels: 3, data: new Uint8Array(3)};
  // @ts-expect-error: pixels are 8-bit
  model.prepare({...image, data: new Float32Array(3)});
  return model.classify(image, 3);
}

export async function text(directory: string): Promise<number[]> {
  const model = await llama.loadLlama(directory, {attention});
  const cache: llama.KvCache = model.createCache();
  const logits: tf.Tensor3D = model.logits([[1]], {cache});
  logits.dispose();
  // @ts-expect-error: how many tokens must be said
  await model.generate([1], {temperature: 1});
  return model.generate([1], {maxNewTokens: 3, temperature: 0.7, topP: 0.9, cache});
}

export async function latents(directory: string): Promise<tf.Tensor4D> {
  const model = await dit.loadDit(directory, {attention});
  // @ts-expect-error: classes are numbers
  await dit.sampleLatents(model, dit.loadNoiseSchedule(directory), {labels: ['cat']});
  return dit.sampleLatents(model, dit.loadNoiseSchedule(directory), {labels: [3], steps: 10});
}

export const gpt2Takes: gpt2.Attention = attention;
export const gpt2Model: Promise<gpt2.Gpt2> = gpt2.loadGpt2('directory', {attention});
export const fetched: Promise<gpt2Browser.Gpt2> = gpt2Browser.fetchGpt2('model/', {attention});
export const notACause: Error = new bert.ModelError('message', {file: 'config.json'});

export async function samples(directory: string): Promise<number[]> {
  const layerCache: gpt2.CreateLayerCache = (sizes) => new SageKvCache(sizes);
  const model = await gpt2.loadGpt2(directory, {layerCache});
  await llama.loadLlama(directory, {
    layerCache: (sizes) => new SageKvCache({...sizes, precision: 'int16'}),
  });
  // @ts-expect-error: a cache has to take tokens
  await gpt2.loadGpt2(directory, {layerCache: () => ({})});
  const cache: gpt2.Gpt2Cache = model.createCache();
  const fork = cache.fork();
  cache.truncate(0);
  return model.generate([1], {maxNewTokens: 2, cache: fork});
}
