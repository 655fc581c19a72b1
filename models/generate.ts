// Continuing a text token by token: the loop that every language model here shares.

import type * as tf from '@tensorflow/tfjs-core';
import {isTokenId} from './config_fields.js';
import type {KvCache} from './kv_cache.js';
import {ModelError} from './model_error.js';
import {createSampler, type SamplingOptions} from './sampling.js';

/** How to generate. */
export interface GenerateOptions extends SamplingOptions {
  /** Most tokens to generate. */
  readonly maxNewTokens: number;
  /** Tokens that end the text; they are not part of the result. Default: none */
  readonly stop?: readonly number[] | undefined;
  /**
   * Continue the sequence in this cache, which then holds all but the last new token and stays the caller's.
   * Default: a cache of its own
   */
  readonly cache?: KvCache | undefined;
  /** Called with each token as it is chosen and its index among the new ones; may be asynchronous. */
  readonly onToken?: ((id: number, index: number) => void | Promise<void>) | undefined;
}

/** What the loop asks of a model. */
export interface GeneratingModel {
  readonly vocabSize: number;
  /** Context length. */
  readonly positions: number;
  /** An empty cache of the model's kind. */
  createCache(): KvCache;
  /** [vocab]: logits after the last of the ids, which the cache takes up. */
  lastLogits(ids: readonly number[], cache: KvCache): tf.Tensor1D;
}

/**
 * Continues a text with a KV cache.
 *
 * @param ids the text so far (after what is cached), at least one id
 * @returns the new ids only
 * @throws ModelError before anything is computed if the text could outgrow the context: cached + ids.length +
 *   maxNewTokens - 1 <= positions must hold (the last new token is never fed back)
 */
export async function generateTokens(
  model: GeneratingModel,
  ids: readonly number[],
  options: GenerateOptions,
): Promise<number[]> {
  const {maxNewTokens, stop = [], onToken} = options;
  const {positions, vocabSize} = model;
  if (!Number.isSafeInteger(maxNewTokens) || maxNewTokens < 0) {
    throw new ModelError(`is ${maxNewTokens}; expected a whole number >= 0`, {
      field: 'maxNewTokens',
    });
  }
  const needed = (options.cache?.length ?? 0) + ids.length + maxNewTokens - 1;
  if (needed > positions) {
    throw new ModelError(
      `${ids.length} ids and ${maxNewTokens} new ones need ${needed} positions with those cached; the model has ` +
        `${positions}. Shorten the text or ask for fewer tokens`,
      {field: 'maxNewTokens'},
    );
  }
  for (const id of stop) {
    if (!isTokenId(id, vocabSize)) {
      throw new ModelError(`holds ${id}; expected token ids below ${vocabSize}`, {field: 'stop'});
    }
  }
  const sample = createSampler(options);
  const generated: number[] = [];
  const cache = options.cache ?? model.createCache();
  try {
    let fed = ids;
    while (generated.length < maxNewTokens) {
      const last = model.lastLogits(fed, cache);
      const values = (await last.data().finally(() => last.dispose())) as Float32Array;
      const id = sample(values);
      if (stop.includes(id)) break;
      generated.push(id);
      await onToken?.(id, generated.length - 1);
      fed = [id];
    }
  } finally {
    if (options.cache === undefined) cache.dispose();
  }
  return generated;
}
