/** SageKvCache on the native engine: every instruction set of this machine, codes bit for bit, misuse of the addon. */
import {Worker} from 'node:worker_threads';
import {configureSageAttention, ISAS} from '../../src/runtime/config.js';
import {frozenMean, quantizeCacheKeys, quantizeCacheValues} from '../../src/numerics/kv_cache.js';
import {PROBLEM_WORDS} from '../../src/problem.js';
import {loadAddon} from '../../src/runtime/load_addon.js';
import {useBackend} from '../kernels/backends.js';
import {
  attend,
  appendTokens,
  CACHE_CASES,
  checkCache,
  makeCache,
  makeCacheInputs,
} from '../cache/kv_cache_checks.js';

const loaded = loadAddon();
if (loaded.addon === null) throw new Error('build/Release holds no addon: npm run build:native');
const {addon} = loaded;
const available = addon.capabilities().isa.available.filter((isa): boolean => isa !== 'amx');

const before = configureSageAttention({engine: 'native'});
afterAll(() => configureSageAttention(before));
beforeAll(() => useBackend('cpu'));

describe.each(ISAS.filter((isa) => available.includes(isa)))('%s', (isa) => {
  beforeAll(() => configureSageAttention({isa, threads: 2}));
  afterAll(() => configureSageAttention({isa: 'auto', threads: 'auto'}));
  checkCache();

  test('bits do not depend on the number of threads', () => {
    for (const c of CACHE_CASES.filter(({qLen}) => qLen > 4)) {
      const inputs = makeCacheInputs(c);
      const results = [1, 3].map((threads) => {
        configureSageAttention({threads});
        const cache = makeCache(c, 'int8');
        appendTokens(cache, c, inputs, 0, c.kvLen);
        return attend(cache, c, inputs);
      });
      expect(results[0]).toEqual(results[1]);
    }
  });
});

function sameBytes(a: ArrayBufferView, b: ArrayBufferView): boolean {
  const bytes = (x: ArrayBufferView) => Buffer.from(x.buffer, x.byteOffset, x.byteLength);
  return bytes(a).equals(bytes(b));
}

describe('codes', () => {
  const forms = [
    [1, 'int8'],
    [2, 'int8_int16'],
    [3, 'int16'],
  ] as const;
  test.each(
    CACHE_CASES.flatMap((c) => forms.map(([form, name]) => [c.name, name, form, c] as const)),
  )('%s, %s', (_name, precision, form, c) => {
    const {k, v} = makeCacheInputs(c);
    const {batch, kvHeads, kvLen, headDim, valueDim} = c;
    for (const isa of available) {
      addon.configure({isa, threads: 1});
      const cache = addon.cacheCreate(batch, kvHeads, headDim, valueDim, form, 0);
      addon.cacheAppend(cache, k, v, kvLen);
      for (let head = 0; head < batch * kvHeads; head++) {
        const source = (data: Float32Array, dim: number) => ({
          data,
          offset: head * kvLen * dim,
          tokenStride: dim,
          tokens: kvLen,
          dim,
        });
        const mean = frozenMean(source(k, headDim));
        const keys = quantizeCacheKeys(source(k, headDim), mean, precision);
        const values = quantizeCacheValues(source(v, valueDim), precision);
        const kCodes = new Int16Array(kvLen * headDim);
        const vCodes = new Int16Array(kvLen * valueDim);
        const [kScale, vScale] = [new Float32Array(kvLen), new Float32Array(kvLen)];
        const kMean = new Float32Array(headDim);
        const at = [Math.floor(head / kvHeads), head % kvHeads] as const;
        addon.cacheInspect(cache, ...at, kCodes, kScale, kMean, vCodes, vScale);
        const pairs = [
          [kMean, mean],
          [kScale, keys.scale],
          [kCodes, Int16Array.from(keys.codes)],
          [vScale, values.scale],
          [vCodes, Int16Array.from(values.codes)],
        ] as const;
        expect(pairs.map(([actual, expected]) => sameBytes(actual, expected))).toEqual(
          pairs.map(() => true),
        );
      }
    }
    addon.configure({});
  });
});

describe('the addon refuses', () => {
  const codeOf = (call: () => unknown): unknown => {
    try {
      call();
    } catch (error) {
      return (error as {code?: unknown}).code;
    }
    return 'no error';
  };
  const make = () => addon.cacheCreate(1, 1, 8, 8, 1, 0);
  const floats = (count: number) => new Float32Array(count);

  test.each([
    ['an object that is no cache', () => addon.cacheBytes({} as never)],
    ['null', () => addon.cacheBytes(null as never)],
    ['head_dim 0', () => addon.cacheCreate(1, 1, 0, 8, 1, 0)],
    ['form 4', () => addon.cacheCreate(1, 1, 8, 8, 4, 0)],
    ['a fraction', () => addon.cacheCreate(1, 1.5, 8, 8, 1, 0)],
    ['no number', () => addon.cacheCreate(1, 'x' as never, 8, 8, 1, 0)],
    ['too few keys', () => addon.cacheAppend(make(), floats(7), floats(8), 1)],
    ['more tokens than any array holds', () => addon.cacheAppend(make(), floats(8), floats(8), 2 ** 50)],
    ['truncation to more', () => addon.cacheTruncate(make(), 1)],
    ['a problem of other sizes', () => addon.cacheAttend(make(), new Float64Array(PROBLEM_WORDS), floats(8), null, floats(8), null)],
  ])('%s', (_name, call) => {
    expect(codeOf(call)).toBe('SAGE_INVALID_ARGUMENT');
  });

  test('a disposed cache', () => {
    const cache = make();
    addon.cacheDispose(cache);
    expect(codeOf(() => addon.cacheBytes(cache))).toBe('SAGE_INVALID_ARGUMENT');
  });

  test('codes of a float32 cache', () => {
    const cache = addon.cacheCreate(1, 1, 8, 8, 0, 0);
    const none = new Int16Array(0);
    const call = () =>
      addon.cacheInspect(cache, 0, 0, none, floats(0), floats(8), none, floats(0));
    expect(codeOf(call)).toBe('SAGE_UNSUPPORTED');
  });

  test('an asynchronous call that does not fit', () => {
    const [words, flag] = [new Float64Array(PROBLEM_WORDS), new Uint8Array(1)];
    const call = () =>
      addon.cacheAttendAsync(make(), words, floats(8), null, floats(8), null, flag);
    expect(codeOf(call)).toBe('SAGE_INVALID_ARGUMENT');
  });
});

test('caches in a worker thread, left behind at its end', async () => {
  const path = loaded.attempts[loaded.attempts.length - 1]!.path;
  const worker = new Worker(
    `const addon = require(${JSON.stringify(path)});
     const kept = [];
     for (let n = 0; n < 50; n++) {
       const cache = addon.cacheCreate(1, 2, 64, 64, 1, 300);
       addon.cacheAppend(cache, new Float32Array(2 * 64 * 130).fill(n), new Float32Array(2 * 64 * 130), 130);
       kept.push(cache, addon.cacheFork(cache));
     }
     require('node:worker_threads').parentPort.postMessage(addon.cacheBytes(kept[99]));`,
    {eval: true},
  );
  const bytes = await new Promise((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });
  expect(bytes).toBeGreaterThan(0);
  await worker.terminate();
});
