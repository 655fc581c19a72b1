/**
 * Every graph of test/fixtures/graphs: what must be replaced is, what must not is not, and the answers stay those of
 * TensorFlow and of the graph before.
 */
import * as converter from '@tensorflow/tfjs-converter';
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import {compareArrays} from '../../src/accuracy/metrics.js';
import {accelerateGraphModel, getReplacementReport} from '../../src/converter.js';
import {fixtureNames, handlerOf, inputsOf, readFixture, valuesOf} from './graph_fixtures.js';

/** The cpu backend's matrix product pairs batches of [2, 4] and [2, 1] wrongly; the replacement agrees with TensorFlow. */
const WRONG_BEFORE = new Set(['tf_functions/mqa_by_broadcasting']);

beforeAll(async () => {
  await tf.setBackend('cpu');
});

describe.each(fixtureNames())('%s', (name) => {
  it('is replaced as it should be and answers as before', async () => {
    const fixture = readFixture(name);
    const model = await converter.loadGraphModel(handlerOf(fixture));
    const inputs = inputsOf(fixture);
    const keys = Object.keys(fixture.outputs);
    const before = await outputsOf(model, inputs);
    const same = await accelerateGraphModel(model, {precision: 'exact'});
    expect(same).toBe(model);
    const after = await outputsOf(model, inputs);
    const report = getReplacementReport(model);
    const left = (report?.candidates ?? 0) - (report?.replaced ?? 0);
    const rows = JSON.stringify(report?.rows, null, 1);
    expect({replaced: report?.replaced, left, rows}).toEqual({
      replaced: fixture.replaced,
      left: fixture.left,
      rows,
    });
    for (const row of report?.rows ?? []) expect(row.replaced || row.reason !== null).toBe(true);
    for (const key of keys) {
      const expected = valuesOf(fixture.outputs[key] as never);
      const {relativeL1} = compareArrays(after[key] ?? [], expected);
      expect(relativeL1).toBeLessThan(fixture.tolerance);
      // tfjs computes MatrixBandPart without its upper bound; the replacement says so, and agrees with TensorFlow.
      if (WRONG_BEFORE.has(name) || rows.includes('MatrixBandPart')) continue;
      expect(compareArrays(after[key] ?? [], before[key] ?? []).relativeL1).toBeLessThan(1e-5);
    }
    tf.dispose(inputs);
    model.dispose();
  });
});

async function outputsOf(
  model: converter.GraphModel,
  inputs: tf.NamedTensorMap,
): Promise<Record<string, Float32Array>> {
  const signature = (model.modelSignature as {outputs: Record<string, {name: string}>}).outputs;
  const keys = Object.keys(signature);
  const outputs = await model.executeAsync(
    inputs,
    keys.map((key) => signature[key]?.name ?? ''),
  );
  const list = Array.isArray(outputs) ? outputs : [outputs];
  const values = await Promise.all(list.map((tensor) => tensor.data<'float32'>()));
  tf.dispose(list);
  return Object.fromEntries(keys.map((key, i) => [key, values[i] as Float32Array]));
}
