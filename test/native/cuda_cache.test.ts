/**
 * SageKvCache with the engine `cuda` on whatever machine this is: why the CPU holds a cache, and that a cache which the
 * GPU gives up goes on there with its tokens. The failures are put in front of the real addon; tokens of the GPU that is
 * made up are held by the addon's own cache.
 */
import type * as IndexModule from '../../src/index.js';
import type * as CudaModule from '../../src/engines/cuda.js';
import type * as LoaderModule from '../../src/runtime/load_addon.js';
import {loadAddon} from '../../src/runtime/load_addon.js';
import type {CudaCache, NativeAddon, NativeCache} from '../../src/runtime/native_addon.js';
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';

const {addon} = loadAddon();
if (addon === null) throw new Error('build/Release holds no addon: npm run build:native');
const real: NativeAddon = addon;

interface Fresh {
  readonly index: typeof IndexModule;
  readonly cuda: typeof CudaModule;
}

/** Fresh modules with engine `cuda`; `changes` stand in front of the addon's functions. */
async function withAddon(
  changes: Partial<NativeAddon>,
  use: (fresh: Fresh) => void | Promise<void>,
): Promise<void> {
  await jest.isolateModulesAsync(async () => {
    jest.doMock('../../src/runtime/load_addon.js', () => ({
      ...jest.requireActual<typeof LoaderModule>('../../src/runtime/load_addon.js'),
      loadAddon: () => ({addon: {...real, ...changes}, attempts: []}),
    }));
    jest.doMock('@tensorflow/tfjs-core', () => tf);
    const index = await import('../../src/index.js');
    const cuda = await import('../../src/engines/cuda.js');
    await tf.setBackend('cpu');
    index.configureSageAttention({engine: 'cuda'});
    await use({index, cuda});
    index.configureSageAttention({engine: 'auto'});
  });
  jest.dontMock('../../src/runtime/load_addon.js');
  jest.dontMock('@tensorflow/tfjs-core');
}

const NO_ROOM = {code: 'SAGE_OUT_OF_MEMORY', message: 'the device has no room'};
const LOST = {code: 'SAGE_INTERNAL', message: 'CUDA failed: the device is lost'};

const onHost = (cache: CudaCache): NativeCache => cache as unknown as NativeCache;
const onDevice = (cache: NativeCache): CudaCache => cache as unknown as CudaCache;

/** A device that computes as the CPU does. Every call of `fails` throws what it returns, unless that is null. */
function device(fails: (call: string) => unknown): Partial<NativeAddon> {
  const guarded =
    <A extends readonly unknown[], R>(name: string, call: (...args: A) => R) =>
    (...args: A): R => {
      const error = fails(name);
      if (error !== null) throw error as Error;
      return call(...args);
    };
  const cudaState = (): ReturnType<NativeAddon['cudaState']> => ({
    available: true,
    reason: 'CUDA device 0, made up (sm_90)',
    device: 0,
    failed: false,
    deviceBytes: 0,
    pinnedBytes: 0,
    deviceLimit: 1,
  });
  return {
    cudaChooseDevice: () => null,
    cudaHostSupports: () => null,
    cudaState,
    cudaCacheSupports: () => null,
    cudaCacheCreate: guarded('create', (...sizes) => onDevice(real.cacheCreate(...sizes))),
    cudaCacheAppend: guarded('append', (cache, k, v, n) =>
      real.cacheAppend(onHost(cache), k, v, n),
    ),
    cudaCacheTruncate: guarded('truncate', (cache, n) => real.cacheTruncate(onHost(cache), n)),
    cudaCacheFork: guarded('fork', (cache) => onDevice(real.cacheFork(onHost(cache)))),
    cudaCacheAttend: guarded('attend', (cache, ...rest) =>
      real.cacheAttend(onHost(cache), ...rest),
    ),
    cudaCacheAttendAsync: async (cache, ...rest) => {
      const error = fails('attendAsync');
      if (error !== null) throw error as Error;
      await real.cacheAttendAsync(onHost(cache), ...rest);
    },
    cudaCacheToHost: guarded('toHost', (cache) => real.cacheFork(onHost(cache))),
    cudaCacheBytes: (cache) => real.cacheBytes(onHost(cache)),
    cudaCacheDispose: (cache) => real.cacheDispose(onHost(cache)),
  };
}

const SIZES = {batch: 1, heads: 4, kvHeads: 2, headDim: 8} as const;

/** o after 40 tokens in two appends, a fork, a truncation and a call off the event loop. */
async function story({index}: Fresh) {
  const random = (seed: number, ...shape: [number, number, number, number]) =>
    tf.randomNormal(shape, 0, 1, 'float32', seed) as tf.Tensor4D;
  const cache = new index.SageKvCache(SIZES);
  const first = cache.engine;
  cache.append(random(1, 1, 2, 30, 8), random(2, 1, 2, 30, 8));
  cache.append(random(3, 1, 2, 10, 8), random(4, 1, 2, 10, 8));
  const q = random(5, 1, 4, 3, 8);
  const o = cache.attend(q).dataSync();
  const fork = cache.fork();
  fork.truncate(20);
  const [short, later] = [fork.attend(q).dataSync(), (await cache.attendAsync(q)).dataSync()];
  const {engine, engineReason, bytes} = cache;
  cache.dispose();
  fork.dispose();
  return {results: [o, short, later], engine, engineReason, first, bytes};
}

let expected: Float32Array[] = [];
beforeAll(async () => {
  await withAddon({}, async (fresh) => {
    fresh.index.configureSageAttention({engine: 'native'});
    expected = (await story(fresh)).results as Float32Array[];
  });
});

test('a device that works is where the tokens are', async () => {
  await withAddon(device(() => null), async (fresh) => {
    const {results, engine, engineReason, first, bytes} = await story(fresh);
    expect([first, engine]).toEqual(['cuda', 'cuda']);
    expect(engineReason).toBe('in the memory of CUDA device 0, made up (sm_90), as configured');
    expect(bytes).toBeGreaterThan(0);
    expect(results).toEqual(expected);
    expect(fresh.cuda.lastCudaRefusal()).toBeNull();
  });
});

test.each(['append', 'attend', 'fork'])('no room from the second %s on: the CPU goes on', async (at) => {
  let calls = 0;
  const fails = (call: string) => (call === at && ++calls > (at === 'append' ? 1 : 0) ? NO_ROOM : null);
  await withAddon(device(fails), async (fresh) => {
    const {results, engine, engineReason, first} = await story(fresh);
    expect([first, engine]).toEqual(['cuda', 'native']);
    expect(engineReason).toContain('moved there from the GPU: the device has no room');
    expect(results).toEqual(expected);
    expect(fresh.cuda.lastCudaRefusal()).toBe(NO_ROOM.message);
  });
});

test('no room in a call off the event loop', async () => {
  await withAddon(device((call) => (call === 'attendAsync' ? NO_ROOM : null)), async (fresh) => {
    const {results, engine} = await story(fresh);
    // The call attends through a fork, which has moved; the cache itself tries again.
    expect(engine).toBe('cuda');
    expect(results).toEqual(expected);
  });
});

test('no room for the cache itself', async () => {
  await withAddon(device((call) => (call === 'create' ? NO_ROOM : null)), async (fresh) => {
    const {results, first, engineReason} = await story(fresh);
    expect(first).toBe('native');
    expect(engineReason).toMatch(/not on a GPU: the device has no room$/);
    expect(results).toEqual(expected);
  });
});

test('a precision and a shape that the device has not', async () => {
  const cudaCacheSupports: NativeAddon['cudaCacheSupports'] = (...[, , , , form]) =>
    form === 1 ? null : 'int8 codes only';
  await withAddon({...device(() => null), cudaCacheSupports}, ({index}) => {
    const cache = new index.SageKvCache({...SIZES, precision: 'int16'});
    expect(cache.engine).toBe('native');
    expect(cache.engineReason).toMatch(/not on a GPU: int8 codes only$/);
  });
});

test('a lost device: an error that says what is lost, and the next engine for new caches', async () => {
  let lost = false;
  const fails = () => (lost ? LOST : null);
  const cudaCacheSupports = (): string | null => (lost ? LOST.message : null);
  await withAddon({...device(fails), cudaCacheSupports}, ({index}) => {
    const cache = new index.SageKvCache(SIZES);
    const token = tf.ones([1, 2, 1, 8]);
    cache.append(token, token);
    lost = true;
    expect(() => cache.append(token, token)).toThrow(
      expect.objectContaining({
        code: 'engine-failed',
        message: expect.stringContaining('are lost: CUDA failed: the device is lost') as string,
      }),
    );
    expect(cache.length).toBe(1);
    cache.dispose();
    const next = new index.SageKvCache(SIZES);
    next.append(token, token);
    expect(next.engine).toBe('native');
    expect(next.engineReason).toMatch(/not on a GPU: CUDA failed: the device is lost$/);
    next.dispose();
  });
});

test('an addon from before there was such a cache', async () => {
  const old = {...device(() => null), cudaCacheSupports: undefined} as unknown as NativeAddon;
  await withAddon(old, ({index}) => {
    const cache = new index.SageKvCache(SIZES);
    expect([cache.engine, cache.engineReason]).toEqual([
      'native',
      expect.stringContaining('built before there was such a cache'),
    ]);
  });
});

test('this machine: a cache whatever it has, and why there', async () => {
  await withAddon({}, async (fresh) => {
    const {results, engine, engineReason} = await story(fresh);
    expect(engine).toMatch(/^(cuda|native)$/);
    if (engine === 'native') expect(engineReason).toMatch(/not on a GPU: \S/);
    if (engine === 'native') expect(results).toEqual(expected);
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
  test.each([
    ['an object that is no cache', () => real.cudaCacheBytes({} as never)],
    ['a cache of the CPU', () => real.cudaCacheBytes(real.cacheCreate(1, 1, 8, 8, 1, 0) as never)],
    ['a fraction', () => real.cudaCacheCreate(1, 1.5, 8, 8, 1, 0)],
    ['form 4', () => real.cudaCacheSupports(1, 1, 8, 8, 4, 0)],
  ])('%s', (_name, call) => {
    expect(codeOf(call)).toBe('SAGE_INVALID_ARGUMENT');
  });

  test('a cache where there is no device, with the reason of the engine', () => {
    const {available, reason} = real.cudaState();
    if (available || real.cudaChooseDevice('') === null) return;
    expect(real.cudaCacheSupports(1, 1, 8, 8, 1, 0)).toBe(reason);
    expect(codeOf(() => real.cudaCacheCreate(1, 1, 8, 8, 1, 0))).toBe('SAGE_UNSUPPORTED');
  });
});
