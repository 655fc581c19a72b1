// The installed package as an ES module: `node smoke.mjs <engine>`.
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import '@tensorflow/tfjs-backend-wasm';
import * as sage from 'tfjs-sage-attention';
import {attend} from './attend.cjs';

for (const backend of ['cpu', 'wasm']) {
  await tf.setBackend(backend);
  attend(tf, sage, process.argv[2]);
}
