// Texts to embeddings: tokens, padding, pooled vectors.

import {ModelError} from '../model_error.js';
import type {TextTokenizer} from '../tokenizer.js';
import type {Bert} from './bert.js';

/** Rows of equal length and what of them is text. */
export interface PaddedTexts {
  readonly ids: number[][];
  /** 1 = token, 0 = padding. */
  readonly mask: number[][];
}

/**
 * Tokens of texts, padded to the longest.
 *
 * @param maxLength most tokens of a text; what is longer loses tokens before its last, the end mark
 * @param padToken what fills short rows
 * @param side where the filling goes. Default: 'right'
 */
export function padTexts(
  texts: readonly string[],
  tokenizer: TextTokenizer,
  maxLength: number,
  padToken: number,
  side: 'left' | 'right' = 'right',
): PaddedTexts {
  const rows = texts.map((text) => {
    const ids = tokenizer.encode(text);
    return ids.length <= maxLength ? ids : [...ids.slice(0, maxLength - 1), ids.at(-1) as number];
  });
  const length = Math.max(0, ...rows.map((row) => row.length));
  const pad = (row: readonly number[], filling: number): number[] => {
    const fill = new Array<number>(length - row.length).fill(filling);
    return side === 'right' ? [...row, ...fill] : [...fill, ...row];
  };
  return {
    ids: rows.map((row) => pad(row, padToken)),
    mask: rows.map((row) => pad(new Array<number>(row.length).fill(1), 0)),
  };
}

/** How `embedTexts` works. */
export interface EmbedTextsOptions {
  /** Texts computed at a time. Default: 16 */
  readonly batch?: number | undefined;
}

/**
 * Embeddings of texts, in their order.
 *
 * @returns one vector of `model.config.width` numbers per text, scaled to length 1 if the model's pooling says so
 */
export async function embedTexts(
  model: Bert,
  tokenizer: TextTokenizer,
  texts: readonly string[],
  {batch = 16}: EmbedTextsOptions = {},
): Promise<Float32Array[]> {
  if (!Number.isSafeInteger(batch) || batch < 1) {
    throw new ModelError(`is ${batch}; expected a whole number >= 1`, {field: 'batch'});
  }
  const {width, padToken} = model.config;
  const embeddings: Float32Array[] = [];
  for (let begin = 0; begin < texts.length; begin += batch) {
    const part = texts.slice(begin, begin + batch);
    const {ids, mask} = padTexts(part, tokenizer, model.pooling.maxLength, padToken);
    const tensor = model.embed(ids, {mask});
    const values = (await tensor.data().finally(() => tensor.dispose())) as Float32Array;
    part.forEach((_, i) => embeddings.push(values.slice(i * width, (i + 1) * width)));
  }
  return embeddings;
}

/** Cosine of two vectors; 0 if one of them is 0. */
export function cosineSimilarity(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let dot = 0;
  let aa = 0;
  let bb = 0;
  for (let i = 0; i < a.length; i++) {
    const x = a[i] as number;
    const y = b[i] as number;
    dot += x * y;
    aa += x * x;
    bb += y * y;
  }
  return aa === 0 || bb === 0 ? 0 : dot / Math.sqrt(aa * bb);
}

/** Cosines of all pairs: row i, column j compares text i with text j. */
export function similarityTable(embeddings: readonly ArrayLike<number>[]): number[][] {
  return embeddings.map((a) => embeddings.map((b) => cosineSimilarity(a, b)));
}
