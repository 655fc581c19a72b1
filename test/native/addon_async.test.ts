/** Asynchronous calls: results, cancelling, other calls meanwhile, other JavaScript threads, and the process' end. */
import {spawnSync} from 'node:child_process';
import {Worker} from 'node:worker_threads';
import {resolveRecipe, type Recipe} from '../../src/numerics/recipes.js';
import {encodeProblem, PROBLEM_WORDS} from '../../src/problem.js';
import {loadAddon} from '../../src/runtime/load_addon.js';
import {Random} from '../cases.js';

const {addon, attempts} = loadAddon();
if (addon === null) throw new Error('build/Release holds no addon: npm run build:native');
const file = attempts.at(-1)!.path!;

interface Call {
  readonly words: Float64Array;
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
}

/** A call of one batch, `heads` heads, `length` tokens and head_dim 64. */
function makeCall(heads: number, length: number, seed: number): Call {
  const random = new Random(seed);
  const make = (): Float32Array =>
    Float32Array.from({length: heads * length * 64}, () => random.normal());
  const strides = {batch: heads * length * 64, head: length * 64, token: 64};
  const words = encodeProblem(
    {
      batch: 1,
      qHeads: heads,
      kvHeads: heads,
      qLen: length,
      kvLen: length,
      qkDim: 64,
      vDim: 64,
      q: strides,
      k: strides,
      v: strides,
      o: strides,
      scale: 1 / 8,
      causal: 'none',
      windowLeft: -1,
      windowRight: -1,
      maskKind: 'none',
      mask: {batch: 0, head: 0, query: 0, key: 0},
      wantLse: false,
      recipe: resolveRecipe('exact', {}) as Recipe,
    },
    new Float64Array(PROBLEM_WORDS),
  );
  return {words, q: make(), k: make(), v: make()};
}

function run({words, q, k, v}: Call): Float32Array {
  const o = new Float32Array(q.length);
  addon!.forward(words, q, k, v, null, o, null);
  return o;
}

async function runAsync({words, q, k, v}: Call, cancelled = new Uint8Array(1)): Promise<Float32Array> {
  const o = new Float32Array(q.length);
  await addon!.forwardAsync(words, q, k, v, null, o, null, cancelled);
  return o;
}

/** The bits as one string: jest compares long arrays element by element, which takes longer than attention does. */
const bits = (x: Float32Array): string =>
  Buffer.from(x.buffer, x.byteOffset, x.byteLength).toString('base64');

/** A program for a bare Node or a worker: `addon`, and `call(heads, length)` = arguments of forward. */
const PRELUDE = `
const addon = require(${JSON.stringify(file)});
const base = ${JSON.stringify([...makeCall(1, 1, 1).words])};
function call(heads, length) {
  const words = Float64Array.from(base);
  const n = heads * length * 64;
  words.set([heads, heads, length, length], 2);
  for (const at of [8, 11, 14, 17]) words.set([n, length * 64, 64], at);
  const q = Float32Array.from({length: n}, (_, i) => Math.sin(i));
  return [words, q, q, q, null, new Float32Array(n), null];
}
`;

beforeAll(() => {
  addon.configure({threads: 2});
});

describe('forwardAsync', () => {
  test.each([1, 17, 127, 129])('%i tokens: the bits of the synchronous call', async (length) => {
    const call = makeCall(2, length, length);
    expect(bits(await runAsync(call))).toBe(bits(run(call)));
  });

  test('the words may be used again at once', async () => {
    const call = makeCall(2, 129, 5);
    const words = call.words.slice();
    const expected = run(call);
    const pending = runAsync({...call, words});
    words.fill(0);
    expect(bits(await pending)).toBe(bits(expected));
  });

  test('arrays that nobody else holds stay alive', async () => {
    const expected = run(makeCall(2, 129, 7));
    const pending = runAsync(makeCall(2, 129, 7));
    for (let i = 0; i < 50; i++) new Float32Array(1e6).fill(NaN);
    expect(bits(await pending)).toBe(bits(expected));
  });

  test('bad arguments throw at once', () => {
    const {words, q, k, v} = makeCall(1, 17, 1);
    const short = (): void => {
      void addon.forwardAsync(words, q.subarray(1), k, v, null, new Float32Array(q.length), null, new Uint8Array(1));
    };
    const noFlag = (): void => {
      void addon.forwardAsync(words, q, k, v, null, new Float32Array(q.length), null, new Uint8Array(0));
    };
    expect(short).toThrow('q: the array is too short');
    expect(noFlag).toThrow('cancelled: the array is too short');
  });

  test('many at a time, and synchronous calls between them', async () => {
    const calls = Array.from({length: 12}, (_, i) => makeCall(1 + (i % 3), 100 + i, i));
    const expected = calls.map(run).map(bits);
    for (let round = 0; round < 5; round++) {
      const pending = calls.map((call) => runAsync(call));
      expect(calls.map(run).map(bits)).toEqual(expected);
      expect((await Promise.all(pending)).map(bits)).toEqual(expected);
    }
  });

  test('a flag set beforehand or on the way rejects with SAGE_CANCELLED', async () => {
    const big = makeCall(8, 1024, 3);
    await expect(runAsync(big, Uint8Array.of(1))).rejects.toMatchObject({code: 'SAGE_CANCELLED'});
    const flag = new Uint8Array(1);
    const pending = runAsync(big, flag);
    flag[0] = 1;
    await expect(pending).rejects.toMatchObject({code: 'SAGE_CANCELLED'});
  });
});

describe('threads of JavaScript', () => {
  const startWorker = (program: string): Worker => new Worker(PRELUDE + program, {eval: true});

  test('four workers and this one compute at the same time', async () => {
    const workers = Array.from({length: 4}, () =>
      startWorker(`
        const {parentPort} = require('node:worker_threads');
        const results = new Set();
        for (let i = 0; i < 200; i++) {
          const args = call(2, 65);
          addon.configure({threads: 1 + (i % 3)});
          addon.forward(...args);
          results.add(Buffer.from(args[5].buffer).toString('base64'));
        }
        parentPort.postMessage([...results]);
      `),
    );
    const answers = workers.map(
      (worker) =>
        new Promise<string[]>((resolve, reject) => {
          worker.once('message', resolve);
          worker.once('error', reject);
        }),
    );
    const here = makeCall(2, 65, 1);
    const expected = bits(run(here));
    for (let i = 0; i < 200; i++) expect(bits(run(here))).toBe(expected);
    const results = await Promise.all(answers);
    await Promise.all(workers.map((worker) => worker.terminate()));
    expect(results.map((different) => different.length)).toEqual([1, 1, 1, 1]);
    expect(new Set(results.flat()).size).toBe(1);
    // What workers configure is theirs.
    expect(addon.capabilities().threads.chosen).toBe(2);
  });

  test.each([0, 5, 20])('a worker is terminated %i ms into its calls', async (delayMs) => {
    const worker = startWorker(`
      for (let i = 0; i < 6; i++) addon.forwardAsync(...call(8, 1025), new Uint8Array(1));
      require('node:worker_threads').parentPort.postMessage('started');
    `);
    await new Promise((resolve) => worker.once('message', resolve));
    await new Promise((resolve) => setTimeout(resolve, delayMs));
    await worker.terminate();
    // The addon goes on serving.
    const call = makeCall(1, 17, 2);
    expect(bits(run(call))).toBe(bits(await runAsync(call)));
  });
});

describe('the process ends', () => {
  const start = (program: string): {status: number | null; signal: string | null; stdout: string} =>
    spawnSync(process.execPath, ['-e', program], {encoding: 'utf8', timeout: 10_000});

  test('by itself, with the pool started', () => {
    const child = start(`${PRELUDE}
      addon.configure({threads: 3});
      addon.forward(...call(4, 129));
      console.log(addon.capabilities().threads.started);
    `);
    expect(child).toMatchObject({status: 0, signal: null, stdout: '2\n'});
  });

  test('by itself, after the last asynchronous call', () => {
    const child = start(`${PRELUDE}
      addon.forwardAsync(...call(4, 129), new Uint8Array(1)).then(() => console.log('done'));
    `);
    expect(child).toMatchObject({status: 0, signal: null, stdout: 'done\n'});
  });

  test('by process.exit in the middle of a call', () => {
    const child = start(`${PRELUDE}
      addon.configure({threads: 2});
      addon.forwardAsync(...call(8, 1024), new Uint8Array(1));
      setTimeout(() => process.exit(7), 5);
    `);
    expect(child).toMatchObject({status: 7, signal: null});
  });

  test('after a worker that alone had loaded the addon', () => {
    const inWorker = `${PRELUDE} addon.configure({threads: 3}); addon.forward(...call(4, 129));`;
    const child = start(`
      const {Worker} = require('node:worker_threads');
      const worker = new Worker(${JSON.stringify(inWorker)}, {eval: true});
      // Node has unloaded the addon by now; the pool's threads must not miss their code.
      worker.once('exit', (code) => setTimeout(() => console.log('worker ended', code), 100));
    `);
    expect(child).toMatchObject({status: 0, signal: null, stdout: 'worker ended 0\n'});
  });
});
