// What one small call costs: sageAttention on B 1, H 1, N 16, D 64 against tf.add on [16, 64], backend cpu, in one process,
// contenders alternated, warm-up outside, medians in microseconds. Reads the built package (`npm run build` first).
//   node bench/small_call.mjs
import {createRequire} from 'node:module';

const require = createRequire(import.meta.url);
const tf = require('@tensorflow/tfjs-core');
require('@tensorflow/tfjs-backend-cpu');
const {sageAttention} = require('../dist/cjs/src/index.js');

const ROUNDS = 4000;

await tf.setBackend('cpu');
const random = (shape) => tf.randomNormal(shape);
const [q, k, v] = [0, 1, 2].map(() => random([1, 1, 16, 64]));
const [a, b] = [random([16, 64]), random([16, 64])];

const contenders = {
  'tf.add': () => tf.add(a, b),
  auto: () => sageAttention(q, k, v),
  exact: () => sageAttention(q, k, v, {precision: 'exact'}),
  int8: () => sageAttention(q, k, v, {precision: 'int8'}),
};
const times = Object.fromEntries(Object.keys(contenders).map((name) => [name, []]));
for (let round = -ROUNDS; round < ROUNDS; round++) {
  for (const [name, call] of Object.entries(contenders)) {
    const start = process.hrtime.bigint();
    const output = call();
    const nanoseconds = Number(process.hrtime.bigint() - start);
    output.dispose();
    if (round >= 0) times[name].push(nanoseconds);
  }
}
const median = (values) => values.sort((x, y) => x - y)[values.length >> 1] / 1000;
const add = median(times['tf.add']);
for (const name of Object.keys(contenders)) {
  const microseconds = name === 'tf.add' ? add : median(times[name]);
  console.log(
    `${name}: ${microseconds.toFixed(2)} us, ${(microseconds / add).toFixed(2)} times tf.add`,
  );
}
