/** `toMatchAttention` and the suites: what passes, what fails, and what the failure says. */
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import {
  ACCURACY_CASES,
  describeAttentionAccuracy,
  toleranceOf,
  type AccuracyCase,
} from '../../src/accuracy/jest.js';
import {PRECISIONS} from '../../src/numerics/recipes.js';

beforeAll(async () => {
  await tf.setBackend('cpu');
});

/** The message of a failing expectation. */
function messageOf(expectation: () => void): string {
  try {
    expectation();
  } catch (error) {
    return (error as Error).message;
  }
  throw new Error('the expectation held');
}

describe('toMatchAttention', () => {
  it('takes tensors, typed arrays and arrays, in any mixture', () => {
    const tensor = tf.tensor1d([1, 2, 3]);
    expect(tensor).toMatchAttention(tensor);
    expect(tensor).toMatchAttention(Float32Array.of(1, 2, 3));
    expect([1, 2, 3]).toMatchAttention(tensor);
    tensor.dispose();
  });

  it('holds cosine and relative L1 to the bounds given', () => {
    // cosine 0.99504, relative L1 0.1 / 2.
    const [actual, expected] = [
      [1, 1.1],
      [1, 1],
    ] as const;
    expect(actual).toMatchAttention(expected);
    expect(actual).toMatchAttention(expected, {relativeL1: 0.0501});
    expect(actual).not.toMatchAttention(expected, {relativeL1: 0.0499});
    expect(actual).toMatchAttention(expected, {cosine: 0.99});
    expect(actual).not.toMatchAttention(expected, {cosine: 0.9999});
    expect(actual).not.toMatchAttention(expected, {cosine: 0.99, relativeL1: 0.01});
  });

  it('holds the cosine to 0.99 when nothing is asked', () => {
    expect([1, 0]).not.toMatchAttention([1, 0.2]);
    expect([1, 0.2]).toMatchAttention([1, 0.21]);
  });

  it.each([
    ['a NaN', [1, NaN]],
    ['an infinity', [1, Infinity]],
  ])('fails for %s where a number is expected, whatever the tolerance', (_, actual) => {
    expect(actual).not.toMatchAttention([1, 2]);
    expect(actual).not.toMatchAttention([1, 2], {});
    expect(actual).not.toMatchAttention([1, 2], {relativeL1: Infinity});
    expect([1, 2]).not.toMatchAttention(actual, {relativeL1: 10});
  });

  it('fails for shapes and lengths that differ', () => {
    const [row, column] = [tf.ones([1, 4]), tf.ones([4, 1])];
    expect(row).not.toMatchAttention(column);
    expect(messageOf(() => expect(row).toMatchAttention(column))).toContain(
      'shape [1,4], expected [4,1]',
    );
    expect(messageOf(() => expect([1]).toMatchAttention([1, 2]))).toContain('1 values, expected 2');
    tf.dispose([row, column]);
  });

  it('says what came, what was asked, and how far off it is', () => {
    const message = messageOf(() =>
      expect([1, 1.5]).toMatchAttention([1, 1], {cosine: 0.9999, relativeL1: 0.02}),
    );
    expect(message).toContain('cosine 0.980581, asked >= 0.9999');
    expect(message).toContain('relativeL1 0.250000, asked <= 0.02');
    expect(message).toContain('maxAbs 0.500');
  });
});

describe('describeAttentionAccuracy', () => {
  const small: AccuracyCase = {
    distribution: 'normal',
    batch: 2,
    heads: 2,
    kvHeads: 1,
    qLen: 17,
    kvLen: 33,
    headDim: 8,
    causal: true,
  };

  interface Registered {
    readonly name: string;
    readonly body: () => Promise<void>;
    readonly timeoutMs: number;
  }

  /** Collects the tests of a suite instead of registering them with jest. */
  function collect(suite: Parameters<typeof describeAttentionAccuracy>[1]): Registered[] {
    const tests: Registered[] = [];
    const globals = globalThis as unknown as Record<'describe' | 'test', unknown>;
    const {describe: realDescribe, test: realTest} = globals;
    globals.describe = (_name: string, body: () => void) => body();
    globals.test = (name: string, body: () => Promise<void>, timeoutMs: number) =>
      tests.push({name, body, timeoutMs});
    try {
      describeAttentionAccuracy('suite', suite);
    } finally {
      Object.assign(globals, {describe: realDescribe, test: realTest});
    }
    return tests;
  }

  /** Scores, causal by hand, heads of k and v repeated. */
  const plain = (q: tf.Tensor4D, k: tf.Tensor4D, v: tf.Tensor4D, scale: number): tf.Tensor =>
    tf.tidy(() => {
      const repeat = (x: tf.Tensor4D) => tf.concat([x, x], 1);
      const scores = tf.mul(tf.matMul(q, repeat(k), false, true), scale);
      const seen = tf.linalg.bandPart(tf.ones([17, 33]), -1, 0);
      return tf.matMul(tf.softmax(tf.add(scores, tf.mul(tf.sub(1, seen), -1e30))), repeat(v));
    });

  it('gives the attention the inputs, causality and scale of each case, and passes a right one', async () => {
    const before = tf.memory().numTensors;
    const attention = jest.fn(
      (q: tf.Tensor4D, k: tf.Tensor4D, v: tf.Tensor4D, o: {scale: number}) =>
        plain(q, k, v, o.scale),
    );
    const [only] = collect({attention, cases: [small], tolerances: {relativeL1: 1e-5}});
    await only?.body();
    const [q, k, v, options] = attention.mock.calls[0] ?? [];
    expect([q, k, v].map((x) => x?.shape)).toEqual([
      [2, 2, 17, 8],
      [2, 1, 33, 8],
      [2, 1, 33, 8],
    ]);
    expect(options).toEqual({isCausal: true, scale: 1 / Math.sqrt(8)});
    expect(only?.name).toBe('normal, B2 H2:1 N17x33 D8, causal');
    expect(tf.memory().numTensors).toBe(before);
  });

  it('fails a wrong one, and one that throws, and frees the tensors', async () => {
    const before = tf.memory().numTensors;
    const wrong = collect({
      attention: async (q, k, v) => plain(q, k, v, 0.1),
      cases: [small],
      tolerances: () => ({relativeL1: 0.05}),
    });
    await expect(wrong[0]?.body()).rejects.toThrow('outside the tolerance');
    const failing = collect({
      attention: () => {
        throw new Error('not today');
      },
      cases: [small],
    });
    await expect(failing[0]?.body()).rejects.toThrow('not today');
    expect(tf.memory().numTensors).toBe(before);
  });

  it('asks for the tolerance of each case, and keeps the seed and the time limit', async () => {
    const asked: AccuracyCase[] = [];
    const seen: number[] = [];
    const suite = (seed: number) =>
      collect({
        attention: (q, k, v, {scale}) => {
          seen.push(q.dataSync()[0] as number);
          return plain(q, k, v, scale);
        },
        cases: [small, {...small, distribution: 'peaky'}],
        tolerances: (c) => {
          asked.push(c);
          return {cosine: 0.9};
        },
        seed,
        timeoutMs: 77,
      });
    for (const {body, timeoutMs} of [...suite(1), ...suite(2)]) {
      expect(timeoutMs).toBe(77);
      await body();
    }
    expect(asked.map(({distribution}) => distribution)).toEqual([
      'normal',
      'peaky',
      'normal',
      'peaky',
    ]);
    expect(seen[1]).toBeCloseTo(4 * (seen[0] as number), 5);
    expect(seen[2]).not.toBe(seen[0]);
  });

  it('runs all cases of the package unless told otherwise', () => {
    const tests = collect({attention: (q) => tf.clone(q)});
    expect(tests.length).toBe(ACCURACY_CASES.length);
    expect(new Set(tests.map(({name}) => name)).size).toBe(tests.length);
    expect(new Set(ACCURACY_CASES.map(({distribution}) => distribution))).toEqual(
      new Set([
        'normal',
        'k_bias',
        'qv_bias',
        'outlier_channels',
        'outlier_tokens',
        'peaky',
        'long',
      ]),
    );
  });
});

test('there is a tolerance for every recipe, wider where the inputs are harder', () => {
  for (const precision of PRECISIONS) {
    const {relativeL1: bound = NaN} = toleranceOf(precision, 'normal');
    expect(bound).toBeGreaterThan(0);
    expect(bound).toBeLessThanOrEqual(0.22);
    expect(toleranceOf(precision, 'outlier_tokens').relativeL1).toBeGreaterThan(bound);
  }
});
