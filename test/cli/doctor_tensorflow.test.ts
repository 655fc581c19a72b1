/** What doctor and demo say where tfjs-node is installed and TensorFlow is not. On a real one: test/tensorflow/load.test.ts. */
import {existsSync, mkdtempSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {checkTensorflow, whyNoGpu} from '../../src/cli/doctor_tensorflow.js';
import {run} from './run.js';

const COMMAND = 'npx tfjs-sage-attention setup-tensorflow';

/** Sets variables for one test. */
function withEnvironment(variables: Readonly<Record<string, string>>): void {
  const before = {...process.env};
  Object.assign(process.env, variables);
  restore = () => {
    for (const name of Object.keys(variables)) {
      if (before[name] === undefined) Reflect.deleteProperty(process.env, name);
      else process.env[name] = before[name];
    }
  };
}
let restore = (): void => undefined;
afterEach(() => restore());

it('tfjs-node without a binding: the command that brings one', async () => {
  withEnvironment({SAGE_TENSORFLOW_DIR: '/no/such'});
  const {report, checks} = await checkTensorflow();
  expect(report).toMatchObject({
    tfjsNode: {name: '@tensorflow/tfjs-node', version: '4.22.0'},
    source: 'missing',
    path: null,
    trial: null,
  });
  expect(checks[0]).toMatchObject({name: 'tfjs-node', status: 'warning', fix: COMMAND});
  expect(checks[0]?.message).toContain('has no native binding');
});

it('and what that command would miss', async () => {
  withEnvironment({SAGE_TENSORFLOW_DIR: '/no/such', CXX: '/no/such/compiler'});
  const {checks} = await checkTensorflow();
  expect(checks[1]).toMatchObject({name: 'setup-tensorflow', status: 'warning'});
  expect(checks[1]?.message).toContain('CXX names /no/such/compiler');
  expect(checks[1]?.fix).toContain('set CXX');
});

it('a damaged folder: what is wrong, and the command that mends it', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'sage-doctor-'));
  try {
    writeFileSync(join(folder, 'sage-tensorflow.json'), '{}');
    withEnvironment({SAGE_TENSORFLOW_DIR: folder});
    const {checks} = await checkTensorflow();
    expect(checks[0]).toMatchObject({name: 'tfjs-node', status: 'failed'});
    expect(checks[0]?.message).toContain('has schema null, expected 1');
    expect(checks[0]?.fix).toContain(COMMAND);
  } finally {
    rmSync(folder, {recursive: true});
  }
});

it('demo --backend tensorflow names the command too', async () => {
  withEnvironment({SAGE_TENSORFLOW_DIR: '/no/such'});
  const {code, stdout, stderr} = await run('demo', '--backend', 'tensorflow');
  expect([code, stdout]).toEqual([1, '']);
  expect(stderr).toContain('error: tensorflow: ');
  expect(stderr).toContain(COMMAND);
});

it('why a GPU build computes on the CPU', () => {
  const cuda = {major: 12, folders: ['/x'], links: [], missing: ['libcudart.so.12']} as const;
  const {why, fix} = whyNoGpu(cuda, '');
  if (existsSync('/proc/driver/nvidia/version')) {
    expect(why).toBe('missing: libcudart.so.12');
    expect(fix).toContain('--gpu --site-packages');
    const log = 'x] Could not find cuda drivers on your machine';
    expect(whyNoGpu({...cuda, missing: []}, log).why).toBe(
      'Could not find cuda drivers on your machine',
    );
  } else {
    expect(why).toBe('there is no NVIDIA driver');
    expect(fix).toContain('Install the driver');
  }
});
