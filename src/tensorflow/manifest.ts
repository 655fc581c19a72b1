/** `sage-tensorflow.json`: what a prepared folder holds and what it is for. Written last, so a folder with one is whole. */
import {readFileSync, statSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {damaged, textOf} from './tensorflow_errors.js';

export const MANIFEST_NAME = 'sage-tensorflow.json';

/** Version of the manifest's own form. */
export const MANIFEST_SCHEMA = 1;

/** The binding that tfjs-node loads, in the prepared folder. */
export const BINDING_NAME = 'tfjs_binding.node';

/** Folder of TensorFlow's two libraries in the prepared folder, named as in a wheel. */
export const LIBRARY_FOLDER = 'tensorflow';

export const LIBRARIES = ['libtensorflow_cc.so.2', 'libtensorflow_framework.so.2'] as const;

/** Version of Node-API that the binding is compiled for. */
export const NAPI_VERSION = 8;

/** A file of the prepared folder. */
export interface FileRecord {
  /** Relative to the folder, with `/`. */
  readonly path: string;
  readonly bytes: number;
  /** Hexadecimal. */
  readonly sha256: string;
  /** Absolute path that a symbolic link points at; null for a file of its own. */
  readonly target: string | null;
}

/** Where the CUDA libraries of a GPU build come from. */
export interface CudaRecord {
  /** Major version of CUDA whose libraries are linked; null when none were found. */
  readonly major: 12 | 13 | null;
  /** Folders that the libraries lie in. */
  readonly folders: readonly string[];
  /** Symbolic links below `nvidia/`: relative path, absolute or relative target. */
  readonly links: readonly {readonly path: string; readonly target: string}[];
  /** Names under which TensorFlow looks for libraries that were not found. */
  readonly missing: readonly string[];
}

export interface TensorflowManifest {
  readonly schema: typeof MANIFEST_SCHEMA;
  /** Version of TensorFlow, such as `2.21.0`. */
  readonly tensorflow: string;
  /** Whether `--gpu` was asked for. */
  readonly gpu: boolean;
  /** `process.platform`, `process.arch` and the C library of the machine it was made on. */
  readonly platform: string;
  readonly arch: string;
  readonly libc: string | null;
  /** The Node that it was made with; any Node with `napi` or a newer Node-API serves. */
  readonly node: {readonly version: string; readonly modules: string; readonly napi: number};
  /** The tfjs-node whose binding was compiled. */
  readonly tfjsNode: {readonly name: string; readonly version: string};
  /** The wheel that the libraries are from; null with `--site-packages`. */
  readonly wheel: {readonly name: string; readonly sha256: string} | null;
  /** The folder given as `--site-packages`; null with a wheel. */
  readonly sitePackages: string | null;
  readonly stripped: boolean;
  readonly cuda: CudaRecord | null;
  readonly files: readonly FileRecord[];
  /** ISO 8601, UTC. */
  readonly created: string;
}

/** Whether a folder is one that the set-up finished. */
export function hasManifest(folder: string): boolean {
  return statSync(join(folder, MANIFEST_NAME), {throwIfNoEntry: false})?.isFile() === true;
}

export function writeManifest(folder: string, manifest: TensorflowManifest): void {
  writeFileSync(join(folder, MANIFEST_NAME), `${JSON.stringify(manifest, null, 2)}\n`);
}

/**
 * @throws SageAttentionError `tensorflow-damaged` when it cannot be read or lacks a field that the loader needs.
 */
export function readManifest(folder: string): TensorflowManifest {
  const path = join(folder, MANIFEST_NAME);
  let manifest: Partial<TensorflowManifest>;
  try {
    manifest = JSON.parse(readFileSync(path, 'utf8')) as Partial<TensorflowManifest>;
  } catch (cause) {
    throw damaged(folder, `${MANIFEST_NAME} cannot be read (${textOf(cause)})`, cause);
  }
  if (manifest?.schema !== MANIFEST_SCHEMA) {
    const found = JSON.stringify(manifest?.schema ?? null);
    throw damaged(folder, `${MANIFEST_NAME} has schema ${found}, expected ${MANIFEST_SCHEMA}`);
  }
  const wrong = wrongField(manifest);
  if (wrong !== null) throw damaged(folder, `${MANIFEST_NAME} has no proper \`${wrong}\``);
  return manifest as TensorflowManifest;
}

function wrongField(manifest: Partial<TensorflowManifest>): string | null {
  for (const name of ['tensorflow', 'platform', 'arch'] as const) {
    if (typeof manifest[name] !== 'string') return name;
  }
  if (typeof manifest.node?.napi !== 'number') return 'node';
  if (typeof manifest.tfjsNode?.version !== 'string') return 'tfjsNode';
  const {files} = manifest;
  const whole =
    Array.isArray(files) &&
    files.every(
      ({path, bytes}: Partial<FileRecord>) => typeof path === 'string' && typeof bytes === 'number',
    ) &&
    files.some(({path}) => path === BINDING_NAME);
  return whole ? null : 'files';
}
