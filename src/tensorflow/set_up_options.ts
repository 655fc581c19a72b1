/** What a set-up is asked for, and what of this machine allows it. */
import {existsSync, readdirSync} from 'node:fs';
import {platform} from '#platform';
import {checkSources, findCompiler} from './compile_binding.js';
import {projectFolder} from './find_folder.js';
import {WHEEL_ARCH} from './find_wheel.js';
import {hasManifest, MANIFEST_NAME} from './manifest.js';
import {findNodeHeaders} from './node_headers.js';
import {isProgram} from './run_program.js';
import {setUpFailed} from './tensorflow_errors.js';
import {findTfjsNode, type TfjsNodePackage} from './tfjs_node_package.js';
import {loaderFile} from './verify_folder.js';

export interface SetUpOptions {
  /** The wheel that can use NVIDIA GPUs, with links to CUDA's libraries. Default: false. */
  readonly gpu?: boolean | undefined;
  /** Default: 2.21.0, or what `wheel` or `sitePackages` hold. */
  readonly version?: string | undefined;
  /** A wheel that is here already. Default: from the cache, or fetched by pip. */
  readonly wheel?: string | undefined;
  /** A Python environment's folder whose TensorFlow is used where it lies. */
  readonly sitePackages?: string | undefined;
  /** The folder to make. Default: `.sage-tensorflow` beside the nearest package.json. */
  readonly dir?: string | undefined;
  /** Where wheels are kept. Default: `tfjs-sage-attention` in the user's cache. */
  readonly cache?: string | undefined;
  /** Leaves out the libraries' symbol tables: 200 MB less on disk. Default: false. */
  readonly strip?: boolean | undefined;
  /** One line of progress. */
  readonly note: (text: string) => void;
  /** Whether pip may draw its progress bar on stderr. Default: false. */
  readonly showProgress?: boolean | undefined;
}

/** The tools of this machine, found before anything is fetched. */
export interface Tools {
  readonly tfjsNode: TfjsNodePackage;
  readonly compiler: string;
  readonly nodeHeaders: string;
}

/** Options that mean nothing together, and systems that TensorFlow has no libraries for. */
export function checkOptions({wheel, sitePackages, strip}: SetUpOptions): void {
  const {os, arch} = platform;
  if (os !== 'linux' || WHEEL_ARCH[arch ?? ''] === undefined) {
    throw setUpFailed(
      `TensorFlow's wheels bring the libraries that are needed for Linux on x64 and arm64 only, this is ${os} ${arch}.`,
      'Use the wasm or cpu backend, or a container with Linux.',
    );
  }
  if (platform.libc === 'musl') {
    throw setUpFailed(
      'TensorFlow is built for glibc, this system has musl.',
      'Use an image with glibc, such as node:20.',
    );
  }
  if (sitePackages !== undefined && (wheel !== undefined || strip === true)) {
    const other = wheel === undefined ? 'strip' : 'wheel';
    throw setUpFailed(
      `--site-packages uses libraries where they lie, so --${other} means nothing with it.`,
      'Leave one of the two out.',
      other,
    );
  }
  if (wheel !== undefined && !existsSync(wheel)) {
    throw setUpFailed(
      `--wheel ${wheel}: there is no such file.`,
      'Give the path of a .whl file.',
      'wheel',
    );
  }
}

/** Finds what the set-up needs, or says what is missing and how to get it. */
export async function findTools({strip}: SetUpOptions): Promise<Tools> {
  const project = projectFolder();
  const tfjsNode = findTfjsNode([project, platform.packageRoot ?? project]);
  if (tfjsNode === null) {
    throw setUpFailed(
      `@tensorflow/tfjs-node is not installed in ${project}.`,
      'npm install --ignore-scripts @tensorflow/tfjs-node@4.22.0 (its own install script is not needed).',
    );
  }
  checkSources(tfjsNode);
  if (strip === true && !(await isProgram('strip'))) {
    throw setUpFailed(
      '--strip needs strip, which is not on the path.',
      'Install binutils or leave --strip out.',
      'strip',
    );
  }
  loaderFile();
  return {tfjsNode, compiler: await findCompiler(), nodeHeaders: findNodeHeaders(project)};
}

/** What is somebody else's is never replaced. */
export function checkFolder(folder: string): void {
  if (!existsSync(folder) || hasManifest(folder) || readdirSync(folder).length === 0) return;
  throw setUpFailed(
    `${folder} holds other files, and no ${MANIFEST_NAME}.`,
    'Name an empty or new folder with --dir.',
    'dir',
  );
}
