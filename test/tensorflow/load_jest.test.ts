/** The recipe for jest: the loader in `setupFiles`, with jest's own registry of modules, workers and worker threads. */
import {symlinkSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {tensorflowFolder} from '../../scripts/tensorflow_folder.cjs';
import {makeProject, node, root, type Project} from './set_up_project.js';

let project: Project;
beforeAll(() => {
  project = makeProject();
  symlinkSync(tensorflowFolder, project.prepared);
  const config = (name: string, setupFiles: string[]) => {
    const text = JSON.stringify({testEnvironment: 'node', transform: {}, setupFiles, rootDir: '.'});
    writeFileSync(join(project.folder, name), text);
  };
  config('jest.json', ['tfjs-sage-attention/tensorflow']);
  config('without.json', []);
  const test = (load: string): string => `const tf = ${load};
    const {sageAttention} = require('tfjs-sage-attention');
    test('attention on TensorFlow', () => {
      expect(tf.getBackend()).toBe('tensorflow');
      const q = tf.randomNormal([2, 17, 8]);
      const expected = tf.matMul(tf.softmax(tf.mul(tf.matMul(q, q, false, true), 8 ** -0.5)), q);
      const o = sageAttention(q, q, q, {precision: 'exact'});
      expect(tf.max(tf.abs(tf.sub(o, expected))).dataSync()[0]).toBeLessThan(1e-5);
    });
    test('again, with all modules loaded anew', () => {
      jest.resetModules();
      const {matMul} = require('@tensorflow/tfjs-node');
      expect(matMul([[1, 2]], [[3], [4]]).dataSync()[0]).toBe(11);
    });`;
  for (const name of ['a', 'b']) {
    writeFileSync(
      join(project.folder, `${name}.test.js`),
      test(`require('@tensorflow/tfjs-node')`),
    );
  }
  writeFileSync(
    join(project.folder, 'facade.test.js'),
    test(`require('tfjs-sage-attention/tfjs-node')`),
  );
});
afterAll(() => project.remove());

function jest(...args: string[]): string {
  const bin = join(root, 'node_modules', 'jest', 'bin', 'jest.js');
  const {stderr} = node(project.folder, [bin, '--no-cache', ...args]);
  return stderr;
}

it.each([
  ['in band', ['--runInBand']],
  ['in workers', ['--maxWorkers=2']],
  ['in worker threads', ['--maxWorkers=2', '--workerThreads']],
])(
  'two files %s',
  (_, args) => {
    const output = jest('--config', 'jest.json', ...args, 'a.test', 'b.test');
    expect(output).toContain('Tests:       4 passed, 4 total');
  },
  120_000,
);

it('the facade needs no setting', () => {
  const output = jest('--config', 'without.json', 'facade.test');
  expect(output).toContain('Tests:       2 passed, 2 total');
}, 120_000);

it('without either, tfjs-node finds no binding', () => {
  const output = jest('--config', 'without.json', 'a.test');
  expect(output).toContain('native addon module (tfjs_binding.node) can not be found');
}, 120_000);
