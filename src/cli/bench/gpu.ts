/**
 * `bench --gpu`: the CUDA kernels through the addon, from float32 in device memory (by events of the device) and from
 * float32 arrays of this process (wall clock, copies included). TOPS count 4·batch·heads·tokens²·head_dim, causal half.
 * With `--torch`, PyTorch's kernels on the same device take turns with ours.
 */
import {writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {platform} from '#platform';
import {Random} from '../../accuracy/distributions.js';
import {checkCudaRecipe} from '../../engines/check_cuda_recipe.js';
import {cudaEngine, lastCudaRefusal, releaseCudaMemory} from '../../engines/cuda.js';
import type {Engine} from '../../engines/engine.js';
import {nativeEngine} from '../../engines/native.js';
import {isRefusal, PRECISIONS, resolveRecipe, type Precision} from '../../numerics/recipes.js';
import {encodeProblem, plainProblem, PROBLEM_WORDS, type AttentionProblem} from '../../problem.js';
import {loadAddon} from '../../runtime/load_addon.js';
import type {NativeAddon} from '../../runtime/native_addon.js';
import {CliError} from '../cli_error.js';
import {formatMs, formatTable} from '../table.js';
import type {Terminal} from '../terminal.js';
import {median} from './bench_timing.js';
import {GPU_LENGTHS, gpuCases, nameOfGpuCase, topsOf, type GpuCase} from './gpu_cases.js';
import {
  startTorchGpu,
  TORCH_GPU_KERNELS,
  type TorchGpu,
  type TorchGpuKernels,
} from './torch_gpu.js';

export interface GpuBenchOptions {
  /** Default: `GPU_LENGTHS`. */
  readonly tokens?: readonly number[] | undefined;
  /** Default: all that the device computes. */
  readonly precision?: readonly Precision[] | undefined;
  /** Samples. Default: 9. */
  readonly rounds?: number | undefined;
  /** PyTorch's kernels beside ours: an interpreter that has torch, `true` for the benchmark's own. */
  readonly torch?: string | true | undefined;
  /** Writes the table to docs/cuda_measured.md. */
  readonly write?: boolean | undefined;
}

export interface GpuBenchRow {
  readonly case: string;
  readonly engine: 'cuda' | 'peer:torch';
  readonly precision: Precision | TorchGpuKernels;
  /** Median of one call on device memory, and from arrays; a peer has no arrays. */
  readonly deviceMs: number;
  readonly hostMs: number | null;
  readonly deviceTops: number;
  readonly hostTops: number | null;
}

export interface GpuBenchBody {
  readonly rows: readonly GpuBenchRow[];
  /** What was compared with. */
  readonly peers: {readonly torch?: string};
}

export async function runGpuBench(
  options: GpuBenchOptions,
  terminal: Terminal,
): Promise<GpuBenchBody> {
  const {tokens = GPU_LENGTHS, rounds = 9} = options;
  const {addon} = loadAddon();
  const {engine, reason} = cudaEngine();
  if (addon === null || engine === null) throw new CliError(`No GPU to time: ${reason}.`);
  const precisions = (options.precision ?? PRECISIONS).filter((name) => engine.supports(name));
  const cases = gpuCases(tokens);
  const rows: GpuBenchRow[] = [];
  // All queries, keys and values are windows of one array, so that its making takes no minutes.
  const values = normals(Math.max(...cases.map(({headDim, tokens: n}) => 32 * n * headDim)));
  const torch = options.torch === undefined ? null : await startTorchGpu(options.torch, terminal);
  try {
    const rig = {addon, engine, values, rounds, torch, terminal};
    for (const [i, c] of cases.entries()) {
      terminal.note(`[${i + 1}/${cases.length}] ${nameOfGpuCase(c)}`);
      rows.push(...(await timeCase(c, precisions, rig)));
      releaseCudaMemory();
    }
  } finally {
    torch?.close();
  }
  terminal.print(gpuTable(rows, terminal.colours));
  const device = torch === null ? reason : `${reason}; ${torch.about}`;
  if (options.write === true) writeTable(rows, device, terminal);
  return {rows, peers: torch === null ? {} : {torch: torch.about}};
}

interface Rig {
  readonly addon: NativeAddon;
  readonly engine: Engine;
  readonly values: Float32Array;
  readonly rounds: number;
  readonly torch: TorchGpu | null;
  readonly terminal: Terminal;
}

/** What takes turns on the device: calls on device memory, a list of milliseconds. */
interface GpuContender {
  readonly row: Pick<GpuBenchRow, 'case' | 'engine' | 'precision' | 'hostMs'>;
  readonly time: (count: number) => number[] | Promise<number[]>;
  readonly samples: number[];
}

/** Turns of every contender; its samples are divided among them. A clock that sinks with the heat so sinks for all. */
const TURNS = 3;

/** Without what the kernels do not compute or what does not fit. */
async function timeCase(
  c: GpuCase,
  precisions: readonly Precision[],
  rig: Rig,
): Promise<GpuBenchRow[]> {
  const contenders = [
    ...precisions.flatMap((precision) => ownContender(c, precision, rig)),
    ...(await torchContenders(c, rig)),
  ];
  for (let turn = 0; turn < TURNS; turn++) {
    const order = turn % 2 === 0 ? contenders : [...contenders].reverse();
    for (const {samples, time} of order) {
      samples.push(...(await time(Math.ceil(rig.rounds / TURNS))));
    }
    // Lets a terminal show what has been written.
    await new Promise(setImmediate);
  }
  return contenders.map(({row, samples}) => {
    const deviceMs = median(samples);
    const hostTops = row.hostMs === null ? null : topsOf(c, row.hostMs);
    return {...row, deviceMs, deviceTops: topsOf(c, deviceMs), hostTops};
  });
}

function ownContender(c: GpuCase, precision: Precision, rig: Rig): GpuContender[] {
  const {addon, engine, values, rounds} = rig;
  const words = encodeProblem(problemOf(c, precision), new Float64Array(PROBLEM_WORDS));
  if (addon.cudaHostSupports(words) !== null) return [];
  checkAgainstNative(engine, precision);
  const o = new Float32Array(c.batch * c.heads * c.tokens * c.headDim);
  const hostSamples: number[] = [];
  for (let n = -2; n < rounds; n++) {
    const start = performance.now();
    addon.cudaForward(words, values, values, values, null, o, null);
    if (n >= 0) hostSamples.push(performance.now() - start);
  }
  return [
    {
      row: {case: nameOfGpuCase(c), engine: 'cuda', precision, hostMs: median(hostSamples)},
      time: (count) => addon.timeCudaForward(words, values, values, values, null, count),
      samples: [],
    },
  ];
}

async function torchContenders(c: GpuCase, {torch, terminal}: Rig): Promise<GpuContender[]> {
  if (torch === null) return [];
  const contenders: GpuContender[] = [];
  for (const precision of Object.keys(TORCH_GPU_KERNELS) as TorchGpuKernels[]) {
    const refusal = await torch.take(c, precision);
    if (refusal !== null) {
      terminal.note(`PyTorch, ${precision}: ${refusal}`);
      continue;
    }
    contenders.push({
      row: {case: nameOfGpuCase(c), engine: 'peer:torch', precision, hostMs: null},
      time: async (count) => {
        await torch.take(c, precision);
        await torch.time(WARM_UP_CALLS);
        return torch.time(count);
      },
      samples: [],
    });
  }
  return contenders;
}

/** Calls of a peer before its clock starts. */
const WARM_UP_CALLS = 2;

const checked = new Set<Precision>();

/** A time says nothing about kernels that compute something else. Once a recipe. */
function checkAgainstNative(engine: Engine, precision: Precision): void {
  if (checked.has(precision)) return;
  const native = nativeEngine().engine;
  if (native === null) throw new CliError('There is no native engine to compare with.');
  const wrong = checkCudaRecipe(precision, engine, native, lastCudaRefusal);
  if (wrong !== null) {
    throw new CliError(`The CUDA kernels of ${precision} compute something else: ${wrong}.`);
  }
  checked.add(precision);
}

/** Sequences of a batch read the same q, k and v. */
function problemOf(c: GpuCase, precision: Precision): AttentionProblem {
  const recipe = resolveRecipe(precision, {});
  if (isRefusal(recipe)) throw new Error(`The recipe '${precision}' has a default form.`);
  const {batch, heads, tokens, headDim, causal} = c;
  const inputs = {batch: 0, head: tokens * headDim, token: headDim};
  return {
    ...plainProblem(1, recipe),
    batch,
    qHeads: heads,
    kvHeads: heads,
    qLen: tokens,
    kvLen: tokens,
    qkDim: headDim,
    vDim: headDim,
    q: inputs,
    k: inputs,
    v: inputs,
    o: {...inputs, batch: heads * tokens * headDim},
    scale: 1 / Math.sqrt(headDim),
    causal: causal ? 'top_left' : 'none',
    windowRight: causal ? 0 : -1,
  };
}

/** Numbers that are made; the rest repeats them. A prime, so that no row comes again at the same place of a tile. */
const MADE = 4_000_037;

/** N(0,1). */
function normals(count: number): Float32Array {
  const random = new Random(1);
  const values = new Float32Array(count);
  const made = Math.min(count, MADE);
  for (let i = 0; i < made; i++) values[i] = random.normal();
  for (let i = made; i < count; i += made) {
    values.copyWithin(i, 0, Math.min(made, count - i));
  }
  return values;
}

const TITLES = ['case', 'precision', 'device, ms', 'TOPS', 'arrays, ms', 'TOPS'];

function cellsOf(row: GpuBenchRow) {
  const {case: name, engine, precision, deviceMs, deviceTops, hostMs, hostTops} = row;
  return [
    name,
    engine === 'cuda' ? precision : `torch ${precision}`,
    deviceMs.toFixed(3),
    deviceTops.toFixed(0),
    hostMs === null ? '' : formatMs(hostMs),
    hostTops === null ? '' : hostTops.toFixed(1),
  ];
}

function gpuTable(rows: readonly GpuBenchRow[], colours: boolean): string {
  return formatTable(
    TITLES.map((title, i) => ({title, align: i < 2 ? 'left' : 'right'})),
    rows.map(cellsOf),
    colours,
  );
}

/** The same as Markdown, with what was measured and how. */
export function markdownTable(rows: readonly GpuBenchRow[], device: string): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
  return [
    '# CUDA, measured',
    '',
    `${device}. Written by \`npm run bench -- --gpu --write\` (with \`--torch\`: PyTorch's kernels take turns with ours): medians;`,
    '"device" from float32 (torch: bfloat16) in device memory, by events; "arrays" from float32 arrays of the process and back, wall clock.',
    'TOPS = 4 · B · H · N² · D / t, halved under causality.',
    '',
    line(TITLES),
    line(TITLES.map(() => '---')),
    ...rows.map((row) => line(cellsOf(row))),
    '',
  ].join('\n');
}

function writeTable(rows: readonly GpuBenchRow[], device: string, terminal: Terminal): void {
  const {packageRoot} = platform;
  if (packageRoot === null) throw new CliError('The folder of this package is not found.');
  const file = join(packageRoot, 'docs', 'cuda_measured.md');
  writeFileSync(file, markdownTable(rows, device));
  terminal.note(`written: ${file}`);
}
