/** What the recipes of a model's attentions cost on the user's own inputs: for each attention, and at the output. */
import * as tf from '@tensorflow/tfjs-core';
import {compareArrays, type AccuracyMetrics} from '../accuracy/metrics.js';
import {SageAttentionError} from '../runtime/errors.js';
import {
  getModelAttentions,
  type AttentionSite,
  type ModelWithAttentions,
  type RecipeOptions,
} from './model_attentions.js';

/** The outputs of a model beside those of the same model with exact attention. */
export interface OutputComparison extends AccuracyMetrics {
  /** Share of the rows along the last axis whose largest value stands at the same place. */
  readonly top1Agreement: number;
}

export interface AttentionComparison extends AccuracyMetrics {
  /** Name of the attention: node or layer. */
  readonly site: string;
  /** How it was computed. */
  readonly options: RecipeOptions;
  /** How often it ran: loops and shared layers run more than once; the metrics are over all runs. */
  readonly runs: number;
}

export interface ModelComparison {
  /** Each attention on the tensors that it was given, against `exact` on the same ones. */
  readonly attentions: readonly AttentionComparison[];
  /** All outputs against those of the model before the replacement (or with `exact` attentions where it cannot run). */
  readonly output: OutputComparison;
  /** What `output` was compared with: `exact` where the model before cannot run here. */
  readonly reference: 'original' | 'exact';
}

/**
 * Runs a model with its replaced attentions and as it was before, and compares.
 *
 * ```js
 * const {output, attentions} = await compareModel(model, inputs);
 * console.log(output.cosine, output.relativeL1, output.top1Agreement);
 * console.table(attentions);
 * ```
 *
 * @param model A graph or layers model whose attentions were replaced.
 * @param inputs What the model's `predict` takes. They are not disposed.
 * @throws SageAttentionError `no-attention` when nothing was replaced in this model.
 */
export async function compareModel(model: object, inputs: unknown): Promise<ModelComparison> {
  const attentions = requireAttentions('compareModel', model);
  const probes = new ProbeList();
  attentions.observe((site, output, compute) => probes.add(site, output, compute));
  let outputs: tf.Tensor[];
  try {
    outputs = await attentions.run(inputs);
  } catch (error) {
    probes.dispose();
    throw error;
  } finally {
    attentions.observe(null);
  }
  const {values: expected, reference} = await referenceOutputs(attentions, inputs);
  return {
    attentions: await probes.compare(attentions.sites),
    output: compareOutputs(await takeValues(outputs), expected),
    reference,
  };
}

/** Values of a tensor, and the length of its last axis. */
export interface OutputValues {
  readonly values: ArrayLike<number>;
  readonly lastAxis: number;
}

/** @throws SageAttentionError `no-attention`. */
export function requireAttentions(operation: string, model: object): ModelWithAttentions {
  const attentions = typeof model === 'object' && model !== null ? getModelAttentions(model) : null;
  if (attentions !== null && attentions.sites.length > 0) return attentions;
  throw new SageAttentionError({
    code: 'no-attention',
    argument: 'model',
    message: `${operation}: no attention of this model has been replaced.`,
    hint: `Load it with {sage: {}}, or replace first; getReplacementReport(model) says why an attention was left.`,
  });
}

/** The model as it was; with exact attentions where tfjs cannot run that (wasm has no Einsum, say). */
export async function referenceOutputs(
  attentions: ModelWithAttentions,
  inputs: unknown,
): Promise<{values: OutputValues[]; reference: 'original' | 'exact'}> {
  if (attentions.runOriginal !== null) {
    try {
      return {
        values: await takeValues(await attentions.runOriginal(inputs)),
        reference: 'original',
      };
    } catch {
      // Told by `reference`.
    }
  }
  const restore = setAll(attentions.sites, () => ({precision: 'exact'}));
  try {
    return {values: await takeValues(await attentions.run(inputs)), reference: 'exact'};
  } finally {
    restore();
  }
}

/** Sets the options of every site; the returned function puts the former ones back. */
export function setAll(
  sites: readonly AttentionSite[],
  optionsOf: (site: AttentionSite) => RecipeOptions,
): () => void {
  const former = sites.map(({options}) => options);
  for (const site of sites) site.setOptions(optionsOf(site));
  return () => {
    for (const [i, site] of sites.entries()) site.setOptions(former[i] ?? {});
  };
}

/** Values of outputs, which are disposed. */
export async function takeValues(outputs: readonly tf.Tensor[]): Promise<OutputValues[]> {
  try {
    return await Promise.all(
      outputs.map(async (tensor) => ({
        values: await tensor.data<'float32'>(),
        lastAxis: tensor.shape.at(-1) ?? 1,
      })),
    );
  } finally {
    tf.dispose([...outputs]);
  }
}

/** All outputs as one vector. */
export function compareOutputs(
  actual: readonly OutputValues[],
  expected: readonly OutputValues[],
): OutputComparison {
  const join = (outputs: readonly OutputValues[]) =>
    Float64Array.from(outputs.flatMap(({values}) => Array.from(values)));
  let rows = 0;
  let agreeing = 0;
  for (const [i, {values, lastAxis}] of expected.entries()) {
    const other = actual[i]?.values ?? [];
    for (let at = 0; lastAxis > 0 && at + lastAxis <= values.length; at += lastAxis) {
      rows += 1;
      if (largest(values, at, lastAxis) === largest(other, at, lastAxis)) agreeing += 1;
    }
  }
  return {
    ...compareArrays(join(actual), join(expected)),
    top1Agreement: rows === 0 ? 1 : agreeing / rows,
  };
}

function largest(values: ArrayLike<number>, from: number, count: number): number {
  let best = 0;
  for (let i = 1; i < count; i += 1) {
    if ((values[from + i] as number) > (values[from + best] as number)) best = i;
  }
  return best;
}

interface Probe {
  readonly actual: tf.Tensor;
  readonly exact: tf.Tensor;
}

/** Outputs of attentions as they ran and as `exact` gives them, kept until they are compared. */
class ProbeList {
  private readonly probes = new Map<string, Probe[]>();

  add(site: string, output: tf.Tensor, compute: (options: RecipeOptions) => tf.Tensor): void {
    const probe = {
      actual: tf.keep(output.clone()),
      exact: tf.keep(compute({precision: 'exact'})),
    };
    this.probes.set(site, [...(this.probes.get(site) ?? []), probe]);
  }

  async compare(sites: readonly AttentionSite[]): Promise<AttentionComparison[]> {
    try {
      const rows: AttentionComparison[] = [];
      for (const {name, options} of sites) {
        const probes = this.probes.get(name) ?? [];
        const [actual, exact] = await Promise.all([
          valuesOf(probes.map((probe) => probe.actual)),
          valuesOf(probes.map((probe) => probe.exact)),
        ]);
        rows.push({site: name, options, runs: probes.length, ...compareArrays(actual, exact)});
      }
      return rows;
    } finally {
      this.dispose();
    }
  }

  dispose(): void {
    for (const probe of [...this.probes.values()].flat()) {
      probe.actual.dispose();
      probe.exact.dispose();
    }
    this.probes.clear();
  }
}

async function valuesOf(tensors: readonly tf.Tensor[]): Promise<Float64Array> {
  const parts = await Promise.all(tensors.map((tensor) => tensor.data<'float32'>()));
  return Float64Array.from(parts.flatMap((part) => Array.from(part)));
}
