/** What `model` does with each model: load it, run it once per attention, show what came out. */
import * as tf from '@tensorflow/tfjs-core';
import type {Attention} from '../../models/attention.js';
import {embedTexts, similarityTable} from '../../models/bert/embed_texts.js';
import {loadBert} from '../../models/bert/load.js';
import {loadDit, loadNoiseSchedule} from '../../models/dit/load.js';
import {sampleLatents} from '../../models/dit/sample.js';
import {loadGpt2} from '../../models/gpt2/load.js';
import type {GenerateOptions} from '../../models/generate.js';
import {loadLlama} from '../../models/llama/load.js';
import {loadTokenizer} from '../../models/load_files.js';
import {loadVit} from '../../models/vit/load.js';
import {CliError} from './cli_error.js';
import {readImage} from './read_image.js';
import {formatTable} from './table.js';
import {printable, type Terminal} from './terminal.js';

export const MODEL_NAMES = ['bert', 'dit', 'gpt2', 'llama', 'vit'] as const;
export type ModelName = (typeof MODEL_NAMES)[number];

/** What a model is to work on; each task takes its own. */
export interface TaskInput {
  readonly text?: readonly string[] | undefined;
  readonly image?: string | undefined;
  readonly prompt?: string | undefined;
  readonly tokens?: number | undefined;
  readonly temperature?: number | undefined;
  readonly seed?: number | undefined;
  readonly class?: readonly number[] | undefined;
  readonly steps?: number | undefined;
  readonly guidance?: number | undefined;
}

/** What one run gave. */
export interface TaskOutput {
  /** Numbers to compare between attentions: embeddings, logits or latents. */
  readonly values: Float32Array;
  /** Fields of the report. */
  readonly result: object;
  /** The same for people. */
  readonly shown: string;
}

export interface ModelTask {
  /** A small pass, so that compiled code, threads and weights are warm before one is timed. */
  warmUp(): Promise<void>;
  run(): Promise<TaskOutput>;
  dispose(): void;
}

type OpenTask = (
  directory: string,
  attention: Attention,
  input: TaskInput,
  terminal: Terminal,
) => Promise<ModelTask>;

/** @throws CliError for input that is missing; ModelError and SafetensorsError for files that do not fit. */
export const TASKS: Readonly<Record<ModelName, OpenTask>> = {
  bert: openBert,
  vit: openVit,
  dit: openDit,
  llama: (directory, attention, input) => openLanguageModel(loadLlama, directory, attention, input),
  gpt2: (directory, attention, input) => openLanguageModel(loadGpt2, directory, attention, input),
};

const DEFAULT_TEXTS = [
  'How do I reset my password?',
  'I forgot my login and need a new one.',
  'The weather is lovely today.',
];

async function openBert(
  directory: string,
  attention: Attention,
  {text = DEFAULT_TEXTS}: TaskInput,
  {colours}: Terminal,
): Promise<ModelTask> {
  const tokenizer = loadTokenizer(directory);
  const model = await loadBert(directory, {attention});
  return {
    dispose: () => model.dispose(),
    warmUp: async () => void (await embedTexts(model, tokenizer, text.slice(0, 1))),
    run: async () => {
      const embeddings = await embedTexts(model, tokenizer, text);
      const similarity = similarityTable(embeddings);
      const columns = [
        {title: 'cosine'},
        ...text.map((_, i) => ({title: String(i + 1), align: 'right'}) as const),
      ];
      const rows = text.map((line, i) => [
        `${i + 1} ${printable(line)}`,
        ...(similarity[i] as number[]).map((cosine) => cosine.toFixed(4)),
      ]);
      return {
        values: Float32Array.from(embeddings.flatMap((row) => [...row])),
        result: {texts: text, embeddings: embeddings.map((row) => [...row]), similarity},
        shown: formatTable(columns, rows, colours),
      };
    },
  };
}

async function openVit(
  directory: string,
  attention: Attention,
  {image: path}: TaskInput,
  {colours}: Terminal,
): Promise<ModelTask> {
  if (path === undefined) throw new CliError('vit needs an image.', 'Give --image <file>.');
  const image = await readImage(path);
  const model = await loadVit(directory, {attention});
  return {
    dispose: () => model.dispose(),
    warmUp: async () => void (await model.classify(image)),
    run: async () => {
      const all = await model.classify(image, Infinity);
      const values = new Float32Array(all.length);
      for (const {index, probability} of all) values[index] = probability;
      const classes = all.slice(0, SHOWN_CLASSES);
      const rows = classes.map(({label, probability}) => [
        printable(label),
        `${(100 * probability).toFixed(2)} %`,
      ]);
      const columns = [{title: 'class'}, {title: 'probability', align: 'right'}] as const;
      return {values, result: {image: path, classes}, shown: formatTable(columns, rows, colours)};
    },
  };
}

const SHOWN_CLASSES = 5;

/** The part of a language model that the task needs. */
interface LanguageModel {
  readonly config: {
    readonly positions: number;
    readonly endOfText: number | readonly number[] | undefined;
  };
  logits(ids: readonly (readonly number[])[]): tf.Tensor3D;
  generate(ids: readonly number[], options: GenerateOptions): Promise<number[]>;
  dispose(): void;
}

const DEFAULT_PROMPT = 'Attention is';
const DEFAULT_TOKENS = 48;

async function openLanguageModel(
  load: (directory: string, options: {attention: Attention}) => Promise<LanguageModel>,
  directory: string,
  attention: Attention,
  input: TaskInput,
): Promise<ModelTask> {
  const tokenizer = loadTokenizer(directory);
  const {prompt = DEFAULT_PROMPT, tokens = DEFAULT_TOKENS, temperature = 0, seed = 0} = input;
  const ids = tokenizer.encode(prompt);
  if (ids.length === 0) throw new CliError('The prompt is empty.', 'Give --prompt <text>.');
  const model = await load(directory, {attention});
  const {positions, endOfText} = model.config;
  const room = positions - ids.length + 1;
  if (room < 1) {
    model.dispose();
    throw new CliError(
      `The prompt has ${ids.length} tokens; the model has ${positions} positions.`,
    );
  }
  const stop = endOfText === undefined ? [] : [endOfText].flat();
  return {
    dispose: () => model.dispose(),
    warmUp: async () => void (await model.generate(ids.slice(0, 1), {maxNewTokens: 2})),
    run: async () => {
      const values = lastLogits(model, ids);
      const start = performance.now();
      const maxNewTokens = Math.min(tokens, room);
      const made = await model.generate(ids, {maxNewTokens, stop, temperature, seed});
      const seconds = (performance.now() - start) / 1000;
      const text = tokenizer.decode(made);
      const tokensPerSecond = made.length / seconds;
      return {
        values,
        result: {prompt, text, ids: made, tokensPerSecond},
        shown: `${printable(prompt)}--->${printable(text)}\n(${tokensPerSecond.toFixed(1)} tokens a second)`,
      };
    },
  };
}

/** Logits of the token after the prompt. */
function lastLogits(model: LanguageModel, ids: readonly number[]): Float32Array {
  const last = tf.tidy(() => {
    const logits = model.logits([ids]);
    return tf.slice(logits, [0, ids.length - 1, 0], [1, 1, -1]);
  });
  try {
    return last.dataSync<'float32'>();
  } finally {
    last.dispose();
  }
}

async function openDit(
  directory: string,
  attention: Attention,
  input: TaskInput,
  terminal: Terminal,
): Promise<ModelTask> {
  const schedule = loadNoiseSchedule(directory);
  const model = await loadDit(directory, {attention});
  const {labels, condition} = model.config;
  const {class: classes = [0], steps, guidance, seed} = input;
  const wrong = classes.find((label) => label >= labels);
  if (condition !== 'label' || wrong !== undefined) {
    model.dispose();
    throw new CliError(
      condition === 'label'
        ? `Class ${wrong} does not exist; the model knows 0 to ${labels - 1}.`
        : 'This model is conditioned by captions, whose text encoder is not part of the command; models with classes run.',
    );
  }
  return {
    dispose: () => model.dispose(),
    warmUp: async () => {
      const once = {labels: classes.slice(0, 1), steps: 1, guidance: 1};
      (await sampleLatents(model, schedule, once)).dispose();
    },
    run: async () => {
      const onStep = (step: number, all: number): void => {
        if (step === all || step % 5 === 0) terminal.note(`step ${step} of ${all}`);
      };
      const latents = await sampleLatents(model, schedule, {
        labels: classes,
        steps,
        guidance,
        seed,
        onStep,
      });
      const values = (await latents.data().finally(() => latents.dispose())) as Float32Array;
      const statistics = classes.map((label, i) => {
        const size = values.length / classes.length;
        return {class: label, ...describe(values.subarray(i * size, (i + 1) * size))};
      });
      const titles = ['class', 'mean', 'deviation', 'min', 'max'] as const;
      const rows = statistics.map((row) =>
        titles.map((title) => (title === 'class' ? String(row.class) : row[title].toFixed(4))),
      );
      const columns = titles.map((title) => ({title, align: 'right'}) as const);
      return {
        values,
        result: {shape: latents.shape, statistics, latents: [...values]},
        shown: formatTable(columns, rows, terminal.colours),
      };
    },
  };
}

function describe(values: Float32Array): Record<'mean' | 'deviation' | 'min' | 'max', number> {
  const mean = values.reduce((sum, x) => sum + x, 0) / values.length;
  const square = values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / values.length;
  const min = values.reduce((a, b) => (a < b ? a : b), Infinity);
  const max = values.reduce((a, b) => (a > b ? a : b), -Infinity);
  return {mean, deviation: Math.sqrt(square), min, max};
}
