// Bytes as tokens: token b is byte b, token 256 ends a text and is put first. The tokenizer of js-gpt.

/** The token put in front of every text. */
export const END_OF_TEXT = 256;

/** Tokens of a scoring window: the context length that js-gpt was trained with. */
export const WINDOW = 2048;

/**
 * Token ids of a text: [256, ...bytes].
 *
 * @param text a string, taken as UTF-8, or the bytes of a file
 */
export function encodeBytes(text: string | Uint8Array): number[] {
  const bytes = typeof text === 'string' ? new TextEncoder().encode(text) : text;
  const ids = new Array<number>(bytes.length + 1);
  ids[0] = END_OF_TEXT;
  for (let i = 0; i < bytes.length; i++) ids[i + 1] = bytes[i] as number;
  return ids;
}

/**
 * The text of token ids as UTF-8. End-of-text tokens are left out; bytes that are not UTF-8, as at a cut, show as
 * U+FFFD.
 *
 * @throws RangeError for an id that is no token
 */
export function decodeBytes(ids: Iterable<number>): string {
  const bytes: number[] = [];
  for (const id of ids) {
    if (!Number.isInteger(id) || id < 0 || id > END_OF_TEXT) {
      throw new RangeError(`token id ${id}; expected a whole number from 0 to ${END_OF_TEXT}`);
    }
    if (id !== END_OF_TEXT) bytes.push(id);
  }
  return new TextDecoder('utf-8', {ignoreBOM: true}).decode(Uint8Array.from(bytes));
}

/**
 * Cuts ids into consecutive windows, each scored on its own with nothing added. Every id is in one window, so the first
 * of each is context only. A last window of one id has nothing to predict and is left out.
 *
 * @param size ids a window, at least 2. Default: 2,048
 */
export function cutWindows(ids: readonly number[], size = WINDOW): number[][] {
  if (!Number.isSafeInteger(size) || size < 2) {
    throw new RangeError(`window of ${size} tokens; expected a whole number >= 2`);
  }
  const windows: number[][] = [];
  for (let begin = 0; begin + 1 < ids.length; begin += size) {
    windows.push(ids.slice(begin, begin + size));
  }
  return windows;
}

/** Mean loss in bits per predicted byte, from natural-log losses. NaN if nothing was predicted. */
export function bitsPerByte(losses: Iterable<number>): number {
  let sum = 0;
  let count = 0;
  for (const loss of losses) {
    sum += loss;
    count++;
  }
  return sum / count / Math.LN2;
}
