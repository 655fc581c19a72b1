/** `tfjs-sage-attention/tensorflow`: every order and way of loading, where the folder is found, and every refusal. */
import {cpSync, mkdirSync, readFileSync, symlinkSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {tensorflowFolder} from '../../scripts/tensorflow_folder.cjs';
import {makeProject, node, root, type Outcome, type Project} from './set_up_project.js';

let project: Project;
beforeAll(() => {
  project = makeProject();
  // As the set-up would have left it, found from the working directory upwards.
  symlinkSync(tensorflowFolder, project.prepared);
});
afterAll(() => project.remove());

const ENTRY = 'tfjs-sage-attention/tensorflow';
const TFJS_NODE = '@tensorflow/tfjs-node';

/** Runs files of a nested folder of the project. */
function run(files: Readonly<Record<string, string>>, args: readonly string[], env = {}): Outcome {
  const folder = join(project.folder, 'nested', 'deeper');
  mkdirSync(folder, {recursive: true});
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
  return node(folder, args, env);
}

function expectOutput({code, stdout, stderr}: Outcome, expected: string): void {
  expect(code === 0 ? stdout : stderr).toBe(`${expected}\n`);
}

const CJS = `const tf = require('${TFJS_NODE}');`;
const ESM = `import * as tf from '${TFJS_NODE}';`;
const PRODUCT = `console.log(tf.getBackend(), tf.matMul([[1, 2]], [[3], [4]]).dataSync()[0]);`;

describe('ways of loading', () => {
  it.each([
    ['require', {'a.cjs': `require('${ENTRY}'); ${CJS} ${PRODUCT}`}, ['a.cjs']],
    ['import', {'a.mjs': `import '${ENTRY}'; ${ESM} ${PRODUCT}`}, ['a.mjs']],
    ['-r, CommonJS', {'a.cjs': CJS + PRODUCT}, ['-r', ENTRY, 'a.cjs']],
    ['-r, ES module', {'a.mjs': ESM + PRODUCT}, ['-r', ENTRY, 'a.mjs']],
    ['--import, CommonJS', {'a.cjs': CJS + PRODUCT}, ['--import', ENTRY, 'a.cjs']],
    ['--import, ES module', {'a.mjs': ESM + PRODUCT}, ['--import', ENTRY, 'a.mjs']],
    [
      'both forms, twice, in one process',
      {
        'a.mjs': `import '${ENTRY}'; import {createRequire} from 'node:module';
          const require = createRequire(import.meta.url); require('${ENTRY}');
          const tf = await import('${TFJS_NODE}'); await import('${ENTRY}'); ${PRODUCT}`,
      },
      ['a.mjs'],
    ],
    [
      'after tfjs-node failed without it',
      {
        'a.cjs': `let failed = false; try { require('${TFJS_NODE}') } catch { failed = true; }
          require('${ENTRY}'); const tf = require('${TFJS_NODE}'); if (failed) ${PRODUCT}`,
      },
      ['a.cjs'],
    ],
    [
      'a Node that has no util.isNullOrUndefined',
      {
        'a.cjs': `delete require('util').isNullOrUndefined; require('${ENTRY}'); ${CJS} ${PRODUCT}`,
      },
      ['a.cjs'],
    ],
    [
      'worker threads',
      {
        'a.cjs': `const {Worker, isMainThread} = require('node:worker_threads');
          require('${ENTRY}'); ${CJS}
          if (isMainThread) {
            const ended = (worker) => new Promise((resolve) => worker.on('exit', resolve));
            Promise.all([1, 2, 3].map(() => ended(new Worker(__filename)))).then((codes) => {
              if (codes.join() === '0,0,0') ${PRODUCT}
            });
          } else if (tf.matMul([[1, 2]], [[3], [4]]).dataSync()[0] !== 11) process.exit(1);`,
      },
      ['a.cjs'],
    ],
  ])('%s', (_, files, args) => {
    expectOutput(run(files, args), 'tensorflow 11');
  });

  it.each([
    ['CommonJS', 'f.cjs', `const tf = require('tfjs-sage-attention/tfjs-node');`],
    ['ES module', 'f.mjs', `import * as tf from 'tfjs-sage-attention/tfjs-node';`],
  ])('the facade takes the folder by itself: %s', (_, file, load) => {
    const text = `${load}
      const q = tf.randomNormal([2, 17, 8], 0, 1, 'float32', 1);
      const o = tf.matMul(tf.softmax(tf.mul(tf.matMul(q, q, false, true), 8 ** -0.5)), q);
      const difference = tf.max(tf.abs(tf.sub(tf.sageAttention(q, q, q, {precision: 'exact'}), o)));
      console.log(tf.getBackend(), difference.dataSync()[0] < 1e-5);`;
    expectOutput(run({[file]: text}, [file]), 'tensorflow true');
  });

  it('demo runs on it', () => {
    const file = join(root, 'models', 'gpt2', 'js-gpt', 'config.json');
    const cli = join(root, 'dist', 'cjs', 'src', 'cli', 'main.js');
    const args = ['demo', '--backend', 'tensorflow', '--file', file, '--precision', 'int8_bf16'];
    const {code, stdout, stderr} = run({}, [cli, ...args, '--json']);
    if (code !== 0) throw new Error(stderr);
    const {rows} = JSON.parse(stdout) as {rows: {precision: string; bitsPerByte: number}[]};
    expect(rows.map(({precision}) => precision)).toEqual(['tfjs', 'exact', 'int8_bf16']);
    const [plain, exact] = rows.map(({bitsPerByte}) => bitsPerByte);
    expect(exact).toBeCloseTo(plain!, 3);
  }, 60_000);

  it('doctor tells where it comes from and that it works', () => {
    const cli = join(root, 'dist', 'cjs', 'src', 'cli', 'main.js');
    const {stdout} = run({}, [cli, 'doctor', '--json']);
    const {checks, tensorflow} = JSON.parse(stdout) as {
      checks: {name: string; status: string; message: string}[];
      tensorflow: {source: string; path: string; trial: {version: string; maxError: number}};
    };
    const check = (name: string) => checks.find((one) => one.name === name);
    expect(check('tfjs-node')).toMatchObject({status: 'ok'});
    expect(check('TensorFlow')).toMatchObject({status: 'ok'});
    expect(check('TensorFlow')?.message).toMatch(
      /^2\.21\.0 works on the [CG]PU: attention within /,
    );
    expect(check('TensorFlow op')?.message).toMatch(/registered/);
    expect(tensorflow).toMatchObject({source: 'prepared folder', path: project.prepared});
    expect(tensorflow.trial.version).toBe('2.21.0');
    expect(tensorflow.trial.maxError).toBeLessThan(1e-5);
  }, 60_000);
});

describe('node-pre-gyp of everybody else', () => {
  it('answers as before', () => {
    symlinkSync(
      join(root, 'node_modules', '@mapbox'),
      join(project.folder, 'node_modules', '@mapbox'),
    );
    const packageJson = join(root, 'node_modules', '@tensorflow', 'tfjs-node', 'package.json');
    const text = `const before = require('@mapbox/node-pre-gyp');
      require('${ENTRY}');
      ${CJS}
      const after = require('@mapbox/node-pre-gyp');
      const path = after.find(${JSON.stringify(packageJson)});
      console.log(before === after, path.endsWith('lib/napi-v8/tfjs_binding.node'));`;
    expectOutput(run({'p.cjs': text}, ['p.cjs']), 'true true');
  });
});

describe('refusals', () => {
  const elsewhere = (name: string): string => join(project.folder, name);

  /** A folder with the manifest of the real one, changed, and links to its files. */
  function changedFolder(
    name: string,
    change: (manifest: Record<string, unknown>) => void,
  ): string {
    const folder = elsewhere(name);
    mkdirSync(folder);
    for (const file of ['tensorflow', 'tfjs_binding.node']) {
      symlinkSync(join(tensorflowFolder, file), join(folder, file));
    }
    const text = readFileSync(join(tensorflowFolder, 'sage-tensorflow.json'), 'utf8');
    const manifest = JSON.parse(text) as Record<string, unknown>;
    change(manifest);
    writeFileSync(join(folder, 'sage-tensorflow.json'), JSON.stringify(manifest));
    return folder;
  }

  function expectError({code, stderr}: Outcome, errorCode: string, ...words: string[]): void {
    expect(code).toBe(1);
    expect(stderr).toContain(`code: '${errorCode}'`);
    expect(stderr).toContain('setup-tensorflow');
    for (const word of words) expect(stderr).toContain(word);
  }

  it('no folder: tells where it looked', () => {
    const {code, stderr} = node('/', [
      '-r',
      join(root, 'dist/cjs/src/tensorflow/load.js'),
      '-e',
      '1',
    ]);
    expect(code).toBe(1);
    expect(stderr).toContain('no prepared TensorFlow in /.sage-tensorflow');
    const env = {SAGE_TENSORFLOW_DIR: '/no/such'};
    expectError(
      run({}, ['-r', ENTRY, '-e', '1'], env),
      'tensorflow-not-set-up',
      'SAGE_TENSORFLOW_DIR names /no/such',
    );
  });

  it.each([
    ['another processor', 'arch', {arch: 'arm64'}, 'it was made for linux arm64'],
    ['another system', 'os', {platform: 'darwin'}, 'it was made for darwin x64'],
    ['another C library', 'libc', {libc: 'musl'}, 'it was made for musl, this system has glibc'],
    ['a newer Node', 'napi', {node: {napi: 99}}, 'its binding needs Node-API 99'],
  ])('%s', (_, name, changes, words) => {
    const folder = changedFolder(name, (manifest) => Object.assign(manifest, changes));
    const outcome = run({}, ['-r', ENTRY, '-e', '1'], {SAGE_TENSORFLOW_DIR: folder});
    expectError(outcome, 'tensorflow-mismatch', words);
  });

  it('another tfjs-node: only when that is loaded', () => {
    const folder = changedFolder('version', (manifest) => {
      manifest['tfjsNode'] = {name: TFJS_NODE, version: '4.21.0'};
    });
    const env = {SAGE_TENSORFLOW_DIR: folder};
    expect(run({}, ['-r', ENTRY, '-e', '1'], env).code).toBe(0);
    const outcome = run({}, ['-r', ENTRY, '-e', CJS], env);
    expectError(
      outcome,
      'tensorflow-mismatch',
      'that of tfjs-node 4.21.0',
      'asked for by @tensorflow/tfjs-node 4.22.0',
    );
  });

  it.each([
    ['a manifest that is no JSON', '{"schema": 1,', 'sage-tensorflow.json cannot be read'],
    ['a manifest of another form', '{"schema": 2}', 'has schema 2, expected 1'],
    ['a manifest without files', null, 'has no proper `files`'],
  ])('%s', (name, text, words) => {
    const folder = changedFolder(name, (manifest) => {
      manifest['files'] = [];
    });
    if (text !== null) writeFileSync(join(folder, 'sage-tensorflow.json'), text);
    const outcome = run({}, ['-r', ENTRY, '-e', '1'], {SAGE_TENSORFLOW_DIR: folder});
    expectError(outcome, 'tensorflow-damaged', words);
  });

  it('a library that is missing or has changed', () => {
    const folder = changedFolder('sizes', (manifest) => {
      const files = manifest['files'] as {path: string; bytes: number}[];
      files[0]!.bytes += 1;
    });
    const env = {SAGE_TENSORFLOW_DIR: folder};
    expectError(
      run({}, ['-r', ENTRY, '-e', '1'], env),
      'tensorflow-damaged',
      'libtensorflow_cc.so.2 has',
    );
    const gone = changedFolder('gone', (manifest) => {
      (manifest['files'] as {path: string}[])[0]!.path = 'tensorflow/gone.so';
    });
    const outcome = run({}, ['-r', ENTRY, '-e', '1'], {SAGE_TENSORFLOW_DIR: gone});
    expectError(outcome, 'tensorflow-damaged', 'tensorflow/gone.so is missing');
  });

  it('a tfjs-node that runs already, on something else', () => {
    // A copy of the package with a binding of its own, as its install script would have left it.
    const modules = join(elsewhere('own'), 'node_modules', '@tensorflow');
    const copy = join(modules, 'tfjs-node');
    mkdirSync(modules, {recursive: true});
    const source = join(root, 'node_modules', '@tensorflow');
    cpSync(join(source, 'tfjs-node'), copy, {recursive: true});
    for (const name of ['tfjs', 'tfjs-core']) symlinkSync(join(source, name), join(modules, name));
    for (const name of ['@mapbox', 'google-protobuf', 'progress']) {
      symlinkSync(join(root, 'node_modules', name), join(modules, '..', name));
    }
    symlinkSync(root, join(modules, '..', 'tfjs-sage-attention'));
    const lib = join(copy, 'lib', 'napi-v8');
    mkdirSync(lib, {recursive: true});
    symlinkSync(join(tensorflowFolder, 'tfjs_binding.node'), join(lib, 'tfjs_binding.node'));
    const env = {
      LD_LIBRARY_PATH: join(tensorflowFolder, 'tensorflow'),
      SAGE_TENSORFLOW_DIR: tensorflowFolder,
    };
    const folder = elsewhere('own');
    const late = node(folder, ['-e', `${CJS} require('${ENTRY}');`], env);
    expect(late.code).toBe(1);
    expect(late.stderr).toContain(`code: 'tensorflow-already-loaded'`);
    expect(late.stderr).toContain('it works, with TensorFlow 2.21.0 of ');
    expect(late.stderr).toContain('node -r tfjs-sage-attention/tensorflow');
    expectOutput(node(folder, ['-r', ENTRY, '-e', CJS + PRODUCT], env), 'tensorflow 11');
  });
});
