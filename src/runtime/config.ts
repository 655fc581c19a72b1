/**
 * Defaults of later calls: `configureSageAttention` and the environment variables behind it.
 * The only reader of the environment. A variable is read once, at the first question that needs it.
 */
import {platform} from '#platform';
import {PRECISIONS, type Precision} from '../numerics/recipes.js';
import type {EngineName} from '../engines/engine.js';
import {describeValue, listChoices, SageAttentionError} from './errors.js';
import {refuseUnknownKeys} from './unknown_keys.js';

/** Code paths of the native engine, slowest first. */
export const ISAS = [
  'portable',
  'avx2',
  'avx512',
  'avx512_bf16',
  'amx',
  'neon',
  'neon_dot',
] as const;
export type Isa = (typeof ISAS)[number];

export const ENGINE_NAMES = [
  'cuda',
  'native',
  'typescript',
  'composition',
] as const satisfies EngineName[];

/** How kernels on a GPU are ordered with TensorFlow's own; the last two order nothing, as controls of tests. */
export const TENSORFLOW_STREAMS = [
  'auto',
  'tfstream',
  'tfevent',
  'devsync',
  'legacy',
  'nosync',
] as const;
export type TensorflowStream = (typeof TENSORFLOW_STREAMS)[number];

/** What `configureSageAttention` sets; every field has a value at all times. */
export interface SageAttentionConfig {
  /** Threads of the native engine: a positive integer, or `'auto'` (one per processor). Environment: SAGE_NUM_THREADS. */
  threads: number | 'auto';
  /** Instruction set of the native engine, or `'auto'` (the best this machine runs). Environment: SAGE_CPU_ISA. */
  isa: Isa | 'auto';
  /** Engine that must serve every call, or `'auto'` (the table of `getSageAttentionInfo().choices`). */
  engine: EngineName | 'auto';
  /** What a call without `precision`, or with `'auto'`, computes; `'auto'` lets the engine choose. */
  precision: Precision | 'auto';
  /**
   * Most device memory that the engine `cuda` holds for arrays of this process, MiB, or `'auto'` (a quarter of the
   * device's). One limit for the process. Environment: SAGE_CUDA_MEMORY.
   */
  cudaMemory: number | 'auto';
}

const KEYS: ReadonlySet<string> = new Set(['threads', 'isa', 'engine', 'precision', 'cudaMemory']);
const OPERATION = 'configureSageAttention';

const DEFAULTS: Readonly<SageAttentionConfig> = {
  threads: 'auto',
  isa: 'auto',
  engine: 'auto',
  precision: 'auto',
  cudaMemory: 'auto',
};

let current: Readonly<SageAttentionConfig> | null = null;
let version = 0;

/**
 * Sets defaults for later calls; fields that are left out (or undefined) stay as they are.
 *
 * ```js
 * const before = configureSageAttention({threads: 1, precision: 'int8_fp8'});
 * configureSageAttention(before); // as it was
 * ```
 *
 * @param changes `threads` (positive integer or 'auto'), `isa`, `engine`, `precision`, `cudaMemory` (MiB); all
 *   default to 'auto'.
 * @returns The configuration before the call.
 * @throws SageAttentionError `unknown-option`, `invalid-option`, `invalid-environment`.
 */
export function configureSageAttention(
  changes: Partial<SageAttentionConfig> = {},
): SageAttentionConfig {
  if (typeof changes !== 'object' || changes === null) {
    throw invalid('options', changes, 'an object such as {threads: 2}');
  }
  refuseUnknownKeys(OPERATION, changes, KEYS);
  const {threads, isa, engine, precision, cudaMemory} = changes;
  if (threads !== undefined && threads !== 'auto' && !isPositiveInteger(threads)) {
    throw invalid('threads', threads, `a positive integer or 'auto'`);
  }
  if (cudaMemory !== undefined && cudaMemory !== 'auto' && !isPositiveInteger(cudaMemory)) {
    throw invalid('cudaMemory', cudaMemory, `a positive integer (MiB) or 'auto'`);
  }
  requireChoice('isa', isa, ISAS);
  requireChoice('engine', engine, ENGINE_NAMES);
  requireChoice('precision', precision, PRECISIONS);
  // An invalid variable does not stand in the way of the call that overrules it.
  const before = currentOr(changes);
  current = {
    threads: threads ?? before.threads,
    isa: isa ?? before.isa,
    engine: engine ?? before.engine,
    precision: precision ?? before.precision,
    cudaMemory: cudaMemory ?? before.cudaMemory,
  };
  version += 1;
  return {...before};
}

/**
 * The configuration in force.
 * @throws SageAttentionError `invalid-environment` when a variable holds a value that no machine understands.
 */
export function sageConfig(): Readonly<SageAttentionConfig> {
  current ??= currentOr({});
  return current;
}

/** Grows with every `configureSageAttention`: whoever keeps something derived from the configuration compares it. */
export function configVersion(): number {
  return version;
}

/** File of the native addon that the user insists on (SAGE_NATIVE_PATH), or null. */
export function nativePathOfEnvironment(): string | null {
  return platform.env('SAGE_NATIVE_PATH') ?? null;
}

/**
 * How GPU kernels are ordered with TensorFlow's (SAGE_TENSORFLOW_STREAM); `'auto'` when unset.
 * @throws SageAttentionError `invalid-environment`.
 */
export function tensorflowStreamOfEnvironment(): TensorflowStream {
  const text = platform.env('SAGE_TENSORFLOW_STREAM')?.trim();
  if (!text) return 'auto';
  if (isOneOf(text, TENSORFLOW_STREAMS)) return text;
  throw invalidVariable('SAGE_TENSORFLOW_STREAM', text, listChoices(TENSORFLOW_STREAMS));
}

/**
 * The device of the engine `cuda` (SAGE_CUDA_DEVICE): a number, or a UUID or its beginning; '' when unset. Whether there
 * is such a device is the driver's to say.
 * @throws SageAttentionError `invalid-environment`.
 */
export function cudaDeviceOfEnvironment(): string {
  const text = platform.env('SAGE_CUDA_DEVICE')?.trim() ?? '';
  if (text === '' || /^(\d+|(GPU|MIG)-[0-9a-f-]+)$/i.test(text)) return text;
  throw invalidVariable('SAGE_CUDA_DEVICE', text, 'a number such as 0 or a UUID such as GPU-1a2b');
}

/** What the environment says about TensorFlow under tfjs-node (src/tensorflow/); null where it says nothing. */
export function tensorflowEnvironment() {
  return {
    /** The prepared folder (SAGE_TENSORFLOW_DIR). */
    directory: platform.env('SAGE_TENSORFLOW_DIR') ?? null,
    /** Folder of node_api.h (SAGE_NODE_INCLUDE). */
    nodeInclude: platform.env('SAGE_NODE_INCLUDE') ?? null,
    /** C++ compiler (CXX). */
    compiler: platform.env('CXX') ?? null,
    /** Where programs keep what they can fetch again (XDG_CACHE_HOME). */
    cacheHome: platform.env('XDG_CACHE_HOME') ?? null,
    /** A CUDA toolkit in an unusual place (CUDA_PATH). */
    cudaPath: platform.env('CUDA_PATH') ?? null,
  };
}

function currentOr(given: Partial<SageAttentionConfig>): Readonly<SageAttentionConfig> {
  const read = <T>(value: unknown, ofEnvironment: () => T | 'auto'): T | 'auto' =>
    value === undefined ? ofEnvironment() : valueOr(ofEnvironment, 'auto');
  return (
    current ?? {
      ...DEFAULTS,
      threads: read(given.threads, threadsOfEnvironment),
      isa: read(given.isa, isaOfEnvironment),
      cudaMemory: read(given.cudaMemory, cudaMemoryOfEnvironment),
    }
  );
}

function valueOr<T>(read: () => T, otherwise: T): T {
  try {
    return read();
  } catch {
    return otherwise;
  }
}

function threadsOfEnvironment(): number | 'auto' {
  return positiveIntegerOfEnvironment('SAGE_NUM_THREADS', 'a positive integer such as 4');
}

function cudaMemoryOfEnvironment(): number | 'auto' {
  return positiveIntegerOfEnvironment('SAGE_CUDA_MEMORY', 'MiB such as 4096');
}

function positiveIntegerOfEnvironment(name: string, expected: string): number | 'auto' {
  const text = platform.env(name)?.trim();
  if (!text) return 'auto';
  const value = Number(text);
  if (!/^\d+$/.test(text) || !isPositiveInteger(value)) {
    throw invalidVariable(name, text, expected);
  }
  return value;
}

function isaOfEnvironment(): Isa | 'auto' {
  const text = platform.env('SAGE_CPU_ISA')?.trim();
  if (!text || text === 'auto') return 'auto';
  if (!isOneOf(text, ISAS)) throw invalidVariable('SAGE_CPU_ISA', text, listChoices(ISAS));
  return text;
}

function isPositiveInteger(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) > 0;
}

function isOneOf<T extends string>(value: unknown, names: readonly T[]): value is T {
  return (names as readonly unknown[]).includes(value);
}

function requireChoice(name: string, value: unknown, names: readonly string[]): void {
  if (value === undefined || value === 'auto' || isOneOf(value, names)) return;
  throw invalid(name, value, `'auto', ${listChoices(names)}`);
}

function invalid(argument: string, value: unknown, expected: string): SageAttentionError {
  return new SageAttentionError({
    code: 'invalid-option',
    argument,
    message: `${OPERATION}: \`${argument}\` is ${describeValue(value)}, expected ${expected}.`,
    hint: 'Leave it out to keep the present value.',
  });
}

function invalidVariable(name: string, text: string, expected: string): SageAttentionError {
  return new SageAttentionError({
    code: 'invalid-environment',
    argument: name,
    message: `sageAttention: the environment variable ${name} is '${text}', expected ${expected}.`,
    hint: `Unset ${name} to let the package choose.`,
  });
}
