/** patchLayersModel on the real layers of tfjs' nlp folder, on user layers with the same methods, and on own layers. */
import * as tf from '@tensorflow/tfjs';
import {compareArrays} from '../../src/accuracy/metrics';
import {getReplacementReport, multiHeadAttention, patchLayersModel} from '../../src/layers';
import type {ReplaceOptions} from '../../src/layers';
import {getModelAttentions} from '../../src/replace/model_attentions';
import {useBackend} from '../kernels/backends';
import {modelOf, nlpClasses, type NlpLayer} from './tfjs_nlp';

const exact = {precision: 'exact'} as const;
const {MultiHeadAttention, CachedMultiHeadAttention} = nlpClasses();

function patch(layers: unknown[], options: ReplaceOptions = exact): tf.LayersModel {
  return patchLayersModel(modelOf(...layers) as unknown as tf.LayersModel, options);
}

const rowsOf = (model: tf.LayersModel) => getReplacementReport(model)?.rows ?? [];

const random = (shape: number[], seed: number): tf.Tensor =>
  tf.randomNormal(shape, 0, 1, 'float32', seed);

function expectClose(actual: tf.Tensor, expected: tf.Tensor, tolerance = 1e-5): void {
  expect(actual.shape).toEqual(expected.shape);
  expect(compareArrays(actual.dataSync(), expected.dataSync()).relativeL1).toBeLessThan(tolerance);
}

let sageRuns = 0;

/** How often sageAttention's kernel runs within `work`. */
function countKernels(work: () => void): number {
  const before = sageRuns;
  work();
  return sageRuns - before;
}

beforeAll(async () => {
  await useBackend('cpu');
  const kernel = tf.getKernel('SageAttention', 'cpu');
  tf.unregisterKernel('SageAttention', 'cpu');
  tf.registerKernel({
    ...kernel,
    kernelFunc: (call) => {
      sageRuns += 1;
      return kernel.kernelFunc(call);
    },
  });
});

describe('MultiHeadAttention of tfjs', () => {
  const keep = (): tf.Tensor => tf.greater(tf.randomUniform([2, 20, 33], 0, 1, 'float32', 3), 0.3);

  it.each<[string, () => Record<string, unknown>]>([
    ['nothing', () => ({})],
    ['a mask', () => ({attentionMask: keep()})],
    ['a causal mask', () => ({useCausalMask: true})],
    ['both', () => ({attentionMask: keep(), useCausalMask: true})],
    ['a key of its own', () => ({key: random([2, 33, 12], 4)})],
    ['rows that see nothing', () => ({attentionMask: tf.zeros([2, 20, 33], 'bool')})],
  ])('with %s gives what it gave', (_, arguments_) => {
    const query = random([2, 20, 12], 1);
    const kwargs = {value: random([2, 33, 12], 2), ...arguments_()};
    const layer = new MultiHeadAttention({numHeads: 3, keyDim: 5, name: 'mha'});
    const before = layer.call(query, kwargs);
    const [, scores] = layer.callAndReturnAttentionScores(query, kwargs);
    const model = patch([layer]);
    let after: tf.Tensor | null = null;
    expect(countKernels(() => (after = layer.call(query, kwargs)))).toBe(1);
    expectClose(after as unknown as tf.Tensor, before);
    const [, still] = layer.callAndReturnAttentionScores(query, kwargs);
    expectClose(still, scores, 1e-9);
    expect(rowsOf(model)).toEqual([
      {node: 'mha', pattern: 'attention layer', replaced: true, reason: null},
    ]);
  });

  it('runs by its own code where training drops scores, and over two axes', () => {
    const dropping = new MultiHeadAttention({numHeads: 2, keyDim: 4, dropout: 0.5});
    const wide = new MultiHeadAttention({numHeads: 2, keyDim: 4, attentionAxes: [1, 2]});
    const grid = random([1, 3, 4, 8], 5);
    const before = wide.call(grid, {value: grid});
    patch([dropping, wide]);
    const x = random([1, 6, 8], 6);
    expect(countKernels(() => dropping.call(x, {value: x, training: true}))).toBe(0);
    expect(countKernels(() => dropping.call(x, {value: x}))).toBe(1);
    expectClose(wide.call(grid, {value: grid}), before, 1e-9);
  });

  it('keeps no tensors, and a second patch gives new options', () => {
    const layer = new MultiHeadAttention({numHeads: 2, keyDim: 8});
    const x = random([1, 24, 16], 7);
    patch([layer]);
    const exactly = layer.call(x, {value: x});
    const before = tf.memory().numTensors;
    for (let run = 0; run < 8; run += 1) tf.dispose(layer.call(x, {value: x}));
    expect(tf.memory().numTensors).toBe(before);
    patch([layer], {precision: 'int4_fp8'});
    const lossy = layer.call(x, {value: x});
    const {relativeL1} = compareArrays(lossy.dataSync(), exactly.dataSync());
    expect(relativeL1).toBeGreaterThan(1e-3);
    patch([layer], {exclude: [layer.name]});
    expect(countKernels(() => layer.call(x, {value: x}))).toBe(0);
  });
});

describe('CachedMultiHeadAttention of tfjs', () => {
  it('gives what it gave: without cache, filling one, and reading one', () => {
    const layer = new CachedMultiHeadAttention({numHeads: 2, keyDim: 4, name: 'cached'});
    const x = random([2, 6, 8], 8);
    const token = random([2, 1, 8], 9);
    const cache = random([2, 2, 6, 2, 4], 10);
    const mask = tf
      .greaterEqual(tf.range(0, 6).expandDims(1), tf.range(0, 6).expandDims(0))
      .expandDims(0);
    const calls: [tf.Tensor, Record<string, unknown>][] = [
      [x, {value: x}],
      [x, {value: x, attentionMask: mask, cache, cacheUpdateIndex: 0}],
      [token, {value: token, cache, cacheUpdateIndex: 3}],
      [token, {value: token, cache}],
    ];
    const before = calls.map(([query, kwargs]) => layer.callAndReturnCache(query, kwargs));
    const model = patch([layer]);
    calls.forEach(([query, kwargs], i) => {
      let after: [tf.Tensor, tf.Tensor | null] | null = null;
      expect(countKernels(() => (after = layer.callAndReturnCache(query, kwargs)))).toBe(1);
      const [output, kept] = after as unknown as [tf.Tensor, tf.Tensor | null];
      expectClose(output, before[i]?.[0] as tf.Tensor);
      const wanted = before[i]?.[1];
      if (wanted == null) expect(kept == null).toBe(true);
      else expectClose(kept as tf.Tensor, wanted, 1e-9);
    });
    expect(rowsOf(model)).toMatchObject([
      {node: 'cached', pattern: expect.stringMatching(/cache/), replaced: true},
    ]);
  });
});

describe('layers of users with the same methods', () => {
  class Own extends MultiHeadAttention {}

  it('inside a layer that a user built of layers', () => {
    const inner = new Own({numHeads: 2, keyDim: 4, name: 'inner'});
    const block = {
      name: 'block',
      apply: () => null,
      call: () => null,
      computeOutputShape: () => null,
      attention: inner,
    };
    expect(rowsOf(patch([block])).map(({node}) => node)).toEqual(['block/inner']);
  });

  it('whose call() reads the scores stay as they are, and the report says so', () => {
    class GivesScores extends MultiHeadAttention {
      override call(query: tf.Tensor, kwargs: Record<string, unknown>): tf.Tensor {
        return this.callAndReturnAttentionScores(query, kwargs) as unknown as tf.Tensor;
      }
    }
    class UsesScores extends MultiHeadAttention {
      override call(query: tf.Tensor, kwargs: Record<string, unknown>): tf.Tensor {
        const [output, scores] = this.callAndReturnAttentionScores(query, kwargs);
        return tf.mul(output, tf.mean(scores));
      }
    }
    const x = random([1, 6, 8], 11);
    for (const cls of [GivesScores, UsesScores]) {
      const layer = new cls({numHeads: 2, keyDim: 4});
      const before = [layer.call(x, {value: x})].flat();
      const model = patch([layer]);
      const after = [layer.call(x, {value: x})].flat();
      after.forEach((tensor, i) => {
        expectClose(tensor, before[i] as tf.Tensor, 1e-9);
      });
      expect(rowsOf(model)).toMatchObject([
        {replaced: false, reason: expect.stringMatching(/scores/)},
      ]);
    }
  });

  it('whose computeAttention is another formula stay as they are', () => {
    class SoftCap extends MultiHeadAttention {
      override computeAttention(
        ...[query, ...rest]: [tf.Tensor, ...unknown[]]
      ): [tf.Tensor, tf.Tensor] {
        return super.computeAttention(tf.tanh(query), ...rest);
      }
    }
    const layer = new SoftCap({numHeads: 2, keyDim: 4});
    const x = random([1, 6, 8], 12);
    const before = layer.call(x, {value: x});
    const model = patch([layer]);
    expectClose(layer.call(x, {value: x}), before, 1e-9);
    expect(rowsOf(model)).toMatchObject([
      {replaced: false, reason: expect.stringMatching(/softmax/)},
    ]);
  });

  it('called wrongly fail as before, and stay replaced', () => {
    const layer = new Own({numHeads: 2, keyDim: 4});
    const x = random([1, 6, 8], 13);
    layer.call(x, {value: x});
    const model = patch([layer]);
    expect(() => layer.call(x, {value: random([1, 6, 9], 14)})).toThrow();
    expect(rowsOf(model)).toMatchObject([{replaced: true}]);
  });
});

describe('own layers in a model that tfjs made', () => {
  it('get options, rows and masks', async () => {
    const ids = tf.input({shape: [5], dtype: 'int32'});
    const embedded = tf.layers.embedding({inputDim: 9, outputDim: 8, maskZero: true}).apply(ids);
    const layer = multiHeadAttention({numHeads: 2, keyDim: 4, name: 'attend'});
    const block = tf.input({shape: [5, 8]});
    const nested = tf.model({
      inputs: block,
      outputs: layer.apply(block) as tf.SymbolicTensor,
      name: 'part',
    });
    const model = tf.model({
      inputs: ids,
      outputs: nested.apply(embedded as tf.SymbolicTensor) as tf.SymbolicTensor,
    });
    expect(patchLayersModel(model, exact)).toBe(model);
    expect(rowsOf(model)).toMatchObject([
      {node: 'part/attend', pattern: 'MultiHeadAttention', replaced: true},
    ]);
    const a = model.predict(tf.tensor2d([[3, 4, 0, 0, 0]], undefined, 'int32')) as tf.Tensor3D;
    const short = layer.apply(
      tf.layers
        .embedding({
          inputDim: 9,
          outputDim: 8,
          weights: [model.layers[1]?.getWeights()[0] as tf.Tensor],
        })
        .apply(tf.tensor2d([[3, 4]], undefined, 'int32')) as tf.Tensor,
    ) as tf.Tensor3D;
    expectClose(a.slice([0, 0], [1, 2]), short);
    const attentions = getModelAttentions(model);
    expect(attentions?.sites).toMatchObject([{name: 'part/attend', options: exact}]);
    const [original] =
      (await attentions?.runOriginal?.(tf.tensor2d([[3, 4, 0, 0, 0]], undefined, 'int32'))) ?? [];
    expectClose(original as tf.Tensor, a);
  });

  it('misspelt options are refused', () => {
    expect(() => patch([], {exclud: []} as ReplaceOptions)).toThrow(/Did you mean `exclude`/);
  });
});

export type {NlpLayer};
