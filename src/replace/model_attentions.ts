/**
 * A model as a list of attentions whose options can be set: what comparing and tuning need to know of a model, whatever
 * its kind. The code that replaces attentions registers one of these for each model.
 */
import type {Tensor} from '@tensorflow/tfjs-core';
import type {SageAttentionOptions} from '../ops/options.js';

/** The options that say how an attention is computed, never what: these may be changed on a replaced attention. */
export const RECIPE_OPTION_NAMES = [
  'precision',
  'smoothQ',
  'smoothK',
  'smoothV',
  'granularity',
  'pvAccumulator',
  'variant',
] as const satisfies readonly (keyof SageAttentionOptions)[];

/** How one attention is computed. */
export type RecipeOptions = Pick<SageAttentionOptions, (typeof RECIPE_OPTION_NAMES)[number]>;

/** One replaced attention of a model. */
export interface AttentionSite {
  /** Unique within the model and the same at every load: the node's or the layer's name. */
  readonly name: string;
  /** The options in force. */
  readonly options: RecipeOptions;
  /** Takes effect at the next run. */
  setOptions(options: RecipeOptions): void;
}

/**
 * Told of every attention that runs. `compute` runs the same attention again, on the same tensors, by other options;
 * it and `output` are only good during the call, so keep clones (`tf.keep(output.clone())`).
 */
export type AttentionObserver = (
  site: string,
  output: Tensor,
  compute: (options: RecipeOptions) => Tensor,
) => void;

/** A model whose attentions were replaced. */
export interface ModelWithAttentions<Inputs = unknown> {
  readonly sites: readonly AttentionSite[];
  /** Outputs in the model's order; the caller disposes them. */
  run(inputs: Inputs): Promise<Tensor[]>;
  /** The outputs as the model computed them before the replacement; null where that cannot be run. */
  readonly runOriginal: ((inputs: Inputs) => Promise<Tensor[]>) | null;
  /** Sets the one observer of this model's attentions, null for none. */
  observe(observer: AttentionObserver | null): void;
}

const models = new WeakMap<object, ModelWithAttentions>();

export function setModelAttentions<Inputs>(
  model: object,
  attentions: ModelWithAttentions<Inputs>,
): void {
  models.set(model, attentions as ModelWithAttentions);
}

/** null when no attention of this model was ever replaced. */
export function getModelAttentions(model: object): ModelWithAttentions | null {
  return models.get(model) ?? null;
}
