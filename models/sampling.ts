// Choosing the next token from logits: greedy, or drawn with temperature, top-k and top-p from a seeded generator.

import {ModelError} from './model_error.js';

/** How to choose. */
export interface SamplingOptions {
  /** 0 takes the likeliest token; otherwise logits are divided by it before the softmax. Default: 0 */
  readonly temperature?: number | undefined;
  /** Draw among this many likeliest tokens only. Default: all */
  readonly topK?: number | undefined;
  /** Draw among the fewest likeliest tokens whose probabilities reach this sum, in (0, 1]. Default: 1 */
  readonly topP?: number | undefined;
  /** Seed of the draws, a whole number: the same seed gives the same tokens. Default: 0 */
  readonly seed?: number | undefined;
}

/** Takes one vocabulary's logits, returns the chosen token. */
export type Sampler = (logits: Float32Array) => number;

/**
 * Builds a sampler.
 *
 * @throws ModelError for an option out of its range, at once; and later for logits that are not numbers
 */
export function createSampler(options: SamplingOptions = {}): Sampler {
  const {temperature = 0, topK = Infinity, topP = 1, seed = 0} = options;
  const fail = (field: string, value: number, expected: string): ModelError =>
    new ModelError(`is ${value}; expected ${expected}`, {field});
  if (!(temperature >= 0 && temperature < Infinity)) {
    throw fail('temperature', temperature, 'a finite number >= 0');
  }
  if (!(topK >= 1) || (topK !== Infinity && !Number.isSafeInteger(topK))) {
    throw fail('topK', topK, 'a whole number >= 1');
  }
  if (!(topP > 0 && topP <= 1)) throw fail('topP', topP, 'a number in (0, 1]');
  if (!Number.isSafeInteger(seed)) throw fail('seed', seed, 'a whole number');

  if (temperature === 0) return likeliest;
  const random = createRandom(seed);
  return (logits) => draw(logits, temperature, topK, topP, random());
}

/** Index of the largest logit, the first of equals. */
export function likeliest(logits: Float32Array): number {
  let best = 0;
  let top = -Infinity;
  for (let i = 0; i < logits.length; i++) {
    const value = logits[i] as number;
    if (value <= top) continue;
    // Larger, or not comparable.
    if (Number.isNaN(value)) throw new ModelError(`logit ${i} is NaN; nothing can be chosen`);
    best = i;
    top = value;
  }
  return best;
}

function draw(
  logits: Float32Array,
  temperature: number,
  topK: number,
  topP: number,
  uniform: number,
): number {
  const top = logits[likeliest(logits)] as number;
  if (!Number.isFinite(top))
    throw new ModelError(`the largest logit is ${top}; nothing can be drawn`);
  const order = Array.from(logits.keys());
  // Sorted only if a limit asks for it; ties keep the order of the vocabulary.
  if (topK < logits.length || topP < 1) {
    order.sort((a, b) => (logits[b] as number) - (logits[a] as number));
    order.length = Math.min(order.length, topK);
  }
  const weights = order.map((i) => Math.exp(((logits[i] as number) - top) / temperature));
  const limit = topP * weights.reduce((sum, weight) => sum + weight, 0);
  let kept = 0;
  let keptSum = 0;
  while (kept < weights.length && (kept === 0 || keptSum < limit)) {
    keptSum += weights[kept++] as number;
  }
  let left = uniform * keptSum;
  for (let i = 0; i < kept; i++) {
    left -= weights[i] as number;
    if (left < 0) return order[i] as number;
  }
  // Rounding may leave a remainder; the last token with weight takes it.
  while (kept > 1 && weights[kept - 1] === 0) kept--;
  return order[kept - 1] as number;
}

/** Uniform numbers in [0, 1) from a 32-bit counter hashed by a full-avalanche mixer (constants of MurmurHash3). */
function createRandom(seed: number): () => number {
  // Both halves of the seed count, so that seeds above 2^32 differ too.
  let counter = (seed ^ Math.imul(Math.floor(seed / 2 ** 32), 0x9e3779b1)) >>> 0;
  const next = (): number => {
    // The golden ratio's odd multiple visits every 32-bit state.
    counter = (counter + 0x9e3779b9) >>> 0;
    let mixed = counter ^ (counter >>> 16);
    mixed = Math.imul(mixed, 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
    return (mixed ^ (mixed >>> 16)) >>> 0;
  };
  // 53 bits, all that a float64 in [0, 1) holds.
  return () => ((next() >>> 5) * 2 ** 26 + (next() >>> 6)) / 2 ** 53;
}
