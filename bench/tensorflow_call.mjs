// What sageAttention costs inside TensorFlow: small calls against TensorFlow's own ops, and long ones against matMul, softmax,
// matMul of TensorFlow. One process, contenders alternated, warm-up outside, medians. Needs a prepared TensorFlow
// (`npx tfjs-sage-attention setup-tensorflow`) and the built package (`npm run build`).
//   node -r ./dist/cjs/src/tensorflow/load.js bench/tensorflow_call.mjs            # small calls
//   node -r ./dist/cjs/src/tensorflow/load.js bench/tensorflow_call.mjs --long     # H 8, D 64, N 512 to 4,096
//   node -r ./dist/cjs/src/tensorflow/load.js bench/tensorflow_call.mjs --memory   # what N 4,096 adds to the peak
// SAGE_NUM_THREADS sets the threads of sageAttention; SAGE_BUILT names another built package.
import {execFileSync} from 'node:child_process';
import {createRequire} from 'node:module';
import {fileURLToPath} from 'node:url';
import path from 'node:path';

const require = createRequire(import.meta.url);
const here = path.dirname(fileURLToPath(import.meta.url));
const built = process.env.SAGE_BUILT ?? path.join(here, '..', 'dist', 'cjs');
const tf = require('@tensorflow/tfjs-node');
const {sageAttention, getSageAttentionInfo} = require(path.join(built, 'src', 'index.js'));

const COMPOSED = 'matMul, softmax, matMul';

const clock = () => Number(process.hrtime.bigint()) / 1000;
const median = (values) => values.sort((x, y) => x - y)[values.length >> 1];

/** Median microseconds of each contender; `rounds` turns after a quarter as many for warm-up. */
function alternate(contenders, rounds) {
  const names = Object.keys(contenders);
  const times = Object.fromEntries(names.map((name) => [name, []]));
  for (let round = -Math.ceil(rounds / 4); round < rounds; round++) {
    for (const name of round % 2 === 0 ? names : [...names].reverse()) {
      const start = clock();
      const output = contenders[name]();
      const microseconds = clock() - start;
      tf.dispose(output);
      if (round >= 0) times[name].push(microseconds);
    }
  }
  return Object.fromEntries(names.map((name) => [name, median(times[name])]));
}

/** Softmax attention of TensorFlow's own ops; its scores are N x N. */
const compose = (q, k, v) =>
  tf.tidy(() => {
    const scores = tf.matMul(q, k, false, true).mul(1 / Math.sqrt(q.shape[3]));
    return tf.matMul(tf.softmax(scores), v);
  });

const tensors = (count, shape) =>
  Array.from({length: count}, () => {
    const tensor = tf.randomNormal(shape);
    tf.dispose(tf.neg(tensor)); // brings the values into TensorFlow
    return tensor;
  });

function smallCalls() {
  const [a, b] = tensors(2, [4, 4]);
  const [q, k, v] = tensors(3, [1, 1, 4, 8]);
  const [mask] = tensors(1, [4, 4]);
  const times = alternate(
    {
      'tf.add': () => tf.add(a, b),
      'tf.matMul': () => tf.matMul(a, b),
      'tf.softmax': () => tf.softmax(a),
      [COMPOSED]: () => compose(q, k, v),
      sageAttention: () => sageAttention(q, k, v, {precision: 'exact'}),
      'sageAttention, mask': () => sageAttention(q, k, v, {precision: 'exact', mask}),
      'sageAttention, lse': () => sageAttention(q, k, v, {precision: 'exact', returnLse: true}),
    },
    8000,
  );
  for (const [name, time] of Object.entries(times)) {
    console.log(
      `${name}: ${time.toFixed(2)} us, ${(time / times['tf.matMul']).toFixed(2)} times tf.matMul`,
    );
  }
}

function longCalls() {
  for (const tokens of [512, 1024, 2048, 4096]) {
    const [q, k, v] = tensors(3, [1, 8, tokens, 64]);
    const contenders = {[COMPOSED]: () => compose(q, k, v)};
    for (const precision of ['exact', 'int8_int16', 'int8_bf16', 'int8']) {
      contenders[precision] = () => sageAttention(q, k, v, {precision});
    }
    const times = alternate(contenders, tokens > 1024 ? 7 : 21);
    const composed = times[COMPOSED];
    for (const [name, time] of Object.entries(times)) {
      console.log(
        `N ${tokens}, ${name}: ${(time / 1000).toFixed(2)} ms, ${(composed / time).toFixed(2)} times as fast`,
      );
    }
    tf.dispose([q, k, v]);
  }
}

/** MiB that one call of N 4,096 adds to the peak memory of this process. */
function risenMib(contender) {
  const [small] = tensors(1, [1, 8, 64, 64]);
  const [q, k, v] = tensors(3, [1, 8, 4096, 64]);
  const attend = (x, y, z) =>
    contender === COMPOSED ? compose(x, y, z) : sageAttention(x, y, z, {precision: contender});
  tf.dispose(attend(small, small, small));
  const before = process.resourceUsage().maxRSS;
  tf.dispose(attend(q, k, v));
  return (process.resourceUsage().maxRSS - before) / 1024;
}

/** Each contender in a process of its own: a peak does not go down again. */
function peaks() {
  for (const contender of [COMPOSED, 'exact', 'int8_int16', 'int8_bf16', 'int8']) {
    const self = fileURLToPath(import.meta.url);
    const mib = execFileSync(
      process.execPath,
      [...process.execArgv, self, '--memory-of', contender],
      {encoding: 'utf8'},
    );
    console.log(`N 4096, ${contender}: ${mib.trim()} MiB`);
  }
}

await tf.setBackend('tensorflow');
const [mode, contender] = process.argv.slice(2);
if (mode === '--memory-of') {
  console.log(risenMib(contender).toFixed(0));
} else {
  const {op, reason} = getSageAttentionInfo().tensorflow;
  console.log(`${op}: ${reason}`);
  if (mode === '--memory') peaks();
  else if (mode === '--long') longCalls();
  else smallCalls();
}
