/** The asynchronous op: same numbers, off the event loop, abortable, and safe against whatever happens meanwhile. */
import * as tf from '@tensorflow/tfjs-core';
import {configureSageAttention, sageAttention, sageAttentionAsync} from '../../src/index';
import {UNKNOWN_BACKEND, useBackend} from '../kernels/backends';

function wave(shape: number[], seed: number): tf.Tensor {
  const size = shape.reduce((a, b) => a * b, 1);
  return tf.tensor(
    Float32Array.from({length: size}, (_, i) => Math.sin(seed + i * 0.7)),
    shape,
  );
}

describe.each(['cpu', 'wasm', UNKNOWN_BACKEND])('backend %s', (backend) => {
  beforeAll(() => useBackend(backend));

  it('gives what the op gives, and leaves nothing behind', async () => {
    const before = tf.memory().numTensors;
    const [q, k, v] = [wave([2, 40, 16], 1), wave([2, 50, 16], 2), wave([2, 50, 16], 3)] as const;
    const mask = wave([40, 50], 4);
    const options = {mask, isCausal: 'bottom_right', returnLse: true} as const;
    const expected = sageAttention(q, k, v, options);
    const actual = await sageAttentionAsync(q, k, v, options);
    for (const [i, tensor] of actual.entries()) {
      expect(tensor.shape).toEqual(expected[i]?.shape);
      expect(tensor.dataSync()).toEqual(expected[i]?.dataSync());
    }
    tf.dispose([q, k, v, mask, ...expected, ...actual]);
    expect(tf.memory().numTensors).toBe(before);
  });

  it('takes nested arrays', async () => {
    const before = tf.memory().numTensors;
    const rows = [
      [1, 0],
      [0, 1],
    ];
    const o = await sageAttentionAsync(rows, rows, rows, {
      mask: [true, false],
      precision: 'exact',
    });
    expect(o.arraySync()).toEqual([
      [1, 0],
      [1, 0],
    ]);
    o.dispose();
    expect(tf.memory().numTensors).toBe(before);
  });

  it('gives results that outlive the tf.tidy() of the call', async () => {
    const before = tf.memory().numTensors;
    const promise = tf.tidy(() => {
      const q = wave([20, 16], 1);
      return [sageAttentionAsync(q, q, q, {returnLse: true})] as unknown as tf.Tensor[];
    })[0] as unknown as Promise<tf.Tensor[]>;
    const results = await promise;
    for (const result of results) expect(result.dataSync().every(Number.isFinite)).toBe(true);
    tf.dispose(results);
    expect(tf.memory().numTensors).toBe(before);
  });

  it('lets the inputs be disposed at once, and wasm allocate meanwhile', async () => {
    const [q, k, v] = [wave([300, 64], 1), wave([300, 64], 2), wave([300, 64], 3)] as const;
    const expected = sageAttention(q, k, v);
    const promise = sageAttentionAsync(q, k, v);
    tf.dispose([q, k, v]);
    const others = Array.from({length: 40}, () => tf.ones([300, 64]));
    const actual = await promise;
    expect(actual.dataSync()).toEqual(expected.dataSync());
    tf.dispose([expected, actual, others]);
  });

  it('rejects with the reason of a signal that was aborted before', async () => {
    const x = wave([5, 8], 1);
    const reason = new Error('too late');
    await expect(sageAttentionAsync(x, x, x, {signal: AbortSignal.abort(reason)})).rejects.toBe(
      reason,
    );
    x.dispose();
  });
});

describe.each(['native', 'typescript'] as const)('engine %s', (engine) => {
  beforeAll(async () => {
    await useBackend('cpu');
  });
  let previous: ReturnType<typeof configureSageAttention>;
  beforeEach(() => {
    previous = configureSageAttention({engine});
  });
  afterEach(() => {
    configureSageAttention(previous);
  });

  it('keeps the event loop turning and stops at an abort', async () => {
    const x = tf.zeros([1, 2, 3000, 64]);
    const controller = new AbortController();
    const reason = new Error('enough');
    let turns = 0;
    const ticking = setInterval(() => {
      turns += 1;
      if (turns === 2) controller.abort(reason);
    }, 1);
    const started = performance.now();
    const attempt = sageAttentionAsync(x, x, x, {precision: 'fp4', signal: controller.signal});
    await expect(attempt).rejects.toBe(reason);
    clearInterval(ticking);
    expect(turns).toBeGreaterThanOrEqual(2);
    // In full it takes seconds.
    expect(performance.now() - started).toBeLessThan(2000);
    x.dispose();
  });
});
