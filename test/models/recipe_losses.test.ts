/**
 * The recipes judged on a trained model: js-gpt on a fixed text of 67,583 bytes, attention by the native engine.
 * Synthetic inputs do not show what decides here (docs/numerics.md 7): a bias of the rounded P times V's mean.
 */
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-wasm';
import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import {sageAttention, type SageAttentionOptions} from '../../src/index.js';

type Form = Omit<SageAttentionOptions, 'returnLse'>;
import {nativeEngine} from '../../src/engines/native.js';
import {bitsPerByte, cutWindows, encodeBytes} from '../../models/gpt2/bytes.js';
import type {Gpt2} from '../../models/gpt2/gpt2.js';
import {loadGpt2} from '../../models/gpt2/load.js';

jest.setTimeout(1_200_000);

const text = readFileSync(join(__dirname, '../fixtures/recipe_text.txt'));
const windows = cutWindows(encodeBytes(text));

const FORMS: Record<string, Form> = {
  exact: {precision: 'exact'},
  'int8_fp16 paper': {precision: 'int8_fp16', variant: 'paper'},
  int8_fp16: {precision: 'int8_fp16'},
  'int8_fp8 paper': {precision: 'int8_fp8', variant: 'paper'},
  int8_fp8: {precision: 'int8_fp8'},
  'int8 paper': {precision: 'int8', variant: 'paper'},
  int8: {precision: 'int8'},
  'int4_fp8 paper': {precision: 'int4_fp8', variant: 'paper'},
  int4_fp8: {precision: 'int4_fp8'},
  'fp4 paper': {precision: 'fp4', variant: 'paper'},
  fp4: {precision: 'fp4'},
  fp4_fp8: {precision: 'fp4_fp8'},
  int16: {precision: 'int16'},
  int8_int16: {precision: 'int8_int16'},
  int8_bf16: {precision: 'int8_bf16'},
};

const measured: Record<string, number> = {};
let options: Form = {};
let model: Gpt2;

beforeAll(async () => {
  expect(nativeEngine().engine).not.toBeNull();
  await tf.setBackend('wasm');
  model = await loadGpt2(join(__dirname, '../../models/gpt2/js-gpt'), {
    attention: (q, k, v, {isCausal, scale}) => sageAttention(q, k, v, {...options, isCausal, scale}),
  });
});

afterAll(() => model.dispose());

test.each(Object.keys(FORMS))('%s', (name) => {
  options = FORMS[name]!;
  const losses = windows.flatMap((ids) => [...model.negativeLogLikelihood(ids)]);
  expect(losses).toHaveLength(windows.length * 2047);
  measured[name] = bitsPerByte(losses);
  expect(measured[name]).toBeLessThan(4);
  console.info(`${name}: ${measured[name]!.toFixed(5)} ${(measured[name]! - measured['exact']!).toFixed(5)}`);
});
