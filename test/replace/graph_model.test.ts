/** Replacing attention in graph models: loading, saving, options, memory, failures. */
import * as converter from '@tensorflow/tfjs-converter';
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import {compareArrays} from '../../src/accuracy/metrics.js';
import {RELATIVE_L1_BOUNDS} from '../../src/accuracy/tolerances.js';
import {accelerateGraphModel, getReplacementReport, loadGraphModel} from '../../src/converter.js';
import {PRECISIONS} from '../../src/numerics/recipes.js';
import {getModelAttentions} from '../../src/replace/model_attentions.js';
import type {GraphTopology} from '../../src/replace/model_graph.js';
import {SageAttentionError} from '../../src/runtime/errors.js';
import {attentionGraph, GraphBuilder, normal} from './graph_builder.js';
import {artifactsOf, handlerOf, inputsOf, readFixture} from './graph_fixtures.js';

beforeAll(async () => {
  await tf.setBackend('cpu');
});

const QKV = (n = 9, m = n, d = 4) => ({
  q: normal([2, 2, n, d], 1),
  k: normal([2, 2, m, d], 2),
  v: normal([2, 2, m, d], 3),
});

const valuesOf = (result: unknown) => (result as tf.Tensor).dataSync<'float32'>();

async function savedTopology(model: converter.GraphModel): Promise<GraphTopology> {
  let topology: unknown;
  await model.save({
    save: (artifacts) => {
      topology = artifacts.modelTopology;
      return Promise.resolve({
        modelArtifactsInfo: {dateSaved: new Date(), modelTopologyType: 'JSON'},
      });
    },
  });
  return topology as GraphTopology;
}

async function errorOf(work: Promise<unknown>): Promise<SageAttentionError> {
  const error: unknown = await work.then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(SageAttentionError);
  return error as SageAttentionError;
}

describe('loadGraphModel', () => {
  it('gives the answers of tfjs, under the names that the model had', async () => {
    const graph = attentionGraph();
    const inputs = QKV();
    const plain = await converter.loadGraphModel(graph.handler(['o']));
    const model = await loadGraphModel(graph.handler(['o']), {sage: {precision: 'exact'}});
    expect(model.outputs.map(({name}) => name)).toEqual(plain.outputs.map(({name}) => name));
    const {relativeL1} = compareArrays(
      valuesOf(model.predict(inputs)),
      valuesOf(plain.predict(inputs)),
    );
    expect(relativeL1).toBeLessThan(1e-5);
    expect(getReplacementReport(model)).toEqual({
      rows: [{node: 'o', pattern: 'softmax(q·k · scale)·v (MatMul)', replaced: true, reason: null}],
      replaced: 1,
      candidates: 1,
    });
    expect(getReplacementReport(plain)).toBeNull();
  });

  it('writes a graph that tfjs itself loads, with one op more and nothing of the old attention', async () => {
    const graph = attentionGraph({mask: [-1, 1, 1, -1]});
    const inputs = {...QKV(), mask: tf.zeros([2, 1, 1, 9])};
    const model = await loadGraphModel(graph.handler(['o']), {sage: {precision: 'int8_int16'}});
    const topology = await savedTopology(model);
    expect(topology.node.map(({name, op}) => `${name}:${op}`).sort()).toEqual([
      'k:Placeholder',
      'mask:Placeholder',
      'o:SageAttention',
      'q:Placeholder',
      'v:Placeholder',
    ]);
    const text = JSON.stringify(topology);
    expect(text).not.toContain('"site"');
    const again = await converter.loadGraphModel({
      load: () =>
        Promise.resolve({...graph.artifacts(['o']), modelTopology: JSON.parse(text) as object}),
    });
    expect(valuesOf(again.predict(inputs))).toEqual(valuesOf(model.predict(inputs)));
    await accelerateGraphModel(again);
    expect(getReplacementReport(again)?.rows).toEqual([
      {node: 'o', pattern: 'SageAttention', replaced: true, reason: 'replaced before'},
    ]);
    // Options that are not given stay those of the file.
    expect(getModelAttentions(again)?.sites[0]?.options).toEqual({precision: 'int8_int16'});
    expect(valuesOf(again.predict(inputs))).toEqual(valuesOf(model.predict(inputs)));
  });

  it.each(PRECISIONS)('stays within the bound of %s', async (precision) => {
    const graph = attentionGraph({scale: 0.125});
    const inputs = QKV(129, 129, 64);
    const plain = await converter.loadGraphModel(graph.handler(['o']));
    const model = await loadGraphModel(graph.handler(['o']), {sage: {precision}});
    const {relativeL1} = compareArrays(
      valuesOf(model.predict(inputs)),
      valuesOf(plain.predict(inputs)),
    );
    expect(relativeL1).toBeLessThan(1.25 * RELATIVE_L1_BOUNDS[precision]);
    // The recipe is what runs: none of the quantised ones is exact.
    if (precision !== 'exact') expect(relativeL1).toBeGreaterThan(1e-5);
  });
});

describe('any size', () => {
  it.each([
    [1, 1],
    [1, 17],
    [17, 17],
    [127, 129],
    [129, 127],
    [1000, 3],
  ])('of %d queries and %d keys', async (n, m) => {
    const graph = attentionGraph({mask: [-1, 1, -1, -1], seen: [1, 1, -1, -1]});
    const seen = tf.tidy(() => tf.greater(normal([1, 1, n, m], 9), 0.3));
    const inputs = {...QKV(n, m), mask: normal([2, 1, n, m], 5), seen};
    await expectSame(graph, inputs);
  });

  it('of nothing: an empty batch', async () => {
    const inputs = {
      q: tf.zeros([0, 2, 5, 4]),
      k: tf.zeros([0, 2, 7, 4]),
      v: tf.zeros([0, 2, 7, 3]),
    };
    const model = await loadGraphModel(attentionGraph().handler(['o']), {sage: {}});
    expect((model.predict(inputs) as tf.Tensor).shape).toEqual([0, 2, 5, 3]);
  });

  it('of views with an offset into a larger buffer', async () => {
    const bytes = new Float32Array(2 * 2 * 9 * 4 + 3);
    bytes.set(normal([bytes.length], 4).dataSync<'float32'>());
    const q = tf.tensor(bytes.subarray(3), [2, 2, 9, 4]);
    await expectSame(attentionGraph(), {...QKV(), q});
  });
});

async function expectSame(graph: GraphBuilder, inputs: tf.NamedTensorMap): Promise<void> {
  const plain = await converter.loadGraphModel(graph.handler(['o']));
  const model = await loadGraphModel(graph.handler(['o']), {sage: {precision: 'exact'}});
  expect(getReplacementReport(model)?.replaced).toBe(1);
  const before = plain.predict(inputs) as tf.Tensor;
  const after = model.predict(inputs) as tf.Tensor;
  expect(after.shape).toEqual(before.shape);
  expect(compareArrays(valuesOf(after), valuesOf(before)).relativeL1).toBeLessThan(1e-5);
}

describe('finite masks', () => {
  const n = 6;
  /** Row 2 of the second batch sees nothing. */
  const seen = () => {
    const values = new Uint8Array(2 * n * n).fill(1).map((_, i) => (i % 3 === 0 ? 0 : 1));
    values.fill(0, (n + 2) * n, (n + 3) * n);
    return tf.tensor(values, [2, 1, n, n], 'bool');
  };

  it.each([-1e4, -1e9, -3.4028234663852886e38])(
    'of %d average over a row that sees nothing, as the model does',
    async (hidden) => {
      await expectSame(attentionGraph({seen: [-1, 1, -1, -1], hidden}), {...QKV(n), seen: seen()});
    },
  );

  it('beside biases that hide as well', async () => {
    const graph = attentionGraph({mask: [-1, 1, 1, -1], seen: [-1, 1, -1, -1], hidden: -1e4});
    const mask = tf.tensor([0, 0, 0, 0, 0, 0, -1e4, -1e4, 0, -1e4, -1e4, -1e4], [2, 1, 1, n]);
    await expectSame(graph, {...QKV(n), seen: seen(), mask});
  });

  it('of -Infinity give 0 where tfjs gives NaN', async () => {
    const graph = attentionGraph({seen: [-1, 1, -1, -1], hidden: -Infinity});
    const model = await loadGraphModel(graph.handler(['o']), {sage: {precision: 'exact'}});
    const o = model.predict({...QKV(n), seen: seen()}) as tf.Tensor;
    const row = tf.slice(o, [1, 0, 2, 0], [1, 1, 1, 4]).dataSync();
    expect([...row]).toEqual([0, 0, 0, 0]);
  });
});

describe('what the op does not take', () => {
  it('is composed: heads wider than the op knows', async () => {
    await expectSame(attentionGraph({scale: 0.04}), QKV(5, 7, 600));
  });

  it('is composed: integers', async () => {
    const graph = new GraphBuilder();
    for (const name of ['q', 'k', 'v']) graph.placeholder(name, [-1, -1, -1, -1]);
    graph.node('whole', 'Cast', ['v'], {SrcT: {type: 'DT_FLOAT'}, DstT: {type: 'DT_INT32'}});
    graph.product('qk', 'q', 'k', true);
    graph.node('p', 'Softmax', ['qk']);
    graph.product('o', 'p', 'whole');
    await expectSame(graph, {...QKV(), v: tf.mul(QKV().v, 3)});
  });

  it('lets NaN and Infinity through where the model does', async () => {
    const inputs = QKV(6);
    const values = inputs.v.dataSync<'float32'>().slice();
    values[5] = NaN;
    const v = tf.tensor(values, inputs.v.shape);
    const model = await loadGraphModel(attentionGraph().handler(['o']), {
      sage: {precision: 'exact'},
    });
    const o = valuesOf(model.predict({...inputs, v}));
    expect([...o].filter(Number.isNaN)).toHaveLength(6);
  });
});

describe('options', () => {
  const two = () => {
    const graph = attentionGraph();
    graph.product('qk2', 'o', 'k', true);
    graph.node('p2', 'Softmax', ['qk2']);
    graph.product('o2', 'p2', 'v');
    return graph.handler(['o2']);
  };
  const replacedOf = async (sage: object) => {
    const model = await loadGraphModel(two(), {sage});
    return getReplacementReport(model)
      ?.rows.filter((row) => row.replaced)
      .map(({node}) => node);
  };

  it('choose places by the names of the report or of the softmax', async () => {
    expect(await replacedOf({})).toEqual(['o', 'o2']);
    expect(await replacedOf({exclude: ['o']})).toEqual(['o2']);
    expect(await replacedOf({exclude: ['p2']})).toEqual(['o']);
    expect(await replacedOf({only: ['o2']})).toEqual(['o2']);
    expect(await replacedOf({only: []})).toEqual([]);
  });

  it('protect nodes that are read by name', async () => {
    const model = await loadGraphModel(two(), {sage: {protect: ['p']}});
    const inputs = QKV();
    expect((model.execute(inputs, 'p') as tf.Tensor).shape).toEqual([2, 2, 9, 9]);
    expect(getReplacementReport(model)?.rows.find(({node}) => node === 'o')?.reason).toBe(
      "the probabilities ('p') are an output of the model",
    );
    expect(getReplacementReport(model)?.replaced).toBe(1);
  });

  it('set recipes for each attention by a tuning', async () => {
    const tuning = {schema: 1 as const, sites: {o2: {precision: 'int16' as const}}};
    const model = await loadGraphModel(two(), {sage: {precision: 'exact', tuning}});
    const sites = getModelAttentions(model)?.sites ?? [];
    expect(sites.map(({name, options}) => [name, options])).toEqual([
      ['o', {precision: 'exact'}],
      ['o2', {precision: 'int16'}],
    ]);
  });

  it('are refused in words', async () => {
    const model = await converter.loadGraphModel(two());
    const refuse = (options: object) => errorOf(accelerateGraphModel(model, options));
    expect(await refuse({isCausal: true})).toMatchObject({
      code: 'unknown-option',
      argument: 'isCausal',
    });
    expect(await refuse({precision: 'int9'})).toMatchObject({
      code: 'invalid-option',
      argument: 'precision',
    });
    expect(await refuse({exclude: 'o'})).toMatchObject({
      code: 'invalid-option',
      argument: 'exclude',
    });
    expect(await refuse({tuning: {}})).toMatchObject({code: 'invalid-option', argument: 'tuning'});
    expect(await refuse({precision: 'int16', granularity: 'per_block'})).toMatchObject({
      code: 'unsupported-granularity',
    });
    expect(getReplacementReport(model)).toBeNull();
  });
});

describe('accelerateGraphModel', () => {
  it('works in place, again and again, without new weights', async () => {
    const fixture = readFixture('keras_hub_models/bert');
    const model = await converter.loadGraphModel(handlerOf(fixture));
    const inputs = inputsOf(fixture);
    const before = valuesOf(model.predict(inputs));
    const tensors = tf.memory().numTensors;
    expect(await accelerateGraphModel(model, {precision: 'exact'})).toBe(model);
    expect(await accelerateGraphModel(model, {precision: 'int16'})).toBe(model);
    expect(tf.memory().numTensors).toBe(tensors);
    expect(getReplacementReport(model)?.replaced).toBe(2);
    expect(getModelAttentions(model)?.sites.map(({options}) => options.precision)).toEqual([
      'int16',
      'int16',
    ]);
    const {relativeL1} = compareArrays(valuesOf(model.predict(inputs)), before);
    expect(relativeL1).toBeLessThan(1e-3);
    expect(relativeL1).toBeGreaterThan(0);
    model.dispose();
  });

  it('leaves no tensor behind in 1,000 predictions', async () => {
    const graph = attentionGraph({mask: [-1, 1, 1, -1], seen: [1, 1, -1, -1]});
    const seen = tf.tensor([1, 0, 0, 0, 1, 0, 0, 0, 1], [1, 1, 3, 3], 'bool');
    const inputs = {...QKV(3), mask: tf.zeros([2, 1, 1, 3]), seen};
    const model = await loadGraphModel(graph.handler(['o']), {sage: {precision: 'exact'}});
    tf.dispose(model.predict(inputs));
    const {numTensors, numBytes} = tf.memory();
    for (let i = 0; i < 1000; i += 1) tf.dispose(model.predict(inputs));
    expect(tf.memory()).toMatchObject({numTensors, numBytes});
    // Nothing tidies up behind the ops of an asynchronous run.
    for (let i = 0; i < 10; i += 1) tf.dispose(await model.executeAsync(inputs));
    expect(tf.memory()).toMatchObject({numTensors, numBytes});
  });

  it('keeps what waits for a node, and for what the attention waits', async () => {
    const graph = new GraphBuilder();
    for (const name of ['q', 'k', 'v']) graph.placeholder(name, [-1, -1, -1, -1]);
    graph.node('first', 'NoOp', []);
    graph.node('qk', 'BatchMatMulV2', ['q', 'k', '^first'], {adj_y: {b: true}});
    graph.node('p', 'Softmax', ['qk']);
    graph.node('o', 'BatchMatMulV2', ['p', 'v']);
    graph.node('after', 'Identity', ['q', '^p']);
    const model = await loadGraphModel(graph.handler(['o', 'after']), {sage: {}});
    const byName = new Map(
      (await savedTopology(model)).node.map((node) => [node.name, node.input]),
    );
    expect(byName.get('o')).toEqual(['q', 'k', 'v', '^first']);
    expect(byName.get('after')).toEqual(['q', '^first']);
  });
});

describe('broken models', () => {
  const artifacts = () => artifactsOf(readFixture('tf_functions/bert'));
  const load = (changed: tf.io.ModelArtifacts) =>
    errorOf(
      loadGraphModel({
        load: () => Promise.resolve(changed),
        path: 'models/bert/model.json',
      } as tf.io.IOHandler),
    );
  const topologyOf = (changed: tf.io.ModelArtifacts) => changed.modelTopology as GraphTopology;

  it.each<[string, (broken: tf.io.ModelArtifacts) => void, RegExp]>([
    [
      'weights cut short',
      (a) => {
        a.weightData = new ArrayBuffer(2);
      },
      /its weights end within 'PartitionedCall\/Mul\/y', after 2 bytes/,
    ],
    [
      'a node that reads nothing',
      (a) => {
        topologyOf(a).node.at(-1)!.input = ['gone'];
      },
      /node 'Identity' reads 'gone'/,
    ],
    [
      'a node twice',
      (a) => {
        topologyOf(a).node.push({...topologyOf(a).node[0]!});
      },
      /is there twice/,
    ],
    [
      'a node without op',
      (a) => {
        delete (topologyOf(a).node[3] as {op?: string}).op;
      },
      /node '\w+' has no op/,
    ],
    [
      'a constant without weight',
      (a) => {
        a.weightSpecs = [];
      },
      /'PartitionedCall\/Mul\/y' is a constant without a weight/,
    ],
    [
      'no topology',
      (a) => {
        delete a.modelTopology;
      },
      /it has no modelTopology/,
    ],
    [
      'inputs that are no names',
      (a) => {
        topologyOf(a).node.at(-1)!.input = [7] as never;
      },
      /the inputs of node 'Identity' are no list/,
    ],
    [
      'a layers model',
      (a) => {
        a.modelTopology = {model_config: {}};
      },
      /it is a layers model/,
    ],
  ])('%s: the error names file and node', async (_, damage, expected) => {
    const broken = artifacts();
    damage(broken);
    const error = await load(broken);
    expect(error.code).toBe('invalid-model');
    expect(error.message).toContain("'models/bert/model.json'");
    expect(error.message).toMatch(expected);
  });

  it('rewritten by a version with other plans: the error names the node', async () => {
    const model = await loadGraphModel(attentionGraph().handler(['o']), {sage: {}});
    const topology = await savedTopology(model);
    const node = topology.node.find(({op}) => op === 'SageAttention');
    node!.attr = {...node!.attr, plan: {s: btoa('{"version": 99}')}};
    const again = {...attentionGraph().artifacts(['o']), modelTopology: topology};
    const error = await load(again);
    expect(error.message).toMatch(/node 'o' has a damaged plan: plan of version 99/);
  });

  it('that cannot be fetched', async () => {
    const error = await errorOf(
      loadGraphModel({
        load: () => Promise.reject(new Error('404')),
        path: 'x.json',
      } as tf.io.IOHandler),
    );
    expect(error.message).toMatch(/'x.json' is no graph model that can be read: 404\./);
  });

  it('are no models at all', async () => {
    expect(await errorOf(accelerateGraphModel({} as converter.GraphModel))).toMatchObject({
      code: 'invalid-model',
      argument: 'model',
    });
  });

  it('stay as they were when the new graph does not compile', async () => {
    const model = await converter.loadGraphModel(handlerOf(readFixture('tf_functions/bert')));
    const inputs = inputsOf(readFixture('tf_functions/bert'));
    const before = valuesOf(model.predict(inputs));
    const open = model as unknown as {
      artifacts: object;
      loadWithWeightMap(artifacts: {modelTopology: GraphTopology}, weights: object): boolean;
    };
    const {artifacts: original} = open;
    const compile = open.loadWithWeightMap.bind(model);
    open.loadWithWeightMap = (changed, weights) => {
      compile(changed, weights);
      if (changed.modelTopology.node.some(({op}) => op === 'SageAttention')) throw new Error('no');
      return true;
    };
    expect((await errorOf(accelerateGraphModel(model))).code).toBe('invalid-model');
    expect(open.artifacts).toBe(original);
    expect(valuesOf(model.predict(inputs))).toEqual(before);
    expect(getReplacementReport(model)).toBeNull();
  });
});
