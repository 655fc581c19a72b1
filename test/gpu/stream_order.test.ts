/**
 * The op's work among TensorFlow's own on a GPU. A chain of matrix products makes q, our op reads it, and every tensor is
 * freed at once and its memory overwritten with NaN by TensorFlow, so that a kernel which runs too early or too late
 * reads or leaves something else. Two modes order nothing and must be caught: without them a pass would prove nothing.
 */
import type * as Tf from '@tensorflow/tfjs';
import {loadAddon} from '../../src/runtime/load_addon.js';
import type {NativeAddon} from '../../src/runtime/native_addon.js';
import {sageAttention} from '../../src/index.js';
import {loadTensorflowBackend} from '../tensorflow/tensorflow_backend.js';

/** Products of 4,096² take long enough on any GPU that a launch which does not wait for them comes too early. */
const SIZE = 4096;
const HEAD_DIM = 64;
const TOKENS = 512;
const ITERATIONS = 200;

const ORDERED = ['auto', 'tfstream', 'tfevent', 'devsync'];
const UNORDERED = ['legacy', 'nosync'];

let tf: typeof Tf;
let addon: NativeAddon;

beforeAll(() => {
  tf = loadTensorflowBackend();
  const loaded = loadAddon().addon;
  if (loaded === null) throw new Error('there is no native addon');
  addon = loaded;
});

afterEach(() => addon.setTensorflowStream('auto'));

interface Operands {
  readonly weights: Tf.Tensor;
  readonly start: Tf.Tensor;
  readonly k: Tf.Tensor;
  readonly v: Tf.Tensor;
}

function operands(): Operands {
  const heads = SIZE / HEAD_DIM;
  return {
    weights: tf.randomNormal([SIZE, SIZE], 0, 1 / Math.sqrt(SIZE), 'float32', 7),
    start: tf.randomNormal([SIZE, SIZE], 0, 1, 'float32', 8),
    k: tf.randomNormal([1, heads, TOKENS, HEAD_DIM], 0, 1, 'float32', 9),
    v: tf.randomNormal([1, heads, TOKENS, HEAD_DIM], 0, 1, 'float32', 10),
  };
}

/** One chain. `wait`: reads a sum before and after the op, which waits for all work so far. */
function chain({weights, start, k, v}: Operands, iteration: number, wait: boolean): Tf.Tensor {
  return tf.tidy(() => {
    const heads = SIZE / HEAD_DIM;
    let y = tf.add(start, iteration / 16);
    for (let step = 0; step < 6; step++) {
      const next: Tf.Tensor = tf.matMul(y, weights);
      y.dispose();
      y = next;
    }
    const rows = tf.slice(y, [0, 0], [TOKENS, SIZE]);
    y.dispose();
    const q = tf.transpose(tf.reshape(rows, [1, TOKENS, heads, HEAD_DIM]), [0, 2, 1, 3]);
    rows.dispose();
    if (wait) tf.sum(q).dataSync();
    const [o, lse] = sageAttention(q, k, v, {
      precision: 'exact',
      isCausal: true,
      returnLse: true,
    }) as [Tf.Tensor, Tf.Tensor];
    if (wait) tf.sum(o).dataSync();
    const shape = q.shape;
    q.dispose();
    tf.fill(shape, NaN);
    tf.fill(shape, NaN);
    const used = tf.mul(tf.add(o, 1), 2);
    o.dispose();
    tf.fill(shape, NaN);
    return tf.concat([
      tf.reshape(tf.sum(used, [0, 2]), [-1]),
      tf.reshape(tf.sum(lse, [0, 2]), [-1]),
    ]);
  });
}

/** Results of all iterations, enqueued without waiting unless `wait`. */
function run(given: Operands, wait: boolean): Float32Array[] {
  const results: Tf.Tensor[] = [];
  for (let i = 0; i < ITERATIONS; i++) results.push(chain(given, i, wait));
  return results.map((tensor) => {
    const values = tensor.dataSync() as Float32Array;
    tensor.dispose();
    return values;
  });
}

function countWrong(got: readonly Float32Array[], expected: readonly Float32Array[]): number {
  return got.filter((values, i) => {
    const right = expected[i];
    // TensorFlow's own sums may be taken in another order; what a race leaves is far larger.
    return values.some((value, j) => !(Math.abs(value - (right?.[j] ?? NaN)) <= 1e-2));
  }).length;
}

test('TensorFlow computes on a GPU and lends its stream', () => {
  const t = tf.randomNormal([1, 1, 8, 32]) as Tf.Tensor4D;
  sageAttention(t, t, t, {precision: 'exact'}).dispose();
  const trace = addon.tensorflowTrace();
  expect(trace.device).toBe('GPU');
  expect(trace.order).toBe('tfstream');
});

test(`the order of work in every stream mode, ${ITERATIONS} chains each`, () => {
  const given = operands();
  addon.setTensorflowStream('devsync');
  const expected = run(given, true);
  expect(countWrong(run(given, true), expected)).toBe(0);
  const wrong: Record<string, number> = {};
  for (const mode of [...ORDERED, ...UNORDERED]) {
    addon.setTensorflowStream(mode);
    wrong[mode] = countWrong(run(given, false), expected);
  }
  console.log(`wrong of ${ITERATIONS} by stream mode: ${JSON.stringify(wrong)}`);
  for (const mode of ORDERED) expect([mode, wrong[mode]]).toEqual([mode, 0]);
  for (const mode of UNORDERED) expect([mode, wrong[mode]]).not.toEqual([mode, 0]);
}, 300_000);
