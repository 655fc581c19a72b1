/** Random histories of SageKvCache in any engines, against plain arrays and the float64 reference. */
import * as tf from '@tensorflow/tfjs-core';
import {SageKvCache} from '../../src/cache/kv_cache.js';
import type {SageKvCacheAttendOptions} from '../../src/cache/kv_cache.js';
import type {CachePrecision} from '../../src/numerics/kv_cache.js';
import {configureSageAttention} from '../../src/runtime/config.js';
import type {SageAttentionConfig} from '../../src/runtime/config.js';
import {Random} from '../case_inputs.js';
import {Draw} from '../random_problems.js';
import {randomCacheSizes, randomCount, randomQuery, randomTokens} from '../random_caches.js';
import {PlainCache} from './plain_cache.js';
import type {CacheQuery} from './plain_cache.js';

const {abs, max} = Math;
const {isNaN} = Number;

/** What is configured while a cache is made and used. */
export type CacheEngine = Partial<SageAttentionConfig>;

/** o of values of 1 to 6 with P in 14 bits, which may round the other way; lse in float32. */
const BOUND = 1e-3;

/** Largest difference; Infinity where one is NaN and the other is not. */
function difference(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Infinity;
  let most = 0;
  for (let i = 0; i < expected.length; i++) {
    const x = actual[i]!;
    const y = expected[i]!;
    if (isNaN(x) !== isNaN(y)) return Infinity;
    if (!isNaN(x) && x !== y) most = max(most, abs(x - y));
  }
  return most;
}

/** A cache in the reference and in every engine. */
interface Twins {
  readonly plain: PlainCache;
  readonly real: readonly SageKvCache[];
}

/** Runs history `at` of a seed on every engine; returns what went wrong, with the history up to there. */
export function historyFailures(
  engines: readonly CacheEngine[],
  precisions: readonly CachePrecision[],
  seed: number,
  at: number,
): string[] {
  const random = new Random(seed * 1_000_003 + at);
  const draw = new Draw(random);
  const sizes = randomCacheSizes(draw);
  const precision = draw.of(precisions);
  const {batch, heads, kvHeads, headDim, valueDim} = sizes;
  const notFinite = draw.chance(0.2);
  const each = <T>(make: (engine: number) => T): T[] =>
    engines.map((engine, n) => {
      configureSageAttention({...engine, threads: 1 + (at % 3)});
      return make(n);
    });
  let all: Twins[] = [
    {plain: new PlainCache(sizes), real: each(() => new SageKvCache({...sizes, precision}))},
  ];
  const history: string[] = [];
  const failures: string[] = [];
  for (const [n, cache] of all[0]!.real.entries()) {
    const {engine} = engines[n]!;
    if (cache.engine !== engine) failures.push(`held by ${cache.engine}, not by ${engine}`);
  }

  function append({plain, real}: Twins): string {
    const n = randomCount(draw, plain.length);
    const {k, v} = randomTokens(draw, sizes, n, notFinite && draw.chance(0.3));
    plain.append(k, v, n);
    const keys = tf.tensor4d(k, [batch, kvHeads, n, headDim]);
    const values = tf.tensor4d(v, [batch, kvHeads, n, valueDim]);
    each((e) => real[e]!.append(keys, values));
    return `append ${n}`;
  }
  function attend({plain, real}: Twins): string {
    const query = randomQuery(draw, sizes, plain.length, random);
    const expected = plain.attend(query, precision);
    const told = `attend ${query.qLen} ${JSON.stringify({...query, q: 0, mask: query.mask?.shape})}`;
    const q = tf.tensor4d(query.q, [batch, heads, query.qLen, headDim]);
    const options = optionsOf(query);
    each((e) => {
      const [o, lse] = real[e]!.attend(q, {...options, returnLse: true});
      const errors = [
        difference(o.dataSync(), expected.o),
        difference(lse.dataSync(), expected.lse),
      ];
      if (errors.every((error) => error <= BOUND) && real[e]!.length === plain.length) return;
      const name = `${precision}, ${JSON.stringify(engines[e])}, number ${at}, ${JSON.stringify(sizes)}`;
      failures.push(`o, lse ${String(errors)}: ${name}: ${[...history, told].join(', ')}`);
    });
    return told;
  }
  function truncate({plain, real}: Twins): string {
    const length = draw.chance(0.1) ? 0 : draw.integer(0, plain.length);
    plain.truncate(length);
    for (const cache of real) cache.truncate(length);
    return `truncate ${length}`;
  }
  function fork({plain, real}: Twins): string {
    all.push({plain: plain.fork(), real: real.map((cache) => cache.fork())});
    return 'fork';
  }
  function dispose(twins: Twins): string {
    if (all.length === 1) return 'kept';
    for (const cache of twins.real) cache.dispose();
    all = all.filter((one) => one !== twins);
    return 'dispose';
  }

  for (let step = draw.integer(4, 14); step > 0; step--) {
    const place = draw.integer(0, all.length - 1);
    const twins = all[place]!;
    const steps = [append, append, append, attend, attend, attend, attend, truncate, fork, dispose];
    const next = twins.plain.length === 0 ? append : draw.of(steps);
    history.push(`${place} ${tf.tidy(() => next(twins))}`);
  }
  for (const {real} of all) for (const cache of real) cache.dispose();
  return failures;
}

function optionsOf({isCausal, windowSize, scale, mask}: CacheQuery): SageKvCacheAttendOptions {
  const options = {isCausal, windowSize: [...windowSize] as [number, number], scale};
  if (mask === null) return options;
  const tensor = tf.tensor(mask.data, [...mask.shape]);
  return {...options, mask: mask.kind === 'boolean' ? tf.cast(tensor, 'bool') : tensor};
}
