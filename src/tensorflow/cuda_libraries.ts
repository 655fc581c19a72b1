/**
 * CUDA libraries for a GPU build of TensorFlow. Its framework library opens them by name and looks in
 * `../nvidia/<library>/lib` beside its own folder. Where pip's CUDA 12 packages are, `nvidia` is a link to them. Where only
 * CUDA 13 is, links under the CUDA 12 names serve: the functions that TensorFlow 2.21 calls are the same, but those of
 * the CUDA runtime, whose own CUDA 12 library is needed.
 */
import {existsSync, mkdirSync, readdirSync, statSync, symlinkSync} from 'node:fs';
import {dirname, join} from 'node:path';
import type {CudaRecord} from './manifest.js';

/** A library that TensorFlow opens, or that one of those needs. */
interface CudaLibrary {
  /** Folder below `nvidia` in which TensorFlow looks for it. */
  readonly folder: string;
  /** The name that TensorFlow opens. */
  readonly name: string;
  /** Its name in CUDA 13; null when that one does not serve. */
  readonly inCuda13: string | null;
  /** Whether a GPU is refused without it. */
  readonly needed: boolean;
}

const library = (
  folder: string,
  name: string,
  inCuda13: string | null,
  needed = true,
): CudaLibrary => ({folder, name, inCuda13, needed});

export const CUDA_LIBRARIES: readonly CudaLibrary[] = [
  library('cuda_runtime', 'libcudart.so.12', null),
  library('cublas', 'libcublas.so.12', 'libcublas.so.13'),
  library('cublas', 'libcublasLt.so.12', 'libcublasLt.so.13'),
  library('cufft', 'libcufft.so.11', 'libcufft.so.12'),
  library('cusolver', 'libcusolver.so.11', 'libcusolver.so.12'),
  library('cusparse', 'libcusparse.so.12', 'libcusparse.so.12'),
  library('cudnn', 'libcudnn.so.9', 'libcudnn.so.9'),
  library('nccl', 'libnccl.so.2', 'libnccl.so.2', false),
  library('cuda_cupti', 'libcupti.so.12', 'libcupti.so.13', false),
  library('nvshmem', 'libnvshmem_host.so.3', 'libnvshmem_host.so.3', false),
  // Not opened by TensorFlow: cuSOLVER, cuSPARSE and cuDNN look for them beside themselves.
  library('nvjitlink', 'libnvJitLink.so.12', 'libnvJitLink.so.13', false),
  library('cuda_nvrtc', 'libnvrtc.so.12', 'libnvrtc.so.13', false),
];

/** Where the links of a folder put all libraries together. */
export const PRIVATE_FOLDER = 'nvidia/lib';

/**
 * Folders that may hold CUDA libraries, those of pip first.
 * @param nvidia pip's `nvidia` folders, such as `<site-packages>/nvidia`.
 * @param systemRoots Toolkits and system library folders.
 */
export function cudaFolders(nvidia: readonly string[], systemRoots: readonly string[]): string[] {
  const below = (root: string): string[] =>
    isFolder(root) ? readdirSync(root).map((name) => join(root, name, 'lib')) : [];
  const system = systemRoots.flatMap((root) => [
    join(root, 'lib64'),
    join(root, 'targets', 'x86_64-linux', 'lib'),
    root,
  ]);
  return [...nvidia.flatMap(below), ...system].filter(isFolder);
}

/** `/usr/local/cuda*`, newest first, and the folders that distributions use. */
export function systemCudaRoots(named: string | null): string[] {
  const local = isFolder('/usr/local') ? readdirSync('/usr/local') : [];
  const toolkits = local
    .filter((name) => /^cuda(-[\d.]+)?$/.test(name))
    .sort()
    .reverse();
  return [
    ...(named === null ? [] : [named]),
    ...toolkits.map((name) => join('/usr/local', name)),
    '/usr/lib/x86_64-linux-gnu',
    '/usr/lib/aarch64-linux-gnu',
    '/usr/lib64',
  ];
}

/** What `linkCudaLibraries` is to link. */
export interface CudaPlan {
  readonly major: 12 | 13 | null;
  /** Target of a link `nvidia` when pip's CUDA 12 packages are whole. */
  readonly wholeFolder: string | null;
  /** Paths of found libraries by the name that TensorFlow opens. */
  readonly found: ReadonlyMap<string, string>;
  readonly missing: readonly string[];
}

/**
 * Decides for CUDA 12 where its libraries are all there, else for CUDA 13.
 * @param nvidia pip's `nvidia` folders.
 * @param folders Everything to search, of `cudaFolders`.
 */
export function planCudaLibraries(nvidia: readonly string[], folders: readonly string[]): CudaPlan {
  for (const root of nvidia) {
    const inPlace = ({folder, name, needed}: CudaLibrary): boolean =>
      !needed || existsSync(join(root, folder, 'lib', name));
    if (!CUDA_LIBRARIES.every(inPlace)) continue;
    const found = CUDA_LIBRARIES.map(
      ({folder, name}) => [name, join(root, folder, 'lib', name)] as const,
    );
    const present = found.filter(([, path]) => existsSync(path));
    return {major: 12, wholeFolder: root, found: new Map(present), missing: []};
  }
  const find = (name: string | null): string | undefined =>
    name === null ? undefined : folders.map((folder) => join(folder, name)).find(existsSync);
  const as = (nameOf: (of: CudaLibrary) => string | null): Map<string, string> => {
    const pairs = CUDA_LIBRARIES.map((of) => [of.name, find(nameOf(of))] as const);
    return new Map(pairs.filter((pair): pair is [string, string] => pair[1] !== undefined));
  };
  const missingOf = (found: ReadonlyMap<string, string>): string[] =>
    CUDA_LIBRARIES.filter(({name, needed}) => needed && !found.has(name)).map(({name}) => name);
  const twelve = as(({name}) => name);
  if (missingOf(twelve).length === 0 || !folders.some(hasCuda13)) {
    const any = twelve.has('libcublas.so.12');
    return {major: any ? 12 : null, wholeFolder: null, found: twelve, missing: missingOf(twelve)};
  }
  const thirteen = as(({name, inCuda13}) => inCuda13 ?? name);
  return {major: 13, wholeFolder: null, found: thirteen, missing: missingOf(thirteen)};
}

function hasCuda13(folder: string): boolean {
  return existsSync(join(folder, 'libcublas.so.13'));
}

/**
 * Makes the links of a plan below `<folder>/nvidia`, which must not exist.
 * @param extra Libraries of the folder's own by name, such as a CUDA 12 runtime that was fetched.
 */
export function linkCudaLibraries(
  folder: string,
  plan: CudaPlan,
  extra: ReadonlyMap<string, string> = new Map(),
): CudaRecord {
  const links: {path: string; target: string}[] = [];
  const link = (path: string, target: string): void => {
    mkdirSync(dirname(join(folder, path)), {recursive: true});
    symlinkSync(target, join(folder, path));
    links.push({path, target});
  };
  if (plan.wholeFolder !== null) {
    link('nvidia', plan.wholeFolder);
    return {major: 12, folders: [plan.wholeFolder], links, missing: []};
  }
  const libraries = new Map([...plan.found, ...extra]);
  const folders = [...new Set([...plan.found.values()].map((path) => dirname(path)))];
  for (const [name, path] of libraries) link(join(PRIVATE_FOLDER, name), path);
  // What these need in turn, under its own name: the libraries look for each other in the folder they were opened from.
  for (const from of folders) {
    for (const name of readdirSync(from)) {
      const path = join(PRIVATE_FOLDER, name);
      if (!NEIGHBOUR.test(name) || links.some((made) => made.path === path)) continue;
      link(path, join(from, name));
    }
  }
  for (const name of new Set(CUDA_LIBRARIES.map((of) => of.folder))) {
    if (links.length > 0) link(join('nvidia', name, 'lib'), join('..', 'lib'));
  }
  const missing = plan.missing.filter((name) => !extra.has(name));
  return {major: plan.major, folders, links, missing};
}

/** CUDA's own libraries with a version in their name; a system folder holds a thousand others. */
const NEIGHBOUR =
  /^lib(cu(blas|blasLt|dart|fft|fftw|rand|solver|solverMg|sparse|pti|dnn\w*)|nv(JitLink|rtc|rtc-builtins|shmem\w*|blas|perf_\w+)|nccl)\.so\.[\d.]+$/;

function isFolder(path: string): boolean {
  return statSync(path, {throwIfNoEntry: false})?.isDirectory() === true;
}
