/**
 * `bench --models`: graph models as tfjs runs them, and with their attentions replaced, in one process and in turns. How
 * much of the time attention takes is found by running the same graph without it.
 */
import * as tf from '@tensorflow/tfjs-core';
import {compareArrays} from '../../accuracy/metrics.js';
import type {Precision} from '../../numerics/recipes.js';
import {CliError} from '../cli_error.js';
import {loadConverterEntry} from '../graph_files.js';
import {formatMs, formatNumber, formatTable} from '../table.js';
import type {Terminal} from '../terminal.js';
import {startBackend} from '../tfjs_backend.js';
import {timeInTurns, type Contender} from './bench_timing.js';
import {GRAPH_CASES, writeGraphModel, type GraphCase} from './graph_model.js';

export interface ModelsBenchOptions {
  readonly models?: readonly GraphCase[] | undefined;
  /** Default: both. */
  readonly backends?: readonly ('wasm' | 'cpu')[] | undefined;
  /** Default: what is chosen where it runs. */
  readonly precision?: Precision | undefined;
  /** Samples of each contender. Default: 5; 1 on cpu, where plain tfjs takes many seconds for one. */
  readonly rounds?: number | undefined;
  /** Least time of a sample. Default: 60. */
  readonly sampleMs?: number | undefined;
}

export interface ModelsBenchRow {
  readonly case: string;
  readonly backend: string;
  readonly precision: string;
  /** Attentions that were replaced, and softmaxes that were looked at. */
  readonly replaced: number;
  readonly candidates: number;
  /** Median of one prediction by plain tfjs; null where the backend lacks an op of the graph. */
  readonly unpatchedMs: number | null;
  readonly patchedMs: number;
  /** patchedMs over unpatchedMs. */
  readonly ratio: number | null;
  /** Share of attention in unpatchedMs. */
  readonly attentionShare: number | null;
  /** Relative L1 of the outputs; null without those of plain tfjs. */
  readonly relativeL1: number | null;
}

export interface ModelsBenchBody {
  readonly rows: readonly ModelsBenchRow[];
}

/** Recipes lie within their formats' error of the model before: beyond this something else was computed. */
const MAX_DIFFERENCE = 0.3;

export async function runModelsBench(
  options: ModelsBenchOptions,
  terminal: Terminal,
): Promise<ModelsBenchBody> {
  const {models = GRAPH_CASES, backends = ['wasm', 'cpu']} = options;
  const rows: ModelsBenchRow[] = [];
  const entry = await loadConverterEntry();
  for (const backend of backends) {
    await startBackend(backend);
    for (const c of models) {
      terminal.note(`${c.name} on ${backend}`);
      rows.push(await benchModel(c, backend, options, entry));
    }
  }
  print(rows, terminal);
  return {rows};
}

async function benchModel(
  c: GraphCase,
  backend: string,
  {precision, rounds = backend === 'cpu' ? 1 : 5, sampleMs = 60}: ModelsBenchOptions,
  {loadGraphModel, getReplacementReport}: Awaited<ReturnType<typeof loadConverterEntry>>,
): Promise<ModelsBenchRow> {
  // `only: []` leaves a model to tfjs.
  const load = (sage: object, withAttention = true) =>
    loadGraphModel(writeGraphModel(c, withAttention), {sage});
  const plain = await load({only: []});
  const rest = await load({only: []}, false);
  const patched = await load(precision === undefined ? {} : {precision});
  const x = tf.randomNormal([1, c.tokens, c.heads * c.headDim], 0, 1, 'float32', 3);
  type Model = typeof plain;
  const run = (model: Model): void => {
    tf.dispose(model.predict({x}));
  };
  const contender = (engine: string, model: Model): Contender => ({
    engine,
    precision: precision ?? 'auto',
    group: 'tfjs',
    run: () => run(model),
    output: () => outputOf(model, x),
    dispose: () => model.dispose(),
  });
  const runs = canRun(() => run(plain));
  const contenders = [
    contender('patched', patched),
    ...(runs ? [contender('plain', plain), contender('rest', rest)] : []),
  ];
  try {
    const relativeL1 = runs ? await difference(c, contenders) : null;
    const [patchedTime, plainTime, restTime] = await timeInTurns(contenders, {
      rounds,
      sampleMs,
      idleMs: 0,
    });
    const unpatchedMs = plainTime?.ms ?? null;
    const patchedMs = patchedTime?.ms ?? NaN;
    const report = getReplacementReport(patched);
    return {
      case: c.name,
      backend,
      precision: precision ?? 'auto',
      replaced: report?.replaced ?? 0,
      candidates: report?.candidates ?? 0,
      unpatchedMs,
      patchedMs,
      ratio: unpatchedMs === null ? null : patchedMs / unpatchedMs,
      attentionShare:
        unpatchedMs === null || restTime === undefined ? null : 1 - restTime.ms / unpatchedMs,
      relativeL1,
    };
  } finally {
    for (const model of [plain, rest, patched]) model.dispose();
    x.dispose();
  }
}

async function difference(c: GraphCase, [patched, plain]: readonly Contender[]): Promise<number> {
  const [actual, expected] = await Promise.all([patched?.output(), plain?.output()]);
  const {relativeL1} = compareArrays(actual ?? [], expected ?? []);
  if (relativeL1 <= MAX_DIFFERENCE) return relativeL1;
  throw new CliError(
    `${c.name}: the replaced model gives something else (relative L1 ${relativeL1}).`,
  );
}

async function outputOf(
  model: {predict(inputs: tf.NamedTensorMap): unknown},
  x: tf.Tensor,
): Promise<Float32Array> {
  const y = model.predict({x}) as tf.Tensor;
  const values = await y.data<'float32'>();
  y.dispose();
  return values;
}

/** Whether a backend has all ops of a graph. */
function canRun(run: () => void): boolean {
  try {
    run();
    return true;
  } catch {
    return false;
  }
}

function print(rows: readonly ModelsBenchRow[], terminal: Terminal): void {
  const right = (title: string) => ({title, align: 'right'}) as const;
  terminal.print(
    formatTable(
      [
        {title: 'model'},
        {title: 'backend'},
        right('replaced'),
        right('tfjs ms'),
        right('with Sage ms'),
        right('ratio'),
        right('attention'),
        right('relative L1'),
      ],
      rows.map((row) => [
        row.case,
        row.backend,
        `${row.replaced} of ${row.candidates}`,
        row.unpatchedMs === null ? 'lacks an op' : formatMs(row.unpatchedMs),
        formatMs(row.patchedMs),
        row.ratio === null ? '-' : formatNumber(row.ratio),
        row.attentionShare === null ? '-' : `${Math.round(100 * row.attentionShare)} %`,
        row.relativeL1 === null ? '-' : formatNumber(row.relativeL1),
      ]),
      terminal.colours,
    ),
  );
}
