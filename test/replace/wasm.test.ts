/** Replaced graph models on tfjs' wasm backend, which has no Einsum: the replacement makes such models run there. */
import * as converter from '@tensorflow/tfjs-converter';
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-wasm';
import {compareArrays} from '../../src/accuracy/metrics.js';
import {compareModel, loadGraphModel} from '../../src/converter.js';
import {handlerOf, inputsOf, readFixture, valuesOf} from './graph_fixtures.js';

beforeAll(async () => {
  await tf.setBackend('wasm');
});

it.each([
  'bert',
  'gpt2_products',
  'gpt2_left_padded',
  'selected_by_data',
  'transposed_keys',
  'folded_heads',
])('%s answers as TensorFlow does', async (name) => {
  const fixture = readFixture(`tf_functions/${name}`);
  const model = await loadGraphModel(handlerOf(fixture), {sage: {precision: 'exact'}});
  const inputs = inputsOf(fixture);
  const {numTensors} = tf.memory();
  const o = model.predict(inputs) as tf.Tensor;
  expect(tf.memory().numTensors).toBe(numTensors + 1);
  const expected = valuesOf(fixture.outputs['out'] as never);
  expect(compareArrays(o.dataSync(), expected).relativeL1).toBeLessThan(fixture.tolerance);
});

it('runs what tfjs cannot, and compares it with exact attention then', async () => {
  const fixture = readFixture('tf_functions/einsum_letters');
  const inputs = inputsOf(fixture);
  const plain = await converter.loadGraphModel(handlerOf(fixture));
  expect(() => plain.predict(inputs)).toThrow(/Einsum/);
  const model = await loadGraphModel(handlerOf(fixture), {sage: {precision: 'int16'}});
  const expected = valuesOf(fixture.outputs['out'] as never);
  const o = model.predict(inputs) as tf.Tensor;
  expect(compareArrays(o.dataSync(), expected).relativeL1).toBeLessThan(1e-2);
  const {reference, output, attentions} = await compareModel(model, inputs);
  expect(reference).toBe('exact');
  expect(output.relativeL1).toBeGreaterThan(0);
  expect(attentions[0]?.options).toEqual({precision: 'int16'});
});
