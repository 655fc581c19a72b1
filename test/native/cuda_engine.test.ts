/**
 * Engine `cuda` on whatever machine this is: reasons in words where there is no GPU, and the native engine behind every
 * failure. Failures that no machine shows on demand are put in front of the real addon.
 */
import type * as Chooser from '../../src/engines/choose_engine.js';
import type * as CudaModule from '../../src/engines/cuda.js';
import type * as ErrorsModule from '../../src/runtime/errors.js';
import type * as IndexModule from '../../src/index.js';
import type * as LoaderModule from '../../src/runtime/load_addon.js';
import {Worker} from 'node:worker_threads';
import {encodeProblem, PROBLEM_WORDS} from '../../src/problem.js';
import {exactAttention} from '../../src/numerics/reference.js';
import {resolveRecipe, type Recipe} from '../../src/numerics/recipes.js';
import {loadAddon} from '../../src/runtime/load_addon.js';
import type {NativeAddon} from '../../src/runtime/native_addon.js';
import {CASES, makeInputs, problemOf} from '../cases.js';

const {addon} = loadAddon();
if (addon === null) throw new Error('build/Release holds no addon: npm run build:native');
const real: NativeAddon = addon;
const available = real.cudaChooseDevice('') === null;

interface Fresh {
  readonly chooser: typeof Chooser;
  readonly cuda: typeof CudaModule;
  readonly errors: typeof ErrorsModule;
  readonly index: typeof IndexModule;
}

/** Fresh modules under some variables; `changes` stand in front of the addon's functions. */
async function withAddon(
  changes: Partial<NativeAddon>,
  variables: Record<string, string>,
  use: (fresh: Fresh) => void | Promise<void>,
): Promise<void> {
  const before = process.env;
  process.env = {...before, ...variables};
  try {
    await jest.isolateModulesAsync(async () => {
      jest.doMock('../../src/runtime/load_addon.js', () => ({
        ...jest.requireActual<typeof LoaderModule>('../../src/runtime/load_addon.js'),
        loadAddon: () => ({addon: {...real, ...changes}, attempts: []}),
      }));
      const index = await import('../../src/index.js');
      const chooser = await import('../../src/engines/choose_engine.js');
      const cuda = await import('../../src/engines/cuda.js');
      const errors = await import('../../src/runtime/errors.js');
      await use({chooser, cuda, errors, index});
    });
  } finally {
    jest.dontMock('../../src/runtime/load_addon.js');
    process.env = before;
  }
}

const withoutGpu = available ? test.skip : test;

withoutGpu('without a GPU: a reason, no engine, and everything as before', async () => {
  await withAddon({}, {}, ({cuda, chooser, errors, index}) => {
    const {engine, reason} = cuda.cudaEngine();
    expect(engine).toBeNull();
    expect(reason).toBe(real.capabilities().cuda.reason);
    expect(cuda.cudaCosts()).toBeNull();
    expect(cuda.releaseCudaMemory()).toBe(0);
    const sizes = {batch: 8, qHeads: 32, kvHeads: 32, qLen: 9999, kvLen: 9999, qkDim: 64, vDim: 64};
    expect(chooser.chooseEngine('cpu', 'exact', sizes).engine).toBe('native');
    index.configureSageAttention({engine: 'cuda'});
    expect(() => chooser.chooseEngine('cpu', 'exact')).toThrow(errors.SageAttentionError);
    expect(() => chooser.chooseEngine('cpu', 'exact')).toThrow(`CUDA is not available: ${reason}`);
    const info = index.getSageAttentionInfo().engines.find(({name}) => name === 'cuda');
    expect(info).toMatchObject({available: false, reason});
  });
});

withoutGpu('a device that is not there is a reason, not an error', async () => {
  await withAddon({}, {SAGE_CUDA_DEVICE: '3'}, ({cuda, chooser}) => {
    expect(cuda.cudaEngine().engine).toBeNull();
    expect(chooser.chooseEngine('cpu', 'auto').engine).toBe('native');
  });
});

test('a name of a device that means nothing is refused', async () => {
  await withAddon({}, {SAGE_CUDA_DEVICE: 'fastest'}, ({chooser, index}) => {
    const refusal = expect.objectContaining({
      code: 'invalid-environment',
      argument: 'SAGE_CUDA_DEVICE',
    }) as Error;
    expect(() => chooser.chooseEngine('cpu', 'auto')).toThrow(refusal);
    const info = index.getSageAttentionInfo().engines.find(({name}) => name === 'cuda');
    expect(info).toMatchObject({available: false});
    expect(info?.reason).toContain(`SAGE_CUDA_DEVICE is 'fastest'`);
  });
});

test('the arguments of the addon are checked before any device is asked', () => {
  const none = new Float32Array(0);
  const words = new Float64Array(3);
  expect(() => real.cudaForward(words, none, none, none, null, none, null)).toThrow('problem');
  const state = real.cudaState();
  expect(typeof state.reason).toBe('string');
  expect(state.reason.length).toBeGreaterThan(0);
  expect(real.cudaDevices()).toHaveLength(real.capabilities().cuda.deviceCount);
});

/** An addon with a GPU: what it computes comes from the native engine. */
function withDevice(changes: Partial<NativeAddon>): Partial<NativeAddon> {
  return {
    cudaChooseDevice: () => null,
    cudaHostSupports: () => null,
    cudaState: () => ({
      available: true,
      reason: 'CUDA device 0, a test',
      device: 0,
      failed: false,
      deviceBytes: 0,
      pinnedBytes: 0,
      deviceLimit: 0,
    }),
    cudaForward: (...call) => real.forward(...call),
    cudaForwardAsync: (...call) => real.forwardAsync(...call),
    cudaBackward: (...call) => real.backward(...call),
    ...changes,
  };
}

const shape = CASES.find((c) => c.name === 'N 17')!;
const problem = problemOf(shape, resolveRecipe('exact', {}) as Recipe);
const inputs = makeInputs(shape, 1);
const expected = exactAttention(problem, inputs.q, inputs.k, inputs.v, null);

function buffers() {
  const {o, lse} = expected;
  return {...inputs, o: new Float32Array(o.length), lse: new Float32Array(lse.length)};
}

function failing(code: string, message: string) {
  return () => {
    throw Object.assign(new Error(message), {code});
  };
}

test.each([
  ['SAGE_OUT_OF_MEMORY', 'the device has no memory left'],
  ['SAGE_UNSUPPORTED', 'CUDA failed, and this process cannot use it again: lost'],
  ['SAGE_INTERNAL', 'an illegal memory access was encountered'],
])('%s: the native engine computes it, and the reason is kept', async (code, message) => {
  const fail = failing(code, message);
  const changes = withDevice({
    cudaForward: fail,
    cudaBackward: fail,
    cudaForwardAsync: () => Promise.reject(Object.assign(new Error(message), {code})),
  });
  await withAddon(changes, {}, async ({cuda}) => {
    const {engine} = cuda.cudaEngine();
    expect(cuda.lastCudaRefusal()).toBeNull();
    for (const run of ['forward', 'forwardAsync'] as const) {
      const out = buffers();
      await engine![run](problem, out);
      for (const [i, x] of out.o.entries()) expect(Math.abs(x - expected.o[i]!)).toBeLessThan(1e-5);
      expect(cuda.lastCudaRefusal()).toBe(message);
    }
    const out = buffers();
    const o = Float32Array.from(expected.o);
    const lse = Float32Array.from(expected.lse);
    const [dQ, dK, dV] = [inputs.q, inputs.k, inputs.v].map(({length}) => new Float32Array(length));
    engine!.backward(problem, {
      ...out,
      o,
      lse,
      dO: o,
      dLse: null,
      dQ: dQ!,
      dK: dK!,
      dV: dV!,
      dMask: null,
    });
    expect(dQ!.some((x) => x !== 0)).toBe(true);
  });
});

test('a mistake of the call is an error, not a reason for another engine', async () => {
  const changes = withDevice({cudaForward: failing('SAGE_INVALID_ARGUMENT', 'q: too short')});
  await withAddon(changes, {}, ({cuda}) => {
    expect(() => cuda.cudaEngine().engine!.forward(problem, buffers())).toThrow(
      'the CUDA engine failed: q: too short',
    );
    expect(cuda.lastCudaRefusal()).toBeNull();
  });
});

test('after a failure of CUDA the engine keeps serving, by the native one', async () => {
  let failed = false;
  const state = withDevice({}).cudaState!;
  const changes = withDevice({
    cudaState: () => ({...state(), available: !failed, failed, reason: failed ? 'lost' : 'here'}),
  });
  await withAddon(changes, {}, ({cuda, chooser, index}) => {
    index.configureSageAttention({engine: 'cuda'});
    expect(chooser.chooseEngine('cpu', 'exact')).toMatchObject({engine: 'cuda', onGpu: false});
    failed = true;
    index.configureSageAttention({cudaMemory: 64});
    expect(cuda.cudaCosts()).toBeNull();
    expect(chooser.chooseEngine('cpu', 'exact').engine).toBe('cuda');
    const info = index.getSageAttentionInfo().engines.find(({name}) => name === 'cuda');
    expect(info).toMatchObject({available: false, reason: 'lost'});
  });
});

test('auto asks the cost model for large calls alone, and measures once', async () => {
  let asked = 0;
  const changes = withDevice({
    // A GPU that needs no time at all.
    cudaForward: () => undefined,
    timeCudaForward: () => {
      asked += 1;
      return [1e-6];
    },
  });
  await withAddon(changes, {}, ({chooser}) => {
    const sizes = (tokens: number) => {
      const [qLen, kvLen] = [tokens, tokens];
      return {batch: 1, qHeads: 16, kvHeads: 16, qLen, kvLen, qkDim: 64, vDim: 64};
    };
    expect(chooser.chooseEngine('cpu', 'auto', sizes(100)).engine).toBe('native');
    expect(asked).toBe(0);
    for (const backend of ['cpu', 'wasm']) {
      const choice = chooser.chooseEngine(backend, 'auto', sizes(4096));
      expect(choice).toMatchObject({engine: 'cuda', precision: 'exact', hostCopy: false});
    }
    expect(asked).toBe(1);
    expect(chooser.chooseEngine('webgl', 'auto', sizes(4096)).engine).toBe('composition');
  });
});

test('the limit of device memory reaches the addon', async () => {
  const limits: number[] = [];
  const changes = withDevice({cudaLimitMemory: (bytes) => void limits.push(bytes)});
  await withAddon(changes, {SAGE_CUDA_MEMORY: '256'}, ({cuda, index}) => {
    cuda.cudaEngine();
    index.configureSageAttention({cudaMemory: 1});
    cuda.cudaEngine();
    index.configureSageAttention({cudaMemory: 'auto'});
    cuda.cudaEngine();
    expect(limits).toEqual([256 * 2 ** 20, 2 ** 20, 0]);
  });
});

/** Asks for the state, computes if it can, and ends without giving anything back. */
const WORKER = `
const {parentPort, workerData} = require('node:worker_threads');
const addon = require(workerData.path);
const {q, words} = workerData;
const o = new Float32Array(q.length);
let code = 'computed';
try {
  addon.cudaForward(words, q, q, q, null, o, null);
} catch (error) {
  code = error.code;
}
parentPort.postMessage({code, o, available: addon.cudaState().available});
`;

test('environments come and go, and the device is one', async () => {
  const {path} = loadAddon().attempts.at(-1)!;
  const words = encodeProblem(
    {...problem, batch: 1, qHeads: 1, kvHeads: 1, wantLse: false},
    new Float64Array(PROBLEM_WORDS),
  );
  const run = () =>
    new Promise<{code: string; available: boolean}>((resolve, reject) => {
      const worker = new Worker(WORKER, {eval: true, workerData: {path, q: inputs.q, words}});
      let answer: {code: string; available: boolean} | null = null;
      worker.on('message', (message: typeof answer) => (answer = message));
      worker.on('error', reject);
      worker.on('exit', () => (answer === null ? reject(new Error('no answer')) : resolve(answer)));
    });
  for (const answers of [await Promise.all([run(), run(), run()]), [await run()]]) {
    for (const answer of answers) {
      expect(answer).toMatchObject({available, code: available ? 'computed' : 'SAGE_UNSUPPORTED'});
    }
  }
  // This environment has computed nothing on the GPU, so the end of the last of those freed what they left.
  expect(real.cudaState()).toMatchObject({available, deviceBytes: 0, pinnedBytes: 0});
});
