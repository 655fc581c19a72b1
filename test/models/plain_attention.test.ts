// Attention by plain tfjs ops against the exact recipe of this package: grouped heads, masks of every shape, windows.

import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import '@tensorflow/tfjs-backend-wasm';
import type {AttentionOptions} from '../../models/attention.js';
import {ModelError} from '../../models/model_error.js';
import {plainAttention} from '../../models/plain_attention.js';
import {maxDifference, recipeAttention} from './golden.js';

tf.env().set('IS_TEST', true);

type Shape4 = [number, number, number, number];

interface Case {
  readonly name: string;
  readonly q: Shape4;
  /** Shape of k; v has these heads and tokens, and q's head_dim. */
  readonly k: Shape4;
  readonly options?: Partial<AttentionOptions>;
  /** Shape of a bool mask, of which every row keeps some keys. */
  readonly mask?: number[];
}

const causal = {isCausal: 'bottom_right'} as const;

const CASES: Case[] = [
  {name: 'one query', q: [1, 1, 1, 4], k: [1, 1, 1, 4], options: causal},
  {name: 'full, 17 tokens', q: [2, 3, 17, 8], k: [2, 3, 17, 8]},
  {
    name: 'causal, 129 tokens, grouped heads',
    q: [1, 4, 129, 6],
    k: [1, 2, 129, 6],
    options: causal,
  },
  {name: 'new rows against a cache', q: [2, 6, 5, 8], k: [2, 3, 127, 8], options: causal},
  {
    name: 'one row against a cache, one key head',
    q: [2, 4, 1, 8],
    k: [2, 1, 33, 8],
    options: causal,
  },
  {name: 'keys of a caption', q: [2, 2, 9, 8], k: [2, 2, 30, 8]},
  {name: 'padding of a batch', q: [3, 2, 17, 4], k: [3, 1, 17, 4], mask: [3, 1, 1, 17]},
  {
    name: 'padding, causal',
    q: [3, 4, 17, 4],
    k: [3, 2, 17, 4],
    mask: [3, 1, 1, 17],
    options: causal,
  },
  {name: 'a mask for each head', q: [2, 4, 9, 4], k: [2, 2, 11, 4], mask: [1, 4, 9, 11]},
  {name: 'a mask for each batch and head', q: [2, 3, 9, 4], k: [2, 3, 9, 4], mask: [2, 3, 9, 9]},
  {name: 'a mask of rank 2', q: [2, 3, 7, 4], k: [2, 3, 9, 4], mask: [7, 9]},
  {
    name: 'one row and a mask',
    q: [2, 4, 1, 4],
    k: [2, 2, 9, 4],
    mask: [2, 1, 1, 9],
    options: causal,
  },
  {name: 'a window', q: [1, 2, 17, 4], k: [1, 2, 17, 4], options: {windowSize: [3, 2]}},
  {
    name: 'a causal window against a cache',
    q: [1, 4, 6, 4],
    k: [1, 2, 21, 4],
    options: {...causal, windowSize: [4, -1]},
  },
  {
    name: 'a causal window, one row',
    q: [1, 4, 1, 4],
    k: [1, 2, 21, 4],
    options: {...causal, windowSize: [4, -1]},
  },
];

describe.each(['cpu', 'wasm'])('on backend %s', (backend) => {
  let before: number;
  beforeAll(async () => {
    await tf.setBackend(backend);
    before = tf.memory().numTensors;
  });
  afterEach(() => expect(tf.memory().numTensors).toBe(before));

  test.each(CASES)('$name', ({q: qShape, k: kShape, options, mask: maskShape}) => {
    tf.tidy(() => {
      const q = tf.randomNormal<tf.Rank.R4>(qShape, 0, 1, 'float32', 1);
      const k = tf.randomNormal<tf.Rank.R4>(kShape, 0, 1, 'float32', 2);
      const v = tf.randomNormal<tf.Rank.R4>(kShape, 0, 1, 'float32', 3);
      const all: AttentionOptions = {
        isCausal: false,
        scale: 0.7,
        ...options,
        ...(maskShape === undefined ? {} : {mask: someMask(maskShape)}),
      };
      const plain = plainAttention(q, k, v, all);
      const exact = recipeAttention('exact')(q, k, v, all);
      expect(plain.shape).toEqual(qShape);
      expect(maxDifference(plain.dataSync(), exact.dataSync())).toBeLessThan(1e-5);
    });
  });

  test('rows that see nothing hold finite numbers and disturb no other', () => {
    tf.tidy(() => {
      const q = tf.randomNormal<tf.Rank.R4>([1, 2, 5, 4], 0, 1, 'float32', 1);
      const mask = tf.tensor([[0], [1], [1], [0], [1]], [5, 1], 'bool');
      const options = {isCausal: false, scale: 1} as const;
      const masked = plainAttention(q, q, q, {...options, mask}).arraySync();
      const free = plainAttention(q, q, q, options).arraySync();
      for (const head of [0, 1]) {
        for (const row of [1, 2, 4]) {
          const difference = maxDifference(masked[0]![head]![row]!, free[0]![head]![row]!);
          expect(difference).toBeLessThan(1e-6);
        }
      }
      expect(masked.flat(3).every((value) => Number.isFinite(value))).toBe(true);
    });
  });

  test('what does not fit is told', () => {
    tf.tidy(() => {
      const make = (heads: number, length: number): tf.Tensor4D => tf.ones([1, heads, length, 4]);
      const call = (q: tf.Tensor4D, k: tf.Tensor4D) => () =>
        plainAttention(q, k, k, {...causal, scale: 1});
      expect(call(make(1, 3), make(1, 2))).toThrow(ModelError);
      expect(call(make(1, 3), make(1, 2))).toThrow(/2 keys for 3 queries/);
      expect(call(make(4, 3), make(3, 3))).toThrow(/3 heads for 4 of q/);
    });
  });
});

/** True where a fixed pattern says so, and for the first key of every row: what a causal row surely sees. */
function someMask(shape: number[]): tf.Tensor {
  const columns = shape.at(-1) as number;
  const size = shape.reduce((a, b) => a * b, 1);
  const values = Uint8Array.from({length: size}, (_, i) =>
    i % columns === 0 || (i * 7 + Math.floor(i / 5)) % 3 !== 0 ? 1 : 0,
  );
  return tf.tensor(values, shape, 'bool');
}
