/** Links to CUDA's libraries: real shared libraries with the names of CUDA 12 and 13, found through the links by the loader. */
import {spawnSync} from 'node:child_process';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readlinkSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import {tmpdir} from 'node:os';
import {dirname, join} from 'node:path';
import {
  CUDA_LIBRARIES,
  cudaFolders,
  linkCudaLibraries,
  planCudaLibraries,
  systemCudaRoots,
} from '../../src/tensorflow/cuda_libraries.js';
import {describeCuda} from '../../src/tensorflow/gpu_set_up.js';

let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'sage cüda-'));
});
afterEach(() => rmSync(folder, {recursive: true}));

const needed = CUDA_LIBRARIES.filter((library) => library.needed);

/**
 * A shared library with a SONAME and a function of its own, which looks for others beside itself, as NVIDIA's do.
 * @param needs Libraries beside it that it is linked with.
 */
function makeLibrary(path: string, needs: readonly string[] = []): void {
  mkdirSync(dirname(path), {recursive: true});
  const name = path.split('/').at(-1) ?? '';
  const source = `${path}.c`;
  const symbol = name.replace(/\W/g, '_');
  writeFileSync(source, `int ${symbol}(void) { return 1; }\n`);
  const links = needs.map((need) => join(dirname(path), need));
  const flags = [
    '-shared',
    '-fPIC',
    `-Wl,-soname,${name}`,
    '-Wl,--no-as-needed',
    '-Wl,-rpath,$ORIGIN',
  ];
  const child = spawnSync('gcc', [...flags, '-o', path, source, ...links], {encoding: 'utf8'});
  rmSync(source);
  if (child.status !== 0) throw new Error(child.stderr);
}

/** pip's packages of CUDA 12: a folder each. */
function makePip12(): string {
  const nvidia = join(folder, 'site-packages', 'nvidia');
  for (const {folder: name, name: library} of needed)
    makeLibrary(join(nvidia, name, 'lib', library));
  return nvidia;
}

/** pip's packages of CUDA 13: one folder for nearly all, cuDNN apart. */
function makePip13(): string {
  const nvidia = join(folder, 'site-packages', 'nvidia');
  const all = join(nvidia, 'cu13', 'lib');
  makeLibrary(join(all, 'libcublasLt.so.13'));
  makeLibrary(join(all, 'libcublas.so.13'), ['libcublasLt.so.13']);
  makeLibrary(join(all, 'libnvJitLink.so.13'));
  makeLibrary(join(all, 'libcusparse.so.12'), ['libnvJitLink.so.13']);
  makeLibrary(join(all, 'libcusolver.so.12'), ['libcublas.so.13', 'libcusparse.so.12']);
  makeLibrary(join(all, 'libcufft.so.12'));
  makeLibrary(join(all, 'libcudart.so.13'));
  makeLibrary(join(nvidia, 'cudnn', 'lib', 'libcudnn.so.9'));
  return nvidia;
}

/**
 * Opens libraries by bare name from one whose RUNPATH is that of TensorFlow's framework library, and which is found as the
 * binding finds it; gives what the dynamic loader says of those that could not be opened.
 */
function openAsTensorflow(prepared: string): string {
  const names = needed.map(({name}) => name);
  mkdirSync(join(prepared, 'tensorflow'), {recursive: true});
  const build = (output: string, source: string, flags: readonly string[]): void => {
    writeFileSync(join(folder, 'x.c'), source);
    const args = ['-o', output, join(folder, 'x.c'), ...flags];
    const child = spawnSync('gcc', args, {encoding: 'utf8'});
    if (child.status !== 0) throw new Error(child.stderr);
  };
  const framework = join(prepared, 'tensorflow', 'libframework.so');
  const folders = [...new Set(needed.map((library) => library.folder))];
  const runpath = folders.map((name) => `$ORIGIN/../nvidia/${name}/lib`).join(':');
  build(
    framework,
    `#include <dlfcn.h>
    #include <stdio.h>
    void open_all(void) {
      const char* names[] = {${names.map((name) => `"${name}"`).join(', ')}};
      for (int i = 0; i < ${names.length}; ++i) if (!dlopen(names[i], RTLD_NOW)) puts(dlerror());
    }`,
    ['-shared', '-fPIC', '-Wl,--enable-new-dtags', `-Wl,-rpath,${runpath}`, '-ldl'],
  );
  const binding = join(prepared, 'binding.so');
  build(binding, 'void open_all(void); void go(void) { open_all(); }', [
    '-shared',
    '-fPIC',
    framework,
    '-Wl,-rpath,$ORIGIN/tensorflow',
  ]);
  const program = join(prepared, 'program');
  build(program, 'void go(void); int main(void) { go(); return 0; }', [
    binding,
    `-Wl,-rpath,${prepared}`,
    `-Wl,-rpath-link,${join(prepared, 'tensorflow')}`,
  ]);
  const child = spawnSync(program, {encoding: 'utf8', env: {}});
  if (child.status !== 0) throw new Error(child.stderr);
  return child.stdout;
}

it('takes CUDA 12 of pip as a whole', () => {
  const nvidia = makePip12();
  const plan = planCudaLibraries([nvidia], cudaFolders([nvidia], []));
  const prepared = join(folder, 'prepared');
  mkdirSync(prepared);
  const record = linkCudaLibraries(prepared, plan);
  expect(record).toEqual({
    major: 12,
    folders: [nvidia],
    links: [{path: 'nvidia', target: nvidia}],
    missing: [],
  });
  expect(openAsTensorflow(prepared)).toBe('');
});

it('gives CUDA 13 the names of CUDA 12, with a runtime of CUDA 12 beside it', () => {
  const nvidia = makePip13();
  const plan = planCudaLibraries([nvidia], cudaFolders([nvidia], []));
  expect(plan).toMatchObject({major: 13, wholeFolder: null, missing: ['libcudart.so.12']});
  const prepared = join(folder, 'prepared');
  makeLibrary(join(prepared, 'cuda_runtime', 'libcudart.so.12'));
  const extra = new Map([['libcudart.so.12', '../../cuda_runtime/libcudart.so.12']]);
  const record = linkCudaLibraries(prepared, plan, extra);
  expect(record).toMatchObject({major: 13, missing: []});
  const to = (name: string): string => realpathSync(join(prepared, 'nvidia/lib', name));
  expect(to('libcublas.so.12')).toBe(realpathSync(join(nvidia, 'cu13/lib/libcublas.so.13')));
  expect(to('libcufft.so.11')).toBe(realpathSync(join(nvidia, 'cu13/lib/libcufft.so.12')));
  expect(readlinkSync(join(prepared, 'nvidia/cublas/lib'))).toBe('../lib');
  for (const {path} of record.links) {
    expect(lstatSync(join(prepared, path)).isSymbolicLink()).toBe(true);
    expect(existsSync(join(prepared, path))).toBe(true);
  }
  // Found by name from TensorFlow's folder, and what they need in turn beside them.
  expect(openAsTensorflow(prepared)).toBe('');
  expect(describeCuda(record)).toContain('under their CUDA 12 names');
});

it('says what is missing where CUDA 13 comes without a runtime of CUDA 12', () => {
  const nvidia = makePip13();
  const plan = planCudaLibraries([nvidia], cudaFolders([nvidia], []));
  const prepared = join(folder, 'prepared');
  mkdirSync(prepared);
  const record = linkCudaLibraries(prepared, plan);
  expect(record.missing).toEqual(['libcudart.so.12']);
  expect(describeCuda(record)).toContain(
    'not found: libcudart.so.12, so TensorFlow will not use the GPU',
  );
  expect(openAsTensorflow(prepared)).toMatch(/^libcudart\.so\.12: .*\n$/);
});

it('prefers CUDA 12 of a toolkit to CUDA 13 of pip, if it is whole', () => {
  const nvidia = makePip13();
  const toolkit = join(folder, 'cuda-12.5');
  for (const {name} of needed) makeLibrary(join(toolkit, 'lib64', name));
  const folders = cudaFolders([nvidia], systemCudaRoots(toolkit));
  const plan = planCudaLibraries([nvidia], folders);
  expect(plan).toMatchObject({major: 12, wholeFolder: null, missing: []});
  rmSync(join(toolkit, 'lib64', 'libcufft.so.11'));
  expect(planCudaLibraries([nvidia], cudaFolders([nvidia], [toolkit])).major).toBe(13);
});

it('finds nothing where there is nothing', () => {
  const plan = planCudaLibraries([], cudaFolders([], [folder]));
  expect(plan).toMatchObject({major: null, missing: needed.map(({name}) => name)});
  const record = linkCudaLibraries(folder, plan);
  expect(record.links).toEqual([]);
  expect(describeCuda(record)).toContain('TensorFlow computes on the CPU');
});
