/**
 * tfjs-sage-attention: SageAttention for TensorFlow.js. Importing it registers the kernels and gradients and adds
 * `q.sageAttention(k, v)` to tensors; `tf.sageAttention` appears where the module system allows (see install.ts).
 */
import {registerSageGradients} from './gradients/SageAttention_grad.js';
import {installEverywhere} from './install.js';
import {registerSageKernels} from './kernels/register_all.js';

registerSageKernels();
registerSageGradients();
installEverywhere();

export {sageAttention} from './ops/sage_attention.js';
export {sageAttentionAsync, type SageAttentionAsyncOptions} from './ops/sage_attention_async.js';
export {
  SageKvCache,
  type SageKvCacheAttendAsyncOptions,
  type SageKvCacheAttendOptions,
  type SageKvCacheOptions,
} from './cache/kv_cache.js';
export type {Layout, SageAttentionOptions} from './ops/options.js';
export {compareAttention, type CompareAttentionOptions} from './accuracy/compare.js';
export {compareArrays, type AccuracyMetrics} from './accuracy/metrics.js';
export {configureSageAttention, type Isa, type SageAttentionConfig} from './runtime/config.js';
export {getSageAttentionInfo, type EngineInfo, type SageAttentionInfo} from './runtime/info.js';
export type {EngineChoiceRow} from './engines/choose_engine.js';
export {releaseCudaMemory} from './engines/cuda.js';
export type {EngineName} from './engines/engine.js';
export {SAGE_ERROR_CODES, SageAttentionError, type SageErrorCode} from './runtime/errors.js';
export {install, type SageAttentionNamespace} from './install.js';
export {
  GRANULARITIES,
  PRECISIONS,
  PV_ACCUMULATORS,
  VARIANTS,
  type Granularity,
  type Precision,
  type PvAccumulator,
  type Variant,
} from './numerics/recipes.js';
