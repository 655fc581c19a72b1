/**
 * The tiles of the TypeScript engine: 64 queries against 128 keys.
 * Tiles start at multiples of their size, so that groups of 16 keys, accumulator steps of 16, 32 and 64 keys, V blocks
 * of 64 and 128 tokens and Q blocks of 32 and 128 rows never straddle two of them.
 */

/** Queries per tile. The float64 score tile of 64 · 128 is 64 KiB: with its operands it stays in a level-2 cache. */
export const QUERY_TILE = 64;

/** Keys per tile: one block of V's mean (docs/numerics.md 3). */
export const KEY_TILE = 128;

/** Keys in one group of P under nvfp4, and the finest accumulator step. */
export const KEY_GROUP = 16;

/** The width of a key tile of this problem: short sequences take a narrower one. */
export function keyTileWidth(kvLen: number): number {
  return Math.min(KEY_TILE, Math.max(1, Math.ceil(kvLen / KEY_GROUP)) * KEY_GROUP);
}
