/** `setup-tensorflow`: a current TensorFlow for tfjs-node in the project, in one command; `--remove` takes it away. */
import {resolve} from 'node:path';
import {defaultFolder} from '../tensorflow/find_folder.js';
import {describeCuda} from '../tensorflow/gpu_set_up.js';
import type {CudaRecord} from '../tensorflow/manifest.js';
import {removeFolder} from '../tensorflow/remove_folder.js';
import {setUpTensorflow, type SetUpStep} from '../tensorflow/set_up.js';
import type {Terminal} from './terminal.js';

export interface SetupTensorflowOptions {
  readonly gpu?: boolean | undefined;
  readonly version?: string | undefined;
  readonly wheel?: string | undefined;
  readonly sitePackages?: string | undefined;
  readonly dir?: string | undefined;
  readonly cache?: string | undefined;
  readonly strip?: boolean | undefined;
  readonly remove?: boolean | undefined;
}

/** What `--json` prints beside the frame. */
export interface SetupTensorflowBody {
  /** Absolute path. */
  readonly folder: string;
  /** Whether anything was made or removed. */
  readonly changed: boolean;
  readonly tensorflow: {
    readonly version: string;
    readonly tfjsNode: string;
    readonly gpu: boolean;
    readonly bytes: number;
    readonly cuda: CudaRecord | null;
  } | null;
  readonly steps: readonly SetUpStep[];
  /** With `--remove`: paths that are gone, and what stays because the set-up did not make it. */
  readonly removed: readonly string[];
  readonly kept: readonly string[];
}

export async function runSetupTensorflow(
  options: SetupTensorflowOptions,
  terminal: Terminal,
): Promise<SetupTensorflowBody> {
  if (options.remove === true) return remove(resolve(options.dir ?? defaultFolder()), terminal);
  const start = performance.now();
  const {folder, changed, manifest, steps, verified} = await setUpTensorflow({
    ...options,
    note: (text) => terminal.note(text),
    showProgress: process.stderr.isTTY,
  });
  const {tensorflow, tfjsNode, cuda, files} = manifest;
  const bytes = files.reduce((sum, file) => sum + (file.target === null ? file.bytes : 0), 0);
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  const device = verified.gpu ? 'computes on a GPU' : 'computes on the CPU';
  terminal.print(
    changed
      ? `TensorFlow ${tensorflow} for tfjs-node ${tfjsNode.version} is in ${folder} (${megabytes(bytes)}, ${seconds} s); it ${device}.`
      : `TensorFlow ${tensorflow} in ${folder} is as it should be; it ${device}.`,
  );
  if (cuda !== null) terminal.print(describeCuda(cuda));
  terminal.print(`\nUse it:  node -r tfjs-sage-attention/tensorflow app.js`);
  terminal.print(`or:      import 'tfjs-sage-attention/tensorflow' before @tensorflow/tfjs-node`);
  return {
    folder,
    changed,
    tensorflow: {version: tensorflow, tfjsNode: tfjsNode.version, gpu: verified.gpu, bytes, cuda},
    steps,
    removed: [],
    kept: [],
  };
}

function remove(folder: string, terminal: Terminal): SetupTensorflowBody {
  const {removed, kept} = removeFolder(folder);
  const stays =
    kept.length === 0 ? '' : ` Left, because the set-up did not make it: ${kept.join(', ')}.`;
  terminal.print(
    removed.length === 0
      ? `There is nothing to remove in ${folder}.`
      : `Removed ${folder}.${stays}`,
  );
  return {folder, changed: removed.length > 0, tensorflow: null, steps: [], removed, kept};
}

function megabytes(bytes: number): string {
  return `${Math.round(bytes / 1e6)} MB`;
}
