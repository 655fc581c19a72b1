/** `tfjs-sage-attention/jest`: the matcher on both kinds of jest's `expect`, and the suite. */
/// <reference types="jest" />
import {expect as imported} from '@jest/globals';
import type * as tf from '@tensorflow/tfjs-core';
import {sageAttention} from 'tfjs-sage-attention';
import {describeAttentionAccuracy} from 'tfjs-sage-attention/jest';

declare const actual: tf.Tensor;
declare const expected: Float32Array;

imported(actual).toMatchAttention(expected, {cosine: 0.99, relativeL1: 0.02});
imported(expected).toMatchAttention(actual);
imported(actual).not.toMatchAttention(expected, {relativeL1: 0.02});
expect(actual).toMatchAttention(expected, {cosine: 0.99, relativeL1: 0.02});
expect(actual).not.toMatchAttention(expected, {cosine: 0.99});
// @ts-expect-error: something to compare with
imported(actual).toMatchAttention();
// @ts-expect-error: something to compare with
expect(actual).toMatchAttention();
// @ts-expect-error: not a tolerance
imported(actual).toMatchAttention(expected, {cosin: 0.99});
// @ts-expect-error: not a tolerance
expect(actual).toMatchAttention(expected, {psnr: 40});

describeAttentionAccuracy('int8', {
  attention: (q, k, v, {isCausal, scale}) =>
    sageAttention(q, k, v, {isCausal, scale, precision: 'int8'}),
  tolerances: {relativeL1: 0.02},
});
// @ts-expect-error: an attention to test
describeAttentionAccuracy('nothing', {tolerances: {relativeL1: 0.02}});
