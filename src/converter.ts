/**
 * `tfjs-sage-attention/converter`: attention in tfjs graph models. Importing it is all that a rewritten model needs to be
 * loaded by tfjs itself.
 */
import './index.js';
import {registerGraphOps} from './replace/graph_op.js';

registerGraphOps();

export {
  accelerateGraphModel,
  loadGraphModel,
  type LoadGraphModelOptions,
} from './replace/graph_model.js';
export type {GraphInputs} from './replace/run_graph_model.js';
export type {ReplaceOptions} from './replace/replace_options.js';
export type {RecipeOptions} from './replace/model_attentions.js';
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
