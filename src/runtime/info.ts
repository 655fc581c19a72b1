/** What runs here and why: the facts behind `doctor`. */
import * as tf from '@tensorflow/tfjs-core';
import {engineChoices, type EngineChoiceRow} from '../engines/choose_engine.js';
import type {EngineName} from '../engines/engine.js';
import {nativeEngine} from '../engines/native.js';
import {sageConfig} from './config.js';

/** One engine of this package on this machine. */
export interface EngineInfo {
  readonly name: EngineName;
  readonly available: boolean;
  /** Why it is available or not, in words. */
  readonly reason: string;
  /** Facts that help to understand it: file, instruction set, threads, candidates tried. */
  readonly details: Readonly<Record<string, unknown>>;
}

export interface SageAttentionInfo {
  readonly engines: readonly EngineInfo[];
  /** For each backend, what `auto` and each precision run on, and why. */
  readonly choices: readonly EngineChoiceRow[];
}

/** Backends that the table is told for, loaded or not; the active one is added. */
const BACKENDS = ['cpu', 'wasm', 'tensorflow', 'webgl', 'webgpu'];

/**
 * Which engines this machine has and which of them serves which backend and precision, as `doctor --json` prints it.
 * Synchronous; never throws: what is wrong is told in the reasons.
 */
export function getSageAttentionInfo(): SageAttentionInfo {
  return {engines: engineInfos(), choices: choiceRows()};
}

function engineInfos(): EngineInfo[] {
  return [
    nativeInfo(),
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
