// Wires the page: loads the model, then generates on request, first exactly and then in low bits.

import * as tf from '@tensorflow/tfjs-core';
import {getSageAttentionInfo, type Precision} from 'tfjs-sage-attention';
import {decodeBytes, encodeBytes, END_OF_TEXT} from 'tfjs-sage-attention/models/gpt2/browser';
import {agreementOf, describeAgreement} from './agreement.js';
import {type Focus, type LanguageModel, loadLanguageModel, startBackend} from './language_model.js';
import {Panel} from './panel.js';

const LOW_BIT: readonly Precision[] = [
  'int8_fp8',
  'fp4',
  'fp4_fp8',
  'int4_fp8',
  'int8_fp16',
  'int8',
  'int16',
  'exact',
];

const PROMPT = `/** Sums the values of a list. */
function sum(values) {
  let total = 0;
  for (const value of values) {
    total += value;
  }
  return total;
}

/** The largest value of a list. */
function largest(values) {
  let`;

const find = <T extends HTMLElement>(id: string): T => {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`The page lacks #${id}.`);
  return element as T;
};

const controls = find<HTMLFormElement>('controls');
const prompt = find<HTMLTextAreaElement>('prompt');
const precision = find<HTMLSelectElement>('precision');
const tokens = find<HTMLInputElement>('tokens');
const layer = find<HTMLSelectElement>('layer');
const head = find<HTMLSelectElement>('head');
const generate = find<HTMLButtonElement>('generate');
const stop = find<HTMLButtonElement>('stop');
const status = find('status');
const progress = find<HTMLProgressElement>('progress');
const agreement = find('agreement');
const exactPanel = new Panel(find('exact'), 'Attention with exact scores');
const lowPanel = new Panel(find('low'), 'Attention with low-bit scores');

/** Lets the page draw and answer; unlike a frame it also comes in a background tab. */
const breathe = (): Promise<void> => new Promise((resolve) => setTimeout(resolve));

function fill(
  select: HTMLSelectElement,
  options: readonly (readonly [value: string, text: string])[],
): void {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
}

const focusNow = (): Focus => ({
  layer: Number(layer.value),
  head: head.value === 'mean' ? 'mean' : Number(head.value),
});

/** One run: the prompt, then byte by byte. */
async function run(
  model: LanguageModel,
  recipe: Precision,
  ids: readonly number[],
  panel: Panel,
  signal: AbortSignal,
): Promise<number[]> {
  const {gpt2} = model;
  panel.title = recipe;
  panel.engine = engineOf(recipe);
  panel.begin(decodeBytes(ids));
  await breathe();
  model.use(recipe);
  const made: number[] = [];
  let begin = performance.now();
  let drawn = 0;
  // Drawing counts neither for nor against a recipe.
  const draw = (weights: Float32Array): void => {
    const start = performance.now();
    panel.heatMap.add(weights);
    drawn += performance.now() - start;
  };
  model.watch(focusNow(), draw);
  try {
    await gpt2.generate(ids, {
      maxNewTokens: Math.min(Number(tokens.value), gpt2.config.positions - ids.length),
      stop: [END_OF_TEXT],
      onToken: async (id) => {
        const now = performance.now();
        if (made.length === 0) {
          panel.prefill(ids.length - 1, now - begin);
          begin = now;
          drawn = 0;
        }
        made.push(id);
        panel.add(id);
        if (made.length > 1) panel.speed((1000 * (made.length - 1)) / (now - begin - drawn));
        await breathe();
        signal.throwIfAborted();
        // The choice may have changed.
        model.watch(focusNow(), draw);
      },
    });
  } finally {
    model.watch(focusNow(), undefined);
  }
  return made;
}

function engineOf(recipe: Precision): string {
  const backend = tf.getBackend();
  const {choices} = getSageAttentionInfo();
  const choice = choices.find((row) => row.backend === backend && row.precision === recipe);
  return `${choice?.engine ?? 'composition'} on ${backend}`;
}

async function compare(model: LanguageModel, signal: AbortSignal): Promise<void> {
  const recipe = precision.value as Precision;
  const most = model.gpt2.config.positions - Number(tokens.value);
  const all = encodeBytes(prompt.value);
  // The end of a long text, after the mark that begins every text.
  const ids = all.length <= most ? all : [END_OF_TEXT, ...all.slice(1 - most)];
  status.textContent = 'Generating with exact attention.';
  const exact = await run(model, 'exact', ids, exactPanel, signal);
  status.textContent = `Generating with ${recipe}.`;
  const low = await run(model, recipe, ids, lowPanel, signal);
  status.textContent = 'Comparing on the prompt.';
  await breathe();
  model.use('exact');
  const exactScore = model.gpt2.score(ids);
  model.use(recipe);
  const lowScore = model.gpt2.score(ids);
  const found = agreementOf(exact, low, exactScore, lowScore);
  agreement.textContent = describeAgreement(found, recipe);
  status.textContent = 'Done.';
}

async function start(): Promise<void> {
  prompt.value = PROMPT;
  fill(
    precision,
    LOW_BIT.map((name) => [name, name] as const),
  );
  const backend = await startBackend();
  status.textContent = `Loading the model onto backend ${backend}.`;
  const model = await loadLanguageModel((received, total) => {
    if (total !== undefined) progress.value = received / total;
  });
  progress.hidden = true;
  const {layers, heads} = model.gpt2.config;
  const numbered = (count: number): (readonly [string, string])[] =>
    Array.from({length: count}, (_, i) => [String(i), String(i + 1)] as const);
  fill(layer, numbered(layers));
  layer.value = String(layers - 1);
  fill(head, [['mean', 'mean of all'], ...numbered(heads)]);
  generate.disabled = false;
  status.textContent = 'Ready.';

  let running: AbortController | undefined;
  stop.addEventListener('click', () => running?.abort());
  controls.addEventListener('submit', (event) => {
    event.preventDefault();
    if (running !== undefined) return;
    running = new AbortController();
    const {signal} = running;
    generate.disabled = true;
    stop.disabled = false;
    agreement.textContent = 'Nothing to compare yet.';
    compare(model, signal)
      .catch((error: unknown) => {
        status.textContent = signal.aborted ? 'Stopped.' : `Failed: ${messageOf(error)}`;
      })
      .finally(() => {
        running = undefined;
        generate.disabled = false;
        stop.disabled = true;
        // Read by the test: nothing may stay behind after a run.
        document.body.dataset['tensors'] = String(tf.memory().numTensors);
      });
  });
}

const messageOf = (error: unknown): string =>
  error instanceof Error ? error.message : String(error);

start().catch((error: unknown) => {
  progress.hidden = true;
  status.textContent = `The model did not load: ${messageOf(error)}`;
});
