/** The `sage` option of a layer: how its attention is computed, never what. */
import {checkOptions} from '../ops/options.js';
import {GRANULARITIES, PRECISIONS, PV_ACCUMULATORS, VARIANTS} from '../numerics/recipes.js';
import {RECIPE_OPTION_NAMES, type RecipeOptions} from '../replace/model_attentions.js';
import {describeValue, SageAttentionError} from '../runtime/errors.js';
import {refuseUnknownKeys} from '../runtime/unknown_keys.js';

const KNOWN: ReadonlySet<string> = new Set(RECIPE_OPTION_NAMES);

const NAMES: readonly string[] = [
  'auto',
  ...PRECISIONS,
  ...GRANULARITIES,
  ...PV_ACCUMULATORS,
  ...VARIANTS,
];

/** Saving and loading a layers model respells every string of its configuration; this reads either spelling. */
const BY_PLAIN_NAME = new Map(NAMES.map((name) => [plain(name), name]));

function plain(name: string): string {
  return name.replaceAll('_', '').toLowerCase();
}

/** The recipe options of `given`, checked; a mask, a scale and the like belong to the layer and are refused. */
export function checkRecipeOptions(operation: string, given: unknown): RecipeOptions {
  if (given == null) return {};
  if (typeof given !== 'object' || Array.isArray(given)) {
    throw new SageAttentionError({
      code: 'invalid-option',
      argument: 'sage',
      message: `${operation}: \`sage\` is ${describeValue(given)}, expected an object such as {precision: 'exact'}.`,
      hint: 'docs/layers.md lists its fields.',
    });
  }
  refuseUnknownKeys(operation, given, KNOWN);
  const options = Object.fromEntries(
    Object.entries(given)
      .filter(([, value]) => value != null)
      .map(([name, value]) => [
        name,
        typeof value === 'string' ? (BY_PLAIN_NAME.get(plain(value)) ?? value) : value,
      ]),
  ) as RecipeOptions;
  checkOptions(operation, options);
  return options;
}
