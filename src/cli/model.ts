/** `model`: a model of yours in Hugging Face's files, with exact attention and with recipes: its answer, loss and time. */
import {chooseEngine, choosePrecision} from '../engines/choose_engine.js';
import type {Precision} from '../numerics/recipes.js';
import {CliError} from './cli_error.js';
import {type AttentionName, exchangeableAttention} from './exchangeable_attention.js';
import {
  type ModelName,
  type ModelTask,
  type TaskInput,
  type TaskOutput,
  TASKS,
} from './model_tasks.js';
import {formatMs, formatNumber, formatTable} from './table.js';
import type {Terminal} from './terminal.js';
import {type CliBackend, startBackend} from './tfjs_backend.js';

export interface ModelOptions extends TaskInput {
  readonly model?: string | undefined;
  /** Recipes beside `exact`. Default: what `auto` means on the backend. */
  readonly precision?: readonly Precision[] | undefined;
  /** Default: wasm. */
  readonly backend?: CliBackend | undefined;
}

export interface ModelRow {
  readonly precision: AttentionName;
  readonly engine: string;
  readonly reason: string;
  /** Of the embeddings, logits, probabilities or latents, against `exact`. */
  readonly cosine: number;
  readonly relativeL1: number;
  /** Inside attention, over all layers and steps. */
  readonly attentionMs: number;
  readonly totalMs: number;
}

export interface ModelBody {
  readonly model: ModelName;
  readonly rows: readonly ModelRow[];
  /** What the first of `--precision`, or else of what `auto` means, gave. */
  readonly result: object;
}

interface Run extends TaskOutput {
  readonly name: AttentionName;
  readonly attentionMs: number;
  readonly totalMs: number;
}

export async function runModel(
  options: ModelOptions,
  terminal: Terminal,
  name: ModelName,
): Promise<ModelBody> {
  if (options.model === undefined) {
    throw new CliError(
      'No model is given.',
      'Give --model <directory>: config.json, the safetensors weights and, for texts, tokenizer.json.',
    );
  }
  const backend = options.backend ?? 'wasm';
  await startBackend(backend);
  const {attention, use, takeMs} = exchangeableAttention();
  const task = await TASKS[name](options.model, attention, options, terminal);
  try {
    const wanted = options.precision ?? [choosePrecision(backend, 'auto')];
    const names: AttentionName[] = [...new Set<AttentionName>(['tfjs', 'exact', ...wanted])];
    const runs: Run[] = [];
    for (const [i, attentionName] of names.entries()) {
      use(attentionName);
      runs.push(await timed(task, attentionName, takeMs));
      const seconds = ((runs.at(-1) as Run).totalMs / 1000).toFixed(2);
      terminal.note(`[${i + 1}/${names.length}] ${attentionName}: ${seconds} s`);
    }
    const rows = describeRows(runs, backend);
    const shown = runs.find((run) => run.name === wanted[0]) as Run;
    terminal.print(`\n${modelTable(rows, terminal.colours)}\n`);
    terminal.print(`With ${shown.name}:\n`);
    terminal.print(shown.shown);
    return {model: name, rows, result: shown.result};
  } finally {
    task.dispose();
  }
}

async function timed(task: ModelTask, name: AttentionName, takeMs: () => number): Promise<Run> {
  await task.warmUp();
  takeMs();
  const start = performance.now();
  const output = await task.run();
  return {...output, name, totalMs: performance.now() - start, attentionMs: takeMs()};
}

function describeRows(runs: readonly Run[], backend: CliBackend): ModelRow[] {
  const exact = runs.find(({name}) => name === 'exact') as Run;
  return runs.map(({name, values, attentionMs, totalMs}) => {
    const {engine, reason} =
      name === 'tfjs'
        ? {engine: 'tfjs', reason: `plain tfjs ops on backend '${backend}'`}
        : chooseEngine(backend, name);
    const loss = compare(values, exact.values);
    return {precision: name, engine, reason, ...loss, attentionMs, totalMs};
  });
}

function compare(
  values: Float32Array,
  exact: Float32Array,
): Pick<ModelRow, 'cosine' | 'relativeL1'> {
  let [dot, aa, bb, error, size] = [0, 0, 0, 0, 0];
  exact.forEach((b, i) => {
    const a = values[i] as number;
    dot += a * b;
    aa += a * a;
    bb += b * b;
    error += Math.abs(a - b);
    size += Math.abs(b);
  });
  return {cosine: dot / Math.sqrt(aa * bb), relativeL1: error / size};
}

function modelTable(rows: readonly ModelRow[], colours: boolean): string {
  const right = (title: string) => ({title, align: 'right'}) as const;
  return formatTable(
    [
      {title: 'precision'},
      right('cosine'),
      right('relative L1'),
      right('attention ms'),
      right('total ms'),
      {title: 'engine'},
    ],
    rows.map((row) => [
      row.precision,
      row.cosine.toFixed(7),
      row.precision === 'exact' ? '' : formatNumber(row.relativeL1),
      formatMs(row.attentionMs),
      formatMs(row.totalMs),
      row.engine,
    ]),
    colours,
  );
}
