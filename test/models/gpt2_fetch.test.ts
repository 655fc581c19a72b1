// Loading GPT-2 over HTTP from a real server: one file, shards, progress, and what it says when something fails.

import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import {createServer, type Server} from 'node:http';
import type {AddressInfo} from 'node:net';
import {Gpt2Error} from '../../models/gpt2/errors.js';
import {fetchGpt2} from '../../models/gpt2/fetch.js';
import {plainAttention} from '../../models/gpt2/plain_attention.js';
import {SafetensorsError} from '../../models/safetensors/errors.js';
import {randomWeights, type ReferenceConfig, referenceLogits} from './gpt2_reference.js';
import {encode, type TensorSpec} from './safetensors_encode.js';

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

/** What the server holds; a number is a status to answer with. */
const files = new Map<string, string | Uint8Array | number>();
let server: Server;
let base: string;

beforeAll(async () => {
  await tf.setBackend('cpu');
  server = createServer((request, response) => {
    const content = files.get(request.url ?? '') ?? 404;
    if (typeof content === 'number') {
      response.writeHead(content).end();
    } else if (request.url?.includes('cut') === true) {
      response.writeHead(200, {'content-length': content.length});
      response.write(content.slice(0, 10));
      setTimeout(() => response.destroy(), 300);
    } else {
      response.writeHead(200, {'content-length': Buffer.byteLength(content)}).end(content);
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(() => new Promise((resolve) => server.close(resolve)));

const tensors = (): [string, TensorSpec][] =>
  [...randomWeights(CONFIG)].map(([name, {shape, values}]) => [
    name,
    {dtype: 'F32', shape, data: values as Float32Array<ArrayBuffer>},
  ]);

beforeEach(() => {
  files.clear();
  files.set('/m/config.json', JSON.stringify(CONFIG));
  files.set('/m/model.safetensors', encode(Object.fromEntries(tensors())));
});

function putShards(): void {
  files.delete('/m/model.safetensors');
  const all = tensors();
  const weightMap: Record<string, string> = {};
  for (const [file, part] of [
    ['a.safetensors', all.slice(0, 9)],
    ['b.safetensors', all.slice(9)],
  ] as const) {
    files.set(`/m/${file}`, encode(Object.fromEntries(part)));
    for (const [name] of part) weightMap[name] = file;
  }
  files.set('/m/model.safetensors.index.json', JSON.stringify({weight_map: weightMap}));
}

async function expectReference(url: string): Promise<[number, number | undefined]> {
  const before = tf.memory().numTensors;
  let last: [number, number | undefined] = [0, undefined];
  const model = await fetchGpt2(url, {
    attention: plainAttention,
    onProgress: (...progress) => {
      expect(progress[0]).toBeGreaterThan(last[0]);
      last = progress;
    },
  });
  const logits = model.logits([IDS]);
  const actual = logits.dataSync<'float32'>();
  referenceLogits(CONFIG, randomWeights(CONFIG), IDS)
    .flat()
    .forEach((value, i) => expect(actual[i]).toBeCloseTo(value, 4));
  logits.dispose();
  model.dispose();
  expect(tf.memory().numTensors).toBe(before);
  return last;
}

test('one file, with or without a slash behind the folder', async () => {
  const size = (files.get('/m/model.safetensors') as Uint8Array).length;
  expect(await expectReference(`${base}/m`)).toEqual([size, size]);
  expect(await expectReference(`${base}/m/`)).toEqual([size, size]);
});

test('shards, where there is no single file', async () => {
  putShards();
  const sizes = ['a', 'b'].map(
    (name) => (files.get(`/m/${name}.safetensors`) as Uint8Array).length,
  );
  expect((await expectReference(`${base}/m`))[0]).toBe(sizes[0]! + sizes[1]!);
});

describe('what it says', () => {
  const errorOf = async (options: {signal?: AbortSignal} = {}): Promise<unknown> =>
    fetchGpt2(`${base}/m`, options).then(
      () => new Error('it loaded'),
      (reason: unknown) => reason,
    );

  test('files that are missing, refused or damaged', async () => {
    files.set('/m/model.safetensors', 500);
    expect(await errorOf()).toMatchObject({
      message: expect.stringMatching(/model.safetensors.*500/) as string,
    });
    putShards();
    files.delete('/m/b.safetensors');
    const missing = await errorOf();
    expect(missing).toBeInstanceOf(Gpt2Error);
    expect(missing).toMatchObject({file: `${base}/m/b.safetensors`});
    files.set('/m/model.safetensors', 'not safetensors at all');
    expect(await errorOf()).toBeInstanceOf(SafetensorsError);
    files.set('/m/config.json', '{');
    expect(String(await errorOf())).toMatch(/config.json: is not JSON/);
    files.delete('/m/config.json');
    expect(String(await errorOf())).toMatch(/config.json: cannot be fetched \(404/);
  });

  test('a connection that breaks off, and a server that is not there', async () => {
    files.set('/cut/config.json', JSON.stringify(CONFIG));
    await expect(fetchGpt2(`${base}/cut`)).rejects.toThrow(/config.json: broke off after 10 bytes/);
    await expect(fetchGpt2('http://127.0.0.1:1/m')).rejects.toThrow(/cannot be fetched/);
  });

  test("an abort rejects with the signal's reason", async () => {
    const reason = new Error('enough');
    expect(await errorOf({signal: AbortSignal.abort(reason)})).toBe(reason);
    files.set('/cut/config.json', JSON.stringify(CONFIG));
    const controller = new AbortController();
    const loading = fetchGpt2(`${base}/cut`, {signal: controller.signal});
    // The headers have come; the rest would take longer.
    setTimeout(() => controller.abort(reason), 25);
    await expect(loading).rejects.toBe(reason);
  });
});
