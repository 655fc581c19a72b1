/**
 * A current TensorFlow for tfjs-node in a folder of its own: libraries from a pip wheel, tfjs-node's binding compiled
 * against them, tried in a process of its own. node_modules stay as they are; src/tensorflow/load.ts uses the folder.
 */
import {existsSync, rmSync} from 'node:fs';
import {dirname, join, resolve} from 'node:path';
import {platform} from '#platform';
import {SageAttentionError} from '../runtime/errors.js';
import {defaultFolder} from './find_folder.js';
import {checkOrigin, findOrigin, type Origin} from './find_origin.js';
import {withLock} from './folder_lock.js';
import {
  hasManifest,
  MANIFEST_NAME,
  MANIFEST_SCHEMA,
  NAPI_VERSION,
  readManifest,
  writeManifest,
  type CudaRecord,
  type FileRecord,
  type TensorflowManifest,
} from './manifest.js';
import {
  checkFolder,
  checkOptions,
  findTools,
  type SetUpOptions,
  type Tools,
} from './set_up_options.js';
import {provideBinding, provideCuda, provideLibraries} from './set_up_steps.js';
import {Staging} from './staging.js';
import {setUpFailed, textOf} from './tensorflow_errors.js';
import {verifyFolder, type Verification} from './verify_folder.js';

export interface SetUpStep {
  readonly name: string;
  readonly seconds: number;
  /** Whether the outcome of an earlier run was kept. */
  readonly kept: boolean;
}

export interface SetUpResult {
  /** Absolute path. */
  readonly folder: string;
  /** False when everything was as it should be already. */
  readonly changed: boolean;
  readonly manifest: TensorflowManifest;
  readonly steps: readonly SetUpStep[];
  readonly verified: Verification;
}

const STEPS = ['wheel', 'libraries', 'CUDA libraries', 'binding', 'trial'] as const;

/**
 * Makes or completes the folder.
 * @throws SageAttentionError `tensorflow-set-up-failed` (`argument`: the option at fault, or null).
 */
export async function setUpTensorflow(options: SetUpOptions): Promise<SetUpResult> {
  const folder = resolve(options.dir ?? defaultFolder());
  try {
    checkOptions(options);
    const tools = await findTools(options);
    checkFolder(folder);
    const onWait = (pid: number): void =>
      options.note(`waiting for the set-up of another process (${pid}; ${folder}.lock) ...`);
    return await withLock(`${folder}.lock`, onWait, () => setUpIn(folder, options, tools));
  } catch (error) {
    throw error instanceof SageAttentionError ? error : describeFailure(folder, error);
  }
}

async function setUpIn(folder: string, options: SetUpOptions, tools: Tools): Promise<SetUpResult> {
  const {note} = options;
  const steps: SetUpStep[] = [];
  const step = async <T extends object>(
    name: (typeof STEPS)[number],
    work: () => Promise<T>,
  ): Promise<T> => {
    const head = `[${STEPS.indexOf(name) + 1}/${STEPS.length}] ${name}`;
    note(`${head} ...`);
    const start = performance.now();
    const result = await work();
    const seconds = Math.round((performance.now() - start) / 100) / 10;
    const kept = (result as {kept?: boolean}).kept === true;
    steps.push({name, seconds, kept});
    note(`${head}: ${kept ? 'as it was' : 'done'} (${seconds.toFixed(1)} s)`);
    return result;
  };

  const {origin} = await step('wheel', () => findOrigin(options));
  checkOrigin(origin, options);
  const staging = new Staging(folder);
  const libraries = await step('libraries', () => provideLibraries(staging, origin, options));
  const cuda = await step('CUDA libraries', () => provideCuda(staging, origin, options));
  const binding = await step('binding', () => provideBinding(staging, origin, tools));

  const files = [...libraries.files, ...cuda.files, ...binding.files];
  const manifest = describe(origin, options, tools, files, cuda.cuda);
  const current = findCurrent(folder, manifest);
  const trial = (where: string) =>
    step('trial', () =>
      Promise.resolve(verifyFolder(where, tools.tfjsNode, origin.metadata.version)),
    );
  if (current !== null && libraries.kept && binding.kept) {
    staging.discard();
    return {folder, changed: false, manifest: current, steps, verified: await trial(folder)};
  }
  rmSync(staging.work, {recursive: true, force: true});
  writeManifest(staging.folder, manifest);
  let verified: Verification;
  try {
    verified = await trial(staging.folder);
  } catch (error) {
    rmSync(join(staging.folder, MANIFEST_NAME));
    throw error;
  }
  staging.finish();
  return {folder, changed: true, manifest, steps, verified};
}

function describe(
  {metadata, wheel, sitePackages}: Origin,
  {gpu, strip}: SetUpOptions,
  {tfjsNode}: Tools,
  files: readonly FileRecord[],
  cuda: CudaRecord | null,
): TensorflowManifest {
  const {platform: os, arch, versions} = process;
  return {
    schema: MANIFEST_SCHEMA,
    tensorflow: metadata.version,
    gpu: gpu === true,
    platform: os,
    arch,
    libc: platform.libc,
    node: {version: versions.node, modules: versions.modules, napi: NAPI_VERSION},
    tfjsNode: {name: tfjsNode.name, version: tfjsNode.version},
    wheel:
      wheel === null ? null : {name: wheel.path.split(/[/\\]/).at(-1) ?? '', sha256: wheel.sha256},
    sitePackages,
    stripped: strip === true,
    cuda,
    files,
    created: new Date().toISOString(),
  };
}

/** The manifest of the finished folder if it says the same as the new one; dates and names of wheels may differ. */
function findCurrent(folder: string, wanted: TensorflowManifest): TensorflowManifest | null {
  if (!hasManifest(folder)) return null;
  const essence = ({tensorflow, gpu, arch, tfjsNode, stripped, files, cuda}: TensorflowManifest) =>
    JSON.stringify([tensorflow, gpu, arch, tfjsNode.version, stripped, files, cuda]);
  try {
    const found = readManifest(folder);
    return essence(found) === essence(wanted) ? found : null;
  } catch {
    // Damaged: it is made again.
    return null;
  }
}

/** Failures of the file system, in words. */
function describeFailure(folder: string, error: unknown): SageAttentionError {
  const {code} = (error ?? {}) as {code?: unknown};
  const elsewhere = 'Name a folder that can be written with --dir.';
  const near = existsSync(dirname(folder)) ? folder : `${folder} (its parent does not exist)`;
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    return setUpFailed(
      `the disk of ${folder} is full.`,
      'Make room, or name a folder on another disk with --dir.',
      'dir',
      error,
    );
  }
  if (['EACCES', 'EPERM', 'EROFS', 'ENOTDIR', 'EEXIST', 'ENOENT'].includes(String(code))) {
    return setUpFailed(`${near} cannot be written: ${textOf(error)}.`, elsewhere, 'dir', error);
  }
  return setUpFailed(
    `${textOf(error)}.`,
    'npx tfjs-sage-attention doctor tells more.',
    null,
    error,
  );
}
