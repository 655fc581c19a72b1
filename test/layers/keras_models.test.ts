/** Models that Keras 2 and Keras 3 saved and the converter converted give what Python gives. */
import * as tf from '@tensorflow/tfjs-core';
import {getReplacementReport, loadLayersModel} from '../../src/layers';
import {useBackend} from '../kernels/backends';
import {errorsAgainst, golden, MODEL_NAMES, modelPath, predictAll} from './golden';

describe.each(['cpu', 'wasm'])('on %s', (backend) => {
  beforeAll(() => useBackend(backend));

  it.each(MODEL_NAMES)('%s agrees with Python', async (name) => {
    const model = await loadLayersModel(modelPath(name), {sage: {precision: 'exact'}});
    const {inputs, outputs} = golden(name);
    const results = predictAll(model, inputs);
    const errors = errorsAgainst(results, outputs);
    tf.dispose([results, inputs]);
    model.dispose();
    expect(Math.max(...errors)).toBeLessThan(1e-5);
    expect(getReplacementReport(model)?.rows).toBeDefined();
  });
});
