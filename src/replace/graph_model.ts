/** Attention in tfjs graph models: loading with it replaced, and replacing it in a model that is loaded already. */
import * as converter from '@tensorflow/tfjs-converter';
import * as tf from '@tensorflow/tfjs-core';
import {SageAttentionError} from '../runtime/errors.js';
import {decodePlan, encodePlan, PLAN_ATTRIBUTE, SAGE_OP, type NodePlan} from './attention_plan.js';
import {registerGraphOps} from './graph_op.js';
import {openSites, sageNodes} from './graph_sites.js';
import type {RecipeOptions} from './model_attentions.js';
import {parseReference, type ConstantReader, type GraphTopology} from './model_graph.js';
import {openNodes, type OpenExecutor, type OpenModel} from './open_graph_model.js';
import {checkReplaceOptions, type ReplaceOptions} from './replace_options.js';
import {makeReplacementReport, setReplacementReport, type ReplacementRow} from './report.js';
import {rewriteGraph} from './rewrite_graph.js';
import {rememberOriginal} from './run_graph_model.js';
import {findFault, invalidModel} from './validate_model.js';

/** Options of `loadGraphModel`: tfjs' own, and `sage`. */
export interface LoadGraphModelOptions extends tf.io.LoadOptions {
  /** How attentions are computed, and which ones are replaced. Default `{}`: all, automatically. */
  readonly sage?: ReplaceOptions | undefined;
}

const LOAD = 'loadGraphModel';
const ACCELERATE = 'accelerateGraphModel';

/**
 * Loads a graph model as tfjs does and replaces its attentions.
 *
 * ```js
 * const model = await loadGraphModel('https://example.com/bert/model.json', {sage: {}});
 * console.table(getReplacementReport(model).rows);
 * ```
 *
 * @param source A URL or an IOHandler, as of `tf.loadGraphModel`.
 * @param options `sage` and the options of `tf.loadGraphModel`.
 * @throws SageAttentionError `invalid-model`, with the file and the node, when the model cannot be read.
 */
export async function loadGraphModel(
  source: string | tf.io.IOHandler,
  options: LoadGraphModelOptions = {},
): Promise<converter.GraphModel> {
  const {sage, ...rest} = options;
  checkReplaceOptions(LOAD, sage);
  registerGraphOps();
  let model: converter.GraphModel;
  try {
    model = await converter.loadGraphModel(source, rest);
  } catch (cause) {
    const fault = await diagnose(source, rest);
    throw invalidModel(LOAD, describeSource(source), fault ?? messageOf(cause), cause);
  }
  try {
    return await replace(LOAD, describeSource(source), model, sage ?? {});
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/**
 * Replaces the attentions of a loaded graph model, in place: its weights stay where they are. A second call replaces
 * what the first one left; attentions that it replaced take the new options.
 *
 * @param model From `tf.loadGraphModel` of the same tfjs-converter that this package imports.
 * @returns The same model.
 * @throws SageAttentionError; the model is then as it was.
 */
export async function accelerateGraphModel(
  model: converter.GraphModel,
  options: ReplaceOptions = {},
): Promise<converter.GraphModel> {
  return replace(ACCELERATE, 'the model', model, options);
}

async function replace(
  operation: string,
  file: string,
  model: converter.GraphModel,
  options: ReplaceOptions,
): Promise<converter.GraphModel> {
  const checked = checkReplaceOptions(operation, options);
  registerGraphOps();
  const open = requireOpen(operation, model);
  const {artifacts} = open;
  const fault = findFault(artifacts);
  if (fault !== null) throw invalidModel(operation, file, fault);
  const topology = artifacts.modelTopology as GraphTopology;
  const outputs = model.outputs.map(({name}) => parseReference(name).name);
  const {topology: rewritten, rows} = await withConstants(open.executor, (readConstant) =>
    rewriteGraph(topology, outputs, readConstant, checked),
  );
  const already = updatePlans(operation, file, rewritten, rows, checked.recipeOf);
  const allRows = [...already, ...rows];
  if (rows.some(({replaced}) => replaced) || already.length > 0) {
    exchange(operation, open, artifacts, {...artifacts, modelTopology: rewritten});
    openSites(model, open, rewritten);
  }
  rememberOriginal(model, artifacts);
  setReplacementReport(model, makeReplacementReport(allRows));
  return model;
}

function requireOpen(operation: string, model: converter.GraphModel): OpenModel {
  const open = model as unknown as Partial<OpenModel> | null | undefined;
  if (
    open?.artifacts === undefined ||
    open.executor === undefined ||
    typeof open.loadWithWeightMap !== 'function'
  ) {
    throw new SageAttentionError({
      code: 'invalid-model',
      argument: 'model',
      message: `${operation}: \`model\` is no loaded graph model.`,
      hint: 'Pass what await tf.loadGraphModel(...) gave.',
    });
  }
  return open as OpenModel;
}

/** Runs `work` until every constant that it asked for has been read. */
async function withConstants<T>(
  {weightMap}: OpenExecutor,
  work: (readConstant: ConstantReader) => T,
): Promise<T> {
  const read = new Map<string, ArrayLike<number>>();
  for (;;) {
    const missing = new Set<string>();
    const result = work((name) => {
      const tensor = weightMap[name]?.[0];
      if (tensor === undefined) return null;
      return {
        shape: tensor.shape,
        dtype: tensor.dtype,
        get values() {
          const values = read.get(name) ?? null;
          if (values === null) missing.add(name);
          return values;
        },
      };
    });
    if (missing.size === 0) return result;
    for (const name of missing) {
      read.set(name, (await weightMap[name]?.[0]?.data<'float32'>()) ?? []);
    }
  }
}

/** Gives attentions of an earlier replacement, or of a rewritten file, the options of this one. */
function updatePlans(
  operation: string,
  file: string,
  topology: GraphTopology,
  fresh: readonly ReplacementRow[],
  recipeOf: (name: string) => RecipeOptions,
): ReplacementRow[] {
  const known = new Set(fresh.map(({node}) => node));
  const rows: ReplacementRow[] = [];
  for (const node of sageNodes(topology)) {
    if (known.has(node.name)) continue;
    const text = node.attr?.[PLAN_ATTRIBUTE]?.s;
    if (typeof text !== 'string') continue;
    const {plan, options} = readPlan(operation, file, node.name, text);
    const chosen = recipeOf(node.name);
    const next = Object.keys(chosen).length === 0 ? options : chosen;
    node.attr = {...node.attr, [PLAN_ATTRIBUTE]: {s: btoa(encodePlan({plan, options: next}))}};
    rows.push({
      node: node.name,
      pattern: 'SageAttention',
      replaced: true,
      reason: 'replaced before',
    });
  }
  return rows;
}

/** The plan of a node that was rewritten before, perhaps by another version of this package. */
function readPlan(operation: string, file: string, node: string, text: string): NodePlan {
  try {
    return decodePlan(atob(text));
  } catch (cause) {
    throw invalidModel(
      operation,
      file,
      `node '${node}' has a damaged plan: ${messageOf(cause)}`,
      cause,
    );
  }
}

/** Lets the model compile the new graph on its own weights; what it was before when that fails. */
function exchange(
  operation: string,
  model: OpenModel,
  before: tf.io.ModelArtifacts,
  after: tf.io.ModelArtifacts,
): void {
  const weights = Object.fromEntries(
    Object.entries(model.executor.weightMap).flatMap(([name, [tensor]]) =>
      tensor === undefined ? [] : [[name, tensor] as const],
    ),
  );
  try {
    model.loadWithWeightMap(after, weights);
    const foreign = openNodes(model.executor.graph).find(
      ({op, category}) => op === SAGE_OP && category !== 'custom',
    );
    if (foreign !== undefined) {
      throw new SageAttentionError({
        code: 'invalid-model',
        argument: 'model',
        message: `${operation}: the model belongs to another copy of tfjs-converter than this package imports.`,
        hint: `npm ls @tensorflow/tfjs-converter shows the copies; keep one, or load the model with loadGraphModel of 'tfjs-sage-attention/converter'.`,
      });
    }
  } catch (error) {
    model.loadWithWeightMap(before, weights);
    if (error instanceof SageAttentionError) throw error;
    throw invalidModel(operation, 'the rewritten model', messageOf(error), error);
  }
}

/** Reads a model that tfjs could not, to say what is wrong with it; null when even that fails. */
async function diagnose(
  source: string | tf.io.IOHandler,
  options: tf.io.LoadOptions,
): Promise<string | null> {
  try {
    const handler =
      typeof source === 'string'
        ? (tf.io.getLoadHandlers(source, options)[0] ?? tf.io.http(source, options))
        : source;
    const artifacts = await handler.load?.();
    return artifacts === undefined ? null : findFault(artifacts);
  } catch {
    return null;
  }
}

function describeSource(source: string | tf.io.IOHandler): string {
  if (typeof source === 'string') return `'${source}'`;
  const {path, url} = (source ?? {}) as {path?: unknown; url?: unknown};
  const place = [path, url].flat().find((part) => typeof part === 'string');
  return place === undefined ? 'the model of the given handler' : `'${place}'`;
}

function messageOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.replace(/\.$/, '');
}
