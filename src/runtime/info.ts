/** What runs here and why: the facts behind `doctor`. */
import * as tf from '@tensorflow/tfjs-core';
import {engineChoices, type EngineChoiceRow} from '../engines/choose_engine.js';
import {cudaEngine, lastCudaRefusal} from '../engines/cuda.js';
import type {EngineName} from '../engines/engine.js';
import {nativeEngine} from '../engines/native.js';
import {lastGpuRefusal, tensorflowOp} from '../engines/tensorflow_op.js';
import {sageConfig} from './config.js';
import {loadAddon} from './load_addon.js';
import type {CudaFacts, NativeAddon, NativeCapabilities} from './native_addon.js';

/** One engine of this package on this machine. */
export interface EngineInfo {
  readonly name: EngineName;
  readonly available: boolean;
  /** Why it is available or not, in words. */
  readonly reason: string;
  /** Facts that help to understand it: file, instruction set, threads, candidates tried. */
  readonly details: Readonly<Record<string, unknown>>;
}

/** `sageAttention` as an op of TensorFlow itself, for backend `tensorflow` of @tensorflow/tfjs-node. */
export interface TensorflowInfo {
  readonly op: 'registered' | 'not registered';
  /** Where the op runs, or why there is none. */
  readonly reason: string;
  /** TensorFlow's version and library; null when no TensorFlow is loaded. */
  readonly version: string | null;
  readonly library: string | null;
  /** Devices that the op has kernels for. */
  readonly devices: readonly ('CPU' | 'GPU')[];
  /** The device on which calls run; null as long as there is no backend `tensorflow`. */
  readonly device: 'CPU' | 'GPU' | null;
  /** How kernels on a GPU are ordered with TensorFlow's: the mode asked for, and how the search for its stream went. */
  readonly streamMode: string | null;
  readonly streamSearch: string | null;
  /** Why the last problem that the CUDA kernels did not compute went to tfjs ops instead; null when there was none. */
  readonly gpuRefusal: string | null;
  /** null when the addon is missing or too old to tell. */
  readonly cuda: CudaFacts | null;
}

export interface SageAttentionInfo {
  readonly engines: readonly EngineInfo[];
  /** For each backend, what `auto` and each precision run on, and why. */
  readonly choices: readonly EngineChoiceRow[];
  readonly tensorflow: TensorflowInfo;
}

/** Backends that the table is told for, loaded or not; the active one is added. */
const BACKENDS = ['cpu', 'wasm', 'tensorflow', 'webgl', 'webgpu'];

/**
 * Which engines this machine has and which of them serves which backend and precision, as `doctor --json` prints it.
 * Synchronous; never throws: what is wrong is told in the reasons.
 */
export function getSageAttentionInfo(): SageAttentionInfo {
  return {engines: engineInfos(), choices: choiceRows(), tensorflow: tensorflowInfo()};
}

function tensorflowInfo(): TensorflowInfo {
  const {addon} = loadAddon();
  const facts = {
    version: null,
    library: null,
    devices: [],
    device: null,
    streamMode: null,
    streamSearch: null,
    gpuRefusal: lastGpuRefusal(),
    cuda: cudaFacts(addon),
  };
  try {
    const {names, reason, version, library, devices, device} = tensorflowOp();
    const op = names === null ? 'not registered' : 'registered';
    const {streamMode = null, streamSearch = null} =
      device === 'GPU' ? (addon?.tensorflowTrace() ?? {}) : {};
    return {op, reason, ...facts, version, library, devices, device, streamMode, streamSearch};
  } catch (error) {
    return {op: 'not registered', reason: textOf(error), ...facts};
  }
}

function cudaFacts(addon: NativeAddon | null): CudaFacts | null {
  // An addon built before there were CUDA kernels does not tell.
  const facts: Partial<NativeCapabilities> = addon?.capabilities() ?? {};
  return facts.cuda ?? null;
}

function engineInfos(): EngineInfo[] {
  return [
    nativeInfo(),
    cudaInfo(),
    {
      name: 'typescript',
      available: true,
      reason: 'portable TypeScript, every recipe on every machine',
      details: {},
    },
    {
      name: 'composition',
      available: true,
      reason:
        'tfjs ops over blocks of queries, for backends without a kernel of their own (exact only)',
      details: {},
    },
  ];
}

function nativeInfo(): EngineInfo {
  try {
    // Asked first: a bad environment variable is the reason, not what follows from it.
    sageConfig();
    const {engine, reason, details} = nativeEngine();
    // An engine that is there but refuses its configuration computes nothing.
    const available = engine !== null && details['refused'] === undefined;
    return {name: 'native', available, reason, details};
  } catch (error) {
    return {name: 'native', available: false, reason: textOf(error), details: {}};
  }
}

function cudaInfo(): EngineInfo {
  const {addon} = loadAddon();
  try {
    const {engine, reason} = cudaEngine();
    const memory = addon?.cudaState?.() ?? null;
    const failed = memory?.failed === true;
    return {
      name: 'cuda',
      available: engine !== null && !failed,
      reason: failed ? memory.reason : reason,
      details: {
        facts: cudaFacts(addon),
        devices: addon?.cudaDevices?.() ?? [],
        memory,
        lastRefusal: lastCudaRefusal(),
      },
    };
  } catch (error) {
    return {name: 'cuda', available: false, reason: textOf(error), details: {}};
  }
}

function choiceRows(): EngineChoiceRow[] {
  const active = activeBackend();
  const backends = active === null || BACKENDS.includes(active) ? BACKENDS : [...BACKENDS, active];
  try {
    return engineChoices(backends);
  } catch (error) {
    const reason = textOf(error);
    return backends.map((backend) => ({backend, precision: 'auto', engine: null, reason}));
  }
}

function activeBackend(): string | null {
  try {
    return tf.getBackend() || null;
  } catch {
    return null;
  }
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
