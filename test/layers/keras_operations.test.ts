/** Operations of Keras 3 in loaded models: keys of `x[...]`, types, shapes, saving, gradients, and what is refused. */
import * as tf from '@tensorflow/tfjs';
import {loadLayersModel, registerAttentionLayers} from '../../src/layers';
import {SageAttentionError} from '../../src/runtime/errors';
import {useBackend} from '../kernels/backends';
import {errorsAgainst, golden, modelPath, predictAll} from './golden';

type Json = Record<string, unknown>;
type Size = number | null;

const slice = (start: Size, stop: Size, step: Size): Json => ({
  class_name: '__slice__',
  config: {start, stop, step},
});
const ALL = slice(null, null, null);
const ELLIPSIS: Json = {class_name: '__ellipsis__', config: {}};
const numpy = (value: unknown, dtype: string): Json => ({
  class_name: '__numpy__',
  config: {value, dtype},
});

function tensor(name: string, shape: Size[], dtype = 'float32'): Json {
  return {
    class_name: '__keras_tensor__',
    config: {shape, dtype, keras_history: [name, 0, 0]},
  };
}

interface Made {
  className: string;
  args: (x: Json, y: Json) => unknown[];
  config?: Json;
  kwargs?: Json;
  shape?: Size[];
  dtype?: string;
  calls?: number;
}

/** A model of one operation on its inputs x and y, as the converter writes it. */
function artifactsOf({
  className,
  args,
  config = {},
  kwargs = {},
  shape = [null, 5],
  dtype = 'float32',
  calls = 1,
}: Made): tf.io.ModelArtifacts {
  const input = (name: string): Json => ({
    class_name: 'InputLayer',
    config: {batch_shape: shape, dtype, sparse: false, name},
    name,
    inbound_nodes: [],
  });
  const given = args(tensor('x', shape, dtype), tensor('y', shape, dtype));
  const nodes = Array.from({length: calls}, (_, i) => ({
    args: i === 0 ? given : [...given].reverse(),
    kwargs,
  }));
  const operation = {
    class_name: className,
    config: {name: 'operation', ...config},
    name: 'operation',
    inbound_nodes: nodes,
  };
  return {
    modelTopology: {
      keras_version: '3.15.1',
      model_config: {
        class_name: 'Functional',
        config: {
          name: 'made',
          layers: [input('x'), input('y'), operation],
          input_layers: [
            ['x', 0, 0],
            ['y', 0, 0],
          ],
          output_layers: [['operation', 0, 0]],
        },
      },
    },
  };
}

async function load(made: Made): Promise<tf.LayersModel> {
  const artifacts = artifactsOf(made);
  return (await loadLayersModel({
    load: () => Promise.resolve(artifacts),
  })) as unknown as tf.LayersModel;
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

async function runOn(made: Made, x: tf.Tensor, y: tf.Tensor = x): Promise<tf.Tensor> {
  const model = await load(made);
  return model.predict([x, y]) as tf.Tensor;
}

/** Saves a model, and gives what a file of it would hold. */
async function saved(model: tf.LayersModel): Promise<tf.io.IOHandler> {
  let artifacts: tf.io.ModelArtifacts = {};
  await model.save({
    save: (given) => {
      artifacts = JSON.parse(JSON.stringify(given)) as tf.io.ModelArtifacts;
      artifacts.weightData = given.weightData as ArrayBuffer;
      return Promise.resolve({
        modelArtifactsInfo: {dateSaved: new Date(0), modelTopologyType: 'JSON'},
      });
    },
  });
  return {load: () => Promise.resolve(artifacts)};
}

beforeAll(() => useBackend('cpu'));

describe('x[...]', () => {
  // The last column is what Python gives for list(range(5))[start:stop:step].
  it.each<[Size, Size, Size, number[]]>([
    [null, null, null, [0, 1, 2, 3, 4]],
    [1, 3, null, [1, 2]],
    [-2, null, null, [3, 4]],
    [null, -1, null, [0, 1, 2, 3]],
    [null, null, -1, [4, 3, 2, 1, 0]],
    [3, null, -1, [3, 2, 1, 0]],
    [null, 1, -2, [4, 2]],
    [-1, 0, -2, [4, 2]],
    [4, -6, -3, [4, 1]],
    [-9, 9, 2, [0, 2, 4]],
    [9, -9, -2, [4, 2, 0]],
    [3, 1, null, []],
    [1, 3, -1, []],
    [5, null, null, []],
    [0, 1, null, [0]],
    [null, null, 7, [0]],
    [-5, -1, 2, [0, 2]],
  ])('%p:%p:%p', async (start, stop, step, wanted) => {
    const key = [ALL, slice(start, stop, step)];
    const model = await load({className: 'GetItem', args: (x) => [x, key]});
    const x = tf.tensor2d([
      [0, 1, 2, 3, 4],
      [10, 11, 12, 13, 14],
    ]);
    const y = model.predict([x, x]) as tf.Tensor;
    expect(model.outputs[0]?.shape).toEqual([null, wanted.length]);
    expect(y.shape).toEqual([2, wanted.length]);
    expect([...y.dataSync()]).toEqual([...wanted, ...wanted.map((value) => value + 10)]);
    // An axis of unknown size gives the same.
    const open = await load({className: 'GetItem', args: (t) => [t, key], shape: [null, null]});
    const same = open.predict([x, x]) as tf.Tensor;
    expect(same.shape).toEqual(y.shape);
    expect(same.dataSync()).toEqual(y.dataSync());
  });

  it.each<[string, unknown, Size[], number[]]>([
    ['a number', [ALL, 1], [null, 3], [2, 3]],
    ['a negative number', [ALL, -1, -3], [null], [2]],
    ['... in front', [ELLIPSIS, 0], [null, 4], [2, 4]],
    ['... in the middle', [ALL, ELLIPSIS, 2], [null, 4], [2, 4]],
    ['... for no axis', [ALL, 0, ELLIPSIS, 0], [null], [2]],
    ['... alone', ELLIPSIS, [null, 4, 3], [2, 4, 3]],
    ['None', [ALL, null, ELLIPSIS, null], [null, 1, 4, 3, 1], [2, 1, 4, 3, 1]],
    ['None beside numbers', [ALL, 3, null, 1], [null, 1], [2, 1]],
    ['a number of numpy', [ALL, numpy(2, 'int64')], [null, 3], [2, 3]],
    ['the batch', 1, [4, 3], [4, 3]],
    ['part of the batch', [slice(1, null, null)], [null, 4, 3], [1, 4, 3]],
  ])('%s', async (_, key, symbolic, shape) => {
    const model = await load({
      className: 'GetItem',
      args: (x) => [x, key],
      shape: [null, 4, 3],
    });
    const x = tf.range(0, 24).reshape([2, 4, 3]);
    expect(model.outputs[0]?.shape).toEqual(symbolic);
    const y = model.apply([x, x]) as tf.Tensor;
    expect(y.shape).toEqual(shape);
    if (Array.isArray(key) && key[1] === -1) expect(y.arraySync()).toEqual([9, 21]);
    if (Array.isArray(key) && key[1] === 3) expect(y.arraySync()).toEqual([[10], [22]]);
  });

  it.each<[string, unknown[]]>([
    ['a list', [ALL, [0, 2]]],
    ['an array', [ALL, numpy([0, 2], 'int32')]],
    ['a truth value', [ALL, true]],
    ['a step of 0', [slice(null, null, 0)]],
    ['a part of a tensor', [slice(0.5 as Size, null, null)]],
    ['a tensor', [tensor('y', [null, 5])]],
    ['two ellipses', [ELLIPSIS, ELLIPSIS]],
  ])('%s is refused', async (_, key) => {
    const error = await errorOf(load({className: 'GetItem', args: (x) => [x, key]}));
    expect(error).toMatchObject({code: 'unsupported-layer', argument: 'operation'});
    expect(error.message).toMatch(/layer `operation`: GetItem/);
  });

  it('an index outside is refused, at a run where the size is known then only', async () => {
    const made: Made = {className: 'GetItem', args: (x) => [x, [ALL, 5]]};
    expect(await errorOf(load(made))).toMatchObject({
      code: 'shape-mismatch',
      message: expect.stringMatching(/operation: GetItem: index 5 is outside of an axis of 5/),
    });
    const open = await load({...made, shape: [null, null]});
    const x = tf.zeros([1, 4]);
    expect(() => open.predict([x, x])).toThrow(/index 5 is outside of an axis of 4/);
    const long = await errorOf(load({...made, args: (t) => [t, [0, 0, 0]]}));
    expect(long.code).toBe('shape-mismatch');
  });

  it('keeps the type, and has gradients with every step', async () => {
    const key = [ALL, slice(3, null, -2)];
    const ids = tf.tensor2d([[1, 2, 3, 4, 5]], [1, 5], 'int32');
    const kept = await runOn({className: 'GetItem', args: (x) => [x, key], dtype: 'int32'}, ids);
    expect(kept.dtype).toBe('int32');
    const model = await load({className: 'GetItem', args: (x) => [x, key]});
    const slope = tf.grad((x: tf.Tensor) => (model.apply([x, x]) as tf.Tensor).square().sum());
    const x = tf.tensor2d([[1, 2, 3, 4, 5]]);
    expect(slope(x).arraySync()).toEqual([[0, 4, 0, 8, 0]]);
  });
});

describe('types follow Python', () => {
  const ids = () => tf.tensor2d([[-3, 0, 3, 5, 7]], [1, 5], 'int32');

  it.each<[string, unknown, string, number[]]>([
    ['Multiply', 2, 'int32', [-6, 0, 6, 10, 14]],
    ['Add', 0.5, 'float32', [-2.5, 0.5, 3.5, 5.5, 7.5]],
    ['TrueDivide', 2, 'float32', [-1.5, 0, 1.5, 2.5, 3.5]],
    ['FloorDivide', 2, 'int32', [-2, 0, 1, 2, 3]],
    ['Mod', 2, 'int32', [1, 0, 1, 1, 1]],
    ['Add', numpy([1, 2, 3, 4, 5], 'int64'), 'int32', [-2, 2, 6, 9, 12]],
    ['Add', numpy(0.25, 'float32'), 'float32', [-2.75, 0.25, 3.25, 5.25, 7.25]],
    ['Greater', 2.5, 'bool', [0, 0, 1, 1, 1]],
    ['Power', 2, 'int32', [9, 0, 9, 25, 49]],
    ['Maximum', -1e10, 'float32', [-3, 0, 3, 5, 7]],
  ])('%s of integers and %j', async (className, constant, dtype, wanted) => {
    const y = await runOn({className, args: (x) => [x, constant], dtype: 'int32'}, ids());
    expect(y.dtype).toBe(dtype);
    expect([...y.dataSync()]).toEqual(wanted);
  });

  it('numbers that Where chooses between are floats, whatever its condition is', async () => {
    const made: Made = {className: 'Where', args: (x) => [x, 1, -3], dtype: 'int32'};
    const y = await runOn(made, ids());
    expect(y.dtype).toBe('float32');
    expect([...y.dataSync()]).toEqual([1, -3, 1, 1, 1]);
  });

  it('constants come first where Python has them first', async () => {
    const y = await runOn({className: 'Subtract', args: (x) => [1, x]}, tf.ones([1, 5]));
    expect([...y.dataSync()]).toEqual([0, 0, 0, 0, 0]);
  });

  it('one tensor given twice is one input', async () => {
    const model = await load({className: 'Multiply', args: (x) => [x, x]});
    expect(model.layers.at(-1)?.inboundNodes[0]?.inputTensors).toHaveLength(1);
    const x = tf.tensor2d([[1, 2, 3, 4, 5]]);
    expect((model.predict([x, x]) as tf.Tensor).arraySync()).toEqual([[1, 4, 9, 16, 25]]);
  });
});

describe('shapes', () => {
  const open = [null, null, 4];
  it.each<[string, Made, Size[]]>([
    [
      'a reshape',
      {className: 'Reshape', args: (x) => [x], config: {newshape: [-1, 2, 2]}},
      [null, 2, 2],
    ],
    [
      'a reshape of known sizes',
      {className: 'Reshape', args: (x) => [x], config: {newshape: [-1, 8]}, shape: [2, 6, 4]},
      [6, 8],
    ],
    [
      'a mean',
      {className: 'Mean', args: (x) => [x], config: {axis: [-1, 1], keepdims: true}},
      [null, 1, 1],
    ],
    ['all axes', {className: 'Sum', args: (x) => [x], config: {axis: null, keepdims: false}}, []],
    [
      'new axes',
      {className: 'ExpandDims', args: (x) => [x], config: {axis: -1}},
      [null, null, 4, 1],
    ],
    [
      'a constant of more axes',
      {className: 'Add', args: (x) => [x, numpy([[[[1], [2], [3]]]], 'float32')]},
      [1, null, 3, 4],
    ],
    [
      'a list',
      {className: 'Concatenate', args: (x, y) => [[x, y, x]], config: {axis: -1}},
      [null, null, 12],
    ],
    [
      'a stack',
      {className: 'Stack', args: (x, y) => [[x, y]], config: {axis: -2}},
      [null, null, 2, 4],
    ],
    [
      'the order of axes',
      {className: 'Transpose', args: (x) => [x], config: {axes: null}},
      [4, null, null],
    ],
    [
      'a product',
      {className: 'Matmul', args: (x) => [x, numpy([[1], [2], [3], [4]], 'float32')]},
      [null, null, 1],
    ],
  ])('%s', async (_, made, wanted) => {
    const model = await load({shape: open, ...made});
    expect(model.outputs[0]?.shape).toEqual(wanted);
    const x = tf.ones([2, wanted.includes(3) ? 3 : 6, 4]);
    const y = model.apply([x, x]) as tf.Tensor;
    expect(y.rank).toBe(wanted.length);
    y.shape.forEach((size, i) => expect([null, size]).toContain(wanted[i]));
  });

  it.each<[string, Made]>([
    ['no broadcast', {className: 'Add', args: (x) => [x, numpy([1, 2, 3], 'float32')]}],
    [
      'no reshape',
      {className: 'Reshape', args: (x) => [x], config: {newshape: [2, 7]}, shape: [2, 5]},
    ],
    ['no axis', {className: 'Mean', args: (x) => [x], config: {axis: 2, keepdims: false}}],
    ['no axis of 1', {className: 'Squeeze', args: (x) => [x], config: {axis: 1}}],
    ['no product', {className: 'Matmul', args: (x, y) => [x, y], shape: [2, 5]}],
    [
      'no list',
      {className: 'Concatenate', args: (x) => [[x, numpy([1], 'float32')]], config: {axis: 0}},
    ],
    ['no order', {className: 'Transpose', args: (x) => [x], config: {axes: [0, 0]}}],
  ])('%s of such shapes', async (_, made) => {
    expect((await errorOf(load(made))).code).toBe('shape-mismatch');
  });
});

describe('saving', () => {
  it.each([
    'keras3_class_token',
    'keras3_items',
    'keras3_operations',
    'keras3_operations_and_masks',
  ])('%s gives the same after model.save', async (name) => {
    const {inputs, outputs} = golden(name);
    const model = await loadLayersModel(modelPath(name), {sage: {precision: 'exact'}});
    const handler = await saved(model as unknown as tf.LayersModel);
    const again = await loadLayersModel(handler);
    expect(Math.max(...errorsAgainst(predictAll(again, inputs), outputs))).toBeLessThan(1e-5);
    // A model that was saved twice.
    const third = await loadLayersModel(await saved(again as unknown as tf.LayersModel));
    expect(Math.max(...errorsAgainst(predictAll(third, inputs), outputs))).toBeLessThan(1e-5);
  });

  it('leaves the registry alone; tf.loadLayersModel reads it after registerAttentionLayers', async () => {
    const name = 'keras3_class_token';
    const model = await loadLayersModel(modelPath(name), {sage: {precision: 'exact'}});
    const handler = await saved(model as unknown as tf.LayersModel);
    const {classNameMap} = tf.serialization.SerializationMap.getMap();
    expect(classNameMap.KerasOperation).toBeUndefined();
    registerAttentionLayers();
    try {
      const {inputs, outputs} = golden(name);
      const again = await tf.loadLayersModel(handler);
      expect(Math.max(...errorsAgainst(predictAll(again, inputs), outputs))).toBeLessThan(1e-5);
    } finally {
      for (const cls of [
        'KerasOperation',
        'MultiHeadAttention',
        'GroupQueryAttention',
        'Attention',
        'AdditiveAttention',
      ])
        Reflect.deleteProperty(classNameMap, cls);
    }
  });

  it('500 predictions keep no tensors', async () => {
    const model = await loadLayersModel(modelPath('keras3_operations'));
    const {inputs} = golden('keras3_operations');
    tf.dispose(predictAll(model, inputs));
    const before = tf.memory().numTensors;
    for (let run = 0; run < 500; run += 1) tf.dispose(predictAll(model, inputs));
    expect(tf.memory().numTensors).toBe(before);
  });
});

describe('refused in words', () => {
  it.each<[string, Made, RegExp]>([
    [
      'an unknown setting',
      {className: 'Max', args: (x) => [x], config: {axis: 1, keepdims: false, initial: 0}},
      /Max with initial: 0/,
    ],
    [
      'an unknown keyword',
      {className: 'Add', args: (x) => [x, 1], kwargs: {where: true}},
      /`where`/,
    ],
    ['an argument too few', {className: 'Add', args: (x) => [x]}, /other arguments/],
    ['an argument too many', {className: 'Tanh', args: (x, y) => [x, y]}, /other arguments/],
    ['a text', {className: 'Add', args: (x) => [x, 'one']}, /no tensor and no number/],
    [
      'a ragged list',
      {className: 'Add', args: (x) => [x, [[1], [2, 3]]]},
      /no tensor and no number/,
    ],
    [
      'another object',
      {className: 'Add', args: (x) => [x, {class_name: '__lambda__'}]},
      /__lambda__/,
    ],
    [
      'two ways of calling',
      {className: 'Subtract', args: (x, y) => [x, y], calls: 2},
      /more than once/,
    ],
    ['narrow integers', {className: 'Add', args: (x) => [x, 200], dtype: 'uint8'}, /uint8/],
    ['sums of bool', {className: 'Add', args: (x, y) => [x, y], dtype: 'bool'}, /with bool/],
    ['wide integers', {className: 'Add', args: (x) => [x, numpy(2 ** 40, 'int64')]}, /32 bits/],
    [
      'a cast to narrow integers',
      {className: 'Cast', args: (x) => [x], config: {dtype: 'uint8'}},
      /dtype: "uint8"/,
    ],
    [
      'a join without axis',
      {className: 'Concatenate', args: (x, y) => [[x, y]], config: {axis: null}},
      /axis: null/,
    ],
    ['complex numbers', {className: 'Add', args: (x) => [x, numpy([1], 'complex64')]}, /complex64/],
  ])('%s', async (_, made, words) => {
    const error = await errorOf(load(made));
    expect(error).toMatchObject({code: 'unsupported-layer', argument: 'operation'});
    expect(error.message).toMatch(/the given handler, layer `operation`/);
    expect(error.message).toMatch(words);
  });

  it.each(['Einsum', 'Erfinv', 'Average', 'Dot'])(
    '%s, which nobody knows as an operation',
    async (className) => {
      const error = await errorOf(load({className, args: (x, y) => [x, y]}));
      expect(error).toMatchObject({code: 'unknown-layer', argument: 'operation'});
      expect(error.message).toContain(className);
    },
  );
});
