/** What `auto` means for few queries over many keys. */
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import {nativeEngine} from '../../src/engines/native.js';
import {isDecoding} from '../../src/ops/decoding.js';
import type {SageAttentionOptions} from '../../src/ops/options.js';
import {prepareCall} from '../../src/ops/prepare_call.js';
import {configureSageAttention} from '../../src/runtime/config.js';
import '../../src/kernels/register_all.js';

const sizes = {batch: 1, qHeads: 8, kvHeads: 2, qLen: 1, kvLen: 1000, qkDim: 64, vDim: 64};

test.each([
  [{}, true],
  [{qLen: 6}, true],
  [{qLen: 7}, false],
  [{qHeads: 2, qLen: 24}, true],
  [{qHeads: 2, qLen: 25}, false],
  [{qLen: 3, kvLen: 12}, true],
  [{qLen: 3, kvLen: 11}, false],
])('%j: %s', (changes, expected) => {
  expect(isDecoding({...sizes, ...changes})).toBe(expected);
});

describe('on the engine that has it', () => {
  const precisionOf = (qLen: number, options?: SageAttentionOptions) => {
    const [q, k] = [tf.zeros([1, 2, qLen, 8]), tf.zeros([1, 2, 200, 8])];
    return prepareCall('test', q, k, k, options, false).problem.recipe.precision;
  };
  const usual = () => {
    const {engine} = nativeEngine();
    return engine === null ? 'exact' : engine.preferred;
  };

  beforeAll(() => tf.setBackend('cpu'));

  test('decoding is exact unless a recipe is named, configured or shaped', () => {
    expect(precisionOf(1)).toBe('exact');
    expect(precisionOf(30)).toBe(usual());
    expect(precisionOf(1, {precision: 'int8'})).toBe('int8');
    expect(precisionOf(1, {smoothV: true})).toBe(usual());
    const before = configureSageAttention({precision: 'int16'});
    expect(precisionOf(1)).toBe('int16');
    configureSageAttention(before);
  });
});
