/** A trained layers model in another process: `tfjs-sage-attention/layers` as built, loaded both ways, and by tfjs alone. */
import {spawnSync} from 'node:child_process';
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';

const root = join(__dirname, '..', '..');

/** Builds, trains for a few steps, saves to FOLDER, and prints what the model answers. */
const TRAIN = `
const {writeFileSync} = require('node:fs');
const tf = require('@tensorflow/tfjs');
const {multiHeadAttention, groupQueryAttention} = require('tfjs-sage-attention/layers');
(async () => {
  await tf.setBackend('cpu');
  const ids = tf.input({shape: [6], dtype: 'int32'});
  const x = tf.layers.embedding({inputDim: 9, outputDim: 8, maskZero: true}).apply(ids);
  const sage = {precision: 'int8_fp8', granularity: 'per_token', pvAccumulator: 'fp32+fp32'};
  const y = multiHeadAttention({numHeads: 2, keyDim: 4, sage}).apply([x, x], {useCausalMask: true});
  const z = groupQueryAttention({headDim: 4, numQueryHeads: 2, numKeyValueHeads: 1}).apply([tf.layers.add().apply([x, y]), x]);
  const out = tf.layers.dense({units: 1, activation: 'sigmoid'}).apply(tf.layers.flatten().apply(z));
  const model = tf.model({inputs: ids, outputs: out});
  model.compile({optimizer: 'sgd', loss: 'binaryCrossentropy'});
  const xs = tf.tensor2d([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 1]], undefined, 'int32');
  for (let step = 0; step < 5; step += 1) await model.trainOnBatch(xs, tf.tensor2d([[0], [1]]));
  await model.save({save: async (artifacts) => {
    const {weightData, weightSpecs, ...rest} = artifacts;
    writeFileSync(FOLDER + '/weights.bin', Buffer.from(tf.io.CompositeArrayBuffer ? tf.io.CompositeArrayBuffer.join(weightData) : weightData));
    const weightsManifest = [{paths: ['weights.bin'], weights: weightSpecs}];
    writeFileSync(FOLDER + '/model.json', JSON.stringify({...rest, weightsManifest}));
    return {modelArtifactsInfo: {dateSaved: new Date(), modelTopologyType: 'JSON'}};
  }});
  console.log('answer:' + [...model.predict(xs).dataSync()]);
})();`;

const ANSWER = `
await tf.setBackend('cpu');
const xs = tf.tensor2d([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 1]], undefined, 'int32');
console.log('answer:' + [...model.predict(xs).dataSync()]);`;

const LOAD_AS_MODULE = `
import * as tf from '@tensorflow/tfjs';
import {loadLayersModel} from 'tfjs-sage-attention/layers';
const model = await loadLayersModel(FOLDER + '/model.json');
${ANSWER}`;

/** By tf.loadLayersModel, which has the classes after registerAttentionLayers(). */
const LOAD_BY_TFJS = `
const {readFileSync} = require('node:fs');
const tf = require('@tensorflow/tfjs');
require('tfjs-sage-attention/layers').registerAttentionLayers();
(async () => {
  const {weightsManifest, ...rest} = JSON.parse(readFileSync(FOLDER + '/model.json', 'utf8'));
  const weightData = new Uint8Array(readFileSync(FOLDER + '/weights.bin')).buffer;
  const model = await tf.loadLayersModel({load: async () => ({...rest, weightSpecs: weightsManifest[0].weights, weightData})});
  ${ANSWER}
})();`;

let folder = '';
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'sage-layers-'));
});
afterAll(() => {
  rmSync(folder, {recursive: true});
});

function answerOf(kind: 'module' | 'commonjs', script: string): string {
  const code = script.replaceAll('FOLDER', JSON.stringify(folder));
  const args = [`--input-type=${kind}`, '--eval', code];
  const {stdout, stderr, status} = spawnSync(process.execPath, args, {cwd: root, encoding: 'utf8'});
  const answer = /answer:(.*)/.exec(stdout)?.[1];
  if (status !== 0 || answer === undefined) throw new Error(stdout + stderr);
  return answer;
}

it('gives the same answers in a fresh process', () => {
  const trained = answerOf('commonjs', TRAIN);
  expect(trained.split(',').map(Number).every(Number.isFinite)).toBe(true);
  expect(answerOf('module', LOAD_AS_MODULE)).toBe(trained);
  expect(answerOf('commonjs', LOAD_BY_TFJS)).toBe(trained);
});
