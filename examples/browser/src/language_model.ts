// The model, whose attention is exchanged between runs, and a look at the weights of its newest query.

import * as tf from '@tensorflow/tfjs-core';
import {setWasmPaths} from '@tensorflow/tfjs-backend-wasm';
import '@tensorflow/tfjs-backend-cpu';
import {sageAttention, type Precision} from 'tfjs-sage-attention';
import {type Attention, fetchGpt2, type Gpt2} from 'tfjs-sage-attention/models/gpt2/browser';

/** What the page shows of attention: a layer, and one of its heads or the mean of all. */
export interface Focus {
  layer: number;
  head: number | 'mean';
}

export interface LanguageModel {
  readonly gpt2: Gpt2;
  /** The recipe of the passes that follow. */
  use(precision: Precision): void;
  /** Told the weights of the newest query in focus, one for each byte so far; undefined: nobody looks. */
  watch(focus: Focus, onWeights: ((weights: Float32Array) => void) | undefined): void;
}

/** Starts tfjs: WebAssembly or, where that does not start, plain JavaScript. */
export async function startBackend(): Promise<string> {
  setWasmPaths('./tfjs-backend-wasm/');
  tf.enableProdMode();
  if (!(await tf.setBackend('wasm').catch(() => false))) await tf.setBackend('cpu');
  await tf.ready();
  return tf.getBackend();
}

export async function loadLanguageModel(
  onProgress: (received: number, total: number | undefined) => void,
): Promise<LanguageModel> {
  let precision: Precision = 'exact';
  let watched: {focus: Focus; onWeights: (weights: Float32Array) => void} | undefined;
  let layers = 1;
  let calls = 0;
  const attention: Attention = (q, k, v, options) => {
    const layer = calls++ % layers;
    if (watched !== undefined && layer === watched.focus.layer) {
      watched.onWeights(newestWeights(q, k, options.scale, watched.focus.head));
    }
    return sageAttention(q, k, v, {...options, precision});
  };
  const gpt2 = await fetchGpt2('./js-gpt', {attention, onProgress});
  layers = gpt2.config.layers;
  return {
    gpt2,
    use: (name) => {
      precision = name;
      calls = 0;
    },
    watch: (focus, onWeights) => {
      watched = onWeights === undefined ? undefined : {focus, onWeights};
    },
  };
}

/** The softmax of the last query's scores, for display only: a row for each head, never a matrix. */
function newestWeights(
  q: tf.Tensor4D,
  k: tf.Tensor4D,
  scale: number,
  head: number | 'mean',
): Float32Array {
  const [, heads, queries, headDim] = q.shape;
  const keys = k.shape[2];
  const row = tf.tidy(() => {
    const last = tf.reshape(tf.slice(q, [0, 0, queries - 1, 0], [1, heads, 1, headDim]), [
      heads,
      1,
      headDim,
    ]);
    const scores = tf.sum(tf.mul(last, tf.reshape(k, [heads, keys, headDim])), -1);
    const weights = tf.softmax(tf.mul(scores, scale));
    return head === 'mean' ? tf.mean(weights, 0) : tf.slice(weights, [head, 0], [1, keys]);
  });
  try {
    return row.dataSync<'float32'>().slice();
  } finally {
    row.dispose();
  }
}
