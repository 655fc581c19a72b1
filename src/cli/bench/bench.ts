/**
 * `bench`: time of one attention call by recipe and number of threads, with `--peers` beside what else users could call,
 * in the same process and in turns. GFLOP/s count 4·heads·tokens²·head_dim, in full for causal too.
 */
import * as tf from '@tensorflow/tfjs-core';
import {platform} from '#platform';
import {compareArrays} from '../../accuracy/metrics.js';
import {configureSageAttention} from '../../index.js';
import type {Precision} from '../../numerics/recipes.js';
import {CliError} from '../cli_error.js';
import {formatMs, formatTable} from '../table.js';
import type {Terminal} from '../terminal.js';
import {startBackend} from '../tfjs_backend.js';
import {BENCH_CASES, nameOfCase, operationsOf, type BenchCase} from './bench_cases.js';
import {makeBenchInputs} from './bench_inputs.js';
import {timeInTurns, type Contender, type Timing} from './bench_timing.js';
import {loadOrt, ortContenders, type Ort} from './onnxruntime.js';
import {startTorch, type Torch} from './torch.js';
import {
  composedContender,
  MAX_COMPOSED_TOKENS,
  sageContender,
  toTensors,
} from './tfjs_contenders.js';

export interface BenchOptions {
  /** Compare with ONNX Runtime and with plain tfjs ops. */
  readonly peers?: boolean | undefined;
  /** Compare with PyTorch too: an interpreter that has it, or `true` for an environment made for this. */
  readonly torch?: string | true | undefined;
  /** Default: 1; with peers also as many as this process may use. */
  readonly threads?: readonly number[] | undefined;
  readonly case?: readonly BenchCase[] | undefined;
  /** Default: `BENCH_PRECISIONS`. */
  readonly precision?: readonly Precision[] | undefined;
  /** Samples of each contender. Default: 5. */
  readonly rounds?: number | undefined;
  /** Least time of a sample. Default: 60. */
  readonly sampleMs?: number | undefined;
}

export interface BenchRow {
  readonly case: string;
  /** What computed it; `peer:<name>` for a peer. */
  readonly engine: string;
  readonly precision: string;
  readonly threads: number;
  /** Median of one call. */
  readonly ms: number;
  readonly minMs: number;
  readonly gflops: number;
  /** Median of the fastest peer of the case over this median: 2 = twice as fast as it. Null without peers. */
  readonly ratioToBestPeer: number | null;
}

export interface BenchBody {
  readonly rows: readonly BenchRow[];
  /** Versions of peers that say them. */
  readonly peers: Readonly<Record<string, string>>;
}

/** Recipes with kernels of their own on CPUs. */
export const BENCH_PRECISIONS: readonly Precision[] = [
  'exact',
  'int16',
  'int8_int16',
  'int8_bf16',
  'int8',
];

/** ONNX Runtime's threads keep spinning for tens of milliseconds after a run and would halve who comes next. */
const IDLE_MS = 500;

/** Recipes lie within their formats' error, peers within float32's: beyond this something else was computed. */
const RECIPE_DIFFERENCE = 0.3;
const PEER_DIFFERENCE = 1e-4;
/** Of peers that compute in bfloat16. */
const BFLOAT16_DIFFERENCE = 0.02;

export async function runBench(options: BenchOptions, terminal: Terminal): Promise<BenchBody> {
  const {torch: python, case: cases = BENCH_CASES} = options;
  const peers = options.peers === true || python !== undefined;
  const {threads = peers ? [...new Set([1, platform.processors])] : [1]} = options;
  await startBackend('wasm');
  const found = peers ? loadOrt(terminal) : null;
  const ort = found?.ort ?? null;
  const torch = python === undefined ? null : await startTorch(python, terminal);
  const rows: BenchRow[] = [];
  const before = configureSageAttention();
  try {
    for (const count of threads) {
      configureSageAttention({threads: count});
      for (const [i, c] of cases.entries()) {
        terminal.note(`[${i + 1}/${cases.length}] ${nameOfCase(c)}, threads ${count}`);
        const timed = await timeCase(c, count, {ort, torch}, options);
        terminal.print(caseTable(timed, terminal.colours));
        rows.push(...timed);
      }
    }
  } finally {
    configureSageAttention(before);
    torch?.close();
  }
  return {
    rows,
    peers: {
      ...(found === null ? {} : {onnxruntime: found.about}),
      ...(torch === null ? {} : {torch: `${torch.version} (${torch.capability})`}),
    },
  };
}

async function timeCase(
  c: BenchCase,
  threads: number,
  {ort, torch}: {readonly ort: Ort | null; readonly torch: Torch | null},
  options: BenchOptions,
): Promise<BenchRow[]> {
  const {precision = BENCH_PRECISIONS, rounds = 5, sampleMs = 60} = options;
  const inputs = makeBenchInputs(c);
  const tensors = toTensors(inputs, c);
  const contenders: Contender[] = [];
  try {
    if (ort !== null) {
      contenders.push(...(await ortContenders(ort, c, inputs, threads)));
      // It has one thread, so there is nothing to compare at two.
      if (threads === 1 && c.tokens <= MAX_COMPOSED_TOKENS) {
        contenders.push(composedContender(tensors, c));
      }
    }
    if (torch !== null) contenders.push(...torch.contenders(c, inputs, threads));
    contenders.push(...precision.map((name) => sageContender(name, tensors, c)));
    await checkOutputs(contenders, sageContender('exact', tensors, c), c);
    const idleMs = ort !== null && threads > 1 ? IDLE_MS : 0;
    const timings = await timeInTurns(contenders, {rounds, sampleMs, idleMs});
    return describe(c, threads, contenders, timings);
  } finally {
    for (const contender of contenders) await contender.dispose();
    tf.dispose({...tensors});
  }
}

/** A time says nothing about a contender that computes something else. */
async function checkOutputs(
  contenders: readonly Contender[],
  exact: Contender,
  c: BenchCase,
): Promise<void> {
  const expected = await exact.output();
  for (const contender of contenders) {
    const {relativeL1} = compareArrays(await contender.output(), expected);
    if (relativeL1 <= largestDifference(contender)) continue;
    throw new CliError(
      `${nameOfCase(c)}: ${contender.engine} (${contender.precision}) computes something else: relative L1 ` +
        `${relativeL1.toPrecision(3)} from engine ${exact.engine} with exact.`,
    );
  }
}

function largestDifference({engine, precision}: Contender): number {
  if (!engine.startsWith('peer:')) return RECIPE_DIFFERENCE;
  return precision === 'bfloat16' ? BFLOAT16_DIFFERENCE : PEER_DIFFERENCE;
}

function describe(
  c: BenchCase,
  threads: number,
  contenders: readonly Contender[],
  timings: readonly Timing[],
): BenchRow[] {
  const peerTimes = timings.filter((_, i) => contenders[i]?.engine.startsWith('peer:'));
  const best = Math.min(...peerTimes.map(({ms}) => ms));
  return contenders.map(({engine, precision}, i) => {
    const {ms, minMs} = timings[i] as Timing;
    return {
      case: nameOfCase(c),
      engine,
      precision,
      threads,
      ms,
      minMs,
      gflops: operationsOf(c) / ms / 1e6,
      ratioToBestPeer: Number.isFinite(best) ? best / ms : null,
    };
  });
}

function caseTable(rows: readonly BenchRow[], colours: boolean): string {
  const [{case: name, threads}] = rows as [BenchRow];
  const right = (title: string) => ({title, align: 'right'}) as const;
  const table = formatTable(
    [
      {title: 'engine'},
      {title: 'precision'},
      right('ms'),
      right('least ms'),
      right('GFLOP/s'),
      right('times best peer'),
    ],
    rows.map(({engine, precision, ms, minMs, gflops, ratioToBestPeer}) => [
      engine,
      precision,
      formatMs(ms),
      formatMs(minMs),
      gflops.toFixed(0),
      ratioToBestPeer === null ? '-' : ratioToBestPeer.toFixed(2),
    ]),
    colours,
  );
  return `\n${name}, ${threads} ${threads === 1 ? 'thread' : 'threads'}\n${table}`;
}
