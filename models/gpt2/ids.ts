// Token ids on their way into the model, checked: a wrong id would silently read another row of the embedding.

import * as tf from '@tensorflow/tfjs-core';
import {isTokenId} from '../config_fields.js';
import type {Gpt2Config} from './config.js';
import {Gpt2Error} from './errors.js';
import type {Gpt2Cache} from './kv_cache.js';

/**
 * The ids as rows: tokens of the vocabulary, in rows of one length, for which there are positions after those cached.
 *
 * @param ids [batch, length]
 * @throws Gpt2Error saying which id or row is wrong
 */
export function checkIds(
  ids: readonly (readonly number[])[] | tf.Tensor2D,
  {positions, vocabSize}: Gpt2Config,
  cache?: Gpt2Cache,
): readonly (readonly number[])[] {
  const fail = (message: string): Gpt2Error => new Gpt2Error(message, {field: 'ids'});
  const rows = ids instanceof tf.Tensor ? ids.arraySync() : ids;
  const length = rows[0]?.length ?? 0;
  if (length === 0) throw fail('hold no token; expected at least one');
  const past = cache?.length ?? 0;
  if (past + length > positions) {
    const cached = past === 0 ? '' : `${past} cached and `;
    throw fail(`${cached}${length} ids exceed the context of ${positions} positions`);
  }
  if (cache?.batch !== undefined && cache.batch !== rows.length) {
    throw fail(`hold ${rows.length} sequences; the cache holds ${cache.batch}`);
  }
  rows.forEach((row, i) => {
    if (row.length !== length) {
      throw fail(`row ${i} holds ${row.length} ids; expected ${length}, as in row 0`);
    }
    const wrong = row.findIndex((id) => !isTokenId(id, vocabSize));
    if (wrong >= 0) {
      throw fail(`[${i}][${wrong}] is ${row[wrong]}; expected a token id below ${vocabSize}`);
    }
  });
  return rows;
}
