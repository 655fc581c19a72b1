/** What `doctor` looks into, each question on its own: an answer in words, and the command to run when it is bad. */
import {createHash} from 'node:crypto';
import {existsSync, readFileSync, realpathSync} from 'node:fs';
import {createRequire} from 'node:module';
import {dirname, join} from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import {platform} from '#platform';
import {nativeEngine} from '../engines/native.js';
import {sageConfig} from '../runtime/config.js';
import {addonCandidates, probeInChild, type AddonSource} from '../runtime/load_addon.js';
import {messageOf} from './cli_error.js';
import {DEFAULT_MODEL} from './demo_model.js';
import {shippedPath} from './demo_text.js';
import {backendPackage, PORTABLE_BACKENDS, startBackend, type CliBackend} from './tfjs_backend.js';

/** One answer. */
export interface Check {
  readonly name: string;
  /** `warning`: something is missing that this package can do without. */
  readonly status: 'ok' | 'warning' | 'failed';
  readonly message: string;
  /** The next command to run or thing to do; null when all is well. */
  readonly fix: string | null;
}

/** An answer whatever happens: what goes wrong while asking is the answer. */
export async function guarded(name: string, ask: () => Check | Promise<Check>): Promise<Check> {
  try {
    return await ask();
  } catch (error) {
    const fix = 'hint' in Object(error) ? String((error as {hint: unknown}).hint) : null;
    return {name, status: 'failed', message: messageOf(error).split('\n')[0] ?? '', fix};
  }
}

const good = (name: string, message: string): Check => ({name, status: 'ok', message, fix: null});

/** The oldest Node that package.json names. */
const OLDEST_NODE = 20;

export function checkNode(): Check {
  const {versions, platform: os, arch} = process;
  const message = `${versions.node} on ${os} ${arch}${platform.libc === null ? '' : `, ${platform.libc}`}`;
  if (Number.parseInt(versions.node, 10) >= OLDEST_NODE) return good('Node', message);
  const fix = `Install Node ${OLDEST_NODE} or newer: https://nodejs.org`;
  return {name: 'Node', status: 'failed', message, fix};
}

export function checkConfiguration(): Check {
  const {threads, isa} = sageConfig();
  // Throws where this machine cannot run what the variables ask for.
  nativeEngine();
  return good('environment', `SAGE_NUM_THREADS ${threads}, SAGE_CPU_ISA ${isa}`);
}

/** A place where the native addon may be, and what a child process made of it. */
export interface CandidateReport {
  readonly source: AddonSource;
  readonly path: string | null;
  readonly ok: boolean;
  readonly message: string;
}

/** Every candidate, each loaded in a process of its own. */
export function probeCandidates(): CandidateReport[] {
  return addonCandidates().map(({source, path, message}) => {
    if (path === null || !existsSync(path)) return {source, path, ok: false, message};
    const probe = probeInChild(path);
    return {source, path, ok: probe.ok, message: probe.message};
  });
}

export function checkAddon(candidates: readonly CandidateReport[]): Check {
  const name = 'native addon';
  const [first] = candidates;
  if (first?.source === 'SAGE_NATIVE_PATH' && !first.ok) {
    const message = `SAGE_NATIVE_PATH names ${first.path}: ${first.message}`;
    return {name, status: 'failed', message, fix: 'Correct SAGE_NATIVE_PATH, or unset it.'};
  }
  const working = candidates.find(({ok}) => ok);
  if (working) return good(name, `${working.source}: ${working.message}`);
  const tried = candidates.map(({source, message}) => `${source}: ${message}`).join('; ');
  return {
    name,
    status: 'warning',
    message: `none, so the TypeScript engine serves, many times slower (${tried})`,
    fix: isClone()
      ? 'npm run build:native'
      : `npm install @tfjs-sage-attention/${platform.os}-${platform.arch}`,
  };
}

/** A clone has the scripts that build the addon; an installed package does not. */
function isClone(): boolean {
  return platform.packageRoot !== null && existsSync(join(platform.packageRoot, 'scripts'));
}

export function checkTfjs(): Check {
  const name = 'tfjs-core';
  const copies = tfjsCopies();
  const described = [...copies].map(([directory, version]) => `${version} in ${directory}`);
  if (copies.size <= 1) return good(name, described[0] ?? tf.version_core);
  return {
    name,
    status: 'warning',
    message: `${copies.size} copies are installed (${described.join('; ')}): tensors of one may be strange to the other`,
    fix: 'npm ls @tensorflow/tfjs-core, then give all tfjs packages one version and run npm dedupe',
  };
}

const TFJS_PACKAGES = [
  'tfjs',
  'tfjs-backend-cpu',
  'tfjs-backend-wasm',
  'tfjs-node',
  'tfjs-node-gpu',
];

/** Directory and version of every tfjs-core that this package, the working directory or a tfjs package there finds. */
function tfjsCopies(): Map<string, string> {
  const core = '@tensorflow/tfjs-core/package.json';
  const own = platform.resolveModule(core);
  const fromHere = createRequire(join(process.cwd(), 'package.json'));
  const found = [own, resolveFrom(fromHere, core)];
  for (const name of TFJS_PACKAGES) {
    const manifest = resolveFrom(fromHere, `@tensorflow/${name}/package.json`);
    if (manifest !== null) found.push(resolveFrom(createRequire(manifest), core));
  }
  const copies = new Map<string, string>();
  for (const path of found) {
    if (path === null) continue;
    const real = realpathSync(path);
    const {version} = JSON.parse(readFileSync(real, 'utf8')) as {version: string};
    copies.set(dirname(real), version);
  }
  return copies;
}

function resolveFrom(from: NodeJS.Require, specifier: string): string | null {
  try {
    return from.resolve(specifier);
  } catch {
    return null;
  }
}

/** Whether tfjs' portable backends are there and start; the first that does stays the current one. */
export async function checkBackends(): Promise<Check[]> {
  const checks: Check[] = [];
  for (const backend of [...PORTABLE_BACKENDS].reverse()) checks.push(await checkBackend(backend));
  return checks.reverse();
}

async function checkBackend(backend: CliBackend): Promise<Check> {
  const name = `tfjs backend ${backend}`;
  const check = await guarded(name, async () => {
    await startBackend(backend);
    return good(name, `${backendPackage(backend)} starts`);
  });
  return check.status === 'failed' ? {...check, status: 'warning'} : check;
}

export function checkModel(): Check {
  const name = 'model js-gpt';
  const path = shippedPath([...DEFAULT_MODEL, 'model.safetensors']);
  const fix = isClone()
    ? 'git checkout -- models/gpt2/js-gpt'
    : 'npm install tfjs-sage-attention --force';
  if (!existsSync(path)) return {name, status: 'failed', message: `${path} is missing`, fix};
  const golden = JSON.parse(
    readFileSync(shippedPath([...DEFAULT_MODEL, 'golden.json']), 'utf8'),
  ) as {model_sha256: string};
  const sum = createHash('sha256').update(readFileSync(path)).digest('hex');
  if (sum === golden.model_sha256)
    return good(name, `${path}, sha256 ${sum.slice(0, 12)}... as expected`);
  const message = `${path} is damaged: its sha256 is ${sum}, expected ${golden.model_sha256}`;
  return {name, status: 'failed', message, fix};
}
