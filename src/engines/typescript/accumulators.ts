/**
 * P · V of one tile, with the accumulators of the published kernels (docs/numerics.md 5; SageAttention 4.4, SageAttention2 3.4):
 * fp16 within 64 keys, fp16 throughout, or the 13 mantissa bits that survive in an FP8 tensor core. Plain sums are float64.
 */
import {roundFp16} from '../../numerics/formats.js';
import type {Recipe} from '../../numerics/recipes.js';
import type {KeyValueHead} from './head_operands.js';
import type {QueryTile} from './query_tile.js';
import {addProduct} from './tile_product.js';
import type {Panel} from './tile_product.js';

/** Keys after which a second-level accumulator is added to the first: the key tile of the published kernels. */
export const ACCUMULATOR_SPAN = 64;

/** How sums are rounded on the way. */
export interface Accumulator {
  /** Keys between two roundings: what one matrix instruction takes, 16 of fp16 and 32 of e4m3. */
  readonly step: number;
  /** Keys until the accumulator starts again; Infinity if never. */
  readonly span: number;
  readonly round: (x: number) => number;
}

const float = new Float32Array(1);
const floatBits = new Uint32Array(float.buffer);
/** float32 has 23 mantissa bits: this clears the low 10. */
const MANTISSA_13_BITS = 0xfffffc00;

function cutTo13Bits(x: number): number {
  float[0] = x;
  floatBits[0]! &= MANTISSA_13_BITS;
  return float[0];
}

const FP16_THROUGHOUT: Accumulator = {step: 16, span: Infinity, round: roundFp16};
const FP16_OF_FP16: Accumulator = {step: 16, span: ACCUMULATOR_SPAN, round: roundFp16};
const FP16_OF_FP8: Accumulator = {step: 32, span: ACCUMULATOR_SPAN, round: roundFp16};
const FP8_TENSOR_CORE: Accumulator = {step: 32, span: Infinity, round: cutTo13Bits};

/** The accumulator of a recipe; null for plain sums. */
export function accumulatorOf(recipe: Recipe): Accumulator | null {
  switch (recipe.pvAccumulator) {
    case 'fp16':
      return FP16_THROUGHOUT;
    case 'fp16+fp32':
      return FP16_OF_FP16;
    case 'fp32+fp16':
      return FP16_OF_FP8;
    case 'fp32': {
      const publishedFp8 = recipe.precision === 'int8_fp8' || recipe.precision === 'int4_fp8';
      return publishedFp8 ? FP8_TENSOR_CORE : null;
    }
    case 'fp32+fp32':
      return null;
  }
}

/** Adds P · V of key tile `keyTile` to the tile's output; `keys`, a multiple of 16, are the first keys of the tile. */
export function accumulateOutput(
  accumulator: Accumulator | null,
  tile: QueryTile,
  head: KeyValueHead,
  keyTile: number,
  keys: number,
): void {
  const channels = tile.output.stride;
  const base = keyTile * channels * head.tileWidth;
  const step = accumulator ? accumulator.step : keys;
  const twoLevels = accumulator !== null && accumulator.span !== Infinity;
  const sums = twoLevels ? tile.partial : tile.output;
  if (twoLevels) sums.values.fill(0);
  for (let first = 0; first < keys; first += step) {
    const p: Panel = {...tile.scores, offset: first};
    const v: Panel = {values: head.valuesByChannel, offset: base + first, stride: head.tileWidth};
    const last = Math.min(first + step, keys);
    addProduct(p, tile.rows, v, channels, last - first, sums);
    if (!accumulator) continue;
    roundAll(sums.values, tile.rows * channels, accumulator.round);
    if (!twoLevels || (last % accumulator.span !== 0 && last < keys)) continue;
    for (let i = 0; i < tile.rows * channels; i++) tile.output.values[i]! += sums.values[i]!;
    sums.values.fill(0);
  }
}

function roundAll(values: Float64Array, count: number, round: (x: number) => number): void {
  for (let i = 0; i < count; i++) values[i] = round(values[i]!);
}
