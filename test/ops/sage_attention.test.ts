/** The op's contract: ranks, layouts, arrays, options, recipes, chaining, and that it leaves inputs and memory alone. */
import * as tf from '@tensorflow/tfjs-core';
import {compareArrays} from '../../src/accuracy/metrics';
import {PRECISIONS, sageAttention} from '../../src/index';
import {useBackend} from '../kernels/backends';
import {RELATIVE_L1, Random} from '../cases';

beforeAll(() => useBackend('cpu'));

const random = new Random(3);

function normal(shape: number[]): tf.Tensor {
  const size = shape.reduce((a, b) => a * b, 1);
  return tf.tensor(
    Float32Array.from({length: size}, () => random.normal()),
    shape,
  );
}

/** Attention as tfjs users write it. */
function plain(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor): tf.Tensor {
  return tf.tidy(() => {
    const dim = q.shape[q.rank - 1] as number;
    return tf.matMul(tf.softmax(tf.div(tf.matMul(q, k, false, true), Math.sqrt(dim))), v);
  });
}

const exact = {precision: 'exact'} as const;

function closeTo(actual: tf.Tensor, expected: tf.Tensor, relativeL1 = 2e-6): void {
  expect(actual.shape).toEqual(expected.shape);
  expect(compareArrays(actual.dataSync(), expected.dataSync()).relativeL1).toBeLessThan(relativeL1);
}

describe('ranks and layouts', () => {
  it.each([[[2, 3, 17, 24]], [[3, 17, 24]], [[17, 24]]])('q of shape %p', (shape) => {
    const [q, k, v] = [normal(shape), normal(shape), normal(shape)];
    const [o, lse] = sageAttention(q, k, v, {...exact, returnLse: true});
    closeTo(o, plain(q, k, v));
    expect(lse.shape).toEqual(shape.slice(0, -1));
  });

  it.each([
    [
      [2, 17, 6, 24],
      [2, 33, 3, 24],
    ],
    [
      [17, 6, 24],
      [33, 3, 24],
    ],
  ])('layout NHD, q of shape %p', (qShape, kShape) => {
    const swap = qShape.length === 4 ? [0, 2, 1, 3] : [1, 0, 2];
    const [q, k, v] = [normal(qShape), normal(kShape), normal(kShape)];
    const [o, lse] = sageAttention(q, k, v, {...exact, layout: 'NHD', returnLse: true});
    const [expected, expectedLse] = sageAttention(
      tf.transpose(q, swap),
      tf.transpose(k, swap),
      tf.transpose(v, swap),
      {...exact, returnLse: true},
    );
    expect(o.shape).toEqual(qShape);
    expect(lse.shape).toEqual(expectedLse.shape);
    closeTo(o, tf.transpose(expected, swap));
    closeTo(lse, expectedLse);
  });

  it('rank 2 is the same in both layouts', () => {
    const [q, k, v] = [normal([5, 8]), normal([7, 8]), normal([7, 4])];
    const a = sageAttention(q, k, v, {...exact, layout: 'NHD'});
    closeTo(a, sageAttention(q, k, v, exact), 1e-12);
    expect(a.shape).toEqual([5, 4]);
  });

  it('heads of k may be fewer: each serves consecutive heads of q', () => {
    const [q, k, v] = [normal([4, 9, 8]), normal([2, 9, 8]), normal([2, 9, 8])];
    const repeated = (x: tf.Tensor) =>
      tf.reshape(tf.tile(tf.reshape(x, [2, 1, 9, 8]), [1, 2, 1, 1]), [4, 9, 8]);
    closeTo(sageAttention(q, k, v, exact), plain(q, repeated(k), repeated(v)));
  });

  it('masks of any lower rank broadcast', () => {
    const [q, k, v] = [normal([2, 3, 5, 8]), normal([2, 3, 7, 8]), normal([2, 3, 7, 8])];
    const perKey = [0, 0, -Infinity, 1, 0, -2, 0];
    const full = tf.add(tf.zeros([2, 3, 5, 7]), tf.tensor1d(perKey)) as tf.Tensor;
    const expected = sageAttention(q, k, v, {...exact, mask: full});
    for (const mask of [tf.tensor1d(perKey), tf.tensor(perKey, [1, 1, 1, 7]), perKey]) {
      closeTo(sageAttention(q, k, v, {...exact, mask}), expected, 1e-12);
    }
    const q2 = normal([5, 8]);
    const rows = tf.tensor([true, true, false, true, true], [5, 1], 'bool');
    const o = sageAttention(q2, normal([7, 8]), normal([7, 8]), {...exact, mask: rows});
    const bytes = o.dataSync();
    expect([...bytes.subarray(16, 24)]).toEqual(Array(8).fill(0));
    expect(bytes[0]).not.toBe(0);
    const scalar = sageAttention(q2, q2, q2, {...exact, mask: tf.scalar(3)});
    closeTo(scalar, plain(q2, q2, q2));
  });

  it('nested arrays and typed views are tensors too', () => {
    const rows = [
      [1, 0, 2],
      [0, 1, 1],
    ];
    closeTo(sageAttention(rows, rows, rows, exact), plain(...threeTimes(tf.tensor(rows))));
    const buffer = new Float32Array(41).map(() => random.normal());
    const view = tf.tensor(new Float32Array(buffer.buffer, 4, 40), [5, 8]);
    const copy = tf.tensor(buffer.slice(1), [5, 8]);
    closeTo(sageAttention(view, view, view, exact), sageAttention(copy, copy, copy, exact), 1e-12);
  });

  it('returns 0 and -Infinity where there is nothing to attend to', () => {
    const [o, lse] = sageAttention(normal([2, 4, 8]), tf.zeros([2, 0, 8]), tf.zeros([2, 0, 6]), {
      returnLse: true,
    });
    expect(o.shape).toEqual([2, 4, 6]);
    expect([...o.dataSync()].every((x) => x === 0)).toBe(true);
    expect([...lse.dataSync()].every((x) => x === -Infinity)).toBe(true);
    for (const shape of [
      [0, 2, 4, 8],
      [2, 0, 8],
      [0, 8],
    ]) {
      const x = tf.zeros(shape);
      expect(sageAttention(x, x, x).shape).toEqual(shape);
    }
  });
});

function threeTimes(x: tf.Tensor): [tf.Tensor, tf.Tensor, tf.Tensor] {
  return [x, x, x];
}

describe('options', () => {
  let q: tf.Tensor;
  let k: tf.Tensor;
  let v: tf.Tensor;
  beforeAll(() => {
    [q, k, v] = [normal([2, 33, 16]), normal([2, 33, 16]), normal([2, 33, 16])];
  });

  it('isCausal true is top_left', () => {
    const long = [normal([2, 50, 16]), normal([2, 50, 16])] as const;
    const call = (isCausal: true | 'top_left' | 'bottom_right') =>
      sageAttention(q, ...long, {...exact, isCausal});
    closeTo(call(true), call('top_left'), 1e-12);
    const first = (x: tf.Tensor) => [...x.dataSync().subarray(0, 16)];
    expect(first(call(true))).toEqual([...long[1].dataSync().subarray(0, 16)]);
    expect(first(call('bottom_right'))).not.toEqual(first(call(true)));
  });

  it('windowSize counts keys left and right, and causal sets right to 0', () => {
    const band = (left: number, right: number) =>
      tf.tensor2d(
        Array.from({length: 33}, (_, i) =>
          Array.from({length: 33}, (__, j) => j >= i - left && j <= i + right),
        ),
        [33, 33],
        'bool',
      );
    closeTo(
      sageAttention(q, k, v, {...exact, windowSize: [3, 2]}),
      sageAttention(q, k, v, {...exact, mask: band(3, 2)}),
      1e-6,
    );
    closeTo(
      sageAttention(q, k, v, {...exact, windowSize: [3, 2], isCausal: true}),
      sageAttention(q, k, v, {...exact, mask: band(3, 0)}),
      1e-6,
    );
  });

  it('undefined is the default, for every option', () => {
    const all = {
      isCausal: undefined,
      mask: undefined,
      scale: undefined,
      layout: undefined,
      precision: undefined,
      smoothQ: undefined,
      smoothK: undefined,
      smoothV: undefined,
      granularity: undefined,
      pvAccumulator: undefined,
      windowSize: undefined,
      variant: undefined,
      returnLse: undefined,
    };
    closeTo(sageAttention(q, k, v, all), sageAttention(q, k, v), 1e-12);
  });

  it('scale 0 gives the mean of v', () => {
    const o = sageAttention(q, k, v, {...exact, scale: 0});
    closeTo(o, tf.tile(tf.mean(v, 1, true), [1, 33, 1]), 1e-5);
  });

  it.each([...PRECISIONS, 'auto'] as const)('precision %s stays near exact', (precision) => {
    const o = sageAttention(q, k, v, {precision});
    const bound = precision === 'auto' ? 0.25 : RELATIVE_L1[precision];
    // 33 tokens of 16 channels average less noise away than the table's 1,000.
    closeTo(o, sageAttention(q, k, v, exact), 1.6 * bound);
  });

  it('the choices about numerics arrive', () => {
    const call = (options: object) => sageAttention(q, k, v, {precision: 'int8_fp16', ...options});
    const base = call({});
    for (const options of [
      {smoothK: false},
      {smoothQ: true},
      {granularity: 'per_block'},
      {pvAccumulator: 'fp16'},
      {variant: 'paper'},
    ]) {
      const {maxAbs} = compareArrays(call(options).dataSync(), base.dataSync());
      expect(maxAbs).toBeGreaterThan(0);
      expect(maxAbs).toBeLessThan(0.1);
    }
  });
});

describe('manners', () => {
  it('changes no input', () => {
    const tensors = [normal([2, 40, 16]), normal([2, 40, 16]), normal([2, 40, 16])] as const;
    const mask = normal([40, 40]);
    const before = [...tensors, mask].map((x) => x.dataSync().slice());
    for (const precision of PRECISIONS) {
      sageAttention(...tensors, {precision, mask, isCausal: true}).dispose();
    }
    const after = [...tensors, mask].map((x) => x.dataSync());
    expect(after).toEqual(before);
  });

  it('is a method of tensors', () => {
    const [q, k, v] = [normal([9, 8]), normal([9, 8]), normal([9, 8])];
    closeTo(q.sageAttention(k, v, exact), sageAttention(q, k, v, exact), 1e-12);
    const [o, lse] = q.sageAttention(k, v, {returnLse: true});
    expect([o.shape, lse.shape]).toEqual([[9, 8], [9]]);
  });

  it('leaves nothing behind, inside and outside of tidy, also when it throws', () => {
    const x = normal([9, 8]);
    const before = tf.memory().numTensors;
    tf.tidy(() => {
      sageAttention(x, x, x, {returnLse: true});
      sageAttention(x.arraySync() as number[][], x, x);
    });
    sageAttention(x.arraySync() as number[][], x, x, {mask: [true]}).dispose();
    expect(() => sageAttention(x.arraySync() as number[][], x, [[1, 2]])).toThrow();
    expect(tf.memory().numTensors).toBe(before);
  });

  it('gives the same bits every time', () => {
    const x = normal([2, 130, 32]);
    const [a, b] = [sageAttention(x, x, x), sageAttention(x, x, x)];
    expect(a.dataSync()).toEqual(b.dataSync());
  });
});
