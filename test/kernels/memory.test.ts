/** Nothing is left behind by thousands of calls, and views of the wasm heap survive its growth. */
import * as tf from '@tensorflow/tfjs-core';
import {compareArrays} from '../../src/accuracy/metrics';
import {sageAttention} from '../../src/index';
import {Random} from '../cases';
import {expectNothingLeft} from '../memory_growth';
import {UNKNOWN_BACKEND, useBackend} from './backends';

const random = new Random(5);

function normal(shape: number[]): tf.Tensor {
  const size = shape.reduce((a, b) => a * b, 1);
  return tf.tensor(
    Float32Array.from({length: size}, () => random.normal()),
    shape,
  );
}

// A composition of forty ops is slow on a backend in JavaScript: fewer calls tell the same there.
describe.each([
  ['cpu', 7000, 3500],
  ['wasm', 7000, 3500],
  [UNKNOWN_BACKEND, 140, 35],
])('backend %s', (backend, forwards, gradients) => {
  beforeAll(() => useBackend(backend));

  it('forward', () => {
    const [q, k, v] = [normal([2, 16, 16]), normal([2, 16, 16]), normal([2, 16, 16])] as const;
    const mask = normal([16, 16]);
    sageAttention(q, k, v, {mask, returnLse: true}).forEach((x) => x.dispose());
    const {numTensors, numBytes, numDataBuffers} = tf.memory();
    expectNothingLeft(forwards, () => {
      tf.dispose(sageAttention(q, k, v, {mask, returnLse: true}));
    });
    expect(tf.memory()).toMatchObject({numTensors, numBytes, numDataBuffers});
    tf.dispose([q, k, v, mask]);
  });

  it('with gradient', () => {
    const inputs = [normal([1, 2, 9, 8]), normal([1, 1, 9, 8]), normal([1, 1, 9, 8])];
    const mask = normal([9, 9]);
    const differentiate = tf.grads((q, k, v, m) =>
      tf.sum(tf.square(sageAttention(q!, k!, v!, {mask: m!, isCausal: true}))),
    );
    tf.dispose(differentiate([...inputs, mask]));
    const {numTensors, numBytes, numDataBuffers} = tf.memory();
    expectNothingLeft(gradients, () => tf.dispose(differentiate([...inputs, mask])));
    expect(tf.memory()).toMatchObject({numTensors, numBytes, numDataBuffers});
    tf.dispose([...inputs, mask]);
  });
});

describe('the wasm heap', () => {
  beforeAll(() => useBackend('wasm'));

  const heapBytes = () =>
    (tf.backend() as unknown as {wasm: {HEAPU8: Uint8Array}}).wasm.HEAPU8.buffer.byteLength;

  it('may grow when the outputs are allocated', () => {
    const [q, k, v] = [normal([4096, 8]), normal([3, 8]), normal([3, 512])] as const;
    const expected = sageAttention(q, k, v, {precision: 'exact'});
    const edges = (x: tf.Tensor) => {
      const values = x.dataSync();
      return [...values.subarray(0, 512), ...values.subarray(-512)];
    };
    const kept: tf.Tensor[] = [];
    // Fill up to where the next outputs, of 8 MiB each, make it grow.
    const start = heapBytes();
    let grownInside = false;
    while (heapBytes() < 4 * start && !grownInside) {
      const before = heapBytes();
      const [o, lse] = sageAttention(q, k, v, {precision: 'exact', returnLse: true});
      grownInside = heapBytes() > before;
      expect(edges(o)).toEqual(edges(expected));
      kept.push(o, lse);
    }
    expect(grownInside).toBe(true);
    tf.dispose([q, k, v, expected, ...kept]);
  });

  it('may grow when tensors of another backend move in', async () => {
    await useBackend('cpu');
    const [q, k, v] = [normal([700, 512]), normal([9, 512]), normal([9, 8])] as const;
    const expected = sageAttention(q, k, v, {precision: 'exact'}).dataSync();
    await useBackend('wasm');
    const o = sageAttention(q, k, v, {precision: 'exact'});
    expect(compareArrays(o.dataSync(), expected).maxAbs).toBeLessThan(1e-6);
    tf.dispose([q, k, v, o]);
  });
});
