/** Random histories of a key/value cache: sizes, appends of any length, queries. The same choices everywhere. */
import type {Random} from './case_inputs.js';
import type {CacheQuery, CacheSizes} from './cache/plain_cache.js';
import type {Draw} from './random_problems.js';

const {max, min, sqrt} = Math;

/** Sizes of a cache. */
export function randomCacheSizes(draw: Draw): CacheSizes {
  const kvHeads = draw.of([1, 1, 2, 3]);
  const headDim = draw.chance(0.5) ? draw.of([64, 64, 96, 128, 256]) : draw.size(140);
  return {
    batch: draw.of([1, 1, 2]),
    kvHeads,
    heads: kvHeads * draw.of([1, 1, 2, 4, 6, 8]),
    headDim,
    valueDim: draw.chance(0.8) ? headDim : draw.size(140),
    capacity: draw.of([0, 0, 100, 700]),
  };
}

/** k and v of n more tokens. */
export function randomTokens(
  draw: Draw,
  {batch, kvHeads, headDim, valueDim}: CacheSizes,
  n: number,
  notFinite: boolean,
) {
  const make = (dim: number) => {
    const data = new Float32Array(batch * kvHeads * n * dim);
    for (let i = 0; i < data.length; i++) data[i] = draw.normal() + (i % dim === 3 ? 5 : 0);
    if (notFinite && data.length > 0)
      data[draw.integer(0, data.length - 1)] = draw.of([NaN, Infinity]);
    return data;
  };
  return {k: make(headDim), v: make(valueDim)};
}

/** Queries over a cache of `length` tokens. */
export function randomQuery(
  draw: Draw,
  sizes: CacheSizes,
  length: number,
  random: Random,
): CacheQuery {
  const {batch, heads, headDim} = sizes;
  const qLen = draw.chance(0.5) ? 1 : draw.chance(0.6) ? draw.integer(2, 6) : draw.integer(7, 40);
  const isCausal = draw.of([
    false,
    'top_left',
    'bottom_right',
    'bottom_right',
    'bottom_right',
  ] as const);
  const reach = () => (draw.chance(0.75) ? -1 : draw.integer(0, max(1, length)));
  const q = new Float32Array(batch * heads * qLen * headDim).map(() => random.normal());
  if (draw.chance(0.05)) q[draw.integer(0, q.length - 1)] = NaN;
  const kind = draw.of(['none', 'none', 'none', 'boolean', 'additive'] as const);
  let mask: CacheQuery['mask'] = null;
  if (kind !== 'none') {
    const shape = [batch, heads, qLen, length].map((size) => (draw.chance(0.4) ? 1 : size));
    const rate = draw.of([0.05, 0.5, 0.9, 1]);
    const data = new Float32Array(shape.reduce((a, b) => a * b, 1)).map(() => {
      const seen = draw.chance(rate);
      if (kind === 'boolean') return seen ? 1 : 0;
      return seen ? draw.normal() : -Infinity;
    });
    if (kind === 'additive' && draw.chance(0.2))
      data[draw.integer(0, data.length - 1)] = draw.of([NaN, Infinity]);
    mask = {data, shape, kind};
  }
  return {
    q,
    qLen,
    isCausal,
    windowSize: [reach(), isCausal === false ? reach() : -1],
    scale: draw.of([1, 1, 1, 0.3, 2, -1]) / sqrt(headDim),
    mask,
  };
}

/** How many tokens to append to a cache of `length`: often one, at times many pages. */
export function randomCount(draw: Draw, length: number): number {
  if (length === 0) return draw.of([1, 5, 127, 128, 129, draw.integer(1, 400)]);
  if (draw.chance(0.4)) return 1;
  return min(
    draw.of([0, 2, draw.integer(1, 40), 128, draw.integer(1, 300)]),
    900 - min(900, length),
  );
}
