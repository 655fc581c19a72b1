/** Recipes by attention, as `autoTune` finds them: plain JSON that the loaders read. */
import {describeValue, SageAttentionError} from '../runtime/errors.js';
import {RECIPE_OPTION_NAMES, type RecipeOptions} from './model_attentions.js';

/** `JSON.stringify` it, keep it beside the model, and pass it as `tuning`. */
export interface AttentionTuning {
  readonly schema: 1;
  /** Options by the name of the attention; attentions that are not named take the other options of the replacement. */
  readonly sites: Readonly<Record<string, RecipeOptions>>;
}

/** @throws SageAttentionError `invalid-option` when it is no tuning. */
export function checkTuning(operation: string, value: unknown): AttentionTuning {
  const {schema, sites} = (value ?? {}) as {schema?: unknown; sites?: unknown};
  const known: ReadonlySet<string> = new Set(RECIPE_OPTION_NAMES);
  const isRecipe = (entry: unknown) =>
    typeof entry === 'object' &&
    entry !== null &&
    Object.keys(entry).every((key) => known.has(key));
  if (
    schema !== 1 ||
    typeof sites !== 'object' ||
    sites === null ||
    !Object.values(sites).every(isRecipe)
  ) {
    throw new SageAttentionError({
      code: 'invalid-option',
      argument: 'tuning',
      message: `${operation}: \`tuning\` is ${describeValue(value)}, expected {schema: 1, sites: {name: recipe options}}.`,
      hint: 'Pass what autoTune returned, read back by JSON.parse.',
    });
  }
  return value as AttentionTuning;
}
