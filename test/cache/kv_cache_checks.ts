/** Checks of SageKvCache that every engine must pass; the test files choose the engine and the instruction set. */
import * as tf from '@tensorflow/tfjs-core';
import {SageKvCache, type SageKvCacheAttendOptions} from '../../src/cache/kv_cache.js';
import {compareArrays} from '../../src/accuracy/metrics.js';
import type {CachePrecision, PackedCachePrecision} from '../../src/numerics/kv_cache.js';
import {sageAttention} from '../../src/ops/sage_attention.js';
import {Random} from '../case_inputs.js';
import {PlainCache} from './plain_cache.js';
import type {CacheQuery} from './plain_cache.js';

export interface CacheCase {
  readonly name: string;
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly qLen: number;
  readonly kvLen: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly options?: SageKvCacheAttendOptions;
  readonly mask?: 'bool' | 'float32';
  readonly notFinite?: true;
  /** A NaN and an Infinity in the additive mask, and of the fourth query nothing but NaN. */
  readonly maskNotFinite?: true;
}

const usual = {batch: 1, heads: 4, kvHeads: 2, qLen: 1, kvLen: 300, headDim: 64, valueDim: 64};

export const CACHE_CASES: readonly CacheCase[] = [
  {...usual, name: 'one key', kvLen: 1},
  {...usual, name: '17 keys, D 17, Dv 5', kvLen: 17, headDim: 17, valueDim: 5, qLen: 2},
  {...usual, name: '127 keys, batch 2', batch: 2, kvLen: 127, qLen: 3},
  {...usual, name: '129 keys', kvLen: 129},
  {...usual, name: '1000 keys, group of 8', heads: 8, kvHeads: 1, kvLen: 1000},
  {...usual, name: '1100 keys in two chunks, Dv 100', kvLen: 1100, valueDim: 100, qLen: 5},
  {...usual, name: 'chunk of 130 queries', kvLen: 260, qLen: 130, heads: 2},
  {...usual, name: 'not causal', options: {isCausal: false}, qLen: 4},
  {...usual, name: 'top left', options: {isCausal: 'top_left'}, qLen: 20},
  {...usual, name: 'window', options: {windowSize: [60, 0]}, qLen: 3},
  {...usual, name: 'scale', options: {scale: -0.3}},
  {...usual, name: 'boolean mask', mask: 'bool', qLen: 4},
  {...usual, name: 'additive mask', mask: 'float32', qLen: 2, options: {isCausal: false}},
  {...usual, name: 'not finite', notFinite: true, mask: 'bool', qLen: 3},
  {...usual, name: 'mask not finite', maskNotFinite: true, mask: 'float32', qLen: 3},
  // 40 keys: fewer than a block, whose padding a maximum meets last.
  {
    ...usual,
    name: 'mask not finite, 40 keys',
    maskNotFinite: true,
    mask: 'float32',
    qLen: 4,
    kvLen: 40,
  },
  {...usual, name: 'mask not finite, 20 queries', maskNotFinite: true, mask: 'float32', qLen: 20},
];

interface Inputs {
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  /** [qLen, kvLen]: 0 or 1, or added values. */
  readonly mask: Float32Array | null;
}

export function makeCacheInputs(c: CacheCase): Inputs {
  const random = new Random(c.kvLen * 7 + c.headDim);
  const normal = (count: number) => Float32Array.from({length: count}, () => random.normal());
  const q = normal(c.batch * c.heads * c.qLen * c.headDim);
  const k = normal(c.batch * c.kvHeads * c.kvLen * c.headDim);
  const v = normal(c.batch * c.kvHeads * c.kvLen * c.valueDim);
  // Channels far from 0: what the frozen mean is for.
  for (let i = 0; i < k.length; i++) if (i % 8 === 3) k[i]! += 6;
  const mask =
    c.mask === undefined
      ? null
      : Float32Array.from({length: c.qLen * c.kvLen}, () => {
          const shown = random.uniform() > 0.3;
          if (c.mask === 'bool') return shown ? 1 : 0;
          return shown ? random.normal() : -Infinity;
        });
  if (c.notFinite) {
    k[5 * c.headDim + 1] = NaN;
    k[7 * c.headDim] = Infinity;
    v[9 * c.valueDim + 2] = -Infinity;
    v[11 * c.valueDim + 3] = NaN;
    q[c.headDim * 4] = NaN;
    // Query 0 attends to v's token 9 but to no bad key, query 1 to nothing bad, query 2 to all.
    for (let i = 0; i < c.qLen; i++) {
      for (const j of [5, 7, 9, 11])
        mask![i * c.kvLen + j] = i === 2 || (i === 0 && j === 9) ? 1 : 0;
    }
    // Query 1 of the first head attends to nothing at all.
    mask!.fill(0, 1 * c.kvLen, 2 * c.kvLen);
    mask![c.kvLen + 3] = 1;
  }
  if (c.maskNotFinite) {
    mask![20] = NaN;
    mask![2 * c.kvLen + c.kvLen - 30] = Infinity;
    mask![c.kvLen + c.kvLen - 1] = NaN; // hidden by causality
    // A row that sees nothing else: no finite score beside them tells.
    if (c.qLen > 3) mask!.fill(NaN, 3 * c.kvLen, 4 * c.kvLen);
  }
  return {q, k, v, mask};
}

function rowsOf(
  data: Float32Array,
  heads: number,
  tokens: number,
  dim: number,
  first: number,
  end: number,
): Float32Array {
  const part = new Float32Array(heads * (end - first) * dim);
  for (let h = 0; h < heads; h++) {
    part.set(
      data.subarray((h * tokens + first) * dim, (h * tokens + end) * dim),
      h * (end - first) * dim,
    );
  }
  return part;
}

/** A cache of the case's sizes. */
export function makeCache(c: CacheCase, precision: CachePrecision, capacity = 0): SageKvCache {
  const {batch, heads, kvHeads, headDim, valueDim} = c;
  return new SageKvCache({batch, heads, kvHeads, headDim, valueDim, precision, capacity});
}

/** Appends tokens [first, end). */
export function appendTokens(
  cache: SageKvCache,
  c: CacheCase,
  {k, v}: Pick<Inputs, 'k' | 'v'>,
  first: number,
  end: number,
): void {
  const {batch, kvHeads, kvLen, headDim, valueDim} = c;
  const parts = batch * kvHeads;
  tf.tidy(() => {
    cache.append(
      tf.tensor4d(rowsOf(k, parts, kvLen, headDim, first, end), [
        batch,
        kvHeads,
        end - first,
        headDim,
      ]),
      tf.tensor4d(rowsOf(v, parts, kvLen, valueDim, first, end), [
        batch,
        kvHeads,
        end - first,
        valueDim,
      ]),
    );
  });
}

export interface Result {
  readonly o: Float32Array;
  readonly lse: Float32Array;
}

function attendOptions(c: CacheCase, mask: Float32Array | null): SageKvCacheAttendOptions {
  if (mask === null) return {...c.options};
  const tensor = tf.tensor2d(mask, [c.qLen, c.kvLen]);
  return {...c.options, mask: c.mask === 'bool' ? tensor.toBool() : tensor};
}

/** o and lse of all queries over what the cache holds. */
export function attend(cache: SageKvCache, c: CacheCase, {q, mask}: Inputs): Result {
  return tf.tidy(() => {
    const queries = tf.tensor4d(q, [c.batch, c.heads, c.qLen, c.headDim]);
    const [o, lse] = cache.attend(queries, {...attendOptions(c, mask), returnLse: true});
    return {o: o.dataSync().slice() as Float32Array, lse: lse.dataSync().slice() as Float32Array};
  });
}

/** The case by `sageAttention` on the whole sequence, without quantisation. */
export function attendWhole(c: CacheCase, {q, k, v, mask}: Inputs): Result {
  return tf.tidy(() => {
    const [o, lse] = sageAttention(
      tf.tensor4d(q, [c.batch, c.heads, c.qLen, c.headDim]),
      tf.tensor4d(k, [c.batch, c.kvHeads, c.kvLen, c.headDim]),
      tf.tensor4d(v, [c.batch, c.kvHeads, c.kvLen, c.valueDim]),
      {isCausal: 'bottom_right', ...attendOptions(c, mask), precision: 'exact', returnLse: true},
    );
    return {o: o.dataSync().slice() as Float32Array, lse: lse.dataSync().slice() as Float32Array};
  });
}

/** The case by the float64 reference of the cache, with the mean of the first `frozen` tokens. */
export function attendByReference(
  c: CacheCase,
  inputs: Inputs,
  frozen: number,
  precision: PackedCachePrecision,
) {
  const {q, k, v, mask} = inputs;
  const {batch, kvHeads, qLen, kvLen, headDim, valueDim} = c;
  const {
    windowSize = [-1, -1],
    isCausal = 'bottom_right',
    scale = 1 / Math.sqrt(headDim),
  } = c.options ?? {};
  const cache = new PlainCache({...c, capacity: 0});
  const parts = batch * kvHeads;
  for (const [first, end] of [
    [0, frozen],
    [frozen, kvLen],
  ] as const) {
    cache.append(
      rowsOf(k, parts, kvLen, headDim, first, end),
      rowsOf(v, parts, kvLen, valueDim, first, end),
      end - first,
    );
  }
  const query: CacheQuery = {
    q,
    qLen,
    isCausal: isCausal === true ? 'top_left' : isCausal,
    windowSize,
    scale,
    mask: mask && {
      data: mask,
      shape: [1, 1, qLen, kvLen],
      kind: c.mask === 'bool' ? 'boolean' : 'additive',
    },
  };
  return cache.attend(query, precision);
}

/** Relative L1 of the finite values; Infinity where the two differ in what is finite. */
export function errorOf(actual: Float32Array, expected: ArrayLike<number>): number {
  const pairs = Array.from(actual, (x, i) => [x, expected[i]!] as const);
  const differ = pairs.some(([x, y]) => !Number.isFinite(y) && !Object.is(x, Math.fround(y)));
  if (differ) return Infinity;
  const finite = pairs.filter(([, y]) => Number.isFinite(y));
  if (finite.length === 0) return 0;
  return compareArrays(
    finite.map(([x]) => x),
    finite.map(([, y]) => y),
  ).relativeL1;
}

/** Everything that does not depend on the engine. Call it inside `describe`, with the engine configured. */
export function checkCache(): void {
  describe.each(CACHE_CASES.map((c) => [c.name, c] as const))('%s', (_name, c) => {
    const inputs = makeCacheInputs(c);
    const frozen = Math.ceil(c.kvLen / 2);

    test.each(['int8', 'int8_int16', 'int16'] as const)(
      '%s is what the reference computes',
      (precision) => {
        const cache = makeCache(c, precision);
        appendTokens(cache, c, inputs, 0, frozen);
        appendTokens(cache, c, inputs, frozen, c.kvLen);
        expect(cache.length).toBe(c.kvLen);
        const {o, lse} = attend(cache, c, inputs);
        const expected = attendByReference(c, inputs, frozen, precision);
        // Codes are equal; P may be rounded the other way where it lies half-way.
        expect(errorOf(o, expected.o)).toBeLessThan(3e-5);
        expect(errorOf(lse, expected.lse)).toBeLessThan(2e-6);
        // One key: o is v, with the error of its code alone.
        expect(errorOf(o, attendWhole(c, inputs).o)).toBeLessThan(0.02);
        cache.dispose();
      },
    );

    test('exact is exact', () => {
      const cache = makeCache(c, 'exact');
      appendTokens(cache, c, inputs, 0, c.kvLen);
      const {o, lse} = attend(cache, c, inputs);
      const whole = attendWhole(c, inputs);
      expect(errorOf(o, whole.o)).toBeLessThan(4e-6);
      expect(errorOf(lse, whole.lse)).toBeLessThan(2e-6);
      cache.dispose();
    });
  });

  const c: CacheCase = {...usual, name: 'growth', kvLen: 400};
  const inputs = makeCacheInputs(c);

  describe.each(['int8', 'int8_int16', 'int16', 'exact'] as const)('%s', (precision) => {
    test('odd pieces, with what was cut off in between, are one append', () => {
      const whole = makeCache(c, precision);
      appendTokens(whole, c, inputs, 0, 100);
      appendTokens(whole, c, inputs, 100, 400);
      const pieces = makeCache(c, precision, 150);
      appendTokens(pieces, c, inputs, 0, 100);
      appendTokens(pieces, c, inputs, 100, 101);
      appendTokens(pieces, c, inputs, 101, 127);
      appendTokens(pieces, c, inputs, 300, 390);
      pieces.truncate(127);
      appendTokens(pieces, c, inputs, 127, 128);
      appendTokens(pieces, c, inputs, 128, 129);
      appendTokens(pieces, c, inputs, 0, 99);
      pieces.truncate(129);
      appendTokens(pieces, c, inputs, 129, 400);
      expect(attend(pieces, c, inputs)).toEqual(attend(whole, c, inputs));
      pieces.truncate(0);
      expect(pieces.length).toBe(0);
      for (const cache of [whole, pieces]) cache.dispose();
    });

    test('forks go their own ways', () => {
      const trunk = makeCache(c, precision);
      appendTokens(trunk, c, inputs, 0, 200);
      const other = {...inputs, k: inputs.k.map((x) => -x), v: inputs.v.map((x) => 2 * x)};
      const forks = Array.from({length: 6}, () => trunk.fork());
      const nested = forks[0]!.fork();
      forks.forEach((fork, n) => appendTokens(fork, c, n % 2 ? other : inputs, 200, 400));
      expect([trunk.length, nested.length, forks[3]!.length]).toEqual([200, 200, 400]);
      const alone = [inputs, other].map((source) => {
        const cache = makeCache(c, precision);
        appendTokens(cache, c, inputs, 0, 200);
        appendTokens(cache, c, source, 200, 400);
        return attend(cache, c, inputs);
      });
      trunk.truncate(150);
      trunk.dispose();
      forks.forEach((fork, n) => expect(attend(fork, c, inputs)).toEqual(alone[n % 2]));
      forks.forEach((fork) => fork.dispose());
      appendTokens(nested, c, inputs, 200, 400);
      expect(attend(nested, c, inputs)).toEqual(alone[0]);
      expect(nested).toBeInstanceOf(SageKvCache);
      expect(nested.precision).toBe(precision);
    });

    test('attendAsync is attend over the tokens held at the call', async () => {
      const cache = makeCache(c, precision);
      appendTokens(cache, c, inputs, 0, 400);
      const wanted = attend(cache, c, inputs);
      const tensors = tf.memory().numTensors;
      const q = tf.tensor4d(inputs.q, [1, c.heads, c.qLen, c.headDim]);
      const pending = cache.attendAsync(q, {returnLse: true});
      const second = cache.attendAsync(q);
      // What happens to the cache and the tensors from here on is too late.
      q.dispose();
      cache.truncate(37);
      appendTokens(cache, c, inputs, 0, 200);
      const third = cache.attendAsync(tf.ones([1, c.heads, 1, c.headDim]));
      cache.dispose();
      const [o, lse] = await pending;
      expect(o.shape).toEqual([1, c.heads, c.qLen, c.valueDim]);
      expect({o: o.dataSync(), lse: lse.dataSync()}).toEqual(wanted);
      const again = await second;
      expect(again.dataSync()).toEqual(wanted.o);
      tf.dispose([o, lse, again, await third]);
      // The ones given to the third call were never freed here.
      expect(tf.memory().numTensors).toBe(tensors + 1);
    });

    test('an abort rejects attendAsync with its reason, and the cache goes on', async () => {
      const cache = makeCache(c, precision);
      appendTokens(cache, c, inputs, 0, 400);
      const q = tf.ones([1, c.heads, 300, c.headDim]);
      const before = tf.memory().numTensors;
      const early = new AbortController();
      early.abort(new RangeError('too late'));
      await expect(cache.attendAsync(q, {signal: early.signal})).rejects.toThrow(RangeError);
      const late = new AbortController();
      const pending = cache.attendAsync(q, {signal: late.signal});
      late.abort(new RangeError('enough'));
      await expect(pending).rejects.toThrow('enough');
      await expect(cache.attendAsync(q, {signal: 3 as never})).rejects.toMatchObject({
        code: 'invalid-option',
        argument: 'signal',
      });
      await expect(cache.attendAsync(tf.ones([1, 1, 1, 1]))).rejects.toMatchObject({
        code: 'shape-mismatch',
      });
      expect(tf.memory().numTensors).toBe(before + 1);
      const o = await cache.attendAsync(q, {signal: new AbortController().signal});
      expect(o.shape).toEqual([1, c.heads, 300, c.valueDim]);
      cache.dispose();
      await expect(cache.attendAsync(q)).rejects.toMatchObject({code: 'disposed-cache'});
    });

    test('without tokens queries attend to nothing', () => {
      const cache = makeCache({...c, batch: 2}, precision, 1000);
      const [o, lse] = cache.attend(tf.ones([2, 4, 3, 64]), {returnLse: true});
      expect(o.dataSync()).toEqual(new Float32Array(2 * 4 * 3 * 64));
      expect(lse.dataSync()).toEqual(new Float32Array(24).fill(-Infinity));
      cache.append(tf.zeros([2, 2, 0, 64]), tf.zeros([2, 2, 0, 64]));
      expect(cache.length).toBe(0);
      expect(cache.attend(tf.zeros([2, 4, 0, 64])).shape).toEqual([2, 4, 0, 64]);
    });

    test('no tensors stay behind', () => {
      const cache = makeCache(c, precision);
      const before = tf.memory().numTensors;
      appendTokens(cache, c, inputs, 0, 130);
      const q = Array.from({length: 4}, () => [Array.from({length: 64}, (_, d) => d / 64)]);
      const o = cache.attend([q], {mask: Array.from({length: 130}, () => true), returnLse: true});
      expect(tf.memory().numTensors).toBe(before + 2);
      tf.dispose(o);
      // What a call makes of nested arrays before it refuses them.
      expect(() => cache.attend([q], {mask: [true, false]})).toThrow('mask');
      expect(tf.memory().numTensors).toBe(before);
      const given = tf.tensor4d([q]);
      const mask = tf.ones([1, 130], 'bool');
      const outputs = cache.attend(given, {mask, returnLse: true});
      expect(tf.memory().numTensors).toBe(before + 4);
      tf.dispose(outputs);
      // An output belongs to the tidy around the call.
      tf.tidy(() => {
        cache.attend(given);
        expect(tf.memory().numTensors).toBe(before + 3);
      });
      expect(tf.memory().numTensors).toBe(before + 2);
      tf.dispose([given, mask]);
      cache.dispose();
      expect(tf.memory().numTensors).toBe(before);
    });
  });

  test('16 bits take the error that 8 bits make', () => {
    const long: CacheCase = {...usual, name: 'long', kvLen: 1000, qLen: 16};
    const source = makeCacheInputs(long);
    const whole = attendWhole(long, source).o;
    const [int8, mixed, wide] = (['int8', 'int8_int16', 'int16'] as const).map((precision) => {
      const cache = makeCache(long, precision);
      appendTokens(cache, long, source, 0, long.kvLen);
      const error = errorOf(attend(cache, long, source).o, whole);
      cache.dispose();
      return error;
    });
    expect(int8).toBeLessThan(0.011);
    expect(mixed! / int8!).toBeLessThan(0.8);
    expect(wide!).toBeLessThan(3e-4);
  });

  test('int8 takes at most a third of the memory, 16 bits a little over half', () => {
    const precisions = ['int8', 'int8_int16', 'int16', 'exact'] as const;
    const [int8, mixed, wide, exact] = precisions.map((precision) => {
      const cache = makeCache(c, precision);
      appendTokens(cache, c, inputs, 0, 400);
      return cache.bytes;
    });
    expect(exact).toBeGreaterThanOrEqual(2 * 400 * 2 * 64 * 4);
    expect(int8! / exact!).toBeLessThan(1 / 3);
    expect(mixed! / exact!).toBeLessThan(0.45);
    expect(wide! / exact!).toBeLessThan(0.55);
  });
}
