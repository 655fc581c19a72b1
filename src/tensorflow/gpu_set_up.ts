/** The CUDA step of the set-up: which CUDA libraries this machine has, links to them, and what has to be fetched. */
import {existsSync} from 'node:fs';
import {join} from 'node:path';
import {tensorflowEnvironment} from '../runtime/config.js';
import {
  cudaFolders,
  linkCudaLibraries,
  planCudaLibraries,
  systemCudaRoots,
} from './cuda_libraries.js';
import {findWheel} from './find_wheel.js';
import {recordFile} from './file_records.js';
import type {CudaRecord, FileRecord} from './manifest.js';
import {runProgram} from './run_program.js';
import {textOf} from './tensorflow_errors.js';
import {unpackFile, withWheel} from './wheel.js';

/** pip's CUDA 12 runtime: 1 MB, all that TensorFlow needs of CUDA 12 itself beside CUDA 13. */
const RUNTIME = {project: 'nvidia-cuda-runtime-cu12', version: '12.5.82'};
const RUNTIME_LIBRARY = 'libcudart.so.12';

export interface CudaRequest {
  /** The folder in which `nvidia/` is made. */
  readonly folder: string;
  readonly sitePackages: string | null;
  readonly cache: string;
  readonly note: (text: string) => void;
}

/**
 * Links what is there; what is missing is told, and TensorFlow then computes on the CPU.
 * @returns The links, and the files that were fetched into the folder.
 */
export async function linkCuda({
  folder,
  sitePackages,
  cache,
  note,
}: CudaRequest): Promise<{cuda: CudaRecord; files: FileRecord[]}> {
  const nvidia = await nvidiaFolders(sitePackages);
  const roots = systemCudaRoots(tensorflowEnvironment().cudaPath);
  const plan = planCudaLibraries(nvidia, cudaFolders(nvidia, roots));
  const extra = new Map<string, string>();
  const files: FileRecord[] = [];
  if (plan.major === 13 && plan.missing.includes(RUNTIME_LIBRARY)) {
    try {
      const {path} = await findWheel({...RUNTIME, cache, note, showProgress: false});
      const name = `nvidia/cuda_runtime/lib/${RUNTIME_LIBRARY}`;
      const target = `cuda_runtime/${RUNTIME_LIBRARY}`;
      await withWheel(path, (wheel) => unpackFile(wheel, name, join(folder, target)));
      files.push(await recordFile(folder, target));
      extra.set(RUNTIME_LIBRARY, `../../${target}`);
    } catch (error) {
      note(`      ${textOf(error)}`);
    }
  }
  const cuda = linkCudaLibraries(folder, plan, extra);
  note(`      ${describeCuda(cuda)}`);
  return {cuda, files};
}

/** One sentence for people. */
export function describeCuda({major, folders, missing}: CudaRecord): string {
  if (major === null) {
    return `no CUDA libraries found (missing: ${missing.join(', ')}); TensorFlow computes on the CPU until they are there`;
  }
  const from = `CUDA ${major} libraries of ${folders.join(', ')}`;
  const how = major === 13 ? `${from} under their CUDA 12 names` : from;
  return missing.length === 0
    ? how
    : `${how}; not found: ${missing.join(', ')}, so TensorFlow will not use the GPU`;
}

/** pip's `nvidia` folders: of the environment that was named, and of the Python on the path. */
async function nvidiaFolders(sitePackages: string | null): Promise<string[]> {
  const script = 'import nvidia; print("\\n".join(nvidia.__path__))';
  const {status, stdout} = await runProgram('python3', ['-c', script]);
  const found = status === 0 ? stdout.trim().split('\n') : [];
  const named = sitePackages === null ? [] : [join(sitePackages, 'nvidia')];
  return [...new Set([...named, ...found])].filter((folder) => folder !== '' && existsSync(folder));
}
