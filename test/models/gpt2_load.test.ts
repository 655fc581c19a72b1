// Loading GPT-2 from a directory: one file, shards, damaged files; and the byte tokenizer.

import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import {cpSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {bitsPerByte, cutWindows, decodeBytes, encodeBytes} from '../../models/gpt2/bytes.js';
import {Gpt2Error} from '../../models/gpt2/errors.js';
import {loadGpt2} from '../../models/gpt2/load.js';
import {plainAttention} from '../../models/gpt2/plain_attention.js';
import {SafetensorsError} from '../../models/safetensors/errors.js';
import {randomWeights, type ReferenceConfig, referenceLogits} from './gpt2_reference.js';
import {encode, type TensorSpec} from './safetensors_encode.js';

const JS_GPT = join(__dirname, '../../models/gpt2/js-gpt');

const CONFIG: ReferenceConfig = {
  vocab_size: 7,
  n_positions: 20,
  n_embd: 6,
  n_layer: 2,
  n_head: 2,
  n_inner: null,
  activation_function: 'gelu_new',
  layer_norm_epsilon: 1e-5,
  tie_word_embeddings: true,
  scale_attn_weights: true,
  scale_attn_by_inverse_layer_idx: false,
};
const IDS = [1, 5, 0, 3, 3, 6, 2];

tf.env().set('IS_TEST', true);

beforeAll(async () => {
  await tf.setBackend('cpu');
});

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'gpt2-'));
});
afterEach(() => rmSync(directory, {recursive: true, force: true}));

const write = (name: string, content: string | Uint8Array): void =>
  writeFileSync(join(directory, name), content);

/** The reference's weights as F32 tensors to write. */
function tensors(): [string, TensorSpec][] {
  return [...randomWeights(CONFIG)].map(([name, {shape, values}]) => [
    `transformer.${name}`,
    {dtype: 'F32', shape, data: values as Float32Array<ArrayBuffer>},
  ]);
}

function writeShards(): void {
  const all = tensors();
  const shards = {'model-1.safetensors': all.slice(0, 9), 'model-2.safetensors': all.slice(9)};
  const weightMap: Record<string, string> = {};
  for (const [file, part] of Object.entries(shards)) {
    write(file, encode(Object.fromEntries(part)));
    for (const [name] of part) weightMap[name] = file;
  }
  write('model.safetensors.index.json', JSON.stringify({weight_map: weightMap}));
  write('config.json', JSON.stringify(CONFIG));
}

async function expectReference(): Promise<void> {
  const model = await loadGpt2(directory, {attention: plainAttention});
  const logits = model.logits([IDS]);
  const expected = referenceLogits(CONFIG, randomWeights(CONFIG), IDS).flat();
  const actual = logits.dataSync<'float32'>();
  expect(actual.length).toBe(expected.length);
  expected.forEach((value, i) => expect(actual[i]).toBeCloseTo(value, 4));
  logits.dispose();
  model.dispose();
}

async function errorOf(from = directory): Promise<Gpt2Error | SafetensorsError> {
  const before = tf.memory().numTensors;
  const error: unknown = await loadGpt2(from).then(
    () => new Error('it loaded'),
    (reason: unknown) => reason,
  );
  expect(tf.memory().numTensors).toBe(before);
  if (error instanceof Gpt2Error || error instanceof SafetensorsError) return error;
  throw error;
}

describe('loading', () => {
  test('one file', async () => {
    write('config.json', JSON.stringify(CONFIG));
    write('model.safetensors', encode(Object.fromEntries(tensors())));
    await expectReference();
  });

  test('shards', async () => {
    writeShards();
    await expectReference();
  });

  test('a shard that is missing or cut', async () => {
    writeShards();
    const path = join(directory, 'model-2.safetensors');
    truncateSync(path, 1000);
    expect(await errorOf()).toMatchObject({name: 'SafetensorsError', file: path});
    rmSync(path);
    const error = await errorOf();
    expect(error).toMatchObject({name: 'SafetensorsError', file: path});
    expect(error.message).toMatch(/missing shard/);
  });

  test('no directory, no config, a config that is not JSON', async () => {
    const absent = await errorOf(join(directory, 'absent'));
    expect(absent.message).toMatch(/config\.json.*ENOENT/);
    expect((await errorOf()).file).toBe(join(directory, 'config.json'));
    write('config.json', '{"n_embd": ');
    expect((await errorOf()).message).toMatch(/cannot be read as JSON/);
    write('config.json', JSON.stringify(CONFIG));
    expect((await errorOf()).message).toMatch(/neither model.safetensors nor/);
  });

  test.each([
    ['n_embd', 128, 'transformer.wte.weight', /\[257, 256\].*\[257, 128\]/],
    ['vocab_size', 300, 'transformer.wte.weight', /\[257, 256\].*\[300, 256\]/],
    ['n_positions', 1024, 'transformer.wpe.weight', /\[2048, 256\].*\[1024, 256\]/],
    ['n_layer', 7, 'transformer.h.6.ln_1.weight', /missing/],
    ['n_inner', 512, 'transformer.h.0.mlp.c_fc.weight', /\[256, 1024\].*\[256, 512\]/],
    ['tie_word_embeddings', false, 'lm_head.weight', /missing/],
  ])('js-gpt with %s = %p does not fit its weights', async (field, value, tensor, message) => {
    cpSync(join(JS_GPT, 'model.safetensors'), join(directory, 'model.safetensors'));
    const config = JSON.parse(readFileSync(join(JS_GPT, 'config.json'), 'utf8')) as object;
    write('config.json', JSON.stringify({...config, [field]: value}));
    const error = await errorOf();
    expect(error).toMatchObject({file: join(directory, 'model.safetensors'), tensor});
    expect(error.message).toMatch(message);
  });

  test.each([0, 5, 4000, 7440, 100000, 10665743])('js-gpt cut to %i bytes', async (length) => {
    cpSync(JS_GPT, directory, {recursive: true});
    truncateSync(join(directory, 'model.safetensors'), length);
    const error = await errorOf();
    expect(error).toMatchObject({
      name: 'SafetensorsError',
      file: join(directory, 'model.safetensors'),
    });
  });

  test('weights of an integer dtype', async () => {
    write('config.json', JSON.stringify(CONFIG));
    const all = Object.fromEntries(tensors());
    const name = 'transformer.ln_f.bias';
    all[name] = {dtype: 'I32', shape: [6], data: new Int32Array(6)};
    write('model.safetensors', encode(all));
    const error = await errorOf();
    expect(error).toMatchObject({name: 'SafetensorsError', tensor: name});
    expect(error.message).toMatch(/dtype I32.*expected F32, F16, BF16/);
  });
});

describe('bytes', () => {
  test('a text is [256, ...its UTF-8 bytes], and back', () => {
    expect(encodeBytes('')).toEqual([256]);
    expect(encodeBytes('aé')).toEqual([256, 0x61, 0xc3, 0xa9]);
    expect(encodeBytes(Uint8Array.of(0, 255))).toEqual([256, 0, 255]);
    const text = 'const π = "\u{1f600}";\r\n\ufeff\0';
    expect(decodeBytes(encodeBytes(text))).toBe(text);
    expect(decodeBytes([0x61, 0xc3])).toBe('a\ufffd');
  });

  test.each([-1, 257, 1.5, NaN])('%p is no token', (id) => {
    expect(() => decodeBytes([id])).toThrow(RangeError);
  });

  test('windows cut the ids without adding or repeating any', () => {
    const ids = Array.from({length: 4097}, (_, i) => i % 257);
    expect(cutWindows(ids).map((window) => window.length)).toEqual([2048, 2048]);
    expect(cutWindows(ids).flat()).toEqual(ids.slice(0, 4096));
    expect(cutWindows([...ids, 1]).map((window) => window.length)).toEqual([2048, 2048, 2]);
    expect(cutWindows([1, 2, 3, 4, 5], 2)).toEqual([
      [1, 2],
      [3, 4],
    ]);
    expect(cutWindows([256])).toEqual([]);
    expect(cutWindows([])).toEqual([]);
    expect(() => cutWindows(ids, 1)).toThrow(RangeError);
  });

  test('bits per byte', () => {
    expect(bitsPerByte([Math.LN2, 3 * Math.LN2])).toBeCloseTo(2, 12);
    expect(bitsPerByte([])).toBeNaN();
  });
});
