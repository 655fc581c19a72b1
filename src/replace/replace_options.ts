/** The options of a replacement: how attentions are computed, and which ones. */
import * as tf from '@tensorflow/tfjs-core';
import {prepareCall} from '../ops/prepare_call.js';
import type {SageAttentionError} from '../runtime/errors.js';
import {invalidOption} from '../runtime/errors.js';
import {refuseUnknownKeys} from '../runtime/unknown_keys.js';
import {RECIPE_OPTION_NAMES, type RecipeOptions} from './model_attentions.js';
import {checkTuning, type AttentionTuning} from './tuning.js';

/**
 * The recipe options of `sageAttention` (precision, smoothQ, smoothK, smoothV, granularity, pvAccumulator, variant): what a
 * model says about its attentions (masks, scale, causality) stays the model's. Default of all: automatic.
 */
export interface ReplaceOptions extends RecipeOptions {
  /** Attentions to leave as they are, by the names of the report's rows. Default: none. */
  readonly exclude?: readonly string[] | undefined;
  /** The only attentions to replace. Default: all. */
  readonly only?: readonly string[] | undefined;
  /** Graph nodes whose outputs must stay readable, as by `model.execute(inputs, name)`. Default: none. */
  readonly protect?: readonly string[] | undefined;
  /** Recipes by attention, as `autoTune` found them; they take the place of the options above. Default: none. */
  readonly tuning?: AttentionTuning | undefined;
}

/** Options after validation. */
export interface CheckedReplaceOptions {
  readonly exclude: ReadonlySet<string>;
  readonly only: ReadonlySet<string> | null;
  readonly protect: ReadonlySet<string>;
  recipeOf(name: string): RecipeOptions;
}

const NAME_LISTS = ['exclude', 'only', 'protect'] as const;

const KNOWN: ReadonlySet<string> = new Set([...RECIPE_OPTION_NAMES, ...NAME_LISTS, 'tuning']);

/**
 * @param operation Opens every message.
 * @throws SageAttentionError for unknown keys, wrong values, and recipes that do not exist.
 */
export function checkReplaceOptions(
  operation: string,
  options: ReplaceOptions = {},
): CheckedReplaceOptions {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw invalid(operation, 'options', options, `an object such as {precision: 'auto'}`);
  }
  refuseUnknownKeys(operation, options, KNOWN);
  for (const name of NAME_LISTS) {
    const list: unknown = options[name];
    if (list === undefined) continue;
    if (!Array.isArray(list) || !list.every((entry) => typeof entry === 'string')) {
      throw invalid(operation, name, list, 'an array of node names');
    }
  }
  const recipe = recipePart(options);
  checkRecipe(operation, recipe);
  const tuning = options.tuning === undefined ? null : checkTuning(operation, options.tuning);
  return {
    exclude: new Set(options.exclude ?? []),
    only: options.only === undefined ? null : new Set(options.only),
    protect: new Set(options.protect ?? []),
    recipeOf: (name) => tuning?.sites[name] ?? recipe,
  };
}

/** The recipe options alone, without undefined ones. */
export function recipePart(options: RecipeOptions): RecipeOptions {
  const chosen = RECIPE_OPTION_NAMES.flatMap((name) =>
    options[name] === undefined ? [] : [[name, options[name]] as const],
  );
  return Object.fromEntries(chosen) as RecipeOptions;
}

/** Refuses what `sageAttention` would refuse, before a model is touched. */
export function checkRecipe(operation: string, recipe: RecipeOptions): void {
  if (Object.keys(recipe).length === 0) return;
  // Before a backend is up, 'auto' has no recipe yet: the op checks at the first run then.
  if (tf.getBackend() === undefined || tf.getBackend() === '') return;
  tf.tidy(() => {
    const one = tf.zeros([1, 1]);
    prepareCall(operation, one, one, one, recipe, false);
  });
}

function invalid(
  operation: string,
  argument: string,
  value: unknown,
  expected: string,
): SageAttentionError {
  return invalidOption(operation, argument, value, expected, 'docs/replacement.md');
}
