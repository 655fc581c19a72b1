/**
 * `demo`: a trained transformer on a real source file with plain tfjs attention, with `exact` and with every recipe:
 * loss, agreement, time; then a completion.
 */
import picocolors from 'picocolors';
import {bitsPerByte, decodeBytes, END_OF_TEXT, WINDOW} from '../../models/gpt2/bytes.js';
import {chooseEngine, choosePrecision} from '../engines/choose_engine.js';
import {PRECISIONS, type Precision} from '../numerics/recipes.js';
import {type AttentionName, type DemoModel, loadDemoModel} from './demo_model.js';
import {readPrompt, readScoredText} from './demo_text.js';
import {formatMs, formatTable} from './table.js';
import {printable, type Terminal} from './terminal.js';
import {type CliBackend, startBackend} from './tfjs_backend.js';

export interface DemoOptions {
  readonly model?: string | undefined;
  readonly file?: string | undefined;
  /** Recipes to run beside `tfjs` and `exact`. Default: all. */
  readonly precision?: readonly Precision[] | undefined;
  /** Default: wasm. */
  readonly backend?: CliBackend | undefined;
  /** Most windows of the file to score. Default: 1. */
  readonly windows?: number | undefined;
}

export interface DemoRow {
  readonly precision: AttentionName;
  readonly engine: string;
  readonly reason: string;
  readonly bitsPerByte: number;
  /** Against `exact`. */
  readonly deltaBitsPerByte: number;
  /** Share of positions at which the likeliest next byte is that of `exact`. */
  readonly top1Agreement: number;
  /** Inside attention, over all layers and windows. */
  readonly attentionMs: number;
  readonly totalMs: number;
}

export interface Completion {
  readonly prompt: string;
  readonly text: string;
  readonly precision: Precision;
}

export interface DemoBody {
  readonly rows: readonly DemoRow[];
  readonly completion: Completion;
}

/** Ids of the pass that warms up caches, threads and compiled code before one is timed. */
const WARM_UP_IDS = 48;

/** Bytes that the model writes. */
const COMPLETION_BYTES = 96;

/** Lines of the prompt that are shown before what the model writes. */
const SHOWN_PROMPT_LINES = 5;

interface Scored {
  readonly name: AttentionName;
  readonly losses: Float32Array;
  readonly likeliest: Int32Array;
  readonly attentionMs: number;
  readonly totalMs: number;
}

export async function runDemo(options: DemoOptions, terminal: Terminal): Promise<DemoBody> {
  const backend = options.backend ?? 'wasm';
  await startBackend(backend);
  const model = await loadDemoModel(options.model);
  try {
    const {positions} = model.gpt2.config;
    const size = Math.min(WINDOW, positions);
    const text = readScoredText(options.file, options.windows ?? 1, size);
    const prompt = readPrompt(options.file, positions >> 1);
    const bytes = text.windows.reduce((sum, window) => sum + window.length - 1, 0);
    terminal.note(`${text.path}: ${bytes} bytes to predict, backend ${backend}`);
    noteSlowParts(backend, bytes, terminal);

    const names = namesToRun(options.precision);
    const scored = names.map((name, i) => {
      const result = score(model, name, text.windows);
      const seconds = (result.totalMs / 1000).toFixed(1);
      const attention = (result.attentionMs / 1000).toFixed(2);
      terminal.note(
        `[${i + 1}/${names.length}] ${name}: ${seconds} s, of which attention ${attention} s`,
      );
      return result;
    });
    const rows = describeRows(scored, backend);
    terminal.print(`\n${demoTable(rows, terminal.colours)}\n`);
    for (const line of reasonLines(rows)) terminal.print(line);
    const precision = options.precision?.[0] ?? choosePrecision(backend, 'auto');
    return {rows, completion: await complete(model, prompt, precision, terminal)};
  } finally {
    model.gpt2.dispose();
  }
}

/** `tfjs` and `exact` always: the one is what users have, the other is what the recipes are compared with. */
function namesToRun(precisions: readonly Precision[] | undefined): AttentionName[] {
  return [...new Set<AttentionName>(['tfjs', 'exact', ...(precisions ?? PRECISIONS)])];
}

/** Seconds a byte and row: plain JavaScript for the rest of the model, and the TypeScript engine for its attention. */
const CPU_BACKEND_SECONDS = 0.027;
const TYPESCRIPT_SECONDS = 0.005;

/** Says before it starts what will take long, measured on one 4 GHz core. */
function noteSlowParts(backend: CliBackend, bytes: number, terminal: Terminal): void {
  const tell = (what: string, seconds: number): void => {
    if (seconds < 2) return;
    terminal.note(`${what}: some ${seconds.toFixed(0)} s for each row. --precision picks rows.`);
  };
  if (backend === 'cpu') {
    tell(`Backend 'cpu' computes the rest of the model in JavaScript`, bytes * CPU_BACKEND_SECONDS);
  }
  const {engine, reason} = chooseEngine(backend, 'auto');
  if (engine !== 'native') tell(reason, bytes * TYPESCRIPT_SECONDS);
}

function score(model: DemoModel, name: AttentionName, windows: DemoWindows): Scored {
  model.use(name);
  const first = windows[0] ?? [];
  model.gpt2.score(first.slice(0, WARM_UP_IDS));
  model.takeAttentionMs();
  const start = performance.now();
  const scores = windows.map((window) => model.gpt2.score(window));
  return {
    name,
    totalMs: performance.now() - start,
    attentionMs: model.takeAttentionMs(),
    losses: Float32Array.from(
      scores.flatMap(({negativeLogLikelihood}) => [...negativeLogLikelihood]),
    ),
    likeliest: Int32Array.from(scores.flatMap(({likeliest}) => [...likeliest])),
  };
}

type DemoWindows = readonly (readonly number[])[];

function describeRows(scored: readonly Scored[], backend: CliBackend): DemoRow[] {
  const exact = scored.find(({name}) => name === 'exact');
  if (exact === undefined) throw new Error('exact is always among the names');
  const exactBits = bitsPerByte(exact.losses);
  return scored.map(({name, losses, likeliest, attentionMs, totalMs}) => {
    const bits = bitsPerByte(losses);
    const same = likeliest.reduce((sum, id, i) => sum + (id === exact.likeliest[i] ? 1 : 0), 0);
    const {engine, reason} =
      name === 'tfjs'
        ? {engine: 'tfjs', reason: `plain tfjs ops on backend '${backend}'`}
        : chooseEngine(backend, name);
    return {
      precision: name,
      engine,
      reason,
      bitsPerByte: bits,
      deltaBitsPerByte: bits - exactBits,
      top1Agreement: same / likeliest.length,
      attentionMs,
      totalMs,
    };
  });
}

function demoTable(rows: readonly DemoRow[], colours: boolean): string {
  const right = (title: string) => ({title, align: 'right'}) as const;
  return formatTable(
    [
      {title: 'precision'},
      right('bits per byte'),
      right('change'),
      right('same next byte'),
      right('attention ms'),
      right('total ms'),
      {title: 'engine'},
    ],
    rows.map((row) => [
      row.precision,
      row.bitsPerByte.toFixed(4),
      row.precision === 'exact' ? '' : signed(row.deltaBitsPerByte),
      row.precision === 'exact' ? '' : `${(100 * row.top1Agreement).toFixed(2)} %`,
      formatMs(row.attentionMs),
      formatMs(row.totalMs),
      row.engine,
    ]),
    colours,
  );
}

/** A change of 1e-6 bits and one of 0.3 both have to be readable. */
function signed(change: number): string {
  const size = Math.abs(change);
  const text = size !== 0 && size < 5e-5 ? size.toExponential(0) : size.toFixed(4);
  return `${change < 0 ? '-' : '+'}${text}`;
}

/** Each engine with why it serves, once. */
function reasonLines(rows: readonly DemoRow[]): string[] {
  return [...new Set(rows.map(({engine, reason}) => `${engine}: ${reason}`))];
}

async function complete(
  {gpt2, use}: DemoModel,
  prompt: {readonly ids: number[]; readonly text: string},
  precision: Precision,
  terminal: Terminal,
): Promise<Completion> {
  use(precision);
  const {dim} = picocolors.createColors(terminal.colours);
  const lines = printable(prompt.text.split('\n').slice(-SHOWN_PROMPT_LINES).join('\n'));
  terminal.print(`\nThe model goes on after these lines (${precision}, greedy):\n`);
  terminal.write(terminal.colours ? dim(lines) : `${lines}--->`);
  // Bytes come one by one; a character may take several.
  const decoder = new TextDecoder();
  const ids = await gpt2.generate(prompt.ids, {
    maxNewTokens: Math.min(COMPLETION_BYTES, gpt2.config.positions - prompt.ids.length + 1),
    stop: [END_OF_TEXT],
    onToken: (id) => terminal.write(printable(decoder.decode(Uint8Array.of(id), {stream: true}))),
  });
  terminal.write(`${decoder.decode()}\n`);
  return {prompt: prompt.text, text: decodeBytes(ids), precision};
}
