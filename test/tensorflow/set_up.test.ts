/** `setup-tensorflow` from a real wheel with the real compiler: killed at every step, resumed, run again, damaged, removed. */
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import {dirname, join} from 'node:path';
import {sha256OfFile} from '../../src/tensorflow/file_records.js';
import type {TensorflowManifest} from '../../src/tensorflow/manifest.js';
import {
  makeProject,
  makeQuickCompiler,
  makeSitePackages,
  node,
  setUp,
  type Outcome,
  type Project,
} from './set_up_project.js';

const SLOW = 120_000;

interface Report {
  readonly folder: string;
  readonly changed: boolean;
  readonly tensorflow: {readonly version: string; readonly gpu: boolean} | null;
  readonly steps: readonly {readonly name: string; readonly kept: boolean}[];
  readonly removed: readonly string[];
  readonly kept: readonly string[];
}

/** The object of `--json`: stdout is one line. */
function reportOf({code, stdout, stderr}: Outcome): Report {
  if (code !== 0) throw new Error(stderr);
  expect(stdout.split('\n').length).toBe(2);
  return JSON.parse(stdout) as Report;
}

const keptSteps = ({steps}: Report): string[] =>
  steps.filter(({kept}) => kept).map(({name}) => name);

/** A product by the TensorFlow of a project; what a user's program does. */
const PRODUCT = `require('tfjs-sage-attention/tensorflow');
const tf = require('@tensorflow/tfjs-node');
console.log(tf.backend().binding.TF_Version, tf.matMul([[1, 2]], [[3], [4]]).dataSync()[0]);`;

const siblings = (path: string): string[] =>
  readdirSync(dirname(path)).filter((name) => name.startsWith('.sage'));

describe('from a wheel', () => {
  let project: Project;
  beforeAll(() => {
    project = makeProject();
  });
  afterAll(() => project.remove());

  it.each([
    ['while unpacking', '25 %'],
    ['while compiling', '[4/5] binding ...'],
    ['before the trial', '[5/5] trial ...'],
  ])(
    'killed %s: nothing is in place',
    async (_, killAt) => {
      const {signal, stdout} = await setUp(project, ['--json'], {killAt});
      expect([signal, stdout]).toEqual(['SIGKILL', '']);
      expect(existsSync(project.prepared)).toBe(false);
      expect(node(project.folder, ['-e', PRODUCT]).stderr).toContain('tensorflow-not-set-up');
    },
    SLOW,
  );

  it(
    'goes on where it was killed, and TensorFlow works',
    async () => {
      const report = reportOf(await setUp(project, ['--json']));
      expect(report).toMatchObject({
        folder: project.prepared,
        changed: true,
        tensorflow: {version: '2.21.0', gpu: false},
      });
      expect(keptSteps(report)).toEqual(['wheel', 'libraries', 'CUDA libraries', 'binding']);
      expect(siblings(project.prepared)).toEqual(['.sage-tensorflow']);
      expect(node(project.folder, ['-e', PRODUCT]).stdout).toBe('2.21.0 11\n');
    },
    SLOW,
  );

  it('writes down what it made, and the checksums are those of the files', async () => {
    const path = join(project.prepared, 'sage-tensorflow.json');
    const manifest = JSON.parse(readFileSync(path, 'utf8')) as TensorflowManifest;
    expect(manifest).toMatchObject({
      schema: 1,
      tensorflow: '2.21.0',
      gpu: false,
      platform: process.platform,
      arch: process.arch,
      node: {version: process.versions.node, napi: 8},
      tfjsNode: {name: '@tensorflow/tfjs-node', version: '4.22.0'},
      stripped: false,
      cuda: null,
    });
    expect(manifest.wheel?.name).toMatch(/^tensorflow_cpu-2\.21\.0-.*\.whl$/);
    expect(manifest.files.map((file) => file.path)).toEqual([
      'tensorflow/libtensorflow_cc.so.2',
      'tensorflow/libtensorflow_framework.so.2',
      'tfjs_binding.node',
    ]);
    for (const file of manifest.files) {
      const sha256 = await sha256OfFile(join(project.prepared, file.path));
      expect({path: file.path, sha256}).toEqual({path: file.path, sha256: file.sha256});
    }
  });

  it(
    'does nothing a second time',
    async () => {
      const report = reportOf(await setUp(project, ['--json']));
      expect(report.changed).toBe(false);
      expect(siblings(project.prepared)).toEqual(['.sage-tensorflow']);
    },
    SLOW,
  );

  it(
    'makes anew what was damaged, and only that',
    async () => {
      const binding = join(project.prepared, 'tfjs_binding.node');
      truncateSync(binding, 1000);
      writeFileSync(join(project.prepared, 'notes.txt'), 'mine');
      const {stderr} = node(project.folder, ['-e', PRODUCT]);
      expect(stderr).toContain('tfjs_binding.node has 1000 bytes, expected');
      expect(stderr).toContain('tensorflow-damaged');
      const env = {CXX: makeQuickCompiler(project.folder)};
      const report = reportOf(await setUp(project, ['--json'], {env}));
      expect(report.changed).toBe(true);
      expect(keptSteps(report)).toEqual(['wheel', 'libraries', 'CUDA libraries']);
      expect(node(project.folder, ['-e', PRODUCT]).stdout).toBe('2.21.0 11\n');
    },
    SLOW,
  );

  it('--remove takes away what it made and leaves what it did not', async () => {
    expect(readFileSync(join(project.prepared, 'notes.txt'), 'utf8')).toBe('mine');
    const first = reportOf(await setUp(project, ['--remove', '--json']));
    expect(first).toMatchObject({changed: true, kept: ['notes.txt']});
    expect(readdirSync(project.prepared)).toEqual(['notes.txt']);
    // What is left is nobody's now.
    const refused = await setUp(project, ['--remove']);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain('nothing in it was removed');
    expect(existsSync(join(project.prepared, 'notes.txt'))).toBe(true);
  });
});

describe('from a Python environment', () => {
  let project: Project;
  let site = '';
  let env: NodeJS.ProcessEnv = {};
  beforeAll(async () => {
    project = makeProject();
    site = await makeSitePackages(project.folder);
    env = {CXX: makeQuickCompiler(project.folder)};
  });
  afterAll(() => project.remove());

  it(
    'uses the libraries where they lie; of two runs at once one works and one waits',
    async () => {
      const args = ['--site-packages', site, '--json'];
      const both = await Promise.all([setUp(project, args, {env}), setUp(project, args, {env})]);
      const reports = both.map(reportOf);
      expect(reports.map(({changed}) => changed).sort()).toEqual([false, true]);
      const waited = both.filter(({stderr}) =>
        stderr.includes('waiting for the set-up of another process'),
      );
      expect(waited.length).toBe(1);
      expect(siblings(project.prepared)).toEqual(['.sage-tensorflow']);
      expect(node(project.folder, ['-e', PRODUCT]).stdout).toBe('2.21.0 11\n');
    },
    SLOW,
  );

  it(
    'takes over the lock of a process that died, and finishes the renaming that it began',
    async () => {
      const other = join(project.folder, 'other');
      // Process numbers end far below this one.
      writeFileSync(`${other}.lock`, '4194304999 1');
      mkdirSync(`${other}.old`);
      copyFileSync(join(project.folder, 'package.json'), join(`${other}.old`, 'left.json'));
      const report = reportOf(
        await setUp(project, ['--site-packages', site, '--dir', 'other', '--json'], {env}),
      );
      expect(report).toMatchObject({folder: other, changed: true});
      const left = readdirSync(project.folder).filter((name) => name.startsWith('other'));
      expect(left).toEqual(['other']);
      // Somebody's file in the folder that the dead run had put aside.
      expect(existsSync(join(other, 'left.json'))).toBe(true);
    },
    SLOW,
  );

  it('--remove leaves the environment as it is', async () => {
    const report = reportOf(await setUp(project, ['--remove', '--json']));
    expect(report).toMatchObject({changed: true, kept: []});
    expect(existsSync(project.prepared)).toBe(false);
    expect(existsSync(join(site, 'tensorflow', 'libtensorflow_cc.so.2'))).toBe(true);
    expect(reportOf(await setUp(project, ['--remove', '--json']))).toMatchObject({changed: false});
  });
});
