/** `setup-tensorflow` where something is missing or wrong: the reason and the cure in words, and nothing half-made. */
import {spawnSync} from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import {basename, join} from 'node:path';
import {cachedWheel, makeProject, setUp, type Outcome, type Project} from './set_up_project.js';

let project: Project;
beforeAll(() => {
  project = makeProject();
});
afterAll(() => project.remove());

const inProject = (...names: string[]): string => join(project.folder, ...names);

/** Exit code 1, words without a stack, nothing on stdout, and no folder. */
function expectRefusal({code, stdout, stderr}: Outcome, ...words: (string | RegExp)[]): void {
  expect([code, stdout]).toEqual([1, '']);
  expect(stderr).toContain('error: setup-tensorflow: ');
  expect(stderr).not.toMatch(/^\s+at /m);
  for (const word of words) expect(stderr).toMatch(word);
  expect(existsSync(project.prepared)).toBe(false);
  expect(existsSync(`${project.prepared}.lock`)).toBe(false);
}

/** A small wheel: what it says of itself, and files that are no libraries. */
function makeWheel(
  name: string,
  {project: of = 'tensorflow_cpu', version = '2.21.0', arch = 'x86_64'},
  files = {},
): string {
  const info = `${of}-${version}.dist-info`;
  const contents = {
    [`${info}/METADATA`]: `Name: ${of}\nVersion: ${version}\n`,
    [`${info}/WHEEL`]: `Tag: cp311-cp311-manylinux_2_27_${arch}\n`,
    ...files,
  };
  const path = inProject(name);
  const script = `import json, sys, zipfile
with zipfile.ZipFile(sys.argv[1], 'w') as z:
    for name, text in json.loads(sys.argv[2]).items(): z.writestr(name, text)`;
  const child = spawnSync('python3', ['-c', script, path, JSON.stringify(contents)], {
    encoding: 'utf8',
  });
  if (child.status !== 0) throw new Error(child.stderr);
  return path;
}

/** A folder for PATH with links to these programs only. */
function pathWith(name: string, programs: readonly string[]): string {
  const folder = inProject(name);
  mkdirSync(folder);
  for (const program of programs) {
    const {stdout} = spawnSync('sh', ['-c', `command -v ${program}`], {encoding: 'utf8'});
    symlinkSync(stdout.trim(), join(folder, program));
  }
  return folder;
}

describe('the wheel', () => {
  it('is truncated', async () => {
    const path = inProject(basename(cachedWheel()));
    copyFileSync(cachedWheel(), path);
    truncateSync(path, 100_000_000);
    expectRefusal(
      await setUp(project, ['--wheel', path]),
      'is no whole wheel: End of central directory',
      'Download it again',
    );
    truncateSync(path, 0);
  });

  it('is no archive at all', async () => {
    expectRefusal(
      await setUp(project, ['--wheel', inProject('package.json')]),
      'is no whole wheel',
    );
  });

  it('is of another version than asked for', async () => {
    const path = makeWheel('old.whl', {version: '2.20.0'});
    expectRefusal(
      await setUp(project, ['--wheel', path, '--version', '2.21.0']),
      'it is version 2.20.0, asked for was 2.21.0',
    );
  });

  it('is for another processor', async () => {
    const path = makeWheel('arm.whl', {arch: 'aarch64'});
    expectRefusal(
      await setUp(project, ['--wheel', path]),
      'it is for cp311-cp311-manylinux_2_27_aarch64',
    );
  });

  it('is of another project', async () => {
    const path = makeWheel('keras.whl', {project: 'keras'});
    expectRefusal(await setUp(project, ['--wheel', path]), 'it is keras 2.21.0');
  });

  it('cannot use a GPU, asked for --gpu', async () => {
    const path = makeWheel('cpu.whl', {});
    expectRefusal(await setUp(project, ['--wheel', path, '--gpu']), 'this build cannot use a GPU');
  });

  it('holds no libraries', async () => {
    const path = makeWheel('empty.whl', {});
    expectRefusal(
      await setUp(project, ['--wheel', path]),
      'holds no tensorflow/libtensorflow_cc.so.2',
    );
  });

  it('has a library that is not what the archive says it is', async () => {
    const files = {
      'tensorflow/libtensorflow_cc.so.2': 'the library itself',
      'tensorflow/libtensorflow_framework.so.2': '',
    };
    const path = makeWheel('changed.whl', {}, files);
    // Stored without compression, so a byte can be changed in place.
    const bytes = readFileSync(path);
    bytes[bytes.indexOf('the library itself')] = 'T'.charCodeAt(0);
    writeFileSync(path, bytes);
    expectRefusal(
      await setUp(project, ['--wheel', path]),
      'libtensorflow_cc.so.2 does not match its checksum',
    );
    expect(readdirSync(`${project.prepared}.partial/tensorflow`)).not.toContain(
      'libtensorflow_cc.so.2',
    );
  });
});

describe('the machine', () => {
  it('has no compiler', async () => {
    const env = {PATH: pathWith('nothing', [])};
    expectRefusal(
      await setUp(project, [], {env}),
      'no C++ compiler is on the path',
      'apt-get install g++',
    );
    expectRefusal(await setUp(project, [], {env: {CXX: '/no/such/g++'}}), 'CXX names /no/such/g++');
  });

  it('has no Python, which only a download needs', async () => {
    const env = {PATH: pathWith('no python', ['g++'])};
    const cache = inProject('empty cache');
    expectRefusal(
      await setUp(project, ['--cache', cache], {env}),
      'no python3 or python on the path',
      'give it as --wheel FILE',
    );
  });

  it('cannot reach a package index', async () => {
    const env = {
      PIP_NO_INDEX: '1',
      PIP_FIND_LINKS: project.folder,
      PIP_EXTRA_INDEX_URL: '',
      PIP_CONFIG_FILE: '/dev/null',
    };
    expectRefusal(
      await setUp(project, ['--cache', inProject('empty cache'), '--version', '2.20.99'], {env}),
      'pip could not fetch tensorflow-cpu 2.20.99',
      'No matching distribution',
      'give the file as --wheel FILE',
    );
  });

  it('has a compiler that fails', async () => {
    const compiler = inProject('broken');
    writeFileSync(
      compiler,
      '#!/bin/sh\n[ "$1" = --version ] || { echo "no luck" >&2; exit 1; }\n',
      {mode: 0o755},
    );
    const site = inProject('site');
    mkdirSync(join(site, 'tensorflow', 'include'), {recursive: true});
    mkdirSync(join(site, 'tensorflow-2.21.0.dist-info'));
    for (const name of ['libtensorflow_cc.so.2', 'libtensorflow_framework.so.2']) {
      writeFileSync(join(site, 'tensorflow', name), '');
    }
    const info = join(site, 'tensorflow-2.21.0.dist-info');
    writeFileSync(join(info, 'METADATA'), 'Name: tensorflow\nVersion: 2.21.0\n');
    writeFileSync(join(info, 'WHEEL'), 'Tag: cp311-cp311-manylinux_2_27_x86_64\n');
    expectRefusal(
      await setUp(project, ['--site-packages', site], {env: {CXX: compiler}}),
      `could not compile tfjs-node's binding:`,
      'no luck',
    );
    // A binding that is no library ends in the trial, in its own process.
    writeFileSync(
      compiler,
      '#!/bin/sh\n[ "$1" = --version ] && exit 0\nfor last; do :; done\n: > "$last"\n',
    );
    expectRefusal(
      await setUp(project, ['--site-packages', site], {env: {CXX: compiler}}),
      'TensorFlow does not work here: ',
    );
  });

  it('has a Python environment without TensorFlow', async () => {
    expectRefusal(
      await setUp(project, ['--site-packages', project.folder]),
      'tensorflow/libtensorflow_cc.so.2, libtensorflow_framework.so.2 not found',
    );
  });
});

describe('the folder', () => {
  it('holds other files', async () => {
    const folder = inProject('mine');
    mkdirSync(folder);
    writeFileSync(join(folder, 'thesis.txt'), 'only copy');
    for (const args of [[], ['--remove']]) {
      const outcome = await setUp(project, ['--dir', folder, ...args]);
      expectRefusal(outcome, 'no sage-tensorflow.json');
      expect(readFileSync(join(folder, 'thesis.txt'), 'utf8')).toBe('only copy');
    }
  });

  it('cannot be made', async () => {
    const outcome = await setUp(project, ['--dir', inProject('package.json', 'below')]);
    expectRefusal(outcome, 'cannot be written', 'Name a folder that can be written with --dir');
  });

  // Mounting is root's, and not even root's in every container.
  const canMount =
    spawnSync('sh', [
      '-c',
      'd=$(mktemp -d); mount -t tmpfs none "$d" && umount "$d"; e=$?; rmdir "$d"; exit $e',
    ]).status === 0;

  (canMount ? it : it.skip)('is on a disk that is too small', async () => {
    const small = inProject('small');
    mkdirSync(small);
    expect(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=16m', 'none', small]).status).toBe(0);
    try {
      const outcome = await setUp(project, ['--dir', join(small, 'tensorflow')]);
      expectRefusal(
        outcome,
        /has \d+ MB of free space, needed are 9\d\d MB/,
        'on another disk with --dir',
      );
    } finally {
      spawnSync('umount', [small]);
    }
  });
});
