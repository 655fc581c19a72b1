/** The op inside TensorFlow gives the bits of backend cpu: the same engine, whatever mode TensorFlow sets around kernels. */
import * as tf from '@tensorflow/tfjs-core';
import {configureSageAttention, PRECISIONS, sageAttention, type Precision} from '../../src/index';
import type {SageAttentionOptions} from '../../src/index';
import {loadAddon} from '../../src/runtime/load_addon';
import {casesTagged, Random, type AttentionCase} from '../cases';
import {callOf} from '../ops/case_calls';
import {useBackend} from '../kernels/backends';
import {loadTensorflowBackend} from './tensorflow_backend';

beforeAll(() => {
  loadTensorflowBackend();
});

/** What `compute` gives on a backend, as bits. */
async function bitsOn(backend: string, compute: () => tf.Tensor[]): Promise<Uint32Array[]> {
  await useBackend(backend);
  const calls = loadAddon().addon?.tensorflowTrace().calls ?? NaN;
  const tensors = tf.tidy(compute);
  const bits = tensors.map((tensor) => {
    const values = tensor.dataSync<'float32'>();
    return new Uint32Array(values.buffer, values.byteOffset, values.length).slice();
  });
  tf.dispose(tensors);
  const ran = (loadAddon().addon?.tensorflowTrace().calls ?? NaN) > calls;
  if (backend === 'tensorflow' && !ran) throw new Error('the op inside TensorFlow did not run');
  return bits;
}

async function expectSameBits(compute: () => tf.Tensor[]): Promise<void> {
  const expected = await bitsOn('cpu', compute);
  const got = await bitsOn('tensorflow', compute);
  expect(got.length).toBe(expected.length);
  for (const [i, bits] of got.entries()) {
    const other = expected[i]!;
    expect(bits.length).toBe(other.length);
    expect(bits.findIndex((word, j) => word !== other[j])).toBe(-1);
  }
}

const SMALL = casesTagged('fast').filter(
  (c) => c.batch * c.heads * c.qLen * c.kvLen * c.headDim <= 2e5 && c.qLen * c.kvLen * c.batch > 0,
);

function forwardOf(c: AttentionCase, precision: Precision): tf.Tensor[] {
  const {q, k, v, options} = callOf(c);
  return sageAttention(q, k, v, {...options, precision, returnLse: true});
}

it.each(PRECISIONS)('forward, %s', async (precision) => {
  expect(SMALL.length).toBeGreaterThan(30);
  for (const c of SMALL) await expectSameBits(() => forwardOf(c, precision));
});

it('gradients', async () => {
  for (const c of SMALL.filter(({tags}) => tags.includes('grad'))) {
    await expectSameBits(() => {
      const {q, k, v, options} = callOf(c);
      const mask = options.mask as tf.Tensor | undefined;
      const trained = c.mask?.kind === 'additive' && mask ? [q, k, v, mask] : [q, k, v];
      const loss = (...[q1, k1, v1, mask1]: tf.Tensor[]) => {
        const call: SageAttentionOptions = {...options, precision: 'exact'};
        if (mask1 !== undefined) call.mask = mask1;
        // Sums are left to the seed of the gradient: each backend would add in its own order.
        return sageAttention(q1!, k1!, v1!, call) as tf.Scalar;
      };
      return tf.grads(loss)(
        trained,
        tf.onesLike(sageAttention(q, k, v, options) as tf.Tensor) as tf.Scalar,
      );
    });
  }
});

describe.each([1, 2])('%i thread(s)', (threads) => {
  let before: ReturnType<typeof configureSageAttention>;
  beforeAll(() => {
    before = configureSageAttention({threads});
  });
  afterAll(() => {
    configureSageAttention(before);
  });

  it.each(['exact', 'int8_int16', 'int8_fp8'] as const)(
    'denormal numbers, %s',
    async (precision) => {
      const random = new Random(11);
      const shape: [number, number, number] = [8, 300, 32];
      const normal = (scale: number) =>
        Float32Array.from({length: 8 * 300 * 32}, () => scale * random.normal());
      const data = [normal(1), normal(1), normal(1e-41)] as const;
      await expectSameBits(() => {
        const [q, k, v] = data.map((values) => tf.tensor3d(values, shape));
        const outputs = sageAttention(q!, k!, v!, {precision, returnLse: true});
        if (precision === 'exact') {
          // Without this the test would pass where both sides lose them.
          expect(outputs[0].dataSync<'float32'>().filter((x) => x !== 0).length).toBeGreaterThan(
            1000,
          );
        }
        return outputs;
      });
      await expectSameBits(() => {
        const [q, k, v] = data.map((values) => tf.tensor3d(values, shape));
        const attend = (q1: tf.Tensor, k1: tf.Tensor, v1: tf.Tensor) =>
          sageAttention(q1, k1, v1, {precision: 'exact'}) as tf.Scalar;
        return tf.grads((...[q1, k1, v1]) => attend(q1!, k1!, v1!))(
          [q!, k!, v!],
          tf.tensor3d(data[0], shape) as unknown as tf.Scalar,
        );
      });
    },
  );
});

it('the instruction set that is configured', async () => {
  const random = new Random(13);
  const values = Float32Array.from({length: 2 * 200 * 32}, () => random.normal());
  const attend = () => {
    const q = tf.tensor3d(values, [2, 200, 32]);
    return [sageAttention(q, q, q, {precision: 'int8_int16'})];
  };
  const isas = loadAddon().addon?.capabilities().isa.available ?? [];
  const results = new Set<string>();
  const before = configureSageAttention();
  try {
    for (const isa of isas) {
      configureSageAttention({isa});
      await expectSameBits(attend);
      results.add((await bitsOn('tensorflow', attend)).join());
    }
  } finally {
    configureSageAttention(before);
  }
  // Otherwise the op could run one of them always.
  expect(results.size).toBeGreaterThan(isas.length > 1 ? 1 : 0);
});

it('NaN and Infinity', async () => {
  const random = new Random(12);
  const poisoned = (value: number) => {
    const values = Float32Array.from({length: 2 * 17 * 16}, () => random.normal());
    values[40] = value;
    return values;
  };
  for (const precision of ['exact', 'int8_int16', 'fp4'] as const) {
    for (const value of [NaN, Infinity, -Infinity]) {
      for (const place of [0, 1, 2]) {
        const data = [0, 1, 2].map((i) => poisoned(i === place ? value : 1));
        await expectSameBits(() => {
          const [q, k, v] = data.map((values) => tf.tensor3d(values, [2, 17, 16]));
          return sageAttention(q!, k!, v!, {precision, returnLse: true});
        });
      }
    }
  }
});
