/** `#platform` in Node: file system, environment, native modules and child processes behind the Platform interface. */
import {constants} from 'node:buffer';
import {spawnSync} from 'node:child_process';
import {existsSync, readFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {availableParallelism} from 'node:os';
import {dirname, join} from 'node:path';
import {moduleDirectory} from './module_location.cjs';
import type {ChildResult, Platform} from './platform.js';

const PACKAGE_NAME = 'tfjs-sage-attention';

/** Enough for any JSON report; the default of 1 MiB is not. */
const MAX_CHILD_OUTPUT_BYTES = 64 * 1024 * 1024;

const requireFromHere = createRequire(join(moduleDirectory, 'node.js'));

/** The nearest directory upwards whose package.json is this package's. */
function findPackageRoot(): string | null {
  for (let directory = moduleDirectory; ; directory = dirname(directory)) {
    const manifest = readText(join(directory, 'package.json'));
    if (manifest !== null && nameOf(manifest) === PACKAGE_NAME) return directory;
    if (dirname(directory) === directory) return null;
  }
}

function nameOf(manifest: string): unknown {
  try {
    return (JSON.parse(manifest) as {name?: unknown}).name;
  } catch {
    return undefined;
  }
}

function readText(path: string): string | null {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return null;
  }
}

/** What Node's own types leave out of the process report. */
interface ProcessReport {
  excludeNetwork?: boolean;
  getReport(): object;
}

/** glibc tells its version in the process report; musl has no such field. */
function detectLibc(): 'glibc' | 'musl' | null {
  if (process.platform !== 'linux') return null;
  const report = process.report as ProcessReport;
  const before = report.excludeNetwork ?? false;
  try {
    // Otherwise the report looks up the name of every open socket's peer.
    report.excludeNetwork = true;
    const {header} = report.getReport() as {header?: {glibcVersionRuntime?: string}};
    return header?.glibcVersionRuntime === undefined ? 'musl' : 'glibc';
  } catch {
    return null;
  } finally {
    report.excludeNetwork = before;
  }
}

function allocateFloats(count: number): Float32Array {
  const bytes = count * Float32Array.BYTES_PER_ELEMENT;
  if (bytes > constants.MAX_LENGTH) return new Float32Array(count);
  return new Float32Array(Buffer.allocUnsafeSlow(bytes).buffer);
}

function runNode(
  args: readonly string[],
  options: Parameters<Platform['runNode']>[1],
): ChildResult {
  const child = spawnSync(process.execPath, [...args], {
    encoding: 'utf8',
    env: {...process.env, ...options.environment},
    maxBuffer: MAX_CHILD_OUTPUT_BYTES,
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: options.timeoutMs,
  });
  const failure = child.error as NodeJS.ErrnoException | undefined;
  return {
    status: child.status,
    signal: child.signal,
    timedOut: failure?.code === 'ETIMEDOUT',
    stdout: child.stdout ?? '',
    stderr: child.stderr ?? failure?.message ?? '',
  };
}

let libc: 'glibc' | 'musl' | null | undefined;
let packageRoot: string | null | undefined;

export const platform: Platform = {
  name: 'node',
  os: process.platform,
  arch: process.arch,
  nodeVersion: process.version,
  processors: Math.max(1, availableParallelism()),
  get libc() {
    if (libc === undefined) libc = detectLibc();
    return libc;
  },
  get packageRoot() {
    if (packageRoot === undefined) packageRoot = findPackageRoot();
    return packageRoot;
  },
  allocateFloats,
  env: (variable) => process.env[variable] || undefined,
  joinPath: (...segments) => join(...segments),
  exists: (path) => existsSync(path),
  readText,
  readBytes(path) {
    try {
      return readFileSync(path);
    } catch {
      return null;
    }
  },
  loadNativeModule: (path): unknown => requireFromHere(path),
  resolveModule(specifier) {
    try {
      return requireFromHere.resolve(specifier);
    } catch {
      return null;
    }
  },
  loadedModule(specifier): unknown {
    try {
      return requireFromHere.cache[requireFromHere.resolve(specifier)]?.exports ?? null;
    } catch {
      return null;
    }
  },
  runNode,
};
