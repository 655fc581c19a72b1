// What each npm script of this repository does once the set-up that it needs is there (prepare.mjs).
import {spawnSync} from 'node:child_process';
import {mkdirSync, rmSync} from 'node:fs';
import {availableParallelism} from 'node:os';
import {join} from 'node:path';
import {prepareTensorflow} from './set_up/tensorflow.mjs';
import {prepareTfjsCoreSuite} from './set_up/tfjs_core_suite.mjs';
import {dependency, listFiles, root, say} from './set_up/workspace.mjs';
import {tensorflowFolder} from './tensorflow_folder.cjs';
import {writesTables} from './writes_tables.mjs';

/** Where `npm test` leaves jest's results as JSON, one file a pass; .ci/run adds them up. */
export const testResults = join(root, 'build', 'test-results');

/** Runs a program with this terminal; returns its exit code. */
function run(command, args) {
  const child = spawnSync(command, args, {cwd: root, stdio: 'inherit'});
  return child.status ?? 1;
}

const node = (...args) => run(process.execPath, args);

/** Runs the steps in turn up to the first that fails. */
function inTurn(...steps) {
  for (const step of steps) {
    const code = step();
    if (code !== 0) return code;
  }
  return 0;
}

const cli = (command) => (args) => node('dist/cjs/src/cli/main.js', command, ...args);

/** The benchmark; a whole comparison with peers is also written into docs/. */
function bench(args) {
  if (!writesTables(args)) return cli('bench')(args);
  const file = join(root, 'build', 'bench.json');
  return inTurn(
    () => cli('bench')([...args, '--json-file', file]),
    () => node('bench/write_tables.mjs', file),
  );
}

const jest = (...args) => node(dependency('jest', 'bin', 'jest.js'), ...args);

/** A pattern that no test's name matches. */
const NO_TEST = '(?!)';

/**
 * The tests on TensorFlow. Where this machine cannot have it, they are counted as skipped, with the reason in one line;
 * `required`: that is a failure.
 */
function testTensorflow(args, {required}) {
  const {missing, failed} = prepareTensorflow();
  if (failed && (required || missing === null)) {
    say(
      `TensorFlow cannot be prepared${missing === null ? ' (messages are above)' : `: ${missing}`}`,
    );
    return 1;
  }
  if (missing !== null) say(`the tests on TensorFlow are skipped: ${missing}`);
  // Only for children: nothing else of this process asks for it.
  process.env.SAGE_TENSORFLOW_DIR = tensorflowFolder;
  const skip = missing === null ? [] : ['--testNamePattern', NO_TEST];
  const code = jest('--selectProjects', 'tensorflow', '--passWithNoTests', ...skip, ...args);
  delete process.env.SAGE_TENSORFLOW_DIR;
  return code;
}

/**
 * tfjs-core's own tests on TensorFlow, with this package loaded: none may fail that does not fail without it.
 * `--if-possible`: a machine that cannot have TensorFlow is no failure.
 */
function testTfjsCore(args) {
  const {missing, failed} = prepareTensorflow();
  const rest = args.filter((argument) => argument !== '--if-possible');
  if (missing !== null && rest.length < args.length) {
    say(`tfjs-core's tests on TensorFlow are skipped: ${missing}`);
    return 0;
  }
  if (failed) {
    say(
      `TensorFlow cannot be prepared${missing === null ? ' (messages are above)' : `: ${missing}`}`,
    );
    return 1;
  }
  const code = prepareTfjsCoreSuite();
  if (code !== 0) return code;
  return node('test/tfjs_core/run.cjs', ...rest);
}

/**
 * What needs an NVIDIA GPU: the case table on arrays of the process, then the order of work among TensorFlow's own and every
 * test on TensorFlow again, there on the GPU. SAGE_TENSORFLOW_DIR names a folder of `setup-tensorflow --gpu`; without it
 * that part is left out.
 */
function testGpu(args) {
  const inProject = (project, ...files) =>
    jest(...files, '--selectProjects', project, '--runInBand', ...args);
  const arrays = inProject('gpu', 'test/gpu/host_arrays.test.ts');
  if (!process.env.SAGE_TENSORFLOW_DIR) {
    say(
      'the tests on TensorFlow are left out: SAGE_TENSORFLOW_DIR names no folder of setup-tensorflow --gpu',
    );
    return arrays;
  }
  return inTurn(
    () => arrays,
    () => inProject('gpu', 'test/gpu/stream_order.test.ts', 'test/gpu/tensorflow_recipes.test.ts'),
    () =>
      inProject(
        'tensorflow',
        ...['cases', 'memory', 'wrong_calls', 'gpt2'].map(
          (name) => `test/tensorflow/${name}.test.ts`,
        ),
      ),
  );
}

/**
 * All tests: first those that may share the machine, then those on TensorFlow, then those that measure time, alone. With
 * arguments (a file, a pattern, any option of jest) it is one jest with these.
 */
function test(args) {
  if (args.length > 0) return jest(...args);
  rmSync(testResults, {recursive: true, force: true});
  mkdirSync(testResults, {recursive: true});
  // The native engine brings threads of its own, so more workers than processors would only fight for them.
  const workers = `--maxWorkers=${Math.max(1, Math.min(4, availableParallelism()))}`;
  const report = (pass) => ['--json', `--outputFile=${join(testResults, `${pass}.json`)}`];
  const alone = ['timing', 'tensorflow', 'gpu'];
  const shared = jest('--ignoreProjects', ...alone, workers, ...report('shared'));
  const tensorflow = testTensorflow([workers, ...report('tensorflow')], {required: false});
  const timing = jest(
    '--selectProjects',
    'timing',
    '--runInBand',
    '--passWithNoTests',
    ...report('timing'),
  );
  return shared || tensorflow || timing;
}

const cppFiles = () => listFiles(['csrc', 'native'], (name) => /\.(h|cc|cu|cuh)$/.test(name));

const clangFormat = (...options) => {
  const files = cppFiles();
  if (files.length === 0) return 0;
  return node(dependency('clang-format', 'index.js'), ...options, ...files);
};

const prettier = (...options) => node(dependency('prettier', 'bin', 'prettier.cjs'), ...options);

/** Whether a program is on the path. */
const isThere = (command) => spawnSync(command, ['--version'], {stdio: 'ignore'}).status === 0;

/** The NEON paths: cross-compiled for aarch64 and run by an emulator where both tools are there. */
function testArm() {
  const [compiler, emulator] = ['aarch64-linux-gnu-g++', 'qemu-aarch64'];
  const missing = [compiler, emulator].filter((command) => !isThere(command));
  if (missing.length > 0) {
    say(`the tests of the ARM paths are skipped: ${missing.join(' and ')} not found`);
    return 0;
  }
  const folder = 'build/arm-tests';
  return inTurn(
    () =>
      run('cmake', [
        ...['-S', '.', '-B', folder, '-DSAGE_TESTS=ON', '-DSAGE_CUDA=OFF'],
        ...['-DCMAKE_BUILD_TYPE=Release', '-DCMAKE_SYSTEM_NAME=Linux'],
        ...['-DCMAKE_SYSTEM_PROCESSOR=aarch64', '-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc'],
        // Static, so that the emulator needs no libraries of that machine.
        ...[`-DCMAKE_CXX_COMPILER=${compiler}`, '-DCMAKE_EXE_LINKER_FLAGS=-static'],
        `-DCMAKE_CROSSCOMPILING_EMULATOR=${emulator}`,
      ]),
    () => run('cmake', ['--build', folder, '--parallel', String(availableParallelism())]),
    () => run('ctest', ['--test-dir', folder, '--output-on-failure', '--parallel', '2']),
  );
}

/** The engine's own C++ tests, without Node: configured, built and run by ctest. */
function testCpp() {
  const folder = 'build/cpp-tests';
  return inTurn(
    // ctest has no device: the CUDA kernels have tests of their own (csrc/test/cuda).
    () =>
      run('cmake', [
        ...['-S', '.', '-B', folder, '-DSAGE_TESTS=ON'],
        ...['-DSAGE_CUDA=OFF', '-DCMAKE_BUILD_TYPE=Release'],
        // A user's compiler may know warnings that ours does not.
        `-DCMAKE_COMPILE_WARNING_AS_ERROR=${process.env.CI ? 'ON' : 'OFF'}`,
      ]),
    () => run('cmake', ['--build', folder, '--parallel', String(availableParallelism())]),
    () => run('ctest', ['--test-dir', folder, '--output-on-failure']),
    testArm,
  );
}

/**
 * Jobs by name. `needs`: what set-up must have made beside the dependencies. `withoutAddon: 'go on'`: the job makes
 * sense on the TypeScript engine alone when this machine cannot build C++.
 */
export const jobs = {
  demo: {needs: ['addon', 'dist'], withoutAddon: 'go on', run: cli('demo')},
  doctor: {needs: ['addon', 'dist'], withoutAddon: 'go on', run: cli('doctor')},
  accuracy: {needs: ['addon', 'dist'], withoutAddon: 'go on', run: cli('accuracy')},
  bench: {needs: ['addon', 'dist'], run: bench},
  test: {needs: ['addon', 'dist'], run: test},
  'test:cpp': {needs: [], run: testCpp},
  'test:tensorflow': {
    needs: ['addon', 'dist'],
    run: (args) => testTensorflow(args, {required: true}),
  },
  'test:tfjs-core': {needs: ['addon', 'dist'], run: testTfjsCore},
  'test:gpu': {needs: ['addon', 'dist'], run: testGpu},
  'test:browser': {needs: ['dist'], run: () => node('scripts/test_browser.mjs')},
  model: {needs: ['addon', 'dist'], withoutAddon: 'go on', run: cli('model')},
  inspect: {needs: ['addon', 'dist'], withoutAddon: 'go on', run: cli('inspect')},
  rewrite: {needs: ['addon', 'dist'], withoutAddon: 'go on', run: cli('rewrite')},
  'build:cuda': {needs: [], run: (args) => node('scripts/build_cuda.mjs', ...args)},
  build: {needs: ['dist'], run: () => 0},
  'build:native': {needs: ['addon'], run: () => 0},
  lint: {
    needs: [],
    run: (args) => node(dependency('eslint', 'bin', 'eslint.js'), '--max-warnings=0', '.', ...args),
  },
  typecheck: {
    needs: ['dist'],
    run: () =>
      inTurn(
        () => node(dependency('typescript', 'bin', 'tsc'), '-p', 'tsconfig.json'),
        () => node('scripts/check_types.mjs'),
      ),
  },
  format: {
    needs: [],
    run: () =>
      inTurn(
        () => prettier('--log-level=warn', '--write', '.'),
        () => clangFormat('-i'),
      ),
  },
  'format:check': {
    needs: [],
    run: () => prettier('--log-level=warn', '--check', '.') || clangFormat('--dry-run', '-Werror'),
  },
  publint: {
    needs: ['dist'],
    run: () => node(dependency('publint', 'src', 'cli.js'), '--strict'),
  },
  'pack:release': {
    needs: ['addon', 'dist'],
    run: (args) =>
      inTurn(
        () => node('scripts/pack_main.mjs', ...args),
        () => node('scripts/pack_platform.mjs', ...args),
      ),
  },
  'pack:check': {needs: ['addon', 'dist'], run: () => node('scripts/check_package.mjs')},
};
