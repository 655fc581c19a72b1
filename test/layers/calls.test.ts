/** How the layers are called: alone, in models, by list and by keyword, with masks that follow tensors; and wrongly. */
import * as tf from '@tensorflow/tfjs';
import {compareArrays} from '../../src/accuracy/metrics';
import {
  additiveAttention,
  attention,
  groupQueryAttention,
  multiHeadAttention,
  registerAttentionLayers,
} from '../../src/layers';
import {SageAttentionError} from '../../src/runtime/errors';
import {useBackend} from '../kernels/backends';
import {plainLayer, weightsOf} from './plain_layer';

const exact = {precision: 'exact'} as const;
const random = (shape: number[], seed: number): tf.Tensor =>
  tf.randomNormal(shape, 0, 1, 'float32', seed);

function expectClose(actual: tf.Tensor, expected: tf.Tensor, tolerance = 1e-5): void {
  expect(actual.shape).toEqual(expected.shape);
  expect(compareArrays(actual.dataSync(), expected.dataSync()).relativeL1).toBeLessThan(tolerance);
}

beforeAll(() => useBackend('cpu'));

describe('in a model', () => {
  it('in tf.sequential: attention within the one input', () => {
    const layer = groupQueryAttention({
      headDim: 4,
      numQueryHeads: 4,
      numKeyValueHeads: 2,
      inputShape: [6, 8],
      sage: exact,
    });
    const model = tf.sequential({layers: [layer, tf.layers.dense({units: 3})]});
    expect(model.outputShape).toEqual([null, 6, 3]);
    const x = random([2, 6, 8], 1);
    const inner = tf.model({inputs: model.inputs, outputs: layer.output as tf.SymbolicTensor});
    expectClose(inner.predict(x) as tf.Tensor, plainLayer(weightsOf(layer), {query: x})[0]);
  });

  it('remembers flags and keywords of its symbolic call, and frees no residual too early', () => {
    const query = tf.input({shape: [5, 8]});
    const mask = tf.input({shape: [5, 5], dtype: 'bool'});
    const layer = multiHeadAttention({numHeads: 2, keyDim: 4, sage: exact});
    const [y, scores] = layer.apply(query, {
      value: query,
      attentionMask: mask,
      useCausalMask: true,
      returnAttentionScores: true,
    }) as tf.SymbolicTensor[];
    expect(scores?.shape).toEqual([null, 2, 5, 5]);
    const sum = tf.layers.add().apply([query, y as tf.SymbolicTensor]) as tf.SymbolicTensor;
    const model = tf.model({inputs: [query, mask], outputs: [sum, scores as tf.SymbolicTensor]});
    const x = random([2, 5, 8], 2);
    const keep = tf
      .greater(tf.randomUniform([2, 5, 5], 0, 1, 'float32', 3), 0.3)
      .logicalOr(tf.eye(5).toBool().expandDims(0));
    const [total, shown] = model.predict([x, keep]) as tf.Tensor[];
    const triangle = tf.greaterEqual(tf.range(0, 5).expandDims(1), tf.range(0, 5).expandDims(0));
    const [wanted, wantedScores] = plainLayer(weightsOf(layer), {
      query: x,
      mask: keep
        .logicalAnd(triangle.expandDims(0))
        .expandDims(1)
        .logicalAnd(tf.ones([2, 2, 5, 5], 'bool')),
    });
    expectClose(total as tf.Tensor, tf.add(wanted, x));
    expectClose(shown as tf.Tensor, wantedScores);
  });

  it('a shape of unknown length, and three batches of it', () => {
    const x = tf.input({shape: [null, 8]});
    const model = tf.model({
      inputs: x,
      outputs: multiHeadAttention({numHeads: 2, keyDim: 4, outputShape: [3, 2], sage: exact}).apply(
        [x, x],
      ) as tf.SymbolicTensor,
    });
    for (const tokens of [1, 17, 30]) {
      expect((model.predict(random([2, tokens, 8], 4)) as tf.Tensor).shape).toEqual([
        2,
        tokens,
        3,
        2,
      ]);
    }
  });

  it('masks of two sources reach query and value, by the rules of each', () => {
    const [a, b] = [tf.input({shape: [3], dtype: 'int32'}), tf.input({shape: [4], dtype: 'int32'})];
    const embed = tf.layers.embedding({inputDim: 9, outputDim: 8, maskZero: true});
    const layer = attention({sage: exact});
    const y = layer.apply([
      embed.apply(a) as tf.SymbolicTensor,
      embed.apply(b) as tf.SymbolicTensor,
    ]);
    const model = tf.model({inputs: [a, b], outputs: y as tf.SymbolicTensor});
    const ids = (values: number[]) => tf.tensor2d([values], undefined, 'int32');
    const output = model.predict([ids([1, 2, 0]), ids([3, 0, 4, 0])]) as tf.Tensor3D;
    const [table] = embed.getWeights();
    const at = (values: number[]) => tf.gather(table as tf.Tensor2D, tf.tensor1d(values, 'int32'));
    const [q, v] = [at([1, 2]), at([3, 4])];
    const wanted = tf.matMul(tf.softmax(tf.matMul(q, v, false, true)), v);
    expectClose(output.slice([0, 0, 0], [1, 2, 8]).squeeze([0]), wanted);
    expect(output.slice([0, 2, 0], [1, 1, 8]).abs().max().dataSync()[0]).toBe(0);
  });

  it('a recurrent layer behind sees the mask, and one that has none sees none', () => {
    const ids = tf.input({shape: [4], dtype: 'int32'});
    const x = tf.layers
      .embedding({inputDim: 9, outputDim: 8, maskZero: true})
      .apply(ids) as tf.SymbolicTensor;
    const y = groupQueryAttention({
      headDim: 4,
      numQueryHeads: 2,
      numKeyValueHeads: 1,
      sage: exact,
    }).apply(x);
    const z = tf.layers.simpleRNN({units: 3}).apply(y as tf.SymbolicTensor) as tf.SymbolicTensor;
    const model = tf.model({inputs: ids, outputs: z});
    const long = model.predict(tf.tensor2d([[3, 5, 0, 0]], undefined, 'int32')) as tf.Tensor;
    const other = model.predict(
      tf.tensor2d(
        [
          [3, 5, 0, 0],
          [3, 5, 0, 7],
        ],
        undefined,
        'int32',
      ),
    ) as tf.Tensor2D;
    expectClose(other.slice([0, 0], [1, 3]), long, 1e-6);
    const rnn = model.layers.at(-1) as tf.layers.Layer;
    const attended = tf
      .model({inputs: ids, outputs: y as tf.SymbolicTensor})
      .predict(tf.tensor2d([[3, 5, 0, 0]], undefined, 'int32')) as tf.Tensor3D;
    expectClose(rnn.apply(attended.slice([0, 0, 0], [1, 2, 8])) as tf.Tensor, long);
  });
});

describe('attention without projections', () => {
  it('scales of its own, causality, additive scores, and blocks of them', () => {
    const [query, value] = [random([2, 70, 16], 5), random([2, 90, 16], 6)];
    const dot = attention({sage: exact}).apply([query, value]) as tf.Tensor;
    expectClose(dot, tf.matMul(tf.softmax(tf.matMul(query, value, false, true)), value));
    const layer = additiveAttention();
    const [output, scores] = layer.apply([query, value], {
      returnAttentionScores: true,
      useCausalMask: true,
    }) as tf.Tensor[];
    const [scale] = layer.getWeights();
    const logits = tf.sum(
      tf.mul(tf.tanh(tf.add(query.expandDims(2), value.expandDims(1))), scale as tf.Tensor),
      -1,
    );
    const triangle = tf.greaterEqual(tf.range(0, 70).expandDims(1), tf.range(0, 90).expandDims(0));
    const wanted = tf.softmax(tf.where(triangle.expandDims(0), logits, -1e9));
    expectClose(scores as tf.Tensor, wanted);
    expectClose(output as tf.Tensor, tf.matMul(wanted, value));
  });

  it('inputs of rank 2 and 4', () => {
    const layer = attention({sage: exact});
    const x = random([2, 3, 5, 8], 7);
    const y = layer.apply([x, x]) as tf.Tensor;
    const one = (layer.apply([x.reshape([6, 5, 8]), x.reshape([6, 5, 8])]) as tf.Tensor).reshape([
      2, 3, 5, 8,
    ]);
    expectClose(y, one, 1e-9);
    expectClose(
      layer.apply([x.reshape([30, 8]), x.reshape([30, 8])]) as tf.Tensor,
      tf.matMul(
        tf.softmax(tf.matMul(x.reshape([30, 8]), x.reshape([30, 8]), false, true)),
        x.reshape([30, 8]),
      ),
    );
  });
});

describe('configurations', () => {
  it('survive getConfig and fromConfig', () => {
    registerAttentionLayers();
    const made = [
      multiHeadAttention({
        numHeads: 2,
        keyDim: 4,
        valueDim: 3,
        outputShape: [2, 3],
        attentionAxes: [1],
        dropout: 0.25,
        seed: 4,
        useBias: false,
        useGate: true,
        slidingWindow: 5,
        flashAttention: true,
        kernelInitializer: 'he_normal',
        kernelRegularizer: tf.regularizers.l2({l2: 0.5}),
        biasConstraint: 'nonNeg',
        sage: {precision: 'int8_fp8', granularity: 'per_token'},
      }),
      groupQueryAttention({headDim: 4, numQueryHeads: 4, numKeyValueHeads: 2}),
      attention({useScale: true, scoreMode: 'concat', causal: true}),
      additiveAttention({useScale: false}),
    ];
    for (const layer of made) {
      const config = layer.getConfig();
      const [cls, fromConfig] = tf.serialization.SerializationMap.getMap().classNameMap[
        layer.getClassName()
      ] as unknown as [
        unknown,
        (cls: unknown, config: tf.serialization.ConfigDict) => typeof layer,
      ];
      expect(fromConfig(cls, structuredClone(config)).getConfig()).toEqual(config);
    }
    expect(made[0]?.getConfig()).toMatchObject({
      numHeads: 2,
      kernelInitializer: {className: 'VarianceScaling'},
    });
  });

  it('regularizers and constraints act on the weights', () => {
    const layer = multiHeadAttention({
      numHeads: 1,
      keyDim: 2,
      kernelRegularizer: 'l1l2',
      kernelConstraint: tf.constraints.nonNeg(),
      sage: exact,
    });
    layer.apply(random([1, 2, 4], 8));
    expect(layer.calculateLosses()).toHaveLength(4);
    expect(layer.weights.filter(({constraint}) => constraint != null)).toHaveLength(4);
  });
});

describe('misuse', () => {
  const x = () => tf.zeros([1, 3, 8]);
  const layer = () => multiHeadAttention({numHeads: 2, keyDim: 4, name: 'mha'});
  it.each<[string, () => unknown, string, string]>([
    ['numHeads', () => multiHeadAttention({numHeads: 0, keyDim: 4}), 'invalid-option', 'numHeads'],
    ['keyDim', () => multiHeadAttention({numHeads: 1, keyDim: 1.5}), 'invalid-option', 'keyDim'],
    [
      'dropout',
      () => multiHeadAttention({numHeads: 1, keyDim: 1, dropout: 1}),
      'invalid-option',
      'dropout',
    ],
    [
      'groups',
      () => groupQueryAttention({headDim: 4, numQueryHeads: 3, numKeyValueHeads: 2}),
      'invalid-option',
      'numKeyValueHeads',
    ],
    [
      'window',
      () =>
        groupQueryAttention({headDim: 4, numQueryHeads: 2, numKeyValueHeads: 2, slidingWindow: 0}),
      'invalid-option',
      'slidingWindow',
    ],
    [
      'initializer',
      () => multiHeadAttention({numHeads: 1, keyDim: 1, kernelInitializer: 'mine'}),
      'invalid-option',
      'kernelInitializer',
    ],
    ['score mode', () => attention({scoreMode: 'cosine' as 'dot'}), 'invalid-option', 'scoreMode'],
    [
      'recipe',
      () => attention({sage: {precision: 'int3' as 'fp4'}}),
      'invalid-option',
      'precision',
    ],
    [
      "an option of the op that is the layer's",
      () => attention({sage: {scale: 2} as object}),
      'unknown-option',
      'scale',
    ],
    [
      'axes',
      () => multiHeadAttention({numHeads: 1, keyDim: 1, attentionAxes: 3}).apply(x()),
      'invalid-option',
      'attentionAxes',
    ],
    ['keyword', () => layer().apply(x(), {causal: true} as object), 'unknown-option', 'causal'],
    ['twice', () => layer().apply([x(), x()], {value: x()}), 'invalid-option', 'value'],
    ['five tensors', () => layer().apply([x(), x(), x(), x(), x()]), 'invalid-option', 'inputs'],
    [
      'a mask of rank 1',
      () => layer().apply(x(), {attentionMask: tf.zeros([3])}),
      'shape-mismatch',
      'attentionMask',
    ],
    ['rank 2', () => layer().apply(tf.zeros([3, 8])), 'shape-mismatch', 'query'],
    [
      'a mask for Attention',
      () => attention().apply([x(), x()], {attentionMask: tf.zeros([1, 3, 3])}),
      'unsupported-layer',
      'attentionMask',
    ],
    [
      'causality over two axes',
      () => layer().apply(tf.zeros([1, 2, 3, 8]), {useCausalMask: true}),
      'unsupported-layer',
      'useCausalMask',
    ],
    [
      'symbolic and not',
      () => layer().apply(tf.input({shape: [3, 8]}), {value: x()}),
      'invalid-option',
      'value',
    ],
    [
      'a flag that is none',
      () => layer().apply(x(), {useCausalMask: 1 as unknown as boolean}),
      'invalid-option',
      'useCausalMask',
    ],
  ])('%s', (_, misuse, code, argument) => {
    let error: unknown = null;
    try {
      misuse();
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(SageAttentionError);
    expect(error).toMatchObject({code, argument});
  });

  it('one layer used twice in a model with other arguments', () => {
    const input = tf.input({shape: [3, 8]});
    const shared = layer();
    shared.apply(input);
    shared.apply(input);
    expect(() => shared.apply(input, {useCausalMask: true})).toThrow(/other arguments/);
  });
});
