/**
 * `bench --gpu`: the CUDA kernels through the addon, from float32 in device memory (by events of the device) and from
 * float32 arrays of this process (wall clock, copies included). TOPS count 4·batch·heads·tokens²·head_dim, causal half.
 */
import {writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {platform} from '#platform';
import {compareArrays} from '../../accuracy/metrics.js';
import {Random} from '../../accuracy/distributions.js';
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

export interface GpuBenchOptions {
  /** Default: `GPU_LENGTHS`. */
  readonly tokens?: readonly number[] | undefined;
  /** Default: all that the device computes. */
  readonly precision?: readonly Precision[] | undefined;
  /** Samples. Default: 9. */
  readonly rounds?: number | undefined;
  /** Writes the table to docs/cuda_measured.md. */
  readonly write?: boolean | undefined;
}

export interface GpuBenchRow {
  readonly case: string;
  readonly engine: 'cuda';
  readonly precision: Precision;
  /** Median of one call on device memory, and from arrays. */
  readonly deviceMs: number;
  readonly hostMs: number;
  readonly deviceTops: number;
  readonly hostTops: number;
}

export interface GpuBenchBody {
  readonly rows: readonly GpuBenchRow[];
}

export const GPU_LENGTHS: readonly number[] = [1024, 2048, 4096, 8192, 16384, 32768];

interface GpuCase {
  readonly batch: number;
  readonly heads: number;
  readonly headDim: number;
  readonly tokens: number;
  readonly causal: boolean;
}

/** Four sequences up to 8K, one above: as published tables have it. */
export function gpuCases(lengths: readonly number[]): GpuCase[] {
  return [128, 64].flatMap((headDim) =>
    [false, true].flatMap((causal) =>
      lengths.map((tokens) => ({
        batch: tokens <= 8192 ? 4 : 1,
        heads: 32,
        headDim,
        tokens,
        causal,
      })),
    ),
  );
}

export function nameOfGpuCase({batch, heads, headDim, tokens, causal}: GpuCase): string {
  return `b${batch}_h${heads}_d${headDim}_n${tokens}_${causal ? 'causal' : 'full'}`;
}

/** 1e12 operations a second. */
export function topsOf({batch, heads, headDim, tokens, causal}: GpuCase, ms: number): number {
  return (4 * batch * heads * tokens ** 2 * headDim) / (causal ? 2 : 1) / ms / 1e9;
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
  const values = normals(
    Math.max(LEAST_VALUES, ...cases.map(({headDim, tokens: n}) => 32 * n * headDim)),
  );
  for (const [i, c] of cases.entries()) {
    terminal.note(`[${i + 1}/${cases.length}] ${nameOfGpuCase(c)}`);
    for (const precision of precisions) {
      const row = timeCase(c, precision, {addon, engine, values, rounds});
      if (row !== null) rows.push(row);
    }
    releaseCudaMemory();
    // Lets a terminal show what has been written.
    await new Promise(setImmediate);
  }
  terminal.print(gpuTable(rows, terminal.colours));
  if (options.write === true) writeTable(rows, reason, terminal);
  return {rows};
}

interface Rig {
  readonly addon: NativeAddon;
  readonly engine: Engine;
  readonly values: Float32Array;
  readonly rounds: number;
}

/** Null where the kernels do not compute the case, or it does not fit. */
function timeCase(c: GpuCase, precision: Precision, rig: Rig): GpuBenchRow | null {
  const {addon, engine, values, rounds} = rig;
  const problem = problemOf(c, precision);
  const words = encodeProblem(problem, new Float64Array(PROBLEM_WORDS));
  if (addon.cudaHostSupports(words) !== null) return null;
  const {batch, heads, tokens, headDim} = c;
  const o = new Float32Array(batch * heads * tokens * headDim);
  checkAgainstNative(engine, precision, values);
  const hostSamples: number[] = [];
  for (let n = -2; n < rounds; n++) {
    const start = performance.now();
    addon.cudaForward(words, values, values, values, null, o, null);
    if (n >= 0) hostSamples.push(performance.now() - start);
  }
  const deviceMs = median(addon.timeCudaForward(words, values, values, values, null, rounds));
  const hostMs = median(hostSamples);
  return {
    case: nameOfGpuCase(c),
    engine: 'cuda',
    precision,
    deviceMs,
    hostMs,
    deviceTops: topsOf(c, deviceMs),
    hostTops: topsOf(c, hostMs),
  };
}

const checked = new Set<Precision>();

/** Recipes lie within their formats' error of `exact`: beyond this something else was computed. */
const MAX_DIFFERENCE = 0.3;

/** A time says nothing about kernels that compute something else. Once a recipe. */
function checkAgainstNative(engine: Engine, precision: Precision, values: Float32Array): void {
  if (checked.has(precision)) return;
  const c = {batch: 1, heads: 4, headDim: 64, tokens: 257, causal: true};
  const attend = (computing: Engine, name: Precision) => {
    const o = new Float32Array(c.heads * c.tokens * c.headDim);
    const [q, k, v] = [values, values.subarray(1001), values.subarray(2003)];
    computing.forward(problemOf(c, name), {q, k, v, mask: null, o, lse: null});
    return o;
  };
  const native = nativeEngine().engine;
  if (native === null) throw new CliError('There is no native engine to compare with.');
  const outputs = [attend(engine, precision), attend(native, 'exact')] as const;
  const {relativeL1} = compareArrays(outputs[0], outputs[1]);
  if (!(relativeL1 <= MAX_DIFFERENCE) || lastCudaRefusal() !== null) {
    const why = lastCudaRefusal() ?? `relative L1 ${relativeL1.toPrecision(3)} from exact`;
    throw new CliError(`The CUDA kernels of ${precision} compute something else: ${why}.`);
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

/** Enough for the case that is compared. */
const LEAST_VALUES = 2 ** 18;

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

function cellsOf({case: name, precision, deviceMs, deviceTops, hostMs, hostTops}: GpuBenchRow) {
  return [
    name,
    precision,
    deviceMs.toFixed(3),
    deviceTops.toFixed(0),
    formatMs(hostMs),
    hostTops.toFixed(1),
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
    `${device}. Written by \`npm run bench -- --gpu --write\`: medians; "device" from float32 in device memory, by events; "arrays" from`,
    'float32 arrays of the process and back, wall clock. TOPS = 4 · B · H · N² · D / t, halved under causality.',
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
