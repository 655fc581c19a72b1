// Token ids on their way into a model, checked: a wrong id would silently read another row of the embedding.

import {isTokenId} from './config_fields.js';
import {ModelError} from './model_error.js';

/** Rows of equal length, [batch, length]. */
export type TokenRows = readonly (readonly number[])[];

/**
 * @param positions most ids a row may have
 * @param field the argument's name in messages. Default: 'ids'
 * @throws ModelError saying which id or row is wrong
 */
export function checkTokenRows(
  rows: TokenRows,
  vocabSize: number,
  positions: number,
  field = 'ids',
): void {
  const fail = (message: string): ModelError => new ModelError(message, {field});
  const length = rows[0]?.length ?? 0;
  if (length === 0) throw fail('hold no token; expected at least one');
  if (length > positions) {
    throw fail(`${length} ids exceed the context of ${positions} positions`);
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
}

/**
 * A padding mask: 1 = token, 0 = padding.
 *
 * @returns whether it hides anything; an all-ones mask need not be computed with
 * @throws ModelError unless it has `batch` rows of `length` zeros and ones with at least one 1 each
 */
export function checkPaddingMask(mask: TokenRows, batch: number, length: number): boolean {
  const fail = (message: string): ModelError => new ModelError(message, {field: 'mask'});
  if (mask.length !== batch) throw fail(`holds ${mask.length} rows; expected ${batch}`);
  let hides = false;
  mask.forEach((row, i) => {
    if (row.length !== length) {
      throw fail(`row ${i} holds ${row.length} entries; expected ${length}, one for each id`);
    }
    const wrong = row.findIndex((entry) => entry !== 0 && entry !== 1);
    if (wrong >= 0) throw fail(`[${i}][${wrong}] is ${row[wrong]}; expected 1 or 0`);
    if (!row.includes(1)) throw fail(`row ${i} hides every id`);
    hides ||= row.includes(0);
  });
  return hides;
}
