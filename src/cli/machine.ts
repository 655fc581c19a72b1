/** The machine as every report names it. */
import {cpus} from 'node:os';
import {platform} from '#platform';
import {cudaEngine} from '../engines/cuda.js';
import {nativeEngine} from '../engines/native.js';
import {loadAddon} from '../runtime/load_addon.js';

export interface Machine {
  /** The processor's name of itself. */
  readonly cpu: string;
  /** Instruction set that the native engine runs with; null without that engine. */
  readonly isa: string | null;
  /** Processors that this process may use. */
  readonly cores: number;
  /** Version of Node without the `v`. */
  readonly node: string;
  /** The device of the engine `cuda`; null without one. */
  readonly gpu: string | null;
  /** CUDA version of the driver, such as `13.0`; null without one. */
  readonly driver: string | null;
}

export function describeMachine(): Machine {
  const {cpu, isa} = nativeDetails();
  return {
    cpu: cpu ?? cpus()[0]?.model ?? 'unknown',
    isa: isa?.chosen ?? null,
    cores: platform.processors,
    node: process.versions.node,
    ...gpuDetails(),
  };
}

function gpuDetails(): Pick<Machine, 'gpu' | 'driver'> {
  try {
    const {addon} = loadAddon();
    const {engine, reason} = cudaEngine();
    const version = addon?.capabilities().cuda?.driverVersion ?? 0;
    const driver =
      version === 0 ? null : `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`;
    return {gpu: engine === null ? null : reason, driver};
  } catch {
    return {gpu: null, driver: null};
  }
}

/** Empty without a native engine, and where the configuration asks for one that this machine does not have. */
function nativeDetails(): {cpu?: string; isa?: {chosen?: string}} {
  try {
    return nativeEngine().details;
  } catch {
    // A report of the machine is no place for the error: whatever computes something throws it.
    return {};
  }
}

/** One line for people. */
export function machineLine({cpu, isa, cores, node}: Machine): string {
  const engine = isa === null ? 'no native engine' : isa;
  return `${cpu.trim()}, ${cores} ${cores === 1 ? 'core' : 'cores'}, ${engine}, Node ${node}`;
}
