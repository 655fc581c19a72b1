// `model` on the small checkpoints: what it prints, what --json holds, and what it says when something is missing.

import {mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {readPortableMap} from '../../src/cli/read_image.js';
import {run, runJson} from './run.js';

const fixture = (name: string): string => join(__dirname, '../fixtures/models', name);
const goldenOf = (name: string): Record<string, unknown> =>
  JSON.parse(readFileSync(join(fixture(name), 'golden.json'), 'utf8')) as Record<string, unknown>;

interface Report {
  model: string;
  rows: {precision: string; engine: string; reason: string; cosine: number; relativeL1: number}[];
  result: Record<string, unknown>;
}

async function report(...args: string[]): Promise<Report> {
  return (await runJson('model', ...args)) as unknown as Report;
}

test('bert: embeddings and their cosines', async () => {
  const texts = (goldenOf('bert')['texts'] as string[]).slice(0, 3);
  const {model, rows, result} = await report(
    'bert',
    '--model',
    fixture('bert'),
    '--text',
    ...texts,
  );
  expect(model).toBe('bert');
  expect(rows.slice(0, 2).map(({precision}) => precision)).toEqual(['tfjs', 'exact']);
  expect(rows.length).toBe(3);
  for (const {cosine, relativeL1, reason} of rows) {
    expect(cosine).toBeGreaterThan(0.999);
    expect(relativeL1).toBeLessThan(0.05);
    expect(reason).not.toBe('');
  }
  expect(rows[1]!.relativeL1).toBe(0);
  const embeddings = result['embeddings'] as number[][];
  expect(embeddings.map((row) => row.length)).toEqual([48, 48, 48]);
  const similarity = result['similarity'] as number[][];
  similarity.forEach((row, i) => expect(row[i]).toBeCloseTo(1, 6));
  const printed = await run('model', 'bert', '--model', fixture('bert'), '--text', 'a', 'b');
  expect(printed.code).toBe(0);
  expect(printed.stdout).toMatch(/relative L1[\s\S]*cosine\s+1\s+2/);
});

test('llama: text and its tokens, as the reference continues them', async () => {
  const {texts, text_ids} = goldenOf('llama') as {texts: string[]; text_ids: number[][]};
  const args = ['llama', '--model', fixture('llama'), '--prompt', texts[1]!, '--tokens', '5'];
  const {result, rows} = await report(...args, '--precision', 'exact,fp4');
  expect(rows.map(({precision}) => precision)).toEqual(['tfjs', 'exact', 'fp4']);
  expect(rows[2]!.relativeL1).toBeGreaterThan(0);
  expect((result['ids'] as number[]).length).toBe(5);
  expect(result['prompt']).toBe(texts[1]);
  const drawn = await report(...args, '--precision', 'exact', '--temperature', '2', '--seed', '3');
  expect(drawn.result['ids']).not.toEqual(result['ids']);
  const long = await run('model', ...args.slice(0, 3), '--prompt', texts.join(' ').repeat(9));
  expect(long.code).toBe(1);
  expect(long.stderr).toMatch(/has \d+ tokens; the model has 256 positions/);
  expect(text_ids.length).toBe(texts.length);
});

test('vit: the likeliest classes', async () => {
  const image = join(fixture('vit'), 'image.ppm');
  const {result} = await report('vit', '--model', fixture('vit'), '--image', image);
  const logits = goldenOf('vit')['logits'] as number[];
  const classes = result['classes'] as {index: number; probability: number}[];
  expect(classes.length).toBe(5);
  expect(classes[0]!.index).toBe(logits.indexOf(Math.max(...logits)));
});

test('dit: latents of classes', async () => {
  const args = [
    'dit',
    '--model',
    fixture('dit'),
    '--class',
    '3,7',
    '--steps',
    '2',
    '--guidance',
    '1',
  ];
  const {result} = await report(...args, '--backend', 'cpu', '--seed', '4');
  expect(result['shape']).toEqual([2, 3, 6, 6]);
  const statistics = result['statistics'] as {class: number; deviation: number}[];
  expect(statistics.map((row) => row.class)).toEqual([3, 7]);
  for (const {deviation} of statistics) expect(deviation).toBeGreaterThan(0);
});

test.each([
  [[], /missing required argument 'name'/],
  [['clip'], /Expected .*bert/],
  [['bert'], /No model is given[\s\S]*--model <directory>/],
  [['bert', '--model', '/nowhere'], /tokenizer.json: cannot be read/],
  [['llama', '--model', fixture('bert')], /model_type: is "bert"/],
  [['vit', '--model', fixture('vit')], /needs an image/],
  [['vit', '--model', fixture('vit'), '--image', '/nowhere.ppm'], /nowhere.ppm' cannot be read/],
  [['dit', '--model', fixture('dit'), '--class', '10'], /Class 10 does not exist/],
  [['dit', '--model', fixture('pixart')], /conditioned by captions/],
  [['dit', '--model', fixture('dit'), '--steps', '1001'], /steps/],
  [['bert', '--model', fixture('bert'), '--temperature', '-1'], /number >= 0/],
])('model %j', async (args, message) => {
  const {code, stdout, stderr} = await run('model', ...args);
  expect(code).toBe(1);
  expect(stdout).toBe('');
  expect(stderr).toMatch(message);
});

describe('images', () => {
  const bytesOf = (head: string, ...values: number[]): Uint8Array =>
    Uint8Array.from([...Buffer.from(head, 'latin1'), ...values]);

  test('colour, grey and comments', () => {
    expect(
      readPortableMap(bytesOf('P6\n# by hand\n1 2\n255\n', 1, 2, 3, 4, 5, 6), 'x'),
    ).toMatchObject({
      width: 1,
      height: 2,
      channels: 3,
    });
    const grey = readPortableMap(bytesOf('P5 2 1 255\n', 7, 9), 'x');
    expect([...grey!.data]).toEqual([7, 7, 7, 9, 9, 9]);
    expect(readPortableMap(bytesOf('\x89PNG'), 'x')).toBeUndefined();
  });

  test('files that are cut or have wide values', () => {
    expect(() => readPortableMap(bytesOf('P6\n2 2\n255\n', 1), 'x.ppm')).toThrow(/1 of the 12/);
    expect(() => readPortableMap(bytesOf('P6\n2 2\n65535\n'), 'x.ppm')).toThrow(/up to 65535/);
  });

  test('a file of no known kind is told, not run into', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'images-'));
    const path = join(directory, 'image.jpg');
    writeFileSync(path, 'no image');
    const {code, stderr} = await run('model', 'vit', '--model', fixture('vit'), '--image', path);
    rmSync(directory, {recursive: true});
    expect(code).toBe(1);
    expect(stderr).toMatch(/npm install sharp|cannot be decoded/);
  });
});
