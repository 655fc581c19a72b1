/** What recipes cost in a model, and picking them by a budget: on graph models, and on anything that lists its attentions. */
import * as converter from '@tensorflow/tfjs-converter';
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import {compareArrays} from '../../src/accuracy/metrics.js';
import {autoTune, compareModel, loadGraphModel} from '../../src/converter.js';
import {
  setModelAttentions,
  type AttentionSite,
  type RecipeOptions,
} from '../../src/replace/model_attentions.js';
import {SageAttentionError} from '../../src/runtime/errors.js';
import {attentionGraph, normal} from './graph_builder.js';
import {handlerOf, inputsOf, readFixture} from './graph_fixtures.js';

beforeAll(async () => {
  await tf.setBackend('cpu');
});

const fixture = () => readFixture('keras_hub_models/gpt2');

describe('compareModel', () => {
  it('compares each attention and the output with the model before', async () => {
    const inputs = inputsOf(fixture());
    const plain = await converter.loadGraphModel(handlerOf(fixture()));
    const model = await loadGraphModel(handlerOf(fixture()), {sage: {precision: 'int8'}});
    const before = (plain.predict(inputs) as tf.Tensor).dataSync();
    const after = (model.predict(inputs) as tf.Tensor).dataSync();
    const {numTensors} = tf.memory();
    const {attentions, output, reference} = await compareModel(model, inputs);
    expect(tf.memory().numTensors).toBe(numTensors);
    expect(reference).toBe('original');
    expect(output).toMatchObject(compareArrays(after, before));
    expect(output.top1Agreement).toBeGreaterThan(0.8);
    expect(attentions).toHaveLength(2);
    for (const {options, runs, relativeL1, cosine} of attentions) {
      expect(options).toEqual({precision: 'int8'});
      expect(runs).toBe(1);
      expect(relativeL1).toBeGreaterThan(1e-4);
      expect(relativeL1).toBeLessThan(0.05);
      expect(cosine).toBeGreaterThan(0.99);
    }
    // Nothing is observed any more, or its tensors would be kept.
    const again = model.predict(inputs) as tf.Tensor;
    expect(again.dataSync()).toEqual(after);
    again.dispose();
    expect(tf.memory().numTensors).toBe(numTensors);
  });

  it('counts the runs of an attention in a loop', async () => {
    const loop = readFixture('tf_functions/while_loop');
    const model = await loadGraphModel(handlerOf(loop), {sage: {precision: 'exact'}});
    const {attentions, output} = await compareModel(model, inputsOf(loop));
    expect(attentions.map(({runs, relativeL1}) => [runs, relativeL1])).toEqual([[3, 0]]);
    expect(output.relativeL1).toBeLessThan(1e-5);
    expect(output.top1Agreement).toBe(1);
  });

  it('takes tensors in order as well as by name', async () => {
    const model = await loadGraphModel(attentionGraph().handler(['o']), {
      sage: {precision: 'exact'},
    });
    const list = [1, 2, 3].map((seed) => normal([1, 1, 5, 4], seed));
    expect((await compareModel(model, list)).output.relativeL1).toBeLessThan(1e-5);
  });

  it('asks for a model whose attentions were replaced', async () => {
    const plain = await converter.loadGraphModel(handlerOf(fixture()));
    for (const model of [plain, {}, null]) {
      const error = await compareModel(model as object, {}).catch((reason: unknown) => reason);
      expect(error).toBeInstanceOf(SageAttentionError);
      expect(error).toMatchObject({code: 'no-attention', argument: 'model'});
    }
  });
});

/** A model of known losses: the output is 1 plus what each attention's recipe costs. */
function modelOfLosses(losses: Readonly<Record<string, number>>): {
  model: object;
  sites: AttentionSite[];
} {
  const factors: Readonly<Record<string, number>> = {
    int8: 1,
    int8_int16: 0.3,
    int16: 0.05,
    exact: 0,
  };
  const sites = Object.keys(losses).map((name): AttentionSite => {
    let options: RecipeOptions = {};
    return {
      name,
      get options() {
        return options;
      },
      setOptions: (next) => void (options = next),
    };
  });
  const model = {};
  setModelAttentions(model, {
    sites,
    run: () => {
      const lost = sites.reduce(
        (sum, {name, options}) =>
          sum + (losses[name] as number) * (factors[options.precision ?? 'int8'] as number),
        0,
      );
      return Promise.resolve([tf.tensor([1 + lost])]);
    },
    runOriginal: null,
    observe: () => undefined,
  });
  return {model, sites};
}

describe('autoTune', () => {
  it('keeps the sensitive attentions at higher precision and the rest fast', async () => {
    const {model, sites} = modelOfLosses({a: 0.002, b: 0.2, c: 0.001, d: 0.004});
    const {tuning, output, withinBudget, sensitivities} = await autoTune(model, null, {
      budget: 0.02,
    });
    expect(withinBudget).toBe(true);
    expect(output.relativeL1).toBeLessThanOrEqual(0.02);
    expect(tuning.schema).toBe(1);
    expect(tuning.sites['a']).toEqual({precision: 'int8'});
    expect(tuning.sites['b']).toEqual({precision: 'int16'});
    expect(tuning.sites['c']).toEqual({precision: 'int8'});
    expect(sensitivities.find(({site}) => site === 'b')?.relativeL1).toBeCloseTo(0.2, 5);
    // The model keeps what was found.
    expect(Object.fromEntries(sites.map(({name, options}) => [name, options]))).toEqual(
      tuning.sites,
    );
  });

  it('ends with exact attention where nothing else fits, and takes the recipes that it is given', async () => {
    const {model} = modelOfLosses({a: 1, b: 1});
    const strict = await autoTune(model, null, {budget: 0});
    expect(strict.withinBudget).toBe(true);
    expect(Object.values(strict.tuning.sites)).toEqual([
      {precision: 'exact'},
      {precision: 'exact'},
    ]);
    const free = await autoTune(model, null, {budget: 1, precisions: ['int8_int16']});
    expect(Object.values(free.tuning.sites)).toEqual([
      {precision: 'int8_int16'},
      {precision: 'int8_int16'},
    ]);
  });

  it('tunes a graph model; the loader reads the result as JSON', async () => {
    const inputs = inputsOf(fixture());
    const model = await loadGraphModel(handlerOf(fixture()), {sage: {}});
    const {numTensors} = tf.memory();
    const {tuning, output, withinBudget} = await autoTune(model, inputs, {budget: 1e-3});
    expect(tf.memory().numTensors).toBe(numTensors);
    expect(withinBudget).toBe(true);
    expect(output.relativeL1).toBeLessThanOrEqual(1e-3);
    const read = JSON.parse(JSON.stringify(tuning)) as typeof tuning;
    const again = await loadGraphModel(handlerOf(fixture()), {sage: {tuning: read}});
    expect((again.predict(inputs) as tf.Tensor).dataSync()).toEqual(
      (model.predict(inputs) as tf.Tensor).dataSync(),
    );
  });

  it('refuses what it does not know', async () => {
    const {model} = modelOfLosses({a: 1});
    await expect(autoTune(model, null, {budget: -1})).rejects.toMatchObject({argument: 'budget'});
    await expect(autoTune(model, null, {precisions: ['x' as never]})).rejects.toMatchObject({
      argument: 'precisions',
    });
    await expect(autoTune(model, null, {loss: 1} as never)).rejects.toMatchObject({
      code: 'unknown-option',
    });
    await expect(autoTune({}, null)).rejects.toMatchObject({code: 'no-attention'});
  });

  it('puts the options back when a run fails', async () => {
    const {model, sites} = modelOfLosses({a: 1});
    const [site] = sites as [AttentionSite];
    site.setOptions({precision: 'int16'});
    const failing = {
      sites,
      run: () => Promise.reject(new Error('no')),
      runOriginal: null,
      observe: () => undefined,
    };
    setModelAttentions(model, failing);
    await expect(autoTune(model, null)).rejects.toThrow('no');
    expect(site.options).toEqual({precision: 'int16'});
  });
});
