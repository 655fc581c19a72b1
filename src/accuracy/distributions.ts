/**
 * Seeded inputs for accuracy measurements: what each distribution is. The same seed gives the same numbers on every
 * machine, so tables from two machines can be compared line by line.
 */

// Under jest every use of a global is a slow look-up: module constants are not.
const {imul, sqrt, log, sin, cos, floor} = Math;
const TAU = 2 * Math.PI;
const TO_UNIT = 2 ** -32;

export const DISTRIBUTIONS = [
  'normal',
  'k_bias',
  'qv_bias',
  'v_bias',
  'outlier_channels',
  'outlier_tokens',
  'peaky',
  'long',
  'zeros',
] as const;

/**
 * - `normal`: N(0,1). `long`: the same, for cases with many tokens.
 * - `k_bias`: N(0,10) added to 8 channels of k: what K smoothing is for.
 * - `qv_bias`: N(0,2) on every channel of q, N(0,1) on every channel of v. `v_bias`: N(0,5) on every channel of v.
 * - `outlier_channels`: every 37th channel of q, k, v times 6. `outlier_tokens`: one token of 100 times 5.
 * - `peaky`: q times 4, so that the softmax comes close to one key.
 * - `zeros`: every other block of 32 tokens of q, k, v is zero, and the first channel of v.
 */
export type Distribution = (typeof DISTRIBUTIONS)[number];

/** Uniform and normal numbers from a 32-bit counter passed through an avalanche of multiplications (murmur3's finaliser). */
export class Random {
  private counter: number;
  private spare: number | null = null;

  constructor(seed: number) {
    this.counter = imul(seed + 1, 0x9e3779b1) | 0;
  }

  /** In [0, 1). */
  uniform(): number {
    this.counter = (this.counter + 0x6a09e667) | 0;
    let x = this.counter;
    x = imul(x ^ (x >>> 16), 0x85ebca6b);
    x = imul(x ^ (x >>> 13), 0xc2b2ae35);
    return ((x ^ (x >>> 16)) >>> 0) * TO_UNIT;
  }

  /** Mean 0, standard deviation 1 (Box-Muller). */
  normal(): number {
    if (this.spare !== null) {
      const kept = this.spare;
      this.spare = null;
      return kept;
    }
    const radius = sqrt(-2 * log(1 - this.uniform()));
    const angle = TAU * this.uniform();
    this.spare = radius * sin(angle);
    return radius * cos(angle);
  }
}

/** One of q, k, v as it lies in memory, filled with normal numbers; addressed by head, token and channel in any layout. */
export class Operand {
  constructor(
    readonly data: Float32Array,
    readonly batch: number,
    readonly heads: number,
    readonly tokens: number,
    readonly dim: number,
    private readonly layout: 'HND' | 'NHD',
    random: Random,
  ) {
    this.update(() => random.normal());
  }

  /** Replaces every element, batch by batch, head by head, token by token: both layouts get the same numbers. */
  update(f: (x: number, token: number, channel: number) => number): void {
    const {data, heads, tokens, dim} = this;
    const nhd = this.layout === 'NHD';
    const headStride = nhd ? dim : tokens * dim;
    const tokenStride = nhd ? heads * dim : dim;
    for (let b = 0; b < this.batch; b++) {
      for (let h = 0; h < heads; h++) {
        for (let t = 0; t < tokens; t++) {
          const row = b * heads * tokens * dim + h * headStride + t * tokenStride;
          for (let d = 0; d < dim; d++) data[row + d] = f(data[row + d] as number, t, d);
        }
      }
    }
  }

  /** Adds one normal number times `deviation` to each of the first `channels` channels, the same in every head. */
  addBias(random: Random, deviation: number, channels: number): void {
    const bias = Float64Array.from({length: this.dim}, () => deviation * random.normal());
    this.update((x, _token, d) => (d < channels ? x + (bias[d] as number) : x));
  }
}

/** Channels that get a large bias under `k_bias`: large enough to drown the rest, as in trained models. */
const BIASED_CHANNELS = 8;
const K_BIAS = 10;
/** A stride that no group of 16 or 32 shares. */
const OUTLIER_STRIDE = 37;
const OUTLIER_CHANNEL_FACTOR = 6;
const OUTLIER_TOKEN_RATE = 0.01;
const OUTLIER_TOKEN_FACTOR = 5;
const PEAKY_FACTOR = 4;
const ZERO_BLOCK = 32;

/** Turns normal numbers into the distribution. */
export function applyDistribution(
  distribution: Distribution,
  q: Operand,
  k: Operand,
  v: Operand,
  random: Random,
): void {
  switch (distribution) {
    case 'normal':
    case 'long':
      return;
    case 'k_bias':
      k.addBias(random, K_BIAS, BIASED_CHANNELS);
      return;
    case 'qv_bias':
      q.addBias(random, 2, q.dim);
      v.addBias(random, 1, v.dim);
      return;
    case 'v_bias':
      v.addBias(random, 5, v.dim);
      return;
    case 'outlier_channels':
      for (const operand of [q, k, v]) {
        operand.update((x, _token, d) =>
          d % OUTLIER_STRIDE === 0 ? x * OUTLIER_CHANNEL_FACTOR : x,
        );
      }
      return;
    case 'outlier_tokens':
      for (const operand of [q, k, v]) multiplyTokens(operand, random);
      return;
    case 'peaky':
      q.update((x) => x * PEAKY_FACTOR);
      return;
    case 'zeros':
      for (const operand of [q, k, v]) {
        operand.update((x, t) => (floor(t / ZERO_BLOCK) % 2 === 0 ? 0 : x));
      }
      v.update((x, _token, d) => (d === 0 ? 0 : x));
  }
}

function multiplyTokens(operand: Operand, random: Random): void {
  const outliers = Array.from(
    {length: operand.tokens},
    () => random.uniform() < OUTLIER_TOKEN_RATE,
  );
  // Short sequences get one all the same.
  if (operand.tokens > 0) outliers[floor(operand.tokens / 2)] = true;
  operand.update((x, t) => (outliers[t] ? x * OUTLIER_TOKEN_FACTOR : x));
}
