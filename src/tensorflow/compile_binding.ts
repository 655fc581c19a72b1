/** tfjs-node's binding, compiled from the sources that the installed tfjs-node brings against TensorFlow's libraries. */
import {createHash} from 'node:crypto';
import {existsSync, mkdirSync, readdirSync, readFileSync, renameSync} from 'node:fs';
import {join} from 'node:path';
import {tensorflowEnvironment} from '../runtime/config.js';
import {BINDING_NAME, LIBRARIES, LIBRARY_FOLDER, NAPI_VERSION} from './manifest.js';
import {isProgram, lastLines, runProgram} from './run_program.js';
import {setUpFailed} from './tensorflow_errors.js';
import type {TfjsNodePackage} from './tfjs_node_package.js';

const SOURCES = ['tfjs_backend.cc', 'tfjs_binding.cc'];

const COMPILE_FLAGS = ['-std=c++17', '-O2', '-fPIC', '-w', `-DNAPI_VERSION=${NAPI_VERSION}`];

/** Libraries are found beside the binding, so that the folder may be moved. */
const LINK_FLAGS = ['-shared', `-Wl,-rpath,$ORIGIN/${LIBRARY_FOLDER}`];

/** Changes whenever the binding would come out differently. */
export function bindingKey(tfjsNode: TfjsNodePackage): string {
  const hash = createHash('sha256');
  hash.update(JSON.stringify([tfjsNode.version, COMPILE_FLAGS, LINK_FLAGS]));
  const folder = join(tfjsNode.folder, 'binding');
  for (const name of readdirSync(folder).sort()) {
    if (/\.(cc|h)$/.test(name)) hash.update(name).update(readFileSync(join(folder, name)));
  }
  return hash.digest('hex');
}

/**
 * CXX, or the first of the usual names that runs.
 * @throws SageAttentionError `tensorflow-set-up-failed`.
 */
export async function findCompiler(): Promise<string> {
  const {compiler} = tensorflowEnvironment();
  for (const command of compiler === null ? ['g++', 'c++', 'clang++'] : [compiler]) {
    if (await isProgram(command)) return command;
  }
  throw setUpFailed(
    compiler === null
      ? 'no C++ compiler is on the path (tried g++, c++, clang++).'
      : `CXX names ${compiler}, which cannot be started.`,
    'Install one (Debian, Ubuntu: apt-get install g++) or set CXX.',
  );
}

/** @throws SageAttentionError `tensorflow-set-up-failed` when tfjs-node came without its sources. */
export function checkSources(tfjsNode: TfjsNodePackage): void {
  const missing = SOURCES.filter((name) => !existsSync(join(tfjsNode.folder, 'binding', name)));
  if (missing.length === 0) return;
  throw setUpFailed(
    `${tfjsNode.folder}/binding lacks ${missing.join(', ')}.`,
    `npm install --ignore-scripts ${tfjsNode.name}@${tfjsNode.version}`,
  );
}

export interface BindingBuild {
  readonly compiler: string;
  readonly tfjsNode: TfjsNodePackage;
  /** Folder of node_api.h. */
  readonly nodeHeaders: string;
  /** Folder of TensorFlow's headers. */
  readonly headers: string;
  /** The folder to be; holds the libraries, gets the binding. */
  readonly folder: string;
  /** For what comes and goes. */
  readonly work: string;
}

/** The two sources at once, then the link. */
export async function compileBinding(build: BindingBuild): Promise<void> {
  const {compiler, tfjsNode, nodeHeaders, headers, folder, work} = build;
  mkdirSync(work, {recursive: true});
  const includes = ['-I', nodeHeaders, '-I', headers];
  const run = async (args: string[]): Promise<void> => {
    const result = await runProgram(compiler, args);
    if (result.status === 0) return;
    throw setUpFailed(
      `${compiler} could not compile tfjs-node's binding:\n${lastLines(result, 12)}`,
      'Another compiler may do: set CXX. TensorFlow 2.21 needs g++ 9 or newer.',
    );
  };
  const objects = SOURCES.map((name) => join(work, name.replace(/\.cc$/, '.o')));
  const compile = (name: string, i: number): Promise<void> =>
    run([
      ...COMPILE_FLAGS,
      ...includes,
      '-c',
      join(tfjsNode.folder, 'binding', name),
      '-o',
      objects[i]!,
    ]);
  await Promise.all(SOURCES.map(compile));
  const draft = join(work, BINDING_NAME);
  const libraries = LIBRARIES.map((name) => join(folder, LIBRARY_FOLDER, name));
  await run([...LINK_FLAGS, ...objects, ...libraries, '-o', draft]);
  renameSync(draft, join(folder, BINDING_NAME));
}
