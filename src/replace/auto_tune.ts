/** Picks a recipe for each attention of a model, so that what the output loses stays within a budget. */
import {PRECISIONS, type Precision} from '../numerics/recipes.js';
import {describeValue, listChoices, SageAttentionError} from '../runtime/errors.js';
import {refuseUnknownKeys} from '../runtime/unknown_keys.js';
import {
  compareOutputs,
  referenceOutputs,
  requireAttentions,
  setAll,
  takeValues,
  type OutputComparison,
  type OutputValues,
} from './compare_model.js';
import type {AttentionSite, ModelWithAttentions} from './model_attentions.js';
import type {AttentionTuning} from './tuning.js';

export interface AutoTuneOptions {
  /** Largest relative L1 of the outputs against those of the model before the replacement. Default 0.01. */
  readonly budget?: number | undefined;
  /** Recipes to choose from, the most wanted (fastest) first; `exact` is always the last. Default: by their loss. */
  readonly precisions?: readonly Precision[] | undefined;
}

export interface AutoTuneResult {
  /** What to save beside the model and pass to the loaders as `tuning`. */
  readonly tuning: AttentionTuning;
  /** What the output loses with it. */
  readonly output: OutputComparison;
  /** Whether that is within the budget: not even `exact` attention repeats every rounding of the model before. */
  readonly withinBudget: boolean;
  /** The loss at the output when one attention alone takes the first of the recipes. */
  readonly sensitivities: readonly {readonly site: string; readonly relativeL1: number}[];
  /** How often the model ran. */
  readonly runs: number;
}

/** From the cheapest arithmetic to the most exact. */
const DEFAULT_PRECISIONS: readonly Precision[] = ['int8', 'int8_int16', 'int16'];

const DEFAULT_BUDGET = 0.01;

const OPERATION = 'autoTune';

const KNOWN: ReadonlySet<string> = new Set(['budget', 'precisions']);

/**
 * All attentions start with the first recipe; the one that costs the output most takes the next one, until the loss is
 * within the budget. A few sensitive attentions then stay at high precision, and the others are fast. The model keeps
 * the recipes that were found.
 *
 * ```js
 * const {tuning} = await autoTune(model, inputs, {budget: 0.01});
 * writeFileSync('tuning.json', JSON.stringify(tuning));
 * // Later: loadGraphModel(source, {sage: {tuning: JSON.parse(readFileSync('tuning.json', 'utf8'))}})
 * ```
 *
 * @param model A graph or layers model whose attentions were replaced.
 * @param inputs Typical ones, as of the model's `predict`. They are not disposed.
 * @throws SageAttentionError `no-attention` when nothing was replaced, `invalid-option`, `unknown-option`.
 */
export async function autoTune(
  model: object,
  inputs: unknown,
  options: AutoTuneOptions = {},
): Promise<AutoTuneResult> {
  const {budget, precisions} = checkOptions(options);
  const attentions = requireAttentions(OPERATION, model);
  const restore = setAll(attentions.sites, ({options: own}) => own);
  try {
    return await tune(attentions, inputs, budget, precisions);
  } catch (error) {
    restore();
    throw error;
  }
}

async function tune(
  attentions: ModelWithAttentions,
  inputs: unknown,
  budget: number,
  precisions: readonly Precision[],
): Promise<AutoTuneResult> {
  const {sites} = attentions;
  const {values: expected} = await referenceOutputs(attentions, inputs);
  let runs = 1;
  const measure = async (): Promise<OutputComparison> => {
    runs += 1;
    const values: OutputValues[] = await takeValues(await attentions.run(inputs));
    return compareOutputs(values, expected);
  };
  const sensitivities: {site: string; relativeL1: number}[] = [];
  const [first = 'exact'] = precisions;
  for (const site of sites) {
    setAll(sites, (other) => ({precision: other === site ? first : 'exact'}));
    sensitivities.push({site: site.name, relativeL1: (await measure()).relativeL1});
  }
  const loss = new Map(sensitivities.map(({site, relativeL1}) => [site, relativeL1]));
  const levels = new Map(sites.map((site) => [site, 0]));
  const apply = () =>
    setAll(sites, (site) => ({precision: precisions[levels.get(site) ?? 0] ?? 'exact'}));
  apply();
  let output = await measure();
  while (!(output.relativeL1 <= budget)) {
    const next = mostSensitive(sites, levels, loss, precisions.length);
    if (next === null) break;
    levels.set(next, (levels.get(next) ?? 0) + 1);
    apply();
    output = await measure();
  }
  return {
    tuning: {
      schema: 1,
      sites: Object.fromEntries(sites.map((site) => [site.name, site.options])),
    },
    output,
    withinBudget: output.relativeL1 <= budget,
    sensitivities,
    runs,
  };
}

/** A quarter of an attention's loss is what the next recipe leaves, roughly; so the order is that of the worst first. */
const NEXT_RECIPE = 0.25;

function mostSensitive(
  sites: readonly AttentionSite[],
  levels: ReadonlyMap<AttentionSite, number>,
  loss: ReadonlyMap<string, number>,
  recipes: number,
): AttentionSite | null {
  let worst: AttentionSite | null = null;
  let most = -Infinity;
  for (const site of sites) {
    const level = levels.get(site) ?? 0;
    if (level >= recipes - 1) continue;
    const own = loss.get(site.name) ?? 0;
    const left = (Number.isNaN(own) ? Infinity : own) * NEXT_RECIPE ** level;
    if (left > most || worst === null) {
      worst = site;
      most = left;
    }
  }
  return worst;
}

function checkOptions(options: AutoTuneOptions): {budget: number; precisions: Precision[]} {
  if (typeof options !== 'object' || options === null) {
    throw invalid('options', options, 'an object such as {budget: 0.01}');
  }
  refuseUnknownKeys(OPERATION, options, KNOWN);
  const {budget = DEFAULT_BUDGET, precisions = DEFAULT_PRECISIONS} = options;
  if (typeof budget !== 'number' || !(budget >= 0)) {
    throw invalid('budget', budget, 'a relative L1 of at least 0');
  }
  const known: readonly unknown[] = PRECISIONS;
  if (!Array.isArray(precisions) || !precisions.every((name) => known.includes(name))) {
    throw invalid('precisions', precisions, `an array of ${listChoices(PRECISIONS)}`);
  }
  const chosen = [...(precisions as Precision[])].filter((name) => name !== 'exact');
  return {budget, precisions: [...new Set(chosen), 'exact']};
}

function invalid(argument: string, value: unknown, expected: string): SageAttentionError {
  return new SageAttentionError({
    code: 'invalid-option',
    argument,
    message: `${OPERATION}: \`${argument}\` is ${describeValue(value)}, expected ${expected}.`,
    hint: 'docs/replacement.md says how a model is tuned.',
  });
}
