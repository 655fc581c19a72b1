/**
 * Attention layers for tfjs-layers, and layers models that run on sageAttention:
 * `import {loadLayersModel, multiHeadAttention} from 'tfjs-sage-attention/layers'`. Needs `@tensorflow/tfjs-layers`,
 * which `@tensorflow/tfjs` includes.
 */
import './index.js';
import {AdditiveAttention, type AdditiveAttentionArgs} from './layers/additive_attention.js';
import {Attention, type AttentionArgs} from './layers/attention.js';
import {GroupQueryAttention, type GroupQueryAttentionArgs} from './layers/group_query_attention.js';
import {MultiHeadAttention, type MultiHeadAttentionArgs} from './layers/multi_head_attention.js';

/** `new MultiHeadAttention(args)`, as the functions of `tf.layers` do. */
export function multiHeadAttention(args: MultiHeadAttentionArgs): MultiHeadAttention {
  return new MultiHeadAttention(args);
}

/** `new GroupQueryAttention(args)`, as the functions of `tf.layers` do. */
export function groupQueryAttention(args: GroupQueryAttentionArgs): GroupQueryAttention {
  return new GroupQueryAttention(args);
}

/** `new Attention(args)`, as the functions of `tf.layers` do. */
export function attention(args: AttentionArgs = {}): Attention {
  return new Attention(args);
}

/** `new AdditiveAttention(args)`, as the functions of `tf.layers` do. */
export function additiveAttention(args: AdditiveAttentionArgs = {}): AdditiveAttention {
  return new AdditiveAttention(args);
}

export {AdditiveAttention, Attention, GroupQueryAttention, MultiHeadAttention};
export type {AdditiveAttentionArgs, AttentionArgs, GroupQueryAttentionArgs, MultiHeadAttentionArgs};
export type {AttentionLayerArgs} from './layers/attention_layer.js';
export type {AttentionCallKwargs, CallArguments} from './layers/call_arguments.js';
export {registerAttentionLayers} from './layers/register_layers.js';
export {
  loadLayersModel,
  patchLayersModel,
  type LayersInputs,
  type LoadLayersModelOptions,
} from './replace/layers_model.js';
export type {ReplaceOptions} from './replace/replace_options.js';
export {
  getReplacementReport,
  type ReplacementReport,
  type ReplacementRow,
} from './replace/report.js';
export {
  compareModel,
  type AttentionComparison,
  type ModelComparison,
  type OutputComparison,
} from './replace/compare_model.js';
export {autoTune, type AutoTuneOptions, type AutoTuneResult} from './replace/auto_tune.js';
export type {AttentionTuning} from './replace/tuning.js';
export type {RecipeOptions} from './replace/model_attentions.js';
