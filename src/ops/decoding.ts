/** When few queries meet many keys, as in decoding token by token: there `auto` means `exact`. */
import type {AttentionSizes} from './tensor_arguments.js';

/**
 * Query rows per key/value head up to which the native engine is faster unquantised: it reads k and v once, where they
 * lie, at the speed of memory, while a quantised recipe would quantise all of them first. Measured at 2,048 keys, one
 * thread, AVX2 and AVX-512: 5 to 10 times at 1 row, 1.1 to 1.8 times at 24, slower from 48 on.
 */
const DECODING_ROWS = 24;

/** Below so many keys per query packing is cheap, and the recipes are as they are for any other call. */
const KEYS_PER_QUERY = 4;

/** Whether the sizes are those of decoding. */
export function isDecoding({qHeads, kvHeads, qLen, kvLen}: AttentionSizes): boolean {
  return qHeads * qLen <= DECODING_ROWS * kvHeads && kvLen >= KEYS_PER_QUERY * qLen;
}
