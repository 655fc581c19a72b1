/** The composition of tfjs ops where it needs several blocks of queries, against an engine on buffers. */
import * as tf from '@tensorflow/tfjs-core';
import {compareArrays} from '../../src/accuracy/metrics';
import {queryBlocks} from '../../src/engines/composition/score_blocks';
import {configureSageAttention, sageAttention, type SageAttentionOptions} from '../../src/index';
import {prepareCall} from '../../src/ops/prepare_call';
import {Random} from '../cases';
import {useBackend} from '../kernels/backends';

const HEADS = 8;
const TOKENS = 520;
const DIM = 8;

type Options = Omit<SageAttentionOptions, 'returnLse' | 'mask'>;

describe.each<[string, Options, number[] | null]>([
  ['all keys', {}, null],
  ['causal', {isCausal: true}, null],
  ['a window', {windowSize: [50, 20]}, null],
  ['a window, causal', {windowSize: [50, 0], isCausal: 'bottom_right'}, null],
  ['a mask per query and key', {}, [TOKENS, TOKENS]],
  ['a mask per head and key, causal', {isCausal: true}, [HEADS, 1, TOKENS]],
  ['a mask per query, NHD', {layout: 'NHD'}, [1, TOKENS, 1]],
])('%s', (_, options, maskShape) => {
  beforeAll(() => useBackend('wasm'));

  it('is what an engine computes, forward and backward', () => {
    const random = new Random(9);
    const normal = (shape: number[]) =>
      tf.tensor(
        Float32Array.from({length: shape.reduce((a, b) => a * b, 1)}, () => random.normal()),
        shape,
      );
    const shape = (heads: number) =>
      options.layout === 'NHD' ? [TOKENS, heads, DIM] : [heads, TOKENS, DIM];
    const inputs = [normal(shape(HEADS)), normal(shape(2)), normal(shape(2))];
    if (maskShape !== null) inputs.push(normal(maskShape));
    const weights = normal(shape(HEADS));
    const attend = (x: tf.Tensor[]) =>
      sageAttention(x[0]!, x[1]!, x[2]!, {
        ...options,
        mask: x[3],
        precision: 'exact',
        returnLse: true,
      });
    const {problem} = prepareCall('test', inputs[0], inputs[1], inputs[2], options, false);
    expect(queryBlocks(problem).length).toBeGreaterThan(1);

    const results = (['auto', 'composition'] as const).map((engine) => {
      const before = configureSageAttention({engine});
      const outputs = attend(inputs);
      const gradients = tf.grads((...x: tf.Tensor[]) => {
        const [o, lse] = attend(x);
        return tf.add(tf.sum(tf.mul(o, weights)), tf.sum(lse)) as tf.Scalar;
      })(inputs);
      configureSageAttention(before);
      return [...outputs, ...gradients];
    });
    const [expected, actual] = results as [tf.Tensor[], tf.Tensor[]];
    expect(actual).toHaveLength(expected.length);
    for (const [i, tensor] of actual.entries()) {
      expect(tensor.shape).toEqual(expected[i]?.shape);
      const {relativeL1, maxAbs} = compareArrays(tensor.dataSync(), expected[i]!.dataSync());
      // A mask per query has no gradient but rounding errors: a constant along the keys changes nothing.
      expect(maxAbs < 2e-4 ? Math.min(relativeL1, 1e-6) : relativeL1).toBeLessThan(1e-5);
    }
    tf.dispose([inputs, weights, expected, actual]);
  });
});
