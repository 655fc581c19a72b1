/** `#platform` outside Node: no files, no environment, no native modules. Every question gets an empty answer. */
import type {Platform} from './platform.js';

interface NavigatorFacts {
  readonly hardwareConcurrency?: number;
}

function countProcessors(): number {
  const {navigator} = globalThis as {navigator?: NavigatorFacts};
  return Math.max(1, navigator?.hardwareConcurrency ?? 1);
}

export const platform: Platform = {
  name: 'browser',
  os: null,
  arch: null,
  libc: null,
  nodeVersion: null,
  processors: countProcessors(),
  packageRoot: null,
  allocateFloats: (count) => new Float32Array(count),
  env: () => undefined,
  joinPath: (...segments) => segments.join('/'),
  exists: () => false,
  readText: () => null,
  readBytes: () => null,
  loadNativeModule() {
    throw new Error('Native modules exist in Node only.');
  },
  resolveModule: () => null,
  loadedModule: () => null,
  runNode: () => null,
};
