/** Configuration: what it accepts, refuses, returns, and what it reads from the environment. */
import type * as ConfigModule from '../../src/runtime/config';

const environment = process.env;

/** A fresh copy of the module under some environment variables: it reads each once. */
function freshConfig(variables: Record<string, string> = {}): typeof ConfigModule {
  process.env = {
    ...environment,
    SAGE_NUM_THREADS: undefined,
    SAGE_CPU_ISA: undefined,
    SAGE_CUDA_MEMORY: undefined,
    SAGE_CUDA_DEVICE: undefined,
    SAGE_NATIVE_PATH: undefined,
    ...variables,
  };
  const loaded: {config?: typeof ConfigModule} = {};
  jest.isolateModules(() => {
    loaded.config = jest.requireActual<typeof ConfigModule>('../../src/runtime/config');
  });
  const config = loaded.config as typeof ConfigModule;
  try {
    config.sageConfig();
  } catch {
    // Asked again by the test, under the same variables.
  }
  return config;
}

afterEach(() => {
  process.env = environment;
});

function caught(call: () => unknown): Record<string, unknown> {
  try {
    call();
  } catch (error) {
    return error as Record<string, unknown>;
  }
  throw new Error('nothing was thrown');
}

const AUTO = {
  threads: 'auto',
  isa: 'auto',
  engine: 'auto',
  precision: 'auto',
  cudaMemory: 'auto',
};

it('returns the previous values, which restore it', () => {
  const {configureSageAttention, sageConfig, configVersion} = freshConfig();
  const version = configVersion();
  expect(configureSageAttention({threads: 3, precision: 'fp4'})).toEqual(AUTO);
  expect(sageConfig()).toEqual({...AUTO, threads: 3, precision: 'fp4'});
  const before = configureSageAttention({
    isa: 'avx2',
    engine: 'typescript',
    threads: undefined as never,
  });
  expect(sageConfig()).toEqual({
    ...AUTO,
    threads: 3,
    isa: 'avx2',
    engine: 'typescript',
    precision: 'fp4',
  });
  configureSageAttention(before);
  expect(sageConfig()).toEqual({...AUTO, threads: 3, precision: 'fp4'});
  expect(configureSageAttention({threads: 'auto', precision: 'auto'})).toEqual(before);
  expect(sageConfig()).toEqual(AUTO);
  expect(configVersion()).toBeGreaterThan(version);
});

it.each([
  [{threads: 0}, 'threads', 'a positive integer'],
  [{threads: 1.5}, 'threads', '1.5'],
  [{threads: -1}, 'threads', '-1'],
  [{threads: '2'}, 'threads', `'2'`],
  [{threads: NaN}, 'threads', 'NaN'],
  [{threads: null}, 'threads', 'null'],
  [{isa: 'sse2'}, 'isa', `'portable', 'avx2'`],
  [{engine: 'gpu'}, 'engine', `'cuda', 'native'`],
  [{cudaMemory: 0.5}, 'cudaMemory', 'MiB'],
  [{precision: 'int3'}, 'precision', `'exact'`],
  [5, 'options', '`options` is 5'],
  [null, 'options', '`options` is null'],
])('refuses %p', (changes, argument, says) => {
  const {configureSageAttention, sageConfig} = freshConfig();
  const error = caught(() => configureSageAttention(changes as never));
  expect(error).toMatchObject({name: 'SageAttentionError', code: 'invalid-option', argument});
  expect(error['message']).toContain(says);
  expect(sageConfig()).toEqual(AUTO);
});

it.each([
  ['thread', 'threads'],
  ['Threads', 'threads'],
  ['numThreads', 'threads'],
  ['presicion', 'precision'],
])('refuses the unknown key %s', (key, nearest) => {
  const {configureSageAttention} = freshConfig();
  const error = caught(() => configureSageAttention({[key]: 1}));
  expect(error).toMatchObject({code: 'unknown-option', argument: key});
  expect(error['hint']).toBe(`Did you mean \`${nearest}\`?`);
});

it('takes its defaults from the environment', () => {
  const variables = {SAGE_NUM_THREADS: '3', SAGE_CPU_ISA: 'avx2', SAGE_NATIVE_PATH: '/a/b.node'};
  const {sageConfig, nativePathOfEnvironment} = freshConfig(variables);
  expect(sageConfig()).toEqual({...AUTO, threads: 3, isa: 'avx2'});
  expect(nativePathOfEnvironment()).toBe('/a/b.node');
});

it('empty variables are none', () => {
  const {sageConfig, nativePathOfEnvironment} = freshConfig({
    SAGE_NUM_THREADS: '',
    SAGE_CPU_ISA: ' ',
    SAGE_NATIVE_PATH: '',
  });
  expect(sageConfig()).toEqual(AUTO);
  expect(nativePathOfEnvironment()).toBeNull();
});

it.each([
  ['SAGE_NUM_THREADS', '0'],
  ['SAGE_NUM_THREADS', 'four'],
  ['SAGE_NUM_THREADS', '2.5'],
  ['SAGE_NUM_THREADS', '1e2'],
  ['SAGE_NUM_THREADS', '-2'],
  ['SAGE_CPU_ISA', 'AVX2'],
  ['SAGE_CPU_ISA', 'sse4'],
  ['SAGE_CUDA_MEMORY', '0'],
  ['SAGE_CUDA_MEMORY', '4 GB'],
])('refuses %s=%s in words, every time', (name, value) => {
  const {sageConfig} = freshConfig({[name]: value});
  for (let i = 0; i < 2; i += 1) {
    const error = caught(sageConfig);
    expect(error).toMatchObject({code: 'invalid-environment', argument: name});
    expect(error['message']).toContain(`${name} is '${value}'`);
  }
});

it('a configured value overrules a bad variable', () => {
  const {configureSageAttention, sageConfig} = freshConfig({SAGE_NUM_THREADS: 'many'});
  expect(caught(() => configureSageAttention({precision: 'fp4'}))).toMatchObject({
    code: 'invalid-environment',
  });
  configureSageAttention({threads: 2});
  expect(sageConfig()).toEqual({...AUTO, threads: 2});
});

it.each(['0', '12', 'GPU-1a2b3c4d', 'MIG-1A2B', ' 1 '])('takes SAGE_CUDA_DEVICE=%s', (text) => {
  const {cudaDeviceOfEnvironment} = freshConfig({SAGE_CUDA_DEVICE: text});
  expect(cudaDeviceOfEnvironment()).toBe(text.trim());
});

it.each(['-1', 'first', 'GPU-', 'GPU-xyz', '0,1'])('refuses SAGE_CUDA_DEVICE=%s', (text) => {
  const {cudaDeviceOfEnvironment} = freshConfig({SAGE_CUDA_DEVICE: text});
  expect(caught(cudaDeviceOfEnvironment)).toMatchObject({
    code: 'invalid-environment',
    argument: 'SAGE_CUDA_DEVICE',
  });
});

it('takes the limit of device memory from the environment, unless it is configured', () => {
  const {configureSageAttention, sageConfig} = freshConfig({SAGE_CUDA_MEMORY: '512'});
  expect(sageConfig().cudaMemory).toBe(512);
  configureSageAttention({cudaMemory: 64});
  expect(sageConfig().cudaMemory).toBe(64);
  const bad = freshConfig({SAGE_CUDA_MEMORY: 'much'});
  bad.configureSageAttention({cudaMemory: 'auto'});
  expect(bad.sageConfig().cudaMemory).toBe('auto');
});
