/** The steps that fill the folder: libraries, links to CUDA, binding. Each keeps what an earlier run finished. */
import {mkdirSync, rmSync, statfsSync, symlinkSync} from 'node:fs';
import {join} from 'node:path';
import {bindingKey, compileBinding} from './compile_binding.js';
import {recordFile} from './file_records.js';
import {wheelCache, type Origin} from './find_origin.js';
import {linkCuda} from './gpu_set_up.js';
import {
  BINDING_NAME,
  LIBRARIES,
  LIBRARY_FOLDER,
  type CudaRecord,
  type FileRecord,
} from './manifest.js';
import {lastLines, runProgram} from './run_program.js';
import type {SetUpOptions, Tools} from './set_up_options.js';
import type {Staging} from './staging.js';
import {setUpFailed} from './tensorflow_errors.js';
import {unpackFile, unpackHeaders, withWheel} from './wheel.js';

/** Kept free beside what is unpacked. */
const SPARE_BYTES = 64 << 20;

/** TensorFlow's two libraries: unpacked, or links to those of a Python environment. */
export async function provideLibraries(staging: Staging, origin: Origin, options: SetUpOptions) {
  const {wheel, sitePackages} = origin;
  const {strip, note} = options;
  const key = JSON.stringify([wheel?.sha256 ?? sitePackages, strip === true]);
  const paths = LIBRARIES.map((name) => `${LIBRARY_FOLDER}/${name}`);
  const target = (path: string): string => join(staging.folder, path);
  const record = (path: string, sha256?: string) => recordFile(staging.folder, path, sha256);
  return staging.step('libraries', key, async () => {
    if (wheel === null) {
      mkdirSync(target(LIBRARY_FOLDER), {recursive: true});
      for (const path of paths) symlinkSync(join(sitePackages!, path), target(path));
      return Promise.all(paths.map((path) => record(path)));
    }
    const sums = await unpackLibraries(wheel.path, paths, staging.folder, note);
    if (strip !== true) return Promise.all(paths.map((path, i) => record(path, sums[i])));
    const result = await runProgram('strip', ['--strip-unneeded', ...paths.map(target)]);
    if (result.status !== 0) {
      throw setUpFailed(`strip failed:\n${lastLines(result)}`, 'Leave --strip out.', 'strip');
    }
    return Promise.all(paths.map((path) => record(path)));
  });
}

/** Returns the checksums; tells every quarter. */
async function unpackLibraries(
  wheel: string,
  paths: readonly string[],
  folder: string,
  note: (text: string) => void,
): Promise<string[]> {
  return withWheel(wheel, async (opened) => {
    const sizes = paths.map((path) => opened.entries.get(path)?.uncompressedSize ?? 0);
    const total = sizes.reduce((sum, size) => sum + size, 0);
    checkSpace(folder, total);
    const sums: string[] = [];
    let before = 0;
    let told = 0;
    for (const [i, path] of paths.entries()) {
      const sum = await unpackFile(opened, path, join(folder, path), (bytes) => {
        const quarter = Math.floor((4 * (before + bytes)) / total);
        if (quarter <= told || quarter > 3) return;
        told = quarter;
        note(`      ${25 * quarter} % of ${megabytes(total)}`);
      });
      sums.push(sum);
      before += sizes[i] ?? 0;
    }
    return sums;
  });
}

function megabytes(bytes: number): string {
  return `${Math.round(bytes / 1e6)} MB`;
}

/** A full disk is told before the first byte. */
function checkSpace(folder: string, bytes: number): void {
  const {bavail, bsize} = statfsSync(folder);
  const free = bavail * bsize;
  if (free >= bytes + SPARE_BYTES) return;
  throw setUpFailed(
    `${folder} has ${megabytes(free)} of free space, needed are ${megabytes(bytes + SPARE_BYTES)}.`,
    'Make room, or name a folder on another disk with --dir.',
    'dir',
  );
}

/** Links are made afresh: the machine may have changed. */
export async function provideCuda(
  staging: Staging,
  {sitePackages}: Origin,
  options: SetUpOptions,
): Promise<{cuda: CudaRecord | null; files: FileRecord[]; kept: boolean}> {
  const {folder} = staging;
  for (const name of ['nvidia', 'cuda_runtime']) {
    rmSync(join(folder, name), {recursive: true, force: true});
  }
  if (options.gpu !== true) return {cuda: null, files: [], kept: true};
  const cache = wheelCache(options.cache);
  const linked = await linkCuda({folder, sitePackages, cache, note: options.note});
  return {...linked, kept: false};
}

/** The binding of the installed tfjs-node. */
export async function provideBinding(staging: Staging, origin: Origin, tools: Tools) {
  const key = bindingKey(tools.tfjsNode) + (origin.wheel?.sha256 ?? origin.sitePackages ?? '');
  return staging.step('binding', key, async () => {
    const {wheel, sitePackages} = origin;
    const {work, folder} = staging;
    const headers =
      wheel === null ? join(sitePackages!, 'tensorflow', 'include') : join(work, 'include');
    if (wheel !== null) await withWheel(wheel.path, (opened) => unpackHeaders(opened, headers));
    await compileBinding({...tools, headers, folder, work});
    return [await recordFile(folder, BINDING_NAME)];
  });
}
