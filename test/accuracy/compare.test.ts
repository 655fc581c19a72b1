/** compareAttention on the user's own tensors. */
import * as tf from '@tensorflow/tfjs-core';
import {compareAttention, sageAttention, SageAttentionError} from '../../src/index';
import {compareArrays} from '../../src/accuracy/metrics';
import {useBackend} from '../kernels/backends';

describe.each(['cpu', 'wasm'])('backend %s', (backend) => {
  beforeAll(() => useBackend(backend));
  const wave = (shape: number[], seed: number) =>
    tf.tensor(
      Float32Array.from({length: shape.reduce((a, b) => a * b, 1)}, (_, i) =>
        Math.sin(seed + i * 1.7),
      ),
      shape,
    );

  it('is the difference between a recipe and exact, under the same options', async () => {
    const before = tf.memory().numTensors;
    const [q, k, v] = [wave([1, 60, 2, 16], 1), wave([1, 60, 2, 16], 2), wave([1, 60, 2, 16], 3)];
    const options = {layout: 'NHD', isCausal: true, scale: 0.4, windowSize: [9, 0]} as const;
    const mask = wave([60], 5);
    const metrics = await compareAttention(q!, k!, v!, {
      ...options,
      mask,
      precision: 'int8',
      smoothK: false,
    });
    const [actual, expected] = [{precision: 'int8', smoothK: false}, {precision: 'exact'}].map(
      (choice) => sageAttention(q!, k!, v!, {...options, mask, ...(choice as object)}),
    );
    expect(metrics).toEqual(compareArrays(actual!.dataSync(), expected!.dataSync()));
    expect(metrics.relativeL1).toBeGreaterThan(0);
    expect(metrics.relativeL1).toBeLessThan(0.05);
    tf.dispose([q!, k!, v!, mask, actual!, expected!]);
    expect(tf.memory().numTensors).toBe(before);
  });

  it('exact differs by nothing', async () => {
    const x = wave([9, 8], 1);
    expect(await compareAttention(x, x, x, {precision: 'exact'})).toEqual({
      cosine: expect.closeTo(1, 12) as number,
      relativeL1: 0,
      rmse: 0,
      maxAbs: 0,
    });
    x.dispose();
  });

  it('rejects misuse and aborts, and leaves nothing behind', async () => {
    const x = wave([9, 8], 1);
    const before = tf.memory().numTensors;
    await expect(
      compareAttention(x, x, x, {granularity: 'per_warp', precision: 'int8_int16'}),
    ).rejects.toBeInstanceOf(SageAttentionError);
    await expect(compareAttention(x, x, x, {signal: AbortSignal.abort('no')})).rejects.toBe('no');
    expect(tf.memory().numTensors).toBe(before);
    x.dispose();
  });
});
