/** What SageKvCache refuses, and in which words. */
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import {SageKvCache, type SageKvCacheOptions} from '../../src/cache/kv_cache.js';
import {configureSageAttention} from '../../src/runtime/config.js';
import {SageAttentionError} from '../../src/runtime/errors.js';

const sizes: SageKvCacheOptions = {batch: 1, heads: 4, kvHeads: 2, headDim: 8};
const make = (changes: object = {}) => new SageKvCache({...sizes, ...changes});
const zeros = (...shape: number[]) => tf.zeros(shape);

const before = configureSageAttention({engine: 'typescript'});
afterAll(() => configureSageAttention(before));

function failure(call: () => unknown): SageAttentionError {
  try {
    call();
  } catch (error) {
    if (error instanceof SageAttentionError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

const misuses: readonly (readonly [string, () => unknown, string, string | null])[] = [
  ['no options', () => new SageKvCache(undefined as never), 'invalid-option', 'options'],
  ['unknown key', () => make({kvHeds: 2}), 'unknown-option', 'kvHeds'],
  ['no batch', () => make({batch: undefined}), 'invalid-option', 'batch'],
  ['batch 0', () => make({batch: 0}), 'invalid-option', 'batch'],
  ['heads 1.5', () => make({heads: 1.5}), 'invalid-option', 'heads'],
  ['kvHeads 3 of 4', () => make({kvHeads: 3}), 'invalid-option', 'kvHeads'],
  ['headDim 513', () => make({headDim: 513}), 'invalid-option', 'headDim'],
  ['valueDim 0', () => make({valueDim: 0}), 'invalid-option', 'valueDim'],
  ['capacity -1', () => make({capacity: -1}), 'invalid-option', 'capacity'],
  ['precision', () => make({precision: 'fp4'}), 'invalid-option', 'precision'],
  ['k rank', () => make().append(zeros(2, 1, 8), zeros(2, 1, 8)), 'unsupported-rank', 'k'],
  ['k heads', () => make().append(zeros(1, 4, 1, 8), zeros(1, 4, 1, 8)), 'shape-mismatch', 'k'],
  ['v tokens', () => make().append(zeros(1, 2, 2, 8), zeros(1, 2, 1, 8)), 'shape-mismatch', 'v'],
  [
    'v dtype',
    () => make().append(zeros(1, 2, 1, 8), tf.zeros([1, 2, 1, 8], 'int32')),
    'unsupported-dtype',
    'v',
  ],
  ['q heads', () => make().attend(zeros(1, 2, 1, 8)), 'shape-mismatch', 'q'],
  ['q no tensor', () => make().attend('q' as never), 'not-a-tensor', 'q'],
  [
    'options no object',
    () => make().attend(zeros(1, 4, 1, 8), 3 as never),
    'invalid-option',
    'options',
  ],
  [
    'precision of attend',
    () => make().attend(zeros(1, 4, 1, 8), {precision: 'int8'} as never),
    'unknown-option',
    'precision',
  ],
  ['scale NaN', () => make().attend(zeros(1, 4, 1, 8), {scale: NaN}), 'invalid-option', 'scale'],
  [
    'isCausal',
    () => make().attend(zeros(1, 4, 1, 8), {isCausal: 'left' as never}),
    'invalid-option',
    'isCausal',
  ],
  [
    'mask shape',
    () =>
      make()
        .append(zeros(1, 2, 3, 8), zeros(1, 2, 3, 8))
        .attend(zeros(1, 4, 1, 8), {mask: tf.ones([1, 4])}),
    'shape-mismatch',
    'mask',
  ],
  ['truncate 1 of 0', () => make().truncate(1), 'invalid-option', 'length'],
  ['truncate -1', () => make().truncate(-1), 'invalid-option', 'length'],
  ['truncate 0.5', () => make().truncate(0.5), 'invalid-option', 'length'],
];

test.each(misuses)('%s', (_name, call, code, argument) => {
  const error = failure(call);
  expect([error.code, error.argument]).toEqual([code, argument]);
  expect(error.message).toContain('SageKvCache');
});

test('a failed append leaves the cache as it was', () => {
  const cache = make().append(zeros(1, 2, 3, 8), zeros(1, 2, 3, 8));
  failure(() => cache.append(zeros(1, 2, 3, 8), zeros(1, 2, 4, 8)));
  expect(cache.length).toBe(3);
});

test('a disposed cache says so, and may be disposed again', () => {
  const cache = make();
  cache.dispose();
  cache.dispose();
  expect(cache.isDisposed).toBe(true);
  const uses = [
    () => cache.append(zeros(1, 2, 1, 8), zeros(1, 2, 1, 8)),
    () => cache.attend(zeros(1, 4, 1, 8)),
    () => cache.truncate(0),
    () => cache.fork(),
    () => cache.bytes,
  ];
  for (const use of uses) expect(failure(use).code).toBe('disposed-cache');
});

test('precision auto is int8, and exact where that is configured', () => {
  expect(make().precision).toBe('int8');
  const usual = configureSageAttention({precision: 'exact'});
  expect(make().precision).toBe('exact');
  expect(make({precision: 'int8'}).precision).toBe('int8');
  configureSageAttention(usual);
});
