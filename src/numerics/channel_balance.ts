/**
 * Balance of channels in front of nvfp4 (docs/numerics.md 4.5): a channel that is wide in k and narrow in q moves a power of
 * two from one to the other. Scores stay the same; channels of one width share group scales, and a rotation spreads them, better.
 */
import type {HeadSource} from './operands.js';
import type {Recipe} from './recipes.js';

/** Tokens, and rows of a query head, whose spread counts as one. */
const SPREAD_BLOCK = 128;
/** Thresholds of the ratio of spreads for exponents 1, 2, 3: half its logarithm, rounded. */
const RATIOS = [2, 8, 32] as const;

const {abs, ceil, max, min} = Math;
const f32 = Math.fround;

/** Powers of two that multiply the channels of q and k. */
export interface ChannelBalance {
  /** [dim], 2^e. */
  readonly q: Float32Array;
  /** [dim], 2^-e. */
  readonly k: Float32Array;
}

/** The balance of one key/value head and the query heads that read it; null where the recipe has none. */
export function channelBalance(
  recipe: Recipe,
  k: HeadSource,
  queries: readonly HeadSource[],
): ChannelBalance | null {
  if (!recipe.balance) return null;
  const ofK = new Float64Array(k.dim);
  addSpreads(k, SPREAD_BLOCK, recipe.smoothK, ofK);
  const ofQ = new Float64Array(k.dim);
  for (const q of queries) addSpreads(q, recipe.smoothQ || SPREAD_BLOCK, recipe.smoothQ > 0, ofQ);
  const exponents = balanceExponents(Float32Array.from(ofK), Float32Array.from(ofQ));
  return {q: exponents.map((e) => 2 ** e), k: exponents.map((e) => 2 ** -e)};
}

/** e of each channel from the summed spreads of k and q, -3 to 3; relative to the widest channel of each. */
export function balanceExponents(ofK: Float32Array, ofQ: Float32Array): Float32Array {
  const widest = (spreads: Float32Array): number => spreads.reduce((a, b) => max(a, b), 0);
  const [widestK, widestQ] = [widest(ofK), widest(ofQ)];
  return ofK.map((spread, d) => {
    // Products of two float32 values are exact in float64, unless the spreads were beyond float32.
    const x = spread * widestQ;
    const y = ofQ[d]! * widestK;
    if (x === 0 || y === 0 || !Number.isFinite(x) || !Number.isFinite(y)) return 0;
    const [wide, narrow, sign] = x >= y ? [x, y, 1] : [y, x, -1];
    return sign * RATIOS.filter((ratio) => wide >= ratio * narrow).length;
  });
}

/**
 * Adds to `sums` each block's spread of each channel: the largest, over its parts of `rows` rows, of max - min (`centred`: a mean
 * is taken out later) or of the largest magnitude. Values that are not finite are left out.
 */
function addSpreads(source: HeadSource, rows: number, centred: boolean, sums: Float64Array): void {
  const {tokens, dim} = source;
  const block = new Float32Array(dim);
  for (let first = 0; first < tokens; first += SPREAD_BLOCK) {
    const end = min(tokens, first + SPREAD_BLOCK);
    block.fill(0);
    for (let part = 0; part < ceil((end - first) / rows); part++) {
      const begin = first + part * rows;
      const last = min(end, begin + rows);
      for (let d = 0; d < dim; d++) {
        block[d] = max(block[d]!, spreadOf(source, begin, last, d, centred));
      }
    }
    for (let d = 0; d < dim; d++) sums[d]! += block[d]!;
  }
}

function spreadOf(
  {data, offset, tokenStride}: HeadSource,
  begin: number,
  end: number,
  d: number,
  centred: boolean,
): number {
  let low = Infinity;
  let high = -Infinity;
  let largest = 0;
  for (let t = begin; t < end; t++) {
    const x = data[offset + t * tokenStride + d]!;
    if (!Number.isFinite(x)) continue;
    low = min(low, x);
    high = max(high, x);
    largest = max(largest, abs(x));
  }
  if (!centred) return largest;
  return high < low ? 0 : f32(high - low);
}
