/** The demo: the rows against the model's golden values and against each other, the completion, and wrong inputs. */
import {mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import type {Completion, DemoRow} from '../../src/cli/demo.js';
import {readPrompt, readScoredText} from '../../src/cli/demo_text.js';
import {printable} from '../../src/cli/terminal.js';
import {PRECISIONS} from '../../src/numerics/recipes.js';
import {randomWeights, type ReferenceConfig} from '../models/gpt2_reference.js';
import {encode} from '../models/safetensors_encode.js';
import {run, runJson} from './run.js';

/** A model on bytes, so small that backend cpu takes no time for it. */
const CONFIG: ReferenceConfig = {
  vocab_size: 257,
  n_positions: 40,
  n_embd: 8,
  n_layer: 2,
  n_head: 2,
  n_inner: null,
  activation_function: 'gelu_new',
  layer_norm_epsilon: 1e-5,
  tie_word_embeddings: true,
  scale_attn_weights: true,
  scale_attn_by_inverse_layer_idx: false,
};

const JS_GPT = join(__dirname, '../../models/gpt2/js-gpt');
let directory: string;
const at = (name: string): string => join(directory, name);

function writeModel(name: string, config: ReferenceConfig): string {
  const path = at(name);
  mkdirSync(path);
  writeFileSync(join(path, 'config.json'), JSON.stringify(config));
  const tensors = [...randomWeights(config)].map(([tensor, {shape, values}]) => [
    tensor,
    {dtype: 'F32', shape, data: values},
  ]);
  writeFileSync(
    join(path, 'model.safetensors'),
    encode(Object.fromEntries(tensors) as Parameters<typeof encode>[0]),
  );
  return path;
}

beforeAll(async () => {
  await tf.setBackend('cpu');
  directory = mkdtempSync(join(tmpdir(), 'sage-demo-'));
  writeModel('model', CONFIG);
  writeModel('words', {...CONFIG, vocab_size: 300});
  writeFileSync(at('short.js'), 'const a = 1;\n');
  writeFileSync(at('long.js'), 'let x = 0;\n'.repeat(30));
  writeFileSync(at('empty.js'), '');
});
afterAll(() => rmSync(directory, {recursive: true}));

const small = (...args: string[]) => ['demo', '--backend', 'cpu', '--model', at('model'), ...args];

describe('a small model on backend cpu', () => {
  it('has a row for plain tfjs, one for exact, and one for every recipe', async () => {
    const before = tf.memory().numTensors;
    const report = await runJson(...small('--file', at('long.js'), '--windows', '3'));
    expect(Object.keys(report)).toEqual(['schema', 'machine', 'rows', 'completion']);
    const rows = report['rows'] as DemoRow[];
    expect(rows.map(({precision}) => precision)).toEqual(['tfjs', ...PRECISIONS]);
    const exact = rows[1] as DemoRow;
    expect(exact).toMatchObject({deltaBitsPerByte: 0, top1Agreement: 1});
    for (const row of rows) {
      expect(row).toEqual({
        precision: expect.any(String) as string,
        engine: expect.stringMatching(/^(tfjs|native|typescript)$/) as string,
        reason: expect.any(String) as string,
        bitsPerByte: expect.any(Number) as number,
        deltaBitsPerByte: row.bitsPerByte - exact.bitsPerByte,
        top1Agreement: expect.any(Number) as number,
        attentionMs: expect.any(Number) as number,
        totalMs: expect.any(Number) as number,
      });
      expect(row.bitsPerByte).toBeGreaterThan(1);
      expect(row.attentionMs).toBeGreaterThan(0);
      expect(row.attentionMs).toBeLessThanOrEqual(row.totalMs);
      expect(row.top1Agreement).toBeGreaterThan(0.8);
    }
    expect(rows[0]?.engine).toBe('tfjs');
    expect(Math.abs(rows[0]?.deltaBitsPerByte as number)).toBeLessThan(1e-4);
    // A recipe that computed exact attention after all would show no change at all.
    expect(rows.filter(({deltaBitsPerByte}) => deltaBitsPerByte === 0).length).toBeLessThan(3);
    expect(tf.memory().numTensors).toBe(before);
  }, 30_000);

  it('prints a table and goes on writing where the text begins', async () => {
    const {code, stdout, stderr} = await run(
      ...small('--file', at('short.js'), '--precision', 'int8,exact'),
    );
    expect(code).toBe(0);
    expect(stdout).toMatch(/^tfjs .*\nexact .*\nint8 /m);
    expect(stdout).toContain('The model goes on after these lines (int8, greedy):');
    expect(stdout).toContain('const a = 1;\n--->');
    expect(stderr).toContain('13 bytes to predict, backend cpu');
    expect(stderr.match(/^\[\d\/3\]/gm)).toHaveLength(3);
  });

  it('--json has the completion and keeps stdout to itself', async () => {
    const report = await runJson(...small('--file', at('short.js'), '--precision', 'fp4'));
    const completion = report['completion'] as Completion;
    expect(completion).toEqual({
      prompt: 'const a = 1;\n',
      text: expect.any(String) as string,
      precision: 'fp4',
    });
    expect(completion.text.length).toBeGreaterThan(0);
  });

  it.each([
    ['a file that is not there', ['--file', 'nowhere.js'], `'nowhere.js' cannot be read`],
    ['a directory', ['--file', tmpdir()], 'is a directory'],
    ['an empty file', ['--file', 'EMPTY'], 'is empty'],
    ['a model that is not there', ['--model', '/nowhere'], '/nowhere/config.json'],
    ['a model on other tokens than bytes', ['--model', 'WORDS'], 'vocab_size is 300'],
  ])('refuses %s', async (_, args, words) => {
    const before = tf.memory().numTensors;
    const paths: Record<string, string> = {EMPTY: at('empty.js'), WORDS: at('words')};
    const {code, stdout, stderr} = await run(...small(...args.map((arg) => paths[arg] ?? arg)));
    expect([code, stdout]).toEqual([1, '']);
    expect(stderr).toContain(words);
    expect(stderr).not.toMatch(/^\s+at /m);
    expect(tf.memory().numTensors).toBe(before);
  });
});

test('control characters of a text never reach the terminal', () => {
  expect(printable('a\tb\n\u001b[31m\u0007\u009bc\r')).toBe('a\tb\n\ufffd[31m\ufffd\ufffdc\ufffd');
  expect(printable('größer ≥ 1 😀')).toBe('größer ≥ 1 😀');
});

describe('texts', () => {
  it('are ids from the end-of-text token on, cut into windows, nothing added', () => {
    const {windows} = readScoredText(at('short.js'), 9, 6);
    expect(windows.map((window) => window.length)).toEqual([6, 6, 2]);
    expect(windows.flat()).toEqual([256, ...Buffer.from('const a = 1;\n')]);
    expect(readScoredText(at('short.js'), 2, 6).windows).toHaveLength(2);
    expect(readScoredText(undefined, 1, 2048).windows[0]).toHaveLength(2048);
  });

  it('give prompts that end with a line', () => {
    expect(readPrompt(at('long.js'), 30).text).toBe('let x = 0;\nlet x = 0;\n');
    expect(readPrompt(at('short.js'), 30).text).toBe('const a = 1;\n');
    // No line ends within it.
    expect(readPrompt(at('short.js'), 6)).toEqual({
      text: 'const',
      ids: [256, ...Buffer.from('const')],
    });
    expect(readPrompt(undefined, 1024).text).toContain('class Matrix');
  });
});

test('the model of the package, on backend wasm, has the golden loss', async () => {
  const golden = JSON.parse(readFileSync(join(JS_GPT, 'golden.json'), 'utf8')) as {
    prompts: {prompt_base64: string; mean_nll: number; greedy_text: string}[];
  };
  const [first] = golden.prompts as [(typeof golden.prompts)[number]];
  writeFileSync(at('golden.js'), Buffer.from(first.prompt_base64, 'base64'));
  const report = await runJson('demo', '--file', at('golden.js'), '--precision', 'int16');
  const rows = report['rows'] as DemoRow[];
  for (const {precision, bitsPerByte} of rows) {
    const allowed = precision === 'int16' ? 1e-2 : 1e-4;
    expect(Math.abs(bitsPerByte * Math.LN2 - first.mean_nll)).toBeLessThan(allowed);
  }
  expect(rows.map(({precision}) => precision)).toEqual(['tfjs', 'exact', 'int16']);
}, 60_000);
