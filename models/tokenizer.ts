// Text to token ids and back, as tokenizer.json says (WordPiece, BPE, Unigram). Browser-safe.

import {Tokenizer} from '@huggingface/tokenizers';
import {ModelError} from './model_error.js';
import type {JsonObject} from './read_json.js';

/** A model's tokenizer. */
export interface TextTokenizer {
  /**
   * Token ids of a text.
   *
   * @param options.special whether to add what the model expects around a text, such as [CLS] and [SEP]. Default: true
   */
  encode(text: string, options?: {readonly special?: boolean | undefined}): number[];
  /**
   * The text of token ids.
   *
   * @param options.special whether tokens such as the end of a text are shown. Default: false
   */
  decode(ids: readonly number[], options?: {readonly special?: boolean | undefined}): string;
  /** Id of a token by its spelling; undefined if there is none. */
  idOf(token: string): number | undefined;
}

/**
 * Builds a tokenizer from the parsed tokenizer.json and tokenizer_config.json.
 *
 * @param file what to call tokenizer.json in messages
 * @throws ModelError for a tokenizer that is damaged or of a kind not known here
 */
export function createTokenizer(
  json: JsonObject,
  config: JsonObject,
  file = 'tokenizer.json',
): TextTokenizer {
  let tokenizer: Tokenizer;
  try {
    tokenizer = new Tokenizer(json, config);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new ModelError(`is no tokenizer that can be read (${reason})`, {file, cause});
  }
  return {
    encode: (text, {special = true} = {}) =>
      tokenizer.encode(text, {add_special_tokens: special}).ids,
    decode: (ids, {special = false} = {}) =>
      // The library refuses an empty list.
      ids.length === 0 ? '' : tokenizer.decode([...ids], {skip_special_tokens: !special}),
    idOf: (token) => tokenizer.token_to_id(token),
  };
}
