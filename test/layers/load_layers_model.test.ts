/** loadLayersModel: its report, options and errors. */
import * as tf from '@tensorflow/tfjs';
import {compareArrays} from '../../src/accuracy/metrics';
import {
  autoTune,
  compareModel,
  getReplacementReport,
  loadLayersModel,
  patchLayersModel,
} from '../../src/layers';
import type {LoadLayersModelOptions} from '../../src/layers';
import {getModelAttentions} from '../../src/replace/model_attentions';
import {SageAttentionError} from '../../src/runtime/errors';
import {useBackend} from '../kernels/backends';
import {errorsAgainst, golden, modelArtifacts, modelPath, predictAll} from './golden';

type Json = Record<string, unknown>;

const exact = {sage: {precision: 'exact'}} as const;

/** Loads a model after `change` has had its way with the artifacts. */
async function loadChanged(
  name: string,
  change: (artifacts: tf.io.ModelArtifacts, layers: Json[], model: Json) => void,
  options: LoadLayersModelOptions = {},
): Promise<tf.LayersModel> {
  const artifacts = modelArtifacts(name);
  const {model_config: model} = artifacts.modelTopology as {model_config: Json};
  const {layers} = model.config as {layers: Json[]};
  change(artifacts, layers, model);
  return (await loadLayersModel(
    {load: () => Promise.resolve(artifacts)},
    options,
  )) as unknown as tf.LayersModel;
}

function layerOf(layers: Json[], className: string): {layer: Json; config: Json} {
  const layer = layers.find((entry) => entry.class_name === className) as Json;
  return {layer, config: layer.config as Json};
}

async function errorOf(promise: Promise<unknown>): Promise<SageAttentionError> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof SageAttentionError) return error;
    throw error;
  }
  throw new Error('it did not reject');
}

beforeAll(() => useBackend('cpu'));

describe('the report', () => {
  it('has a row for each attention, nested ones by their path', async () => {
    const model = await loadLayersModel(modelPath('keras3_nested'));
    expect(getReplacementReport(model)).toEqual({
      rows: [
        {
          node: 'first/first_attention',
          pattern: 'MultiHeadAttention',
          replaced: true,
          reason: null,
        },
        {
          node: 'second/second_attention',
          pattern: 'MultiHeadAttention',
          replaced: true,
          reason: null,
        },
      ],
      replaced: 2,
      candidates: 2,
    });
  });

  it('says why a layer is not replaced, and what training does', async () => {
    const rowsOf = async (name: string) =>
      getReplacementReport(await loadLayersModel(modelPath(name)))?.rows ?? [];
    expect(await rowsOf('keras2_scores')).toMatchObject([
      {node: 'multi_head_attention', replaced: false, reason: expect.stringMatching(/scores/)},
    ]);
    expect(await rowsOf('keras3_masked_attention')).toMatchObject([
      {pattern: 'Attention', replaced: true},
      {pattern: 'AdditiveAttention', replaced: false, reason: expect.stringMatching(/tanh/)},
    ]);
    expect(await rowsOf('keras3_token_classifier')).toMatchObject([
      {replaced: true, reason: null},
      {replaced: true, reason: expect.stringMatching(/training/)},
    ]);
    expect(await rowsOf('keras3_other_layers')).toEqual([]);
  });
});

describe('options', () => {
  it('exclude and only leave layers to plain ops, with the same results', async () => {
    const {inputs, outputs} = golden('keras3_token_classifier');
    for (const sage of [{exclude: ['multi_head_attention']}, {only: ['multi_head_attention_1']}]) {
      const model = await loadLayersModel(modelPath('keras3_token_classifier'), {sage});
      const rows = getReplacementReport(model)?.rows ?? [];
      expect(rows.map(({replaced}) => replaced)).toEqual([false, true]);
      expect(Math.max(...errorsAgainst(predictAll(model, inputs), outputs))).toBeLessThan(0.05);
    }
  });

  it('the default recipe stays near Python, a recipe by name is taken', async () => {
    const {inputs, outputs} = golden('keras3_grouped');
    const automatic = await loadLayersModel(modelPath('keras3_grouped'));
    expect(Math.max(...errorsAgainst(predictAll(automatic, inputs), outputs))).toBeLessThan(0.05);
    const low = await loadLayersModel(modelPath('keras3_grouped'), {sage: {precision: 'int4_fp8'}});
    const [error = 0] = errorsAgainst(predictAll(low, inputs), outputs);
    expect(error).toBeGreaterThan(1e-4);
  });

  it.each([
    [{sage: {precision: 'int3'}}, 'precision'],
    [{sage: {isCausal: true}}, 'isCausal'],
    [{sage: {protect: ['x']}}, 'protect'],
    [{sage: {exclude: 'x'}}, 'exclude'],
  ])('%j is refused before anything is read', async (options, argument) => {
    const load = jest.fn();
    const error = await errorOf(
      loadLayersModel({load}, options as unknown as LoadLayersModelOptions),
    );
    expect(error.argument).toBe(argument);
    expect(load).not.toHaveBeenCalled();
  });

  it('reaches attention sites for comparing and tuning', async () => {
    const model = await loadLayersModel(modelPath('keras3_grouped'));
    const attentions = getModelAttentions(model);
    expect(attentions?.sites.map(({name}) => name)).toEqual([
      'grouped_query_attention',
      'grouped_query_attention_1',
    ]);
    const {inputs, outputs} = golden('keras3_grouped');
    const heard: string[] = [];
    attentions?.observe((site, output, compute) => {
      heard.push(site);
      const exactly = compute({precision: 'exact'});
      expect(exactly.shape).toEqual(output.shape);
    });
    for (const site of attentions?.sites ?? []) site.setOptions({precision: 'int4_fp8'});
    const lossy = (await attentions?.run(inputs[0] as tf.Tensor)) ?? [];
    expect(heard).toHaveLength(2);
    attentions?.observe(null);
    const original = (await attentions?.runOriginal?.(inputs[0] as tf.Tensor)) ?? [];
    expect(heard).toHaveLength(2);
    expect(Math.max(...errorsAgainst(original, outputs))).toBeLessThan(1e-5);
    expect(Math.max(...errorsAgainst(lossy, outputs))).toBeGreaterThan(1e-4);
  });
});

describe('comparing and tuning', () => {
  it('compareModel tells the loss of each attention and of the output', async () => {
    const sage = {precision: 'int8_fp8'} as const;
    const model = await loadLayersModel(modelPath('keras3_grouped'), {sage});
    const {inputs} = golden('keras3_grouped');
    const {attentions, output, reference} = await compareModel(model, inputs[0]);
    expect(reference).toBe('original');
    expect(attentions.map(({site, options, runs}) => ({site, options, runs}))).toEqual([
      {site: 'grouped_query_attention', options: sage, runs: 1},
      {site: 'grouped_query_attention_1', options: sage, runs: 1},
    ]);
    for (const {relativeL1} of [...attentions, output]) {
      expect(relativeL1).toBeGreaterThan(1e-5);
      expect(relativeL1).toBeLessThan(0.1);
    }
  });

  it('what autoTune found is read back by the loader', async () => {
    const model = await loadLayersModel(modelPath('keras3_grouped'));
    const {inputs} = golden('keras3_grouped');
    const {tuning} = await autoTune(model, inputs[0], {budget: 0.02});
    const read = JSON.parse(JSON.stringify(tuning)) as typeof tuning;
    const again = await loadLayersModel(modelPath('keras3_grouped'), {sage: {tuning: read}});
    const {output} = await compareModel(again, inputs[0]);
    expect(output.relativeL1).toBeLessThan(0.02);
    expect(getModelAttentions(again)?.sites.map(({options}) => options)).toEqual(
      Object.values(read.sites),
    );
  });
});

describe('call arguments', () => {
  it('positional arguments of Keras 3 are those of its call', async () => {
    const model = await loadChanged(
      'keras3_cross_attention',
      (_, layers) => {
        const {layer} = layerOf(layers, 'MultiHeadAttention');
        const [node] = layer.inbound_nodes as [{args: unknown[]; kwargs: Json}];
        node.args.push(node.kwargs.key);
        delete node.kwargs.key;
      },
      exact,
    );
    const {inputs, outputs} = golden('keras3_cross_attention');
    expect(Math.max(...errorsAgainst(predictAll(model, inputs), outputs))).toBeLessThan(1e-5);
  });

  it('one layer called in two ways is refused in words', async () => {
    const error = await errorOf(
      loadChanged('keras3_self_attention', (_, layers) => {
        const {layer} = layerOf(layers, 'MultiHeadAttention');
        const nodes = layer.inbound_nodes as {kwargs: Json}[];
        nodes.push({...(nodes[0] as {kwargs: Json}), kwargs: {use_causal_mask: true}});
      }),
    );
    expect(error).toMatchObject({code: 'unsupported-layer', argument: 'attend'});
  });
});

describe('saving and loading again', () => {
  it.each([
    'keras3_cross_attention',
    'keras2_token_classifier',
    'keras3_gates_and_windows',
    'keras3_scores',
    'keras2_masked_attention',
    'keras3_sequential',
  ])('%s gives the same after model.save', async (name) => {
    const {inputs, outputs} = golden(name);
    const model = await loadLayersModel(modelPath(name), exact);
    let saved: tf.io.ModelArtifacts | null = null;
    await model.save({
      save: (artifacts) => {
        saved = JSON.parse(JSON.stringify(artifacts)) as tf.io.ModelArtifacts;
        (saved as tf.io.ModelArtifacts).weightData = artifacts.weightData as ArrayBuffer;
        return Promise.resolve({
          modelArtifactsInfo: {dateSaved: new Date(0), modelTopologyType: 'JSON'},
        });
      },
    });
    const again = await loadLayersModel({
      load: () => Promise.resolve(saved as unknown as tf.io.ModelArtifacts),
    });
    expect(Math.max(...errorsAgainst(predictAll(again, inputs), outputs))).toBeLessThan(1e-5);
  });

  it('leaves the registry of tfjs as it found it', async () => {
    await loadLayersModel(modelPath('keras3_grouped'));
    const {classNameMap} = tf.serialization.SerializationMap.getMap();
    expect(classNameMap.MultiHeadAttention).toBeUndefined();
  });
});

describe('errors name the file and the layer', () => {
  it('a class that nobody knows', async () => {
    const error = await errorOf(
      loadChanged('keras3_self_attention', (_, layers) => {
        layerOf(layers, 'LayerNormalization').layer.class_name = 'RotaryThing';
      }),
    );
    expect(error).toMatchObject({code: 'unknown-layer', argument: 'layer_normalization'});
    expect(error.message).toMatch(/the given handler, layer `layer_normalization`.*RotaryThing/);
  });

  it('a class of an operation that is not known, inside a nested model', async () => {
    const error = await errorOf(
      loadChanged('keras3_nested', (_, layers) => {
        const {config} = layerOf(layers, 'Functional');
        layerOf(config.layers as Json[], 'Add').layer.class_name = 'Einsum';
      }),
    );
    expect(error).toMatchObject({code: 'unknown-layer', argument: 'first_add'});
  });

  it.each([
    ['Greater', 'unsupported-layer'],
    ['Multiply', 'unsupported-layer'],
    ['NotEqual', null],
  ])('a mask that %s makes', async (className, code) => {
    const load = loadChanged('keras3_masked_pooling', (_, layers) => {
      layerOf(layers, 'NotEqual').layer.class_name = className;
    });
    if (code === null) await load;
    else
      expect(await errorOf(load)).toMatchObject({
        code,
        message: expect.stringMatching(/its mask is a tensor of its own/),
      });
  });

  it.each([
    [
      'Bidirectional',
      (config: Json) => {
        for (const part of ['layer', 'backward_layer']) {
          ((config[part] as Json).config as Json).reset_after = true;
        }
      },
      'reset_after',
    ],
    ['Conv1D', (config: Json) => (config.padding = 'causal'), 'causal'],
    ['Conv2D', (config: Json) => (config.groups = 2), 'groups'],
    ['GlobalAveragePooling2D', (config: Json) => (config.keepdims = true), 'keepdims'],
    ['Activation', (config: Json) => (config.activation = 'celu'), 'celu'],
    [
      'Dense',
      (config: Json) => (config.kernel_initializer = {class_name: 'Mine', config: {}}),
      'Mine',
    ],
    [
      'LSTM',
      (config: Json) => (config.activity_regularizer = {class_name: 'L2', config: {l2: 1}}),
      'activity_regularizer',
    ],
  ])('%s with what tfjs does not compute', async (className, change, word) => {
    const error = await errorOf(
      loadChanged('keras3_other_layers', (_, layers) => {
        change(layerOf(layers, className).config);
      }),
    );
    expect(error.code).toBe('unsupported-layer');
    expect(error.message).toContain(word);
    expect(error.message).toMatch(/layer `\w+`/);
  });

  it.each<[string, (artifacts: tf.io.ModelArtifacts, layers: Json[], model: Json) => void, RegExp]>(
    [
      ['no topology', (artifacts) => delete artifacts.modelTopology, /modelTopology/],
      ['no class', (_, __, model) => delete model.class_name, /class_name/],
      ['no layers', (_, __, model) => (model.config = {}), /layers/],
      ['a layer that is no object', (_, layers) => layers.push('x' as unknown as Json), /object/],
      ['a layer without a class', (_, layers) => delete layers[0]?.class_name, /class_name/],
      ['an input that is not there', (_, layers) => layers.shift(), /not there/],
      [
        'nodes that are no list',
        (_, layers) => ((layers[1] as Json).inbound_nodes = 3),
        /inbound_nodes/,
      ],
      [
        'half the weights',
        (a) => (a.weightData = (a.weightData as ArrayBuffer).slice(0, 100)),
        /end inside `.+`/,
      ],
      ['weights without names', (a) => delete a.weightSpecs, /nothing says which/],
      ['a weight too few', (a) => a.weightSpecs?.pop(), /weights/],
      [
        'a weight of another shape',
        (a) => (((a.weightSpecs as {shape: number[]}[])[0] as {shape: number[]}).shape = [3]),
        /\[3\]/,
      ],
      [
        'a weight of no layer',
        (a) => a.weightSpecs?.push({name: 'layers/x/vars/0', shape: [0], dtype: 'float32'}),
        /belongs to no layer/,
      ],
      [
        'a size that is none',
        (_, layers) => (layerOf(layers, 'MultiHeadAttention').config.num_heads = 0),
        /numHeads/,
      ],
    ],
  )('%s', async (_, change, words) => {
    const before = tf.memory().numTensors;
    const error = await errorOf(loadChanged('keras3_self_attention', change));
    expect(['invalid-model', 'invalid-option']).toContain(error.code);
    expect(error.message).toMatch(words);
    expect(tf.memory().numTensors - before).toBeLessThan(20);
  });

  it.each(['/no/such/model.json', __filename])('%s is no model', async (path) => {
    const error = await errorOf(loadLayersModel(path));
    expect(error.code).toBe('invalid-model');
    expect(error.message).toContain(path);
  });

  it('something that is no source, or no model', async () => {
    expect((await errorOf(loadLayersModel({} as tf.io.IOHandler))).code).toBe('invalid-model');
    expect(() => patchLayersModel(3 as unknown as tf.LayersModel)).toThrow(/no layers model/);
  });
});

it('1,000 predictions keep no tensors, in a nested model with masks', async () => {
  const model = await loadLayersModel(modelPath('keras2_inner_mask'), exact);
  const {inputs} = golden('keras2_inner_mask');
  tf.dispose(predictAll(model, inputs));
  const before = tf.memory().numTensors;
  for (let run = 0; run < 1000; run += 1) tf.dispose(predictAll(model, inputs));
  expect(tf.memory().numTensors).toBe(before);
});

it('differs from the exact result by the recipe only', async () => {
  const {inputs} = golden('keras3_long_sequence');
  const run = async (sage: LoadLayersModelOptions['sage']) =>
    (
      predictAll(
        await loadLayersModel(modelPath('keras3_long_sequence'), {sage}),
        inputs,
      )[0] as tf.Tensor
    ).dataSync();
  const {relativeL1} = compareArrays(
    await run({precision: 'int8_fp16'}),
    await run({precision: 'exact'}),
  );
  expect(relativeL1).toBeGreaterThan(1e-6);
  expect(relativeL1).toBeLessThan(0.05);
});
