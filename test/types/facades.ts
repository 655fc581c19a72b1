/** The entries that give `tf.sageAttention`: facades that re-export tfjs, and the opt-in augmentation. */
import * as core from '@tensorflow/tfjs-core';
import 'tfjs-sage-attention/augment';
import * as tf from 'tfjs-sage-attention/tfjs';
import * as tfNode from 'tfjs-sage-attention/tfjs-node';
import * as tfNodeGpu from 'tfjs-sage-attention/tfjs-node-gpu';

const q = tf.randomNormal<tf.Rank.R3>([2, 5, 8]);
export const byFacade: tf.Tensor3D = tf.sageAttention(q, q, q, {layout: 'NHD'});
export const byNodeFacade: tf.Tensor = tfNode.sageAttention(q, q, q);
export const byGpuFacade: tf.Tensor = tfNodeGpu.sageAttention(q, q, q, {variant: 'paper'});
export const byAugmentation: core.Tensor = core.sageAttention(q, q, q, {isCausal: true});
export const theRestOfTfjs: tf.Tensor = tf.softmax(q);
// @ts-expect-error: misspelt option
tf.sageAttention(q, q, q, {iscausal: true});
// @ts-expect-error: misspelt option
core.sageAttention(q, q, q, {iscausal: true});
