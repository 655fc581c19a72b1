/**
 * The recipes judged on a trained model: js-gpt on a fixed text of 67,583 bytes, attention by the native engine. Synthetic
 * inputs do not show what decides here (docs/numerics.md 7): a bias of the rounded P times V's mean.
 */
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-wasm';
import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import {sageAttention, type SageAttentionOptions} from '../../src/index.js';
import {nativeEngine} from '../../src/engines/native.js';
import {bitsPerByte, cutWindows, encodeBytes} from '../../models/gpt2/bytes.js';
import type {Gpt2} from '../../models/gpt2/gpt2.js';
import {loadGpt2} from '../../models/gpt2/load.js';

type Form = Omit<SageAttentionOptions, 'returnLse'>;

// Half a minute a form on a free processor; a busy machine may take many times as long.
jest.setTimeout(900_000);

const FORMS = {
  exact: {precision: 'exact'},
  int8_fp16: {precision: 'int8_fp16'},
  int8_fp8: {precision: 'int8_fp8'},
  fp4: {precision: 'fp4'},
  fp4_fp8: {precision: 'fp4_fp8'},
  'int8_fp16, paper': {precision: 'int8_fp16', variant: 'paper'},
  'int8_fp8, paper': {precision: 'int8_fp8', variant: 'paper'},
  'int8, paper': {precision: 'int8', variant: 'paper'},
  'int4_fp8, paper': {precision: 'int4_fp8', variant: 'paper'},
  'fp4, paper': {precision: 'fp4', variant: 'paper'},
} as const satisfies Record<string, Form>;
type FormName = keyof typeof FORMS;
const names = Object.keys(FORMS) as FormName[];

const text = readFileSync(join(__dirname, '../fixtures/recipe_text.txt'));
const windows = cutWindows(encodeBytes(text));

/** Bits per byte of each window. */
const measured = new Map<FormName, number[]>();
let options: Form = {};
let model: Gpt2;

beforeAll(async () => {
  expect(nativeEngine().engine).not.toBeNull();
  await tf.setBackend('wasm');
  model = await loadGpt2(join(__dirname, '../../models/gpt2/js-gpt'), {
    attention: (q, k, v, {isCausal, scale}) =>
      sageAttention(q, k, v, {...options, isCausal, scale}),
  });
});

afterAll(() => model.dispose());

test('the text is 64 KiB and more', () => {
  expect(text.length).toBeGreaterThanOrEqual(65_536);
  expect(windows.map((ids) => ids.length)).toEqual(new Array(33).fill(2048));
});

test.each(names)('%s has a loss', (name) => {
  options = FORMS[name];
  const losses = windows.map((ids) => bitsPerByte(model.negativeLogLikelihood(ids)));
  measured.set(name, losses);
  expect(mean(losses)).toBeLessThan(2);
});

const mean = (x: readonly number[]): number => x.reduce((a, b) => a + b, 0) / x.length;

/** Loss over that of exact attention, or of another form, in bits per byte, and its standard error over the windows. */
function cost(name: FormName, over: FormName = 'exact'): {change: number; error: number} {
  const other = measured.get(over)!;
  const changes = measured.get(name)!.map((loss, i) => loss - other[i]!);
  const change = mean(changes);
  const variance = mean(changes.map((x) => (x - change) ** 2));
  return {change, error: Math.sqrt(variance / (changes.length - 1))};
}

test('the tuned forms keep their distance from the published ones', () => {
  const table = names.slice(1).map((name) => {
    const {change, error} = cost(name);
    return `${name}: ${change.toFixed(5)} (s.e. ${error.toFixed(5)})`;
  });
  console.info(
    `bits per byte over exact, ${mean(measured.get('exact')!).toFixed(5)}\n${table.join('\n')}`,
  );
  expect(cost('fp4').change).toBeLessThanOrEqual(0.4 * cost('fp4, paper').change);
  expect(cost('fp4_fp8').change).toBeLessThanOrEqual(0.2 * cost('fp4, paper').change);
  expect(cost('int8_fp8').change).toBeLessThanOrEqual(0.6 * cost('int8_fp8, paper').change);
  // Both lie near exact, and which is lower on this text turns on the last bits of 2^x: window by window, the tuned form
  // must not be worse by more than the spread allows.
  const paired = cost('int8_fp16', 'int8_fp16, paper');
  expect(paired.change).toBeLessThanOrEqual(paired.error);
});

/** Losses of the published forms on 196,608 other bytes, emulated by another framework (models/gpt2/js-gpt/README.md). */
const PUBLISHED = {
  'int8_fp16, paper': {change: 0.000887, error: 0.000112},
  'int8_fp8, paper': {change: 0.008471, error: 0.000481},
  'int8, paper': {change: 0.003442, error: 0.000289},
  'int4_fp8, paper': {change: 0.069414, error: 0.002441},
} as const;
const PUBLISHED_FP4 = {change: 0.326566, error: 0.005241};

// The spread of int8_fp16 (47 %) and int8 (19 %) leaves their bounds wide: this text can only show that they are of that size.
test.each(Object.keys(PUBLISHED) as (keyof typeof PUBLISHED)[])(
  '%s stands to fp4 as measured elsewhere, within 30 %% and the texts two standard errors',
  (name) => {
    const [here, fp4, there] = [cost(name), cost('fp4, paper'), PUBLISHED[name]];
    const ratio = here.change / fp4.change / (there.change / PUBLISHED_FP4.change);
    const spread = Math.hypot(
      ...[here, fp4, there, PUBLISHED_FP4].map(({change, error}) => error / change),
    );
    expect(ratio).toBeGreaterThan(0.7 * (1 - 2 * spread));
    expect(ratio).toBeLessThan(1.3 * (1 + 2 * spread));
  },
);
