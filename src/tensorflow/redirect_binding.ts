/**
 * Gives tfjs-node the binding of a prepared folder, with node_modules untouched. tfjs-node asks `@mapbox/node-pre-gyp`
 * where its binding lies (`find`); modules of the tfjs-node packages, whichever copy and whenever they are loaded, get an
 * answer of ours. Everybody else's node-pre-gyp is the real one.
 */
import Module, {createRequire} from 'node:module';
import {dirname, join, resolve} from 'node:path';
import util from 'node:util';
import {platform} from '#platform';
import {findSizeFault} from './file_records.js';
import {BINDING_NAME, readManifest, type TensorflowManifest} from './manifest.js';
import {alreadyLoaded, damaged, mismatch} from './tensorflow_errors.js';
import {TFJS_NODE_PACKAGES, tfjsNodeIn, type TfjsNodePackage} from './tfjs_node_package.js';

/** A prepared folder that fits this process. */
export interface PreparedTensorflow {
  /** Absolute path. */
  readonly folder: string;
  readonly manifest: TensorflowManifest;
}

const PRE_GYP = '@mapbox/node-pre-gyp';

/** Under this symbol the global object remembers the folder: the package may be loaded as ES module and as CommonJS. */
const REDIRECTED = Symbol.for('tfjs-sage-attention.tensorflow');

interface Redirected {
  prepared: PreparedTensorflow;
}

/** The parts of Node's CommonJS loader that its types leave out. */
interface ModuleLoader {
  _load(this: unknown, request: string, parent: NodeModule | undefined, isMain: boolean): unknown;
  readonly _cache?: Readonly<Record<string, NodeModule | undefined>>;
}

/** What test frameworks with a module registry of their own give to the modules that they load. */
interface ModuleMocker {
  doMock(path: string, factory: () => unknown): unknown;
  requireActual(path: string): object;
}

/**
 * Reads and checks a prepared folder.
 * @throws SageAttentionError `tensorflow-damaged` or `tensorflow-mismatch`.
 */
export function openPrepared(folder: string): PreparedTensorflow {
  const manifest = readManifest(folder);
  const {platform: os, arch, libc, node} = manifest;
  if (os !== process.platform || arch !== process.arch) {
    const here = `${process.platform} ${process.arch}`;
    throw mismatch(folder, `it was made for ${os} ${arch}, this process runs on ${here}`);
  }
  if (libc && platform.libc !== null && libc !== platform.libc) {
    throw mismatch(folder, `it was made for ${libc}, this system has ${platform.libc}`);
  }
  if (Number(process.versions.napi) < node.napi) {
    const here = `Node ${process.versions.node} has version ${process.versions.napi}`;
    throw mismatch(folder, `its binding needs Node-API ${node.napi}, ${here}`);
  }
  for (const file of manifest.files) {
    const fault = findSizeFault(folder, file);
    if (fault !== null) throw damaged(folder, fault);
  }
  return {folder, manifest};
}

/**
 * From now on tfjs-node loads the binding of this folder. A second call with the same folder changes nothing.
 * @throws SageAttentionError `tensorflow-already-loaded` when tfjs-node runs on another binding.
 */
export function redirectTfjsNode(prepared: PreparedTensorflow): void {
  mendUtil();
  const holder = globalThis as {[REDIRECTED]?: Redirected};
  const mocker = moduleMocker();
  const before = holder[REDIRECTED];
  if (before === undefined || before.prepared.folder !== prepared.folder) refuseLateCall();
  if (before !== undefined) {
    before.prepared = prepared;
    return;
  }
  const redirected: Redirected = {prepared};
  holder[REDIRECTED] = redirected;
  if (mocker === null) hookLoader(redirected);
  else mockPreGyp(mocker, redirected);
}

/** The folder that tfjs-node is redirected to in this process; null when it is not. */
export function redirectedTo(): PreparedTensorflow | null {
  return (globalThis as {[REDIRECTED]?: Redirected})[REDIRECTED]?.prepared ?? null;
}

/** tfjs-node 4.22 calls `util.isNullOrUndefined` in every op; Node 23 dropped it. */
function mendUtil(): void {
  const open = util as {isNullOrUndefined?: (value: unknown) => boolean};
  open.isNullOrUndefined ??= (value) => value === null || value === undefined;
}

/** jest hands `jest` to every CommonJS module that it loads; elsewhere there is no such variable. */
function moduleMocker(): ModuleMocker | null {
  const mocker = typeof jest === 'undefined' ? null : (jest as Partial<ModuleMocker>);
  return typeof mocker?.doMock === 'function' ? (mocker as ModuleMocker) : null;
}

/** Node's own loader: every `require` passes through `_load`. */
function hookLoader(redirected: Redirected): void {
  const loader = Module as unknown as ModuleLoader;
  const original = loader._load;
  loader._load = function (request, parent, isMain) {
    if (request === PRE_GYP && parent?.filename) {
      const asker = tfjsNodeOf(parent.filename);
      const actual = (): object => original.call(this, request, parent, isMain) as object;
      if (asker !== null) return standIn(redirected, actual);
    }
    return original.call(this, request, parent, isMain);
  };
}

/** jest keeps modules in a registry of its own, so there the copies of node-pre-gyp are replaced by path. */
function mockPreGyp(mocker: ModuleMocker, redirected: Redirected): void {
  const paths = new Set<string>();
  for (const directory of [process.cwd(), platform.packageRoot ?? process.cwd()]) {
    const {resolve: find} = createRequire(join(directory, 'index.js'));
    for (const name of TFJS_NODE_PACKAGES) {
      try {
        paths.add(createRequire(find(`${name}/package.json`)).resolve(PRE_GYP));
      } catch {
        // Not installed as seen from there.
      }
    }
  }
  for (const path of paths) {
    mocker.doMock(path, () => standIn(redirected, () => mocker.requireActual(path)));
  }
}

/** The tfjs-node package that a file belongs to: its main file lies one folder below package.json. */
function tfjsNodeOf(file: string): TfjsNodePackage | null {
  return tfjsNodeIn(resolve(dirname(file), '..'));
}

/** node-pre-gyp with another answer for tfjs-node's package.json; the real one is loaded only if it is needed. */
function standIn(redirected: Redirected, actual: () => object): object {
  const find = (packageJson: string, ...rest: unknown[]): unknown => {
    const asker = tfjsNodeIn(dirname(resolve(packageJson)));
    if (asker !== null) return bindingFor(asker, redirected.prepared);
    const real = actual() as {find: (...args: unknown[]) => unknown};
    return real.find(packageJson, ...rest);
  };
  return new Proxy({}, {get: (_, name) => (name === 'find' ? find : Reflect.get(actual(), name))});
}

function bindingFor(asker: TfjsNodePackage, {folder, manifest}: PreparedTensorflow): string {
  const compiled = manifest.tfjsNode.version;
  if (asker.version !== compiled) {
    const found = `${asker.name} ${asker.version} in ${asker.folder}`;
    throw mismatch(
      folder,
      `its binding is that of tfjs-node ${compiled}, it is asked for by ${found}`,
    );
  }
  return join(folder, BINDING_NAME);
}

/** A tfjs-node that is loaded keeps its binding. One that failed to load is forgotten by Node and may try again. */
function refuseLateCall(): void {
  const loaded = Object.entries((Module as unknown as ModuleLoader)._cache ?? {});
  for (const [path, module] of loaded) {
    const asker = path.endsWith('.js') && module?.loaded ? tfjsNodeOf(path) : null;
    if (asker === null || asker.main !== path) continue;
    const [binding, addon] = loaded.find(([file]) => file.endsWith(BINDING_NAME)) ?? [];
    const version = (addon?.exports as {TF_Version?: unknown} | undefined)?.TF_Version;
    const runs = `it works, with TensorFlow ${String(version)} of ${binding ?? 'an unknown binding'}`;
    throw alreadyLoaded(`${asker.name} ${asker.version}`, runs);
  }
}
