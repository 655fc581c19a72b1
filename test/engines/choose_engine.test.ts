/** The table of engines, row by row, and what the configuration changes about it. */
import * as tf from '@tensorflow/tfjs-core';
import {chooseEngine, engineChoices, engineOf} from '../../src/engines/choose_engine';
import {ENGINE_TABLE, findEngine, type EngineFacts} from '../../src/engines/engine_table';
import type {Engine} from '../../src/engines/engine';
import {typescriptEngine} from '../../src/engines/typescript/typescript_engine';
import {
  configureSageAttention,
  PRECISIONS,
  sageAttention,
  SageAttentionError,
  type EngineName,
  type Precision,
} from '../../src/index';
import {useBackend} from '../kernels/backends';

/** An engine that is asked, never run. */
function engineThat(preferred: Precision, supported: readonly Precision[] = PRECISIONS): Engine {
  return {
    ...typescriptEngine,
    name: 'native',
    preferred,
    supports: (precision) => supported.includes(precision),
  };
}

const withNative: EngineFacts = {
  native: {engine: engineThat('int8_bf16'), reason: 'fast C++'},
  typescript: typescriptEngine,
  cuda: {engine: null, reason: 'no GPU', weigh: () => null},
  tensorflow: null,
  required: 'auto',
};
const opOn = (
  device: 'CPU' | 'GPU' | null,
  precisions: readonly Precision[],
  auto: Precision = 'exact',
): EngineFacts => ({
  ...withNative,
  tensorflow: {
    names: {plain: '', lse: '', masked: '', maskedLse: '', grad: '', gradMask: ''},
    reason: 'an op of TensorFlow',
    device,
    precisions,
    autoOnGpu: () => auto,
  },
});
const withOp = opOn('CPU', PRECISIONS);
const withGpu = opOn('GPU', ['exact']);
const withFasterGpu = opOn('GPU', ['exact', 'int8_fp8'], 'int8_fp8');
/** A GPU that needs 1 ms for anything, beside a native engine that needs `nativeMs`. */
const besideGpu = (nativeMs: number | null, supported: readonly Precision[] = ['exact']) => ({
  ...withNative,
  cuda: {
    engine: {...engineThat('exact', supported), name: 'cuda' as const},
    reason: 'CUDA device 0',
    weigh: () => (nativeMs === null ? null : {cudaMs: 1, nativeMs}),
  },
});
const onGpu = (precision: Precision) => inPlace('cuda', precision);
const withoutOp: EngineFacts = {
  ...withNative,
  tensorflow: {
    names: null,
    reason: 'no TensorFlow',
    device: null,
    precisions: [],
    autoOnGpu: () => 'exact',
  },
};
const withoutNative: EngineFacts = {...withNative, native: {engine: null, reason: 'not built'}};
const requiring = (required: EngineName, facts = withNative): EngineFacts => ({...facts, required});

type Row = [
  what: string,
  facts: EngineFacts,
  backend: string,
  precision: Precision | 'auto',
  expected: {engine: EngineName; precision: Precision; hostCopy: boolean} | null,
  reason: string,
];

const inPlace = (engine: EngineName, precision: Precision) => ({
  engine,
  precision,
  hostCopy: false,
});
const native = (precision: Precision) => inPlace('native', precision);
const copied = (engine: EngineName, precision: Precision) => ({engine, precision, hostCopy: true});

/** Whether they are large is what the facts say. */
const SIZES = {batch: 1, qHeads: 8, kvHeads: 8, qLen: 9, kvLen: 9, qkDim: 64, vDim: 64};

const ROWS: Row[] = [
  ['auto', withNative, 'cpu', 'auto', inPlace('native', 'int8_bf16'), 'fast C++'],
  ['auto', withNative, 'wasm', 'auto', inPlace('native', 'int8_bf16'), 'fast C++'],
  ['a recipe', withNative, 'cpu', 'fp4', inPlace('native', 'fp4'), 'fast C++'],
  ['a GPU', besideGpu(5), 'cpu', 'auto', onGpu('exact'), 'CUDA device 0, copies included'],
  ['a GPU', besideGpu(5), 'wasm', 'exact', onGpu('exact'), 'CUDA device 0'],
  ['a slower GPU', besideGpu(0.5), 'cpu', 'auto', inPlace('native', 'int8_bf16'), 'fast C++'],
  ['a small call', besideGpu(null), 'cpu', 'auto', inPlace('native', 'int8_bf16'), 'fast C++'],
  // What was asked for by name is not exchanged for speed.
  ['a GPU', besideGpu(5), 'cpu', 'int8', inPlace('native', 'int8'), 'fast C++'],
  ['a GPU', besideGpu(5, ['exact', 'int8_fp8']), 'cpu', 'int8_fp8', onGpu('int8_fp8'), 'CUDA'],
  ['required', requiring('cuda', besideGpu(0.5)), 'cpu', 'auto', onGpu('exact'), 'as configured'],
  [
    'required',
    requiring('cuda', besideGpu(null)),
    'wasm',
    'int8',
    onGpu('exact'),
    `'int8' runs as 'exact': no CUDA kernels compute it on this device`,
  ],
  [
    'required',
    requiring('cuda', besideGpu(null)),
    'webgl',
    'auto',
    copied('cuda', 'exact'),
    `q, k, v of backend 'webgl' are copied to the host`,
  ],
  ['required', requiring('cuda', besideGpu(5, [])), 'cpu', 'exact', null, ''],
  ['required', requiring('cuda'), 'cpu', 'exact', null, ''],
  ['another one required', requiring('native', besideGpu(5)), 'cpu', 'exact', native('exact'), 'C'],
  ['auto', withoutNative, 'cpu', 'auto', inPlace('typescript', 'exact'), 'not built'],
  ['a recipe', withoutNative, 'wasm', 'fp4', inPlace('typescript', 'fp4'), 'not built'],
  [
    'a recipe that native lacks',
    {...withNative, native: {engine: engineThat('exact', ['exact']), reason: 'fast C++'}},
    'cpu',
    'fp4',
    inPlace('typescript', 'fp4'),
    'portable TypeScript',
  ],
  [
    'required',
    requiring('typescript'),
    'cpu',
    'auto',
    inPlace('typescript', 'exact'),
    'configured',
  ],
  [
    'required',
    requiring('composition'),
    'cpu',
    'auto',
    inPlace('composition', 'exact'),
    'tfjs ops',
  ],
  ['required', requiring('composition'), 'wasm', 'int8', null, ''],
  ['required', requiring('native', withoutNative), 'cpu', 'exact', null, ''],
  ['the op', withOp, 'tensorflow', 'auto', inPlace('native', 'int8_bf16'), 'fast C++, an op of'],
  ['the op', withOp, 'tensorflow', 'fp4', inPlace('native', 'fp4'), 'an op of TensorFlow'],
  [
    'no backend yet',
    opOn(null, PRECISIONS),
    'tensorflow',
    'exact',
    inPlace('native', 'exact'),
    'op',
  ],
  ['the op', withOp, 'cpu', 'auto', inPlace('native', 'int8_bf16'), 'fast C++'],
  ['on a GPU', withGpu, 'tensorflow', 'auto', inPlace('cuda', 'exact'), 'CUDA kernels, an op of'],
  ['on a GPU', withGpu, 'tensorflow', 'exact', inPlace('cuda', 'exact'), 'CUDA kernels, an op of'],
  ['on a GPU', withGpu, 'tensorflow', 'int8', inPlace('cuda', 'exact'), `'int8' runs as 'exact'`],
  ['on a GPU', withFasterGpu, 'tensorflow', 'int8_fp8', inPlace('cuda', 'int8_fp8'), 'CUDA'],
  ['on a GPU', withFasterGpu, 'tensorflow', 'auto', inPlace('cuda', 'int8_fp8'), 'CUDA kernels'],
  [
    'a GPU, kernels of nothing',
    opOn('GPU', []),
    'tensorflow',
    'int8',
    copied('native', 'int8'),
    'away from the GPU',
  ],
  [
    'required on a GPU',
    requiring('native', withGpu),
    'tensorflow',
    'int8',
    copied('native', 'int8'),
    'away from the GPU, as configured',
  ],
  ['required', requiring('native', withOp), 'tensorflow', 'int8', inPlace('native', 'int8'), 'op'],
  [
    'required',
    requiring('typescript', withOp),
    'tensorflow',
    'int8',
    copied('typescript', 'int8'),
    '',
  ],
  [
    'required',
    requiring('composition', withGpu),
    'tensorflow',
    'auto',
    inPlace('composition', 'exact'),
    'tfjs ops',
  ],
  [
    'no op',
    withoutOp,
    'tensorflow',
    'auto',
    copied('native', 'int8_bf16'),
    'because no TensorFlow',
  ],
  ['auto', withoutNative, 'tensorflow', 'auto', inPlace('composition', 'exact'), 'no kernel'],
  ['auto', withNative, 'webgl', 'auto', inPlace('composition', 'exact'), `'webgl' has no kernel`],
  ['exact', withNative, 'webgpu', 'exact', inPlace('composition', 'exact'), 'blocks of queries'],
  ['a recipe', withNative, 'webgl', 'fp4', copied('native', 'fp4'), 'copied to the host'],
  ['a recipe', withoutNative, 'webgpu', 'fp4', copied('typescript', 'fp4'), 'copied to the host'],
  ['required', requiring('native'), 'webgl', 'auto', copied('native', 'int8_bf16'), 'copied'],
  ['required', requiring('typescript'), 'webgl', 'exact', copied('typescript', 'exact'), 'copied'],
  ['auto', withNative, 'somebody-elses', 'auto', inPlace('composition', 'exact'), 'no kernel'],
];

it.each(ROWS)('%s: %o on %s, %s', (_, facts, backend, precision, expected, reason) => {
  const choice = findEngine({backend, precision, sizes: SIZES}, facts);
  if (expected === null) {
    expect(choice).toBeNull();
    return;
  }
  expect(choice).toMatchObject(expected);
  expect(choice?.reason).toContain(reason);
});

it('every row of the table serves some question', () => {
  const reached = new Set<unknown>();
  for (const [, facts, backend, precision] of ROWS) {
    const choice = findEngine({backend, precision, sizes: SIZES}, facts);
    const reason = choice?.reason.replace(', as configured', '');
    reached.add(ENGINE_TABLE.find((row) => row.reason(facts, backend) === reason));
  }
  expect([...reached].filter(Boolean)).toHaveLength(ENGINE_TABLE.length);
});

describe('configured', () => {
  beforeAll(() => useBackend('cpu'));
  let before: ReturnType<typeof configureSageAttention>;
  beforeEach(() => {
    before = configureSageAttention();
  });
  afterEach(() => {
    configureSageAttention(before);
  });

  it('every engine computes the same on every backend that it serves', async () => {
    const x = Float32Array.from({length: 2 * 9 * 8}, (_, i) => Math.sin(i));
    const outputs: Float32Array[] = [];
    for (const backend of ['cpu', 'wasm']) {
      await useBackend(backend);
      for (const engine of ['native', 'typescript', 'composition'] as const) {
        configureSageAttention({engine});
        expect(chooseEngine(backend, 'exact').engine).toBe(engine);
        const q = tf.tensor(x, [2, 9, 8]);
        const o = sageAttention(q, q, q, {precision: 'exact'});
        outputs.push(o.dataSync() as Float32Array);
        const [gradient] = tf.grads((y) => tf.sum(tf.square(sageAttention(y!, y!, y!))))([q]);
        outputs.push(gradient!.dataSync().map((g) => g / 10) as Float32Array);
        tf.dispose([q, o, gradient!]);
      }
    }
    for (const [i, values] of outputs.entries()) {
      for (const [j, value] of values.entries()) {
        // The gradients' forwards may be quantised; outputs are exact.
        expect(Math.abs(value - (outputs[i % 2]?.[j] ?? NaN))).toBeLessThan(i % 2 ? 0.02 : 1e-6);
      }
    }
  });

  it('a configured precision is what auto means', () => {
    configureSageAttention({precision: 'int8_fp8'});
    const x = tf.tensor(
      Float32Array.from({length: 9 * 16}, (_, i) => Math.sin(i)),
      [9, 16],
    );
    const byDefault = sageAttention(x, x, x).dataSync();
    expect(sageAttention(x, x, x, {precision: 'int8_fp8'}).dataSync()).toEqual(byDefault);
    expect(sageAttention(x, x, x, {precision: 'auto'}).dataSync()).toEqual(byDefault);
    expect(sageAttention(x, x, x, {precision: 'exact'}).dataSync()).not.toEqual(byDefault);
  });

  it('an engine that cannot serve a call is an error, not another engine', () => {
    configureSageAttention({engine: 'composition'});
    const x = tf.zeros([5, 8]);
    let error: unknown;
    try {
      sageAttention(x, x, x, {precision: 'fp4'});
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(SageAttentionError);
    expect(error).toMatchObject({code: 'unsupported-engine', argument: 'engine'});
    expect((error as Error).message).toContain(`engine 'composition' computes 'exact' only`);
  });

  it('the printed table has a row per backend and precision', () => {
    const rows = engineChoices(['cpu', 'webgl']);
    expect(rows).toHaveLength(2 * (PRECISIONS.length + 1));
    expect(rows[0]).toMatchObject({backend: 'cpu', precision: 'auto'});
    expect(rows[0]?.reason).toMatch(/^auto is /);
    configureSageAttention({engine: 'composition'});
    const [row] = engineChoices(['cpu']).filter(({precision}) => precision === 'fp4');
    expect(row?.engine).toBeNull();
  });

  it('composition is no engine on buffers', () => {
    configureSageAttention({engine: 'composition'});
    expect(engineOf(chooseEngine('cpu', 'exact'))).toBeNull();
  });
});
