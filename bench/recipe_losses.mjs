// What each recipe costs a trained model: js-gpt's loss on 67,583 fixed bytes (test/fixtures/recipe_text.txt), in bits per
// byte over that of exact attention, with its standard error over 33 windows. Reads the built package (`npm run build` first).
//   node bench/recipe_losses.mjs [--engine native|cuda] [--workers 1] [--forms exact,fp4,"fp4 paper"]
//
// The rest of the model runs on backend wasm. A form that the engine leaves to another one is refused: its row would say
// nothing about the engine. Workers are threads of this process, each with a share of the forms.
import {readFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {fileURLToPath} from 'node:url';
import {parseArgs} from 'node:util';
import {Worker, isMainThread, parentPort, workerData} from 'node:worker_threads';

const PUBLISHED = ['int8_fp16', 'int8_fp8', 'int4_fp8', 'fp4'];
const FORMS = [
  'exact',
  'int8_fp16',
  'int8_fp8',
  'int4_fp8',
  'fp4',
  'fp4_fp8',
  ...PUBLISHED.map((name) => `${name} paper`),
];
// Asked of the tuned form's loss over that of the published one. fp4_fp8 has no published form: it is held against fp4's.
const BARS = [
  ['fp4', 'fp4 paper', 0.4],
  ['fp4_fp8', 'fp4 paper', 0.2],
  ['int8_fp8', 'int8_fp8 paper', 0.6],
];

const path = (name) => fileURLToPath(new URL(name, import.meta.url));

async function measure({engine, forms}, report) {
  const require = createRequire(import.meta.url);
  const tf = require('@tensorflow/tfjs-core');
  require('@tensorflow/tfjs-backend-wasm');
  const sage = require('../dist/cjs/src/index.js');
  const {loadGpt2} = require('../dist/cjs/models/gpt2/index.js');
  const {bitsPerByte, cutWindows, encodeBytes} = require('../dist/cjs/models/gpt2/bytes.js');
  await tf.setBackend('wasm');
  sage.configureSageAttention({engine});
  let recipe = {};
  const model = await loadGpt2(path('../models/gpt2/js-gpt'), {
    attention: (q, k, v, {isCausal, scale}) =>
      sage.sageAttention(q, k, v, {...recipe, isCausal, scale}),
  });
  const windows = cutWindows(encodeBytes(readFileSync(path('../test/fixtures/recipe_text.txt'))));
  for (const form of forms) {
    const [precision, variant] = form.split(' ');
    recipe = variant === undefined ? {precision} : {precision, variant};
    const losses = windows.map((ids) => bitsPerByte(model.negativeLogLikelihood(ids)));
    const info = sage.getSageAttentionInfo().engines.find(({name}) => name === engine);
    if (!info.available) throw new Error(`engine ${engine}: ${info.reason}`);
    const refusal = info.details.lastRefusal ?? null;
    if (refusal !== null) throw new Error(`${form}: another engine served (${refusal})`);
    report({form, losses});
  }
  model.dispose();
}

const mean = (x) => x.reduce((a, b) => a + b, 0) / x.length;

function print(measured, forms) {
  const exact = measured.get('exact');
  const cost = (form) => {
    const changes = measured.get(form).map((loss, i) => loss - exact[i]);
    const change = mean(changes);
    const variance = mean(changes.map((x) => (x - change) ** 2));
    return {change, error: Math.sqrt(variance / (changes.length - 1))};
  };
  console.log(`exact: ${mean(exact).toFixed(5)} bits per byte`);
  for (const form of forms.filter((name) => name !== 'exact')) {
    const {change, error} = cost(form);
    console.log(`${form.padEnd(16)} +${change.toFixed(5)} (s.e. ${error.toFixed(5)})`);
  }
  for (const [form, other, bar] of BARS) {
    if (!measured.has(form) || !measured.has(other)) continue;
    const ratio = cost(form).change / cost(other).change;
    console.log(`${form} over ${other}: ${ratio.toFixed(3)} (asked ${bar})`);
  }
}

if (isMainThread) {
  const {values} = parseArgs({
    options: {
      engine: {type: 'string', default: 'native'},
      workers: {type: 'string', default: '1'},
      forms: {type: 'string', default: FORMS.join(',')},
    },
  });
  const forms = [...new Set(['exact', ...values.forms.split(',')])];
  const measured = new Map();
  const count = Math.min(Number(values.workers), forms.length);
  await Promise.all(
    Array.from({length: count}, (_, i) => {
      const share = forms.filter((_, j) => j % count === i);
      const worker = new Worker(new URL(import.meta.url), {
        workerData: {engine: values.engine, forms: share},
      });
      worker.on('message', ({form, losses}) => measured.set(form, losses));
      return new Promise((resolve, reject) => worker.on('exit', resolve).on('error', reject));
    }),
  );
  print(measured, forms);
} else {
  await measure(workerData, (row) => parentPort.postMessage(row));
}
