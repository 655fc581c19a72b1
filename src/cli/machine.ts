/** The machine as every report names it. */
import {cpus} from 'node:os';
import {platform} from '#platform';
import {nativeEngine} from '../engines/native.js';

export interface Machine {
  /** The processor's name of itself. */
  readonly cpu: string;
  /** Instruction set that the native engine runs with; null without that engine. */
  readonly isa: string | null;
  /** Processors that this process may use. */
  readonly cores: number;
  /** Version of Node without the `v`. */
  readonly node: string;
  readonly gpu: null;
  readonly driver: null;
}

export function describeMachine(): Machine {
  const {cpu, isa} = nativeDetails();
  return {
    cpu: cpu ?? cpus()[0]?.model ?? 'unknown',
    isa: isa?.chosen ?? null,
    cores: platform.processors,
    node: process.versions.node,
    gpu: null,
    driver: null,
  };
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
