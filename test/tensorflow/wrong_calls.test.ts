/** Ops that are called wrongly answer with an error of TensorFlow: nothing is read or written outside, nothing ends. */
import * as tf from '@tensorflow/tfjs-core';
import {chooseEngine} from '../../src/engines/choose_engine';
import {CALL_WORDS} from '../../src/engines/tensorflow_op';
import {sageAttention, SageAttentionError} from '../../src/index';
import {asAttributes, SageAttention} from '../../src/kernels/kernel_names';
import {PROBLEM_WORDS, type AttentionProblem} from '../../src/problem';
import {expectNothingLeft} from '../memory_growth';
import {loadTensorflowBackend} from './tensorflow_backend';
import {callTensor, callValues, nodeBackend, opNames, smallProblem} from './op_calls';

const WRONG_LENGTH = new RegExp(`expected int32 \\[${CALL_WORDS}\\]`);

beforeAll(async () => {
  loadTensorflowBackend();
  await tf.setBackend('tensorflow');
  expect(sageAttention([[1]], [[1]], [[1]]).dataSync()[0]).toBeCloseTo(1, 2);
});

const Q = [2, 5, 4];
const K = [2, 7, 4];
const V = [2, 7, 3];

function message(call: () => unknown): string {
  try {
    tf.tidy(() => {
      call();
    });
  } catch (error) {
    return (error as Error).message;
  }
  return 'no error';
}

/** Calls the plain op; fields left out are right. */
function forward({
  call = callTensor(smallProblem()),
  q = tf.ones(Q),
  k = tf.ones(K),
  v = tf.ones(V),
  name = opNames().plain,
  outputs = 1,
}: Partial<Record<'call' | 'q' | 'k' | 'v', tf.Tensor>> & {name?: string; outputs?: number}) {
  return nodeBackend().executeMultipleOutputs(name, [], [call, q, k, v], outputs);
}

const problem = (changes: Partial<AttentionProblem>) => callTensor(smallProblem(changes));

it('a right call is answered', () => {
  const [o] = tf.tidy(() => forward({}));
  expect(o?.shape).toEqual([2, 5, 3]);
  expect([...(o?.dataSync() ?? [])]).toEqual(new Array(30).fill(1));
});

it.each<[string, () => unknown, RegExp]>([
  ['call of float32', () => forward({call: tf.zeros([CALL_WORDS])}), /int32/],
  ['call too short', () => forward({call: tf.zeros([CALL_WORDS - 1], 'int32')}), WRONG_LENGTH],
  ['call too long', () => forward({call: tf.zeros([CALL_WORDS + 1], 'int32')}), WRONG_LENGTH],
  ['call empty', () => forward({call: tf.zeros([0], 'int32')}), WRONG_LENGTH],
  ['call of zeros', () => forward({call: tf.zeros([CALL_WORDS], 'int32')}), /another version/],
  ['unknown isa', () => forward({call: callTensor(smallProblem(), {isa: 5})}), /instruction set/],
  ['negative isa', () => forward({call: callTensor(smallProblem(), {isa: -1})}), /instruction set/],
  ['no threads', () => forward({call: callTensor(smallProblem(), {threads: 0})}), /threads/],
  [
    'many threads',
    () => forward({call: callTensor(smallProblem(), {threads: 2 ** 30})}),
    /threads/,
  ],
  ['q too short', () => forward({q: tf.ones([2, 4, 4])}), /q: .*\[2,4,4\] is too short/],
  ['q too long', () => forward({q: tf.ones([2, 6, 4])}), /q: its shape/],
  ['q flat', () => forward({q: tf.ones([40])}), /q: its shape/],
  ['q of rank 5', () => forward({q: tf.ones([1, 1, 2, 5, 4])}), /q: its shape/],
  ['q a scalar', () => forward({q: tf.scalar(1)}), /q: .*too short/],
  ['q empty', () => forward({q: tf.zeros([0, 5, 4])}), /q: .*too short/],
  ['q of another head_dim', () => forward({q: tf.ones([4, 5, 2])}), /q: its shape/],
  ['q of int32', () => forward({q: tf.ones(Q, 'int32')}), /expected to be a float tensor/],
  ['k too short', () => forward({k: tf.ones([2, 6, 4])}), /k: .*too short/],
  ['v too short', () => forward({v: tf.ones([2, 7, 2])}), /v: .*too short/],
  [
    'an lse that was not announced',
    () => forward({name: opNames().lse, outputs: 2}),
    /lse: this op/,
  ],
  [
    'an lse that has no place',
    () => forward({call: problem({wantLse: true})}),
    /lse: this op is not the problem's/,
  ],
  [
    'lse of a batch, q without one',
    () =>
      forward({
        call: problem({batch: 2, qHeads: 1, kvHeads: 1, wantLse: true}),
        name: opNames().lse,
        outputs: 2,
      }),
    /rank is too low|too short/,
  ],
  [
    'a mask that has no input',
    () => forward({call: problem({maskKind: 'boolean'})}),
    /mask: this op is not the problem's/,
  ],
  [
    'overlapping outputs',
    () => forward({call: problem({o: {batch: 0, head: 0, token: 3}})}),
    /overlap/,
  ],
  [
    'outputs with gaps',
    () => forward({call: problem({o: {batch: 60, head: 30, token: 6}})}),
    /o: its strides/,
  ],
  [
    'strides beyond the end',
    () => forward({call: problem({k: {batch: 0, head: 2 ** 40, token: 4}})}),
    /k: .*too short/,
  ],
  [
    'too few inputs',
    () => nodeBackend().executeMultipleOutputs(opNames().plain, [], [tf.ones(Q)], 1),
    /./,
  ],
  ['too many outputs', () => forward({outputs: 2}), /./],
])('%s', (_, call, expected) => {
  expect(message(call)).toMatch(expected);
});

it.each<[string, tf.DataType, number[], RegExp]>([
  ['a mask of another type', 'float32', [5, 7], /mask: expected bool/],
  ['a mask that is too short', 'bool', [5, 6], /mask: .*too short/],
  ['no mask', 'bool', [0], /mask: .*too short/],
  ['an int32 mask', 'int32', [5, 7], /int32/],
])('%s', (_, dtype, shape, expected) => {
  const masked = smallProblem({
    maskKind: 'boolean',
    mask: {batch: 0, head: 0, query: 7, key: 1},
  });
  const call = () =>
    nodeBackend().executeMultipleOutputs(
      opNames().masked,
      [],
      [callTensor(masked), tf.ones(Q), tf.ones(K), tf.ones(V), tf.ones(shape, dtype)],
      1,
    );
  expect(message(call)).toMatch(expected);
});

describe('gradient', () => {
  type Inputs = Record<'call' | 'q' | 'k' | 'v' | 'mask' | 'o' | 'lse' | 'dO' | 'dLse', tf.Tensor>;
  function backward(changes: Partial<Inputs>, name = opNames().grad, outputs = 3) {
    const inputs: Inputs = {
      call: callTensor(smallProblem()),
      q: tf.ones(Q),
      k: tf.ones(K),
      v: tf.ones(V),
      mask: tf.zeros([0]),
      o: tf.ones([2, 5, 3]),
      lse: tf.ones([2, 5]),
      dO: tf.ones([2, 5, 3]),
      dLse: tf.zeros([0]),
      ...changes,
    };
    return nodeBackend().executeMultipleOutputs(name, [], Object.values(inputs), outputs);
  }

  it('a right call is answered', () => {
    const shapes = tf.tidy(() => backward({}).map(({shape}) => shape));
    expect(shapes).toEqual([Q, K, V]);
  });

  it.each<[string, () => unknown, RegExp]>([
    ['o too short', () => backward({o: tf.ones([2, 4, 3])}), /o: .*too short/],
    ['lse too short', () => backward({lse: tf.ones([2, 4])}), /lse: .*too short/],
    ['dO too short', () => backward({dO: tf.ones([1])}), /dO: .*too short/],
    ['dLse too short', () => backward({dLse: tf.ones([2, 4])}), /dLse: too short/],
    ['q too short', () => backward({q: tf.ones([1, 4])}), /q: .*too short/],
    ['a mask without need', () => backward({mask: tf.ones([1])}), /mask: the problem has none/],
    ['a mask gradient without mask', () => backward({}, opNames().gradMask, 4), /dMask/],
    ['call of zeros', () => backward({call: tf.zeros([CALL_WORDS], 'int32')}), /another version/],
  ])('%s', (_, call, expected) => {
    expect(message(call)).toMatch(expected);
  });

  it('elements between the strides are 0', () => {
    // Keys of a longer cache: 7 of 9 tokens a head.
    const longer = smallProblem({k: {batch: 72, head: 36, token: 4}});
    const run = () =>
      tf.tidy(() =>
        backward({call: callTensor(longer), k: tf.randomNormal([2, 9, 4]), q: tf.randomNormal(Q)}),
      );
    if (chooseEngine('tensorflow', 'exact').engine === 'cuda') {
      expect(run).toThrow(/gradients with gaps in their strides/);
      return;
    }
    const [, dK] = run();
    expect(dK?.shape).toEqual([2, 9, 4]);
    const values = dK?.dataSync() ?? [];
    const behind = [...values].filter((x, i) => i % 36 >= 28 && x !== 0);
    expect(behind).toEqual([]);
  });
});

it('words changed at random are an error or a result, never more', () => {
  let state = 12345;
  const next = (below: number) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const special = [0, 1, 2, -1, 3.5, NaN, Infinity, 2 ** 30, 2 ** 31, 2 ** 53, 1e300, -1e-300];
  let refused = 0;
  const q = tf.ones(Q);
  const k = tf.ones(K);
  const v = tf.ones(V);
  const right = callValues(smallProblem());
  for (let round = 0; round < 3000; round++) {
    const values = right.slice();
    const words = new Float64Array(values.buffer, 0, PROBLEM_WORDS);
    const changes = 1 + next(3);
    for (let i = 0; i < changes; i++)
      words[next(PROBLEM_WORDS)] = special[next(special.length)] ?? 0;
    // Lengths up to 2^30 with strides of 0 are valid, and take their time.
    if ([1, 2, 3, 4, 5].some((i) => (words[i] ?? 0) > 1e6)) continue;
    const call = tf.tensor1d(values, 'int32');
    if (message(() => forward({call, q, k, v})) !== 'no error') refused += 1;
    call.dispose();
  }
  tf.dispose([q, k, v]);
  expect(refused).toBeGreaterThan(1000);
});

it('a failure of the op is a SageAttentionError with its words', () => {
  const broken = smallProblem({k: {batch: 0, head: 2 ** 40, token: 4}});
  const run = () =>
    tf
      .engine()
      .runKernel(
        SageAttention,
        {q: tf.ones(Q), k: tf.ones(K), v: tf.ones(V)},
        asAttributes({problem: broken}),
      );
  let error: unknown;
  try {
    tf.tidy(() => {
      run();
    });
  } catch (thrown) {
    error = thrown;
  }
  expect(error).toBeInstanceOf(SageAttentionError);
  expect(error).toMatchObject({code: 'engine-failed', argument: null});
  expect((error as Error).message).toMatch(
    /^sageAttention: engine '(native|cuda)' failed: SageAttention: k: the tensor of shape \[2,7,4\] is too short/,
  );
});

it('nothing is left behind by calls that fail', () => {
  const tensors = [tf.ones(Q), tf.ones(K), tf.ones(V), tf.zeros([CALL_WORDS], 'int32')] as const;
  const [q, k, v, call] = tensors;
  const fail = () => message(() => forward({call, q, k, v}));
  for (let i = 0; i < 1000; i++) fail();
  const {numTensors} = tf.memory();
  expectNothingLeft(7000, fail);
  expect(tf.memory().numTensors).toBe(numTensors);
  tf.dispose([...tensors]);
});
