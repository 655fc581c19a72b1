/** Once per process: orders of loading, copies of the addon, worker threads, module registries, and what may be missing. */
import {copyFileSync, mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import type * as Tfjs from '@tensorflow/tfjs';
import type * as Package from '../../src/index';
import type {SageAttentionInfo} from '../../src/index';
import {addonPath, runChild} from './child_process';
import {loadTensorflowBackend} from './tensorflow_backend';

interface Answer {
  readonly values: number[];
  readonly calls: number;
  readonly info: SageAttentionInfo;
}

/** The child's attention: all values of v are 1, so all outputs are. */
const ATTEND = `
const addon = require(process.env.SAGE_NATIVE_PATH);
const attend = (tf, sage) => {
  const q = tf.randomNormal([2, 5, 4]);
  return [...sage.sageAttention(q, q, tf.ones([2, 5, 3]), {precision: 'exact'}).dataSync()];
};
const answer = (tf, sage) => ({
  values: attend(tf, sage),
  calls: addon.tensorflowTrace().calls,
  info: sage.getSageAttentionInfo(),
});
`;

function expectOp({values, calls, info}: Answer): void {
  expect(values.map((x) => Math.abs(x - 1) < 1e-6)).toEqual(new Array(30).fill(true));
  expect(calls).toBe(1);
  expect(info.tensorflow).toMatchObject({
    op: 'registered',
    device: 'CPU',
    library: expect.any(String),
  });
  const row = info.choices.find((c) => c.backend === 'tensorflow' && c.precision === 'exact');
  expect(row).toMatchObject({engine: 'native'});
  expect(row?.reason).toContain(`an op of TensorFlow ${info.tensorflow.version}`);
}

it.each([
  ['TensorFlow first', 'const tf = loadTensorflow(); const sage = loadPackage();'],
  ['the package first', 'const sage = loadPackage(); const tf = loadTensorflow();'],
  [
    'the package first, asked before there is a TensorFlow',
    `const sage = loadPackage();
     const early = sage.getSageAttentionInfo().tensorflow;
     if (early.op !== 'not registered' || !/no TensorFlow/.test(early.reason)) throw new Error(early.reason);
     const tf = loadTensorflow();`,
  ],
  [
    'another backend first',
    `const sage = loadPackage(); const tf = loadTensorflow();
     tf.setBackend('cpu'); attend(tf, sage); tf.setBackend('tensorflow');`,
  ],
])('%s', async (_, load) => {
  expectOp(await runChild<Answer>(`${ATTEND} ${load} report(answer(tf, sage));`));
});

it('a second copy of the addon uses the ops of the first', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'sage-copy-'));
  try {
    const copy = join(folder, 'sage_attention.node');
    copyFileSync(addonPath(), copy);
    const answer = await runChild<Answer & {first: string; calls: number}>(
      `${ATTEND}
       const tf = loadTensorflow();
       const first = require(${JSON.stringify(copy)}).registerTensorflowOp().state;
       const sage = loadPackage();
       const result = answer(tf, sage);
       report({...result, first, calls: require(${JSON.stringify(copy)}).tensorflowTrace().calls});`,
    );
    expect(answer.first).toBe('registered');
    // `calls` are those of the copy.
    expectOp(answer);
  } finally {
    rmSync(folder, {recursive: true});
  }
});

it('copies that register at the same moment, from threads of their own', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'sage-copies-'));
  try {
    const copies = [0, 1, 2, 3].map((i) => {
      const copy = join(folder, `copy_${i}.node`);
      copyFileSync(addonPath(), copy);
      return copy;
    });
    const states = await runChild<string[]>(
      `const {Worker} = require('node:worker_threads');
       loadTensorflow();
       const gate = new Int32Array(new SharedArrayBuffer(4));
       const workers = ${JSON.stringify(copies)}.map((copy) => new Worker(
         \`const {workerData, parentPort} = require('node:worker_threads');
          const addon = require(workerData.copy);
          parentPort.postMessage('ready');
          Atomics.wait(workerData.gate, 0, 0);
          parentPort.postMessage(addon.registerTensorflowOp().state);\`,
         {eval: true, workerData: {copy, gate}}));
       const next = () => Promise.all(workers.map((w) => new Promise((ok) => w.once('message', ok))));
       next().then(() => {
         const answers = next();
         Atomics.store(gate, 0, 1);
         Atomics.notify(gate, 0);
         return answers;
       }).then(report);`,
    );
    expect(states.sort()).toEqual([
      'registered',
      'registered-by-other',
      'registered-by-other',
      'registered-by-other',
    ]);
  } finally {
    rmSync(folder, {recursive: true});
  }
});

it('worker threads and the main thread at once, each with its own settings', async () => {
  const answers = await runChild<{threads: number; sum: number; op: string}[]>(
    `const {Worker} = require('node:worker_threads');
     const body = (threads) => {
       const sage = loadPackage();
       sage.configureSageAttention({threads});
       const tf = loadTensorflow();
       let sum = 0;
       for (let i = 0; i < 50; i++) {
         sum += tf.tidy(() => {
           const q = tf.randomNormal([2, 100, 16], 0, 1, 'float32', i);
           const v = tf.ones([2, 100, 16]);
           const attend = (x) => sage.sageAttention(x, q, v, {precision: 'exact'});
           tf.grad(attend)(q);
           return attend(q).sum().dataSync()[0];
         });
       }
       return {threads, sum, op: sage.getSageAttentionInfo().tensorflow.op};
     };
     const script = \`
       const {parentPort, workerData} = require('node:worker_threads');
       const loadTensorflow = \${loadTensorflow};
       const loadPackage = \${loadPackage};
       const body = \${body};
       parentPort.postMessage(body(workerData));\`;
     const workers = [1, 2, 3].map((threads) => new Promise((resolve, reject) => {
       const worker = new Worker(script, {eval: true, workerData: threads});
       worker.once('message', resolve);
       worker.once('error', reject);
     }));
     const own = body(2);
     Promise.all(workers).then((others) => report([own, ...others]));`,
  );
  expect(answers.map(({threads}) => threads).sort()).toEqual([1, 2, 2, 3]);
  for (const {sum} of answers) expect(Math.abs(sum / (50 * 2 * 100 * 16) - 1)).toBeLessThan(1e-6);
  expect(answers.map(({op}) => op)).toEqual(new Array(4).fill('registered'));
});

it('module registries that are thrown away, as jest does between files', () => {
  // tfjs keeps its kernels beside the registries, and warns of each that comes again.
  const warn = jest.spyOn(console, 'warn').mockImplementation();
  for (let i = 0; i < 3; i++) {
    jest.isolateModules(() => {
      const tf = loadTensorflowBackend();
      const sage = jest.requireActual<typeof Package>('../../src/index');
      expect(tf.getBackend()).toBe('tensorflow');
      const q = tf.randomNormal([1, 5, 4]) as unknown as Tfjs.Tensor3D;
      const o = sage.sageAttention(q, q, tf.ones([1, 5, 3]), {precision: 'exact'});
      expect([...o.dataSync()].every((x) => Math.abs(x - 1) < 1e-6)).toBe(true);
      const {op, reason} = sage.getSageAttentionInfo().tensorflow;
      expect([op, reason]).toEqual(['registered', expect.stringContaining('on the CPU')]);
    });
  }
  warn.mockRestore();
});

describe('without the op, copies on the host serve and the reason is told', () => {
  /** Backend `tensorflow` made of backend cpu: no TensorFlow anywhere. */
  const FAKE = `
    const tf = require('@tensorflow/tfjs');
    const {MathBackendCPU} = require('@tensorflow/tfjs-backend-cpu');
    tf.registerBackend('tensorflow', () => new MathBackendCPU());
    for (const kernel of tf.getKernelsForBackend('cpu')) {
      if (!kernel.kernelName.startsWith('Sage')) tf.registerKernel({...kernel, backendName: 'tensorflow'});
    }`;

  function expectHostCopies({values, calls, info}: Answer, reason: RegExp): void {
    expect(values.map((x) => Math.abs(x - 1) < 1e-6)).toEqual(new Array(30).fill(true));
    expect(calls).toBe(0);
    expect(info.tensorflow.op).toBe('not registered');
    expect(info.tensorflow.reason).toMatch(reason);
    const row = info.choices.find((c) => c.backend === 'tensorflow' && c.precision === 'exact');
    expect(row?.engine).toBe('native');
    expect(row?.reason).toMatch(reason);
  }

  it('no library is loaded', async () => {
    const script = `${ATTEND} ${FAKE} const sage = loadPackage();
      tf.setBackend('tensorflow').then(() => report(answer(tf, sage)));`;
    expectHostCopies(await runChild<Answer>(script), /no TensorFlow library is loaded/);
  });

  it('the backend is not that of tfjs-node', async () => {
    const script = `${ATTEND}
      const tf = loadTensorflow();
      const {MathBackendCPU} = require('@tensorflow/tfjs-backend-cpu');
      const kernels = tf.getKernelsForBackend('cpu');
      tf.removeBackend('tensorflow');
      tf.registerBackend('tensorflow', () => new MathBackendCPU());
      for (const {kernelName} of tf.getKernelsForBackend('tensorflow')) tf.unregisterKernel(kernelName, 'tensorflow');
      for (const kernel of kernels) tf.registerKernel({...kernel, backendName: 'tensorflow'});
      const sage = loadPackage();
      tf.setBackend('tensorflow').then(() => report(answer(tf, sage)));`;
    expectHostCopies(await runChild<Answer>(script), /is not that of @tensorflow\/tfjs-node/);
  });

  it('TensorFlow does not know the op', async () => {
    // As with two TensorFlows in one process: the binding asks the other one.
    const script = `${ATTEND}
      const tf = loadTensorflow();
      const sage = loadPackage();
      const {binding} = tf.backend();
      tf.backend().binding = Object.create(binding, {
        executeOp: {value: (name, ...rest) => binding.executeOp(name.replace(/^SageAttention.*/, 'NoSuchOp'), ...rest)},
      });
      report(answer(tf, sage));`;
    expectHostCopies(await runChild<Answer>(script), /runs on another TensorFlow/);
  });

  it('the addon is older than the op', async () => {
    const script = `
      const addon = require(process.env.SAGE_NATIVE_PATH);
      delete addon.registerTensorflowOp;
      ${ATTEND.replace(/const addon = .*;/, '')}
      const tf = loadTensorflow();
      const sage = loadPackage();
      report(answer(tf, sage));`;
    expectHostCopies(await runChild<Answer>(script), /built before there was such an op/);
  });

  it('the environment asks for a stream mode that does not exist', async () => {
    const {reason, error} = await runChild<{reason: string; error: string}>(
      `const tf = loadTensorflow();
       const sage = loadPackage();
       const {reason} = sage.getSageAttentionInfo().tensorflow;
       let error = null;
       try { sage.sageAttention([[1]], [[1]], [[1]]); } catch (e) { error = e.code; }
       report({reason, error});`,
      {SAGE_TENSORFLOW_STREAM: 'fast'},
    );
    expect(reason).toContain(`SAGE_TENSORFLOW_STREAM is 'fast'`);
    expect(error).toBe('invalid-environment');
  });
});

it('the order of streams can be chosen, and the search for an object behind the context works', async () => {
  const answer = await runChild<{mode: string; way: string; none: string; refused: string}>(
    `const addon = require(process.env.SAGE_NATIVE_PATH);
     const tf = loadTensorflow();
     const sage = loadPackage();
     const attend = () => sage.sageAttention([[1]], [[1]], [[1]]).dataSync();
     attend();
     const {streamMode} = addon.tensorflowTrace();
     const wayTo = (vtable) => {
       addon.probeTensorflow(vtable);
       attend();
       return addon.tensorflowTrace().way;
     };
     let refused = '';
     try { addon.setTensorflowStream('fast'); } catch (error) { refused = error.message; }
     report({mode: streamMode, way: wayTo('_ZTVN10tensorflow12LocalDeviceE') || wayTo('_ZTVN10tensorflow16ThreadPoolDeviceE'),
       none: wayTo('_ZTVN10tensorflow16NoSuchClassAtAllE'), refused});`,
    {SAGE_TENSORFLOW_STREAM: 'tfevent'},
  );
  expect(answer).toMatchObject({mode: 'tfevent', none: ''});
  expect(answer.way).toMatch(/^context\[\d+\] -> params\[\d+\]/);
  expect(answer.refused).toContain('stream mode');
});
