/**
 * Where the native addon comes from: SAGE_NATIVE_PATH, the package's own build/Release, the platform package, in this
 * order. Every attempt is kept, so that `doctor` and error texts can say what was tried; nothing here throws.
 */
import {platform} from '#platform';
import {encodeProblem, plainProblem, PROBLEM_VERSION, PROBLEM_WORDS} from '../problem.js';
import {isRefusal, resolveRecipe} from '../numerics/recipes.js';
import {findBinaryFault} from './check_binary.js';
import {nativePathOfEnvironment} from './config.js';
import type {NativeAddon, NativeCapabilities} from './native_addon.js';

const FILE_NAME = 'sage_attention.node';
const PLATFORM_SCOPE = '@tfjs-sage-attention';

/** A healthy addon answers in a fraction of a second; a loaded machine may need longer. */
const PROBE_TIMEOUT_MS = 30_000;

export type AddonSource = 'SAGE_NATIVE_PATH' | 'build/Release' | 'platform package';

/** One place that was tried. */
export interface LoadAttempt {
  readonly source: AddonSource;
  /** The file, null when there is none to try. */
  readonly path: string | null;
  readonly ok: boolean;
  readonly code:
    | 'loaded'
    | 'not-found'
    | 'unsuitable'
    | 'damaged'
    | 'wrong-cpu'
    | 'load-failed'
    | 'wrong-version';
  /** One sentence without the path. */
  readonly message: string;
}

/** What came of all attempts. */
export interface LoadedAddon {
  readonly addon: NativeAddon | null;
  /** The last attempt is the one that loaded, if any did. */
  readonly attempts: readonly LoadAttempt[];
}

/** A place where the addon may be. `path` null: there is nothing to try, and `message` says why. */
export interface AddonCandidate {
  readonly source: AddonSource;
  readonly path: string | null;
  readonly message: string;
}

let loaded: LoadedAddon | null = null;

/** The addon of this process, looked for once. */
export function loadAddon(): LoadedAddon {
  loaded ??= tryCandidates(addonCandidates());
  return loaded;
}

/** Tries one candidate after another up to the first that loads. */
export function tryCandidates(candidates: readonly AddonCandidate[]): LoadedAddon {
  const attempts: LoadAttempt[] = [];
  for (const candidate of candidates) {
    const {addon, attempt} = tryCandidate(candidate);
    attempts.push(attempt);
    if (addon !== null) return {addon, attempts};
  }
  return {addon: null, attempts};
}

/** All places in the order in which they are tried; empty outside Node. */
export function addonCandidates(): AddonCandidate[] {
  if (platform.name !== 'node') return [];
  const candidates: AddonCandidate[] = [];
  const forced = nativePathOfEnvironment();
  if (forced !== null) {
    candidates.push({source: 'SAGE_NATIVE_PATH', path: forced, message: 'there is no such file'});
  }
  const {packageRoot} = platform;
  candidates.push({
    source: 'build/Release',
    path:
      packageRoot === null ? null : platform.joinPath(packageRoot, 'build', 'Release', FILE_NAME),
    message: packageRoot === null ? 'the package folder is not known' : 'nothing was built there',
  });
  candidates.push(platformPackage());
  return candidates;
}

function platformPackage(): AddonCandidate {
  const name = `${PLATFORM_SCOPE}/${platform.os}-${platform.arch}`;
  const source = 'platform package';
  if (platform.libc === 'musl') {
    return {source, path: null, message: `${name} is built for glibc, this system has musl`};
  }
  return {source, path: platform.resolveModule(name), message: `${name} is not installed`};
}

function tryCandidate(candidate: AddonCandidate): {
  addon: NativeAddon | null;
  attempt: LoadAttempt;
} {
  const {source, path} = candidate;
  const refuse = (code: LoadAttempt['code'], message: string) => ({
    addon: null,
    attempt: {source, path, ok: false, code, message},
  });
  if (path === null) return refuse('not-found', candidate.message);
  const unsuitable = unsuitableName(path);
  if (unsuitable !== null) return refuse('unsuitable', unsuitable);
  const bytes = platform.readBytes(path);
  if (bytes === null) {
    return refuse('not-found', platform.exists(path) ? 'it cannot be read' : candidate.message);
  }
  const fault = findBinaryFault(bytes, platform.os, platform.arch);
  if (fault !== null) return refuse(fault.code, fault.message);
  let exports: unknown;
  try {
    exports = platform.loadNativeModule(path);
  } catch (error) {
    return refuse('load-failed', messageOf(error));
  }
  const mismatch = findMismatch(exports);
  if (mismatch !== null) return refuse('wrong-version', mismatch);
  const attempt: LoadAttempt = {source, path, ok: true, code: 'loaded', message: 'loaded'};
  return {addon: exports as NativeAddon, attempt};
}

/** A module loader reads other names as JavaScript, and relative ones from its own folder. */
function unsuitableName(path: string): string | null {
  if (!path.endsWith('.node')) return `expected a file ${FILE_NAME}`;
  return /^([/\\]|[A-Za-z]:)/.test(path) ? null : 'expected an absolute path';
}

/** Why exports are not those of an addon for this version of the package; null when they are. */
function findMismatch(exports: unknown): string | null {
  const addon = exports as Partial<NativeAddon> | null;
  if (typeof addon?.forward !== 'function' || typeof addon.capabilities !== 'function') {
    return 'it is no addon of this package';
  }
  let facts: NativeCapabilities;
  try {
    facts = addon.capabilities();
  } catch (error) {
    return `it does not answer: ${messageOf(error)}`;
  }
  if (facts.problemVersion === PROBLEM_VERSION && facts.problemWords === PROBLEM_WORDS) return null;
  return `it was built for version ${facts.version} of this package, whose calls look different`;
}

/** What an addon did in a process of its own. */
export interface ProbeResult {
  readonly ok: boolean;
  /** One sentence: what went well, or how it ended. */
  readonly message: string;
  readonly capabilities: NativeCapabilities | null;
}

/**
 * Loads the addon in a child process and lets every instruction set that it offers compute a small attention: a file
 * that is damaged behind its headers, or built for another processor, ends the child and not the caller.
 */
export function probeInChild(path: string): ProbeResult {
  const unsuitable = unsuitableName(path);
  if (unsuitable !== null) return {ok: false, message: unsuitable, capabilities: null};
  const child = platform.runNode(['-e', PROBE_SCRIPT, path, JSON.stringify(probeWords())], {
    timeoutMs: PROBE_TIMEOUT_MS,
  });
  if (child === null) {
    return {ok: false, message: 'native modules exist in Node only', capabilities: null};
  }
  if (child.timedOut) {
    return {
      ok: false,
      message: `no answer within ${PROBE_TIMEOUT_MS / 1000} s`,
      capabilities: null,
    };
  }
  if (child.signal !== null) {
    return {ok: false, message: `it ended the process with ${child.signal}`, capabilities: null};
  }
  try {
    return JSON.parse(child.stdout) as ProbeResult;
  } catch {
    const message = child.stderr.trim().split('\n').pop() || `exit code ${child.status}`;
    return {ok: false, message, capabilities: null};
  }
}

/** v is 1 everywhere, so every output is 1. One head, 17 queries and keys, head_dim 64. */
const PROBE_SCRIPT = `
const report = (ok, message, capabilities) =>
  process.stdout.write(JSON.stringify({ok, message, capabilities}));
try {
  const addon = require(process.argv[1]);
  const words = Float64Array.from(JSON.parse(process.argv[2]));
  const capabilities = addon.capabilities();
  const q = Float32Array.from({length: 17 * 64}, (_, i) => Math.sin(i));
  const v = new Float32Array(q.length).fill(1);
  let wrong = '';
  for (const isa of capabilities.isa.available) {
    const o = new Float32Array(q.length);
    addon.configure({isa});
    addon.forward(words, q, q, v, null, o, null);
    if (!o.every((x) => Math.abs(x - 1) < 1e-5)) wrong += ' ' + isa;
  }
  if (wrong) report(false, 'wrong results with' + wrong, capabilities);
  else report(true, 'loads and computes with ' + capabilities.isa.available.join(', '), capabilities);
} catch (error) {
  report(false, String(error && error.message || error), null);
}`;

function probeWords(): number[] {
  const recipe = resolveRecipe('exact', {});
  if (isRefusal(recipe)) throw new Error('The recipe `exact` is always there.');
  return [...encodeProblem(plainProblem(17, recipe), new Float64Array(PROBLEM_WORDS))];
}

/** The message of an error of any realm, first line only: the loader's lines below it repeat the path. */
function messageOf(error: unknown): string {
  const message = (error as {message?: unknown} | null)?.message;
  return (typeof message === 'string' ? message : String(error)).split('\n')[0] ?? '';
}
