/** getSageAttentionInfo: complete, plain data, and never an exception. */
import type * as Index from '../../src/index';
import {getSageAttentionInfo, PRECISIONS} from '../../src/index';
import * as tf from '@tensorflow/tfjs-core';

function expectComplete(info: Index.SageAttentionInfo): void {
  expect(info.engines.map(({name}) => name)).toEqual([
    'native',
    'cuda',
    'typescript',
    'composition',
  ]);
  for (const engine of info.engines) {
    expect(Object.keys(engine)).toEqual(['name', 'available', 'reason', 'details']);
    expect(engine.reason.length).toBeGreaterThan(0);
  }
  const {tensorflow} = info;
  expect(Object.keys(tensorflow).sort()).toEqual([
    'cuda',
    'device',
    'devices',
    'gpuRefusal',
    'library',
    'op',
    'reason',
    'streamMode',
    'streamSearch',
    'version',
  ]);
  expect(tensorflow).toMatchObject({
    op: 'not registered',
    version: null,
    library: null,
    device: null,
  });
  expect(tensorflow.reason.length).toBeGreaterThan(0);
  expect(JSON.parse(JSON.stringify(info))).toEqual(info);
}

it('tells all before any backend is there', () => {
  const info = getSageAttentionInfo();
  expectComplete(info);
  expect(info.choices).toHaveLength(5 * (PRECISIONS.length + 1));
  for (const choice of info.choices) {
    expect(Object.keys(choice)).toEqual(['backend', 'precision', 'engine', 'reason']);
  }
});

it('adds the active backend', async () => {
  const {MathBackendCPU} = await import('@tensorflow/tfjs-backend-cpu');
  tf.registerBackend('mine', () => new MathBackendCPU());
  await tf.setBackend('mine');
  const {choices} = getSageAttentionInfo();
  expect(choices.filter(({backend}) => backend === 'mine')).toHaveLength(PRECISIONS.length + 1);
});

it.each([
  [{SAGE_NUM_THREADS: 'many'}, `SAGE_NUM_THREADS is 'many'`],
  [{SAGE_CPU_ISA: 'mmx'}, `SAGE_CPU_ISA is 'mmx'`],
  [{SAGE_NATIVE_PATH: '/nowhere/x.node'}, ''],
  [{SAGE_TENSORFLOW_STREAM: 'fast'}, ''],
])('tells what is wrong with %p', (variables, says) => {
  const before = {...process.env};
  Object.assign(process.env, variables);
  try {
    jest.isolateModules(() => {
      const index = jest.requireActual<typeof Index>('../../src/index');
      const info = index.getSageAttentionInfo();
      expectComplete(info);
      const [native] = info.engines;
      expect(native?.reason).toContain(says);
      if (says !== '') {
        expect(native?.available).toBe(false);
        expect(() => index.sageAttention([[1]], [[1]], [[1]])).toThrow(says);
      }
      expect(info.choices.length).toBeGreaterThan(0);
    });
  } finally {
    process.env = before;
  }
});
