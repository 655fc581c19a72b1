/** NaN and infinities in q, k and v: where they must arrive, and where they must not (docs/numerics.md 2). */
import * as tf from '@tensorflow/tfjs-core';
import {sageAttention} from '../../src/index';
import type {Precision, SageAttentionOptions} from '../../src/index';
import {useBackend, UNKNOWN_BACKEND} from './backends';

const TOKENS = 70;
const DIM = 16;

function ramp(seed: number): Float32Array {
  return Float32Array.from({length: TOKENS * DIM}, (_, i) => Math.sin(i * 0.37 + seed));
}

/** Rows of o [tokens, dim] that hold something non-finite. */
function badRows(values: ArrayLike<number>): number[] {
  return [...Array(TOKENS).keys()].filter((i) =>
    [...Array(DIM).keys()].some((d) => !Number.isFinite(values[i * DIM + d])),
  );
}

async function attend(
  spoil: {q?: [number, number]; k?: [number, number]; v?: [number, number]},
  options: SageAttentionOptions,
): Promise<{o: Float32Array; lse: Float32Array}> {
  const [q, k, v] = (['q', 'k', 'v'] as const).map((name, i) => {
    const values = ramp(i);
    const [at, value] = spoil[name] ?? [];
    if (at !== undefined && value !== undefined) values[at] = value;
    return tf.tensor2d(values, [TOKENS, DIM]);
  }) as [tf.Tensor2D, tf.Tensor2D, tf.Tensor2D];
  const [o, lse] = sageAttention(q, k, v, {...options, returnLse: true});
  const result = {o: (await o.data()) as Float32Array, lse: (await lse.data()) as Float32Array};
  tf.dispose([q, k, v, o, lse]);
  return result;
}

const everyRow = [...Array(TOKENS).keys()];

describe.each<[string, Precision]>([
  ['cpu', 'exact'],
  ['wasm', 'exact'],
  [UNKNOWN_BACKEND, 'exact'],
  ['cpu', 'int8'],
  ['wasm', 'int16'],
  [UNKNOWN_BACKEND, 'int8_int16'],
  ['cpu', 'fp4'],
])('backend %s, %s', (backend, precision) => {
  beforeAll(() => useBackend(backend));
  const values = [NaN, Infinity, -Infinity];

  it.each(values)('%p in a row of q stays in that row', async (value) => {
    const {o, lse} = await attend({q: [5 * DIM + 3, value]}, {precision});
    expect(badRows(o)).toEqual([5]);
    expect(everyRow.filter((i) => Number.isNaN(lse[i]))).toEqual([5]);
  });

  it.each(values)('%p in k reaches the rows that attend to it', async (value) => {
    const {o, lse} = await attend({k: [40 * DIM + 3, value]}, {precision, isCausal: true});
    expect(badRows(o)).toEqual(everyRow.slice(40));
    expect(everyRow.filter((i) => Number.isNaN(lse[i]))).toEqual(everyRow.slice(40));
    const all = await attend({k: [40 * DIM + 3, value]}, {precision});
    expect(badRows(all.o)).toEqual(everyRow);
  });

  it.each(values)('%p in v reaches its channel in the rows that attend to it', async (value) => {
    const {o, lse} = await attend({v: [40 * DIM + 3, value]}, {precision, windowSize: [2, 1]});
    expect(badRows(o)).toEqual([39, 40, 41, 42]);
    for (const i of [39, 42]) {
      const row = [...o.subarray(i * DIM, (i + 1) * DIM)];
      expect(row.map(Number.isNaN)).toEqual(row.map((_, d) => d === 3));
    }
    expect(lse.every(Number.isFinite)).toBe(true);
  });

  it.each([NaN, Infinity])(
    '%p in an additive mask reaches the rows that attend there',
    async (value) => {
      const values = new Float32Array(TOKENS * TOKENS);
      for (const [i, j] of [
        [5, 60],
        [50, 7],
        [69, 69],
      ] as const)
        values[i * TOKENS + j] = value;
      const mask = tf.tensor2d(values, [TOKENS, TOKENS]);
      const all = await attend({}, {precision, mask});
      expect(badRows(all.o)).toEqual([5, 50, 69]);
      expect(everyRow.filter((i) => Number.isNaN(all.lse[i]))).toEqual([5, 50, 69]);
      const causal = await attend({}, {precision, mask, isCausal: true});
      expect(badRows(causal.o)).toEqual([50, 69]);
      expect(everyRow.filter((i) => Number.isNaN(causal.lse[i]))).toEqual([50, 69]);
      mask.dispose();
    },
  );

  it('a masked token reaches nobody', async () => {
    const mask = tf.tensor1d(
      everyRow.map((j) => j !== 40),
      'bool',
    );
    const {o} = await attend({k: [40 * DIM, NaN], v: [40 * DIM + 3, Infinity]}, {precision, mask});
    expect(badRows(o)).toEqual([]);
    const additive = tf.tensor1d(everyRow.map((j) => (j === 40 ? -Infinity : 0)));
    const again = await attend({k: [40 * DIM, NaN]}, {precision, mask: additive});
    expect(badRows(again.o)).toEqual([]);
    tf.dispose([mask, additive]);
  });
});
