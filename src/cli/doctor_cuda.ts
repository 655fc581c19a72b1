/** What `doctor` tells about CUDA: driver, devices, kernels in the build, and what the cost model says of a few sizes. */
import {cudaCosts, cudaEngine} from '../engines/cuda.js';
import {predict, type CallSizes, type CudaCosts} from '../engines/cuda_costs.js';
import {chooseEngine} from '../engines/choose_engine.js';
import {nativeEngine} from '../engines/native.js';
import {cudaDeviceOfEnvironment} from '../runtime/config.js';
import {loadAddon} from '../runtime/load_addon.js';
import type {CudaDevice, CudaFacts} from '../runtime/native_addon.js';
import type {Check} from './doctor_checks.js';
import {formatMs, formatTable} from './table.js';
import type {Terminal} from './terminal.js';

/** A call, and who would compute it. */
export interface CudaExample {
  readonly heads: number;
  readonly tokens: number;
  readonly headDim: number;
  /** Predicted: `exact` on the GPU, copies included, and what `auto` means on the native engine. */
  readonly cudaMs: number;
  readonly nativeMs: number;
  /** Who serves it on backend `cpu` or `wasm`. */
  readonly engine: string;
}

export interface CudaReport {
  readonly reason: string;
  readonly facts: CudaFacts | null;
  readonly devices: readonly CudaDevice[];
  /** Measured; null without a GPU that can be used. */
  readonly costs: {
    readonly launchMs: number;
    /** Between arrays and the device, 1e9 bytes a second. */
    readonly copyGBs: number;
    /** 1e12 operations a second. */
    readonly cudaTops: number;
    readonly nativeTops: number;
  } | null;
  readonly examples: readonly CudaExample[];
}

const EXAMPLES = [512, 1024, 2048, 4096, 8192].map((tokens) => ({heads: 16, tokens, headDim: 64}));

/** Never throws where a GPU is missing; a variable that means nothing does. */
export function checkCuda(): {report: CudaReport; check: Check} {
  const {addon} = loadAddon();
  const {engine, reason} = cudaEngine();
  const facts = addon?.capabilities().cuda ?? null;
  const devices = addon?.cudaDevices?.() ?? [];
  const name = 'CUDA';
  if (engine === null) {
    const wanted = cudaDeviceOfEnvironment();
    const report = {reason, facts, devices, costs: null, examples: []};
    if (wanted !== '' && devices.length > 0) {
      const fix = 'Correct SAGE_CUDA_DEVICE, or unset it.';
      return {report, check: {name, status: 'warning', message: reason, fix}};
    }
    const message = `not used: ${reason}${facts?.built ? `; built for ${facts.architectures}` : ''}`;
    return {report, check: {name, status: 'ok', message, fix: null}};
  }
  const driver = versionText(facts?.driverVersion ?? 0);
  const message = `${reason}; driver ${driver}, ${devices.length} shown; built for ${facts?.architectures}`;
  const costs = cudaCosts();
  const {preferred} = nativeEngine().engine ?? {preferred: 'exact'};
  const report = {
    reason,
    facts,
    devices,
    costs:
      costs === null
        ? null
        : {
            launchMs: costs.launchMs,
            copyGBs: 1 / costs.copyMsPerByte / 1e6,
            cudaTops: costs.cudaRate('exact') / 1e9,
            nativeTops: costs.nativeRate(preferred) / 1e9,
          },
    examples: costs === null ? [] : EXAMPLES.map((example) => tellExample(example, costs)),
  };
  return {report, check: {name, status: 'ok', message, fix: null}};
}

/** 13000 is 13.0. */
function versionText(version: number): string {
  return `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`;
}

function tellExample({heads, tokens, headDim}: (typeof EXAMPLES)[number], costs: CudaCosts) {
  const sizes: CallSizes = {
    batch: 1,
    qHeads: heads,
    kvHeads: heads,
    qLen: tokens,
    kvLen: tokens,
    qkDim: headDim,
    vDim: headDim,
  };
  const {preferred} = nativeEngine().engine ?? {preferred: 'exact' as const};
  const times = predict(costs, sizes, false, 'exact', preferred);
  return {heads, tokens, headDim, ...times, engine: chooseEngine('cpu', 'auto', sizes).engine};
}

/** The measured numbers and the examples; nothing without a GPU. */
export function printCuda({costs, examples}: CudaReport, terminal: Terminal): void {
  if (costs === null) return;
  const {launchMs, copyGBs, cudaTops, nativeTops} = costs;
  terminal.print(
    `launch ${formatMs(launchMs)} ms, copies ${copyGBs.toFixed(1)} GB/s, ` +
      `CUDA (exact) ${cudaTops.toFixed(1)} and native (auto) ${nativeTops.toFixed(2)} TFLOP/s`,
  );
  const right = (title: string) => ({title, align: 'right'}) as const;
  terminal.print(
    formatTable(
      [{title: 'call'}, right('CUDA, ms'), right('native, ms'), {title: 'auto takes'}],
      examples.map(({heads, tokens, headDim, cudaMs, nativeMs, engine}) => [
        `${heads} heads, ${tokens} tokens, head_dim ${headDim}`,
        formatMs(cudaMs),
        formatMs(nativeMs),
        engine,
      ]),
      terminal.colours,
    ),
  );
}
