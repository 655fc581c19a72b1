/** `inspect` and `rewrite` on files. */
import {mkdtempSync, mkdirSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import * as converter from '@tensorflow/tfjs-converter';
import type * as tf from '@tensorflow/tfjs-core';
import {run, runJson} from '../cli/run.js';
import {inputsOf, readFixture} from './graph_fixtures.js';

let folder = '';
let file = '';

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'sage-graph-'));
  file = join(folder, 'model.json');
  const {model, weights} = readFixture('tf_functions/bert');
  const [path] = model.weightsManifest[0]?.paths ?? [];
  writeFileSync(file, JSON.stringify(model));
  writeFileSync(join(folder, path ?? ''), Buffer.from(weights, 'base64'));
});

afterAll(() => {
  rmSync(folder, {recursive: true});
});

it('inspect tells each place, as a table and as JSON', async () => {
  const {code, stdout} = await run('inspect', file);
  expect(code).toBe(0);
  expect(stdout).toMatch(
    /PartitionedCall\/MatMul_1 +yes +softmax\(q·k · scale \+ mask\)·v \(MatMul\)/,
  );
  expect(stdout).toContain('1 of 1 softmaxes are attention that can be replaced.');
  expect(await runJson('inspect', file)).toMatchObject({
    replaced: 1,
    candidates: 1,
    rows: [{node: 'PartitionedCall/MatMul_1', replaced: true, reason: null}],
  });
});

it('rewrite writes a model that tfjs loads', async () => {
  const out = join(folder, 'out');
  const report = await runJson('rewrite', file, out, '--precision', 'exact');
  expect(report).toMatchObject({replaced: 1, written: join(out, 'model.json')});
  const json = JSON.parse(readFileSync(join(out, 'model.json'), 'utf8')) as tf.io.ModelJSON;
  expect(JSON.stringify(json.modelTopology)).toContain('"SageAttention"');
  const load = (path: string): tf.io.IOHandler => ({
    load: () => {
      const read = JSON.parse(readFileSync(join(path, 'model.json'), 'utf8')) as tf.io.ModelJSON;
      const [group] = read.weightsManifest;
      const bytes = readFileSync(join(path, group?.paths[0] ?? ''));
      return Promise.resolve({
        ...read,
        weightSpecs: group?.weights ?? [],
        weightData: new Uint8Array(bytes).buffer,
      });
    },
  });
  const fixture = readFixture('tf_functions/bert');
  const inputs = inputsOf(fixture);
  const [before, after] = await Promise.all(
    [load(folder), load(out)].map((h) => converter.loadGraphModel(h)),
  );
  const values = [before, after].map((model) => (model?.predict(inputs) as tf.Tensor).dataSync());
  const [a, b] = values as [Float32Array, Float32Array];
  expect(Math.max(...a.map((value, i) => Math.abs(value - (b[i] as number))))).toBeLessThan(1e-5);
});

it('names the file that is missing, damaged, or no model', async () => {
  expect((await run('inspect', join(folder, 'none.json'))).stderr).toContain(
    join(folder, 'none.json'),
  );
  const broken = join(folder, 'broken');
  mkdirSync(broken);
  const path = join(broken, 'model.json');
  writeFileSync(path, '{"modelTopology": ');
  expect((await run('inspect', path)).stderr).toContain(`${path} is no JSON`);
  writeFileSync(path, '{}');
  expect((await run('inspect', path)).stderr).toContain('it has no modelTopology');
  const {model} = readFixture('tf_functions/bert');
  writeFileSync(path, JSON.stringify(model));
  expect((await run('inspect', path)).stderr).toContain(
    join(broken, model.weightsManifest[0]?.paths[0] ?? ''),
  );
  writeFileSync(join(broken, model.weightsManifest[0]?.paths[0] ?? ''), 'x');
  const {code, stderr} = await run('rewrite', path, join(broken, 'out'));
  expect(code).toBe(1);
  expect(stderr).toContain("its weights end within 'PartitionedCall/Mul/y'");
  expect(stderr).toContain(path);
});

it('does not write a model over itself', async () => {
  expect((await run('rewrite', file, folder)).stderr).toContain('written over itself');
});
