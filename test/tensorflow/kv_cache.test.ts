/**
 * SageKvCache on backend `tensorflow`: ops on TensorFlow's memory, the checks that every engine passes, the bits of
 * backend `cpu`, and calls of the ops that are wrong.
 */
import * as tf from '@tensorflow/tfjs-core';
import {
  appendTokens,
  attend,
  CACHE_CASES,
  checkCache,
  makeCache,
  makeCacheInputs,
} from '../cache/kv_cache_checks';
import {configureSageAttention, SageKvCache} from '../../src/index';
import {CALL_WORDS} from '../../src/engines/tensorflow_op';
import {loadAddon} from '../../src/runtime/load_addon';
import {plainProblem} from '../../src/problem';
import {encodeProblem, PROBLEM_WORDS, type AttentionProblem} from '../../src/problem';
import {resolveRecipe, type Recipe} from '../../src/numerics/recipes';
import {nodeBackend, opNames} from './op_calls';
import {loadTensorflowBackend} from './tensorflow_backend';

/** The attend op's call is that of the attention op and two words for the cache. */
const LONGER_CALL = new RegExp(`expected int32 \\[${CALL_WORDS + 2}\\]`);

const {addon} = loadAddon();
if (addon === null) throw new Error('build/Release holds no addon: npm run build:native');

beforeAll(async () => {
  loadTensorflowBackend();
  await tf.setBackend('tensorflow');
});

/** Calls of the ops' kernels while `run` runs. */
function kernelCalls(run: () => void): number {
  const {calls} = addon!.tensorflowTrace();
  run();
  return addon!.tensorflowTrace().calls - calls;
}

describe('inside TensorFlow', () => {
  checkCache();

  test('every call is one op', () => {
    const c = CACHE_CASES.find(({mask}) => mask === 'bool')!;
    const inputs = makeCacheInputs(c);
    const cache = makeCache(c, 'int8');
    expect(kernelCalls(() => appendTokens(cache, c, inputs, 0, c.kvLen))).toBe(1);
    expect(kernelCalls(() => attend(cache, c, inputs))).toBe(1);
    expect(cache.engine).toBe('native');
    cache.dispose();
    configureSageAttention({engine: 'typescript'});
    const portable = makeCache(c, 'int8');
    expect(kernelCalls(() => appendTokens(portable, c, inputs, 0, c.kvLen))).toBe(0);
    configureSageAttention({engine: 'auto'});
  });

  test('denormal numbers are what they are on backend cpu', () => {
    const cache = new SageKvCache({batch: 1, heads: 1, headDim: 2, precision: 'exact'});
    const tiny = 1e-40;
    cache.append(tf.ones([1, 1, 1, 2]), tf.fill([1, 1, 1, 2], tiny));
    expect(cache.attend(tf.ones([1, 1, 1, 2])).dataSync()[0]).toBe(Math.fround(tiny));
    cache.dispose();
  });

  test('the bits of backend cpu, and one cache for both', async () => {
    for (const c of CACHE_CASES) {
      const inputs = makeCacheInputs(c);
      const caches = [makeCache(c, 'int8'), makeCache(c, 'int8')] as const;
      const results = [];
      for (const [n, backend] of (['tensorflow', 'cpu'] as const).entries()) {
        await tf.setBackend(backend);
        appendTokens(caches[n]!, c, inputs, 0, c.kvLen);
      }
      for (const backend of ['tensorflow', 'cpu'] as const) {
        await tf.setBackend(backend);
        for (const cache of caches) results.push(attend(cache, c, inputs));
      }
      for (const result of results) expect(result).toEqual(results[0]);
      for (const cache of caches) cache.dispose();
    }
    await tf.setBackend('tensorflow');
  });
});

describe('an op that is called wrongly answers with an error', () => {
  const cacheNames = () => opNames().cache!;
  const sizes = {batch: 1, heads: 2, kvHeads: 1, headDim: 4, valueDim: 3};
  let number = 0;
  let cache: ReturnType<typeof addon.cacheCreate>;
  beforeAll(() => {
    cache = addon.cacheCreate(1, 1, 4, 3, 1, 0);
    addon.cacheAppend(cache, new Float32Array(20).fill(1), new Float32Array(15).fill(2), 5);
    number = addon.cacheNumber(cache);
  });

  const append = ({
    words = [number, 0, 0, 1],
    k = tf.ones([1, 1, 2, 4]),
    v = tf.ones([1, 1, 2, 3]),
  }) =>
    nodeBackend().executeMultipleOutputs(
      cacheNames().append,
      [],
      [tf.tensor1d(words, 'int32'), k, v],
      1,
    );

  function attendWith({
    changes = {} as Partial<AttentionProblem>,
    of = number,
    q = tf.ones([1, 2, 1, 4]),
    name = cacheNames().plain,
    outputs = 1,
    length = CALL_WORDS + 2,
  }) {
    const plain = plainProblem(1, resolveRecipe('exact', {}) as Recipe);
    const strides = (heads: number, tokens: number, dim: number) => ({
      batch: heads * tokens * dim,
      head: tokens * dim,
      token: dim,
    });
    const problem: AttentionProblem = {
      ...plain,
      batch: 1,
      qHeads: sizes.heads,
      kvHeads: 1,
      qLen: 1,
      kvLen: 5,
      qkDim: 4,
      vDim: 3,
      q: strides(2, 1, 4),
      k: strides(1, 5, 4),
      v: strides(1, 5, 3),
      o: strides(2, 1, 3),
      ...changes,
    };
    const words = new Int32Array(CALL_WORDS + 2);
    encodeProblem(problem, new Float64Array(words.buffer, 0, PROBLEM_WORDS));
    words.set([0, 1, of, 0], CALL_WORDS - 2);
    const call = tf.tensor1d(words.subarray(0, length), 'int32');
    return nodeBackend().executeMultipleOutputs(name, [], [call, q], outputs);
  }

  const message = (call: () => unknown): string => {
    try {
      tf.tidy(() => void call());
    } catch (error) {
      return (error as Error).message;
    }
    return 'no error';
  };

  test('right calls are answered', () => {
    const [o] = attendWith({});
    expect(o!.shape).toEqual([1, 2, 1, 3]);
    expect([...o!.dataSync()]).toEqual(new Array(6).fill(2));
    const [done] = append({});
    expect(done!.shape).toEqual([0]);
    addon.cacheTruncate(cache, 5);
  });

  test.each<[string, () => unknown, RegExp]>([
    ['append: another number', () => append({words: [number + 99, 0, 0, 1]}), /no such cache/],
    ['append: a large number', () => append({words: [number, 1, 0, 1]}), /no such cache/],
    ['append: call too short', () => append({words: [number, 0, 0]}), /expected int32 \[4\]/],
    ['append: unknown isa', () => append({words: [number, 0, 77, 1]}), /instruction set/],
    ['append: no threads', () => append({words: [number, 0, 0, 0]}), /threads/],
    ['append: k of rank 3', () => append({k: tf.ones([1, 2, 4])}), /k: its shape/],
    ['append: k of rank 5', () => append({k: tf.ones([1, 1, 2, 4, 1])}), /k: its shape/],
    ['append: k of other heads', () => append({k: tf.ones([1, 2, 2, 4])}), /k: its shape/],
    ['append: v of other tokens', () => append({v: tf.ones([1, 1, 3, 3])}), /tokens of k/],
    ['append: k of int32', () => append({k: tf.ones([1, 1, 2, 4], 'int32')}), /float/],
    ['attend: another number', () => attendWith({of: 0}), /no such cache/],
    ['attend: call too short', () => attendWith({length: CALL_WORDS}), LONGER_CALL],
    ['attend: another length', () => attendWith({changes: {kvLen: 4}}), /sizes/],
    ['attend: q too short', () => attendWith({q: tf.ones([1, 2, 1, 3])}), /q: /],
    ['attend: q of rank 3', () => attendWith({q: tf.ones([2, 1, 4])}), /q: its shape/],
    ['attend: lse not asked for', () => attendWith({name: cacheNames().lse, outputs: 2}), /lse/],
    [
      'attend: a mask that is not there',
      () => attendWith({changes: {maskKind: 'boolean'}}),
      /mask/,
    ],
    [
      'attend: strides beyond o',
      () => attendWith({changes: {o: {batch: 600, head: 300, token: 3}}}),
      /o: its strides/,
    ],
  ])('%s', (_name, call, expected) => {
    expect(message(call)).toMatch(expected);
  });

  test('a cache that was disposed', () => {
    const gone = addon.cacheCreate(1, 1, 4, 3, 1, 0);
    const of = addon.cacheNumber(gone);
    expect(addon.cacheNumber(gone)).toBe(of);
    addon.cacheDispose(gone);
    expect(message(() => attendWith({of}))).toMatch(/no such cache/);
    expect(message(() => append({words: [of, 0, 0, 1]}))).toMatch(/no such cache/);
  });
});
