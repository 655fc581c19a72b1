// What each npm script of this repository does once the set-up that it needs is there (prepare.mjs).
import {spawnSync} from 'node:child_process';
import {mkdirSync, rmSync} from 'node:fs';
import {availableParallelism} from 'node:os';
import {join} from 'node:path';
import {dependency, listFiles, root} from './set_up/workspace.mjs';

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

const jest = (...args) => node(dependency('jest', 'bin', 'jest.js'), ...args);

/**
 * All tests: first those that may share the machine, then those that measure time, alone. With arguments (a file, a
 * pattern, any option of jest) it is one jest with these.
 */
function test(args) {
  if (args.length > 0) return jest(...args);
  rmSync(testResults, {recursive: true, force: true});
  mkdirSync(testResults, {recursive: true});
  // The native engine brings threads of its own, so more workers than processors would only fight for them.
  const workers = `--maxWorkers=${Math.max(1, Math.min(4, availableParallelism()))}`;
  const report = (pass) => ['--json', `--outputFile=${join(testResults, `${pass}.json`)}`];
  const shared = jest('--ignoreProjects', 'timing', workers, ...report('shared'));
  const timing = jest(
    '--selectProjects',
    'timing',
    '--runInBand',
    '--passWithNoTests',
    ...report('timing'),
  );
  return shared || timing;
}

const cppFiles = () => listFiles(['csrc', 'native'], (name) => /\.(h|cc|cu|cuh)$/.test(name));

const clangFormat = (...options) => {
  const files = cppFiles();
  if (files.length === 0) return 0;
  return node(dependency('clang-format', 'index.js'), ...options, ...files);
};

const prettier = (...options) => node(dependency('prettier', 'bin', 'prettier.cjs'), ...options);

/** The engine's own C++ tests, without Node: configured, built and run by ctest. */
function testCpp() {
  const folder = 'build/cpp-tests';
  return inTurn(
    () => run('cmake', ['-S', '.', '-B', folder, '-DSAGE_TESTS=ON', '-DCMAKE_BUILD_TYPE=Release']),
    () => run('cmake', ['--build', folder, '--parallel', String(availableParallelism())]),
    () => run('ctest', ['--test-dir', folder, '--output-on-failure']),
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
  bench: {needs: ['addon', 'dist'], run: cli('bench')},
  test: {needs: ['addon', 'dist'], run: test},
  'test:cpp': {needs: [], run: testCpp},
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
