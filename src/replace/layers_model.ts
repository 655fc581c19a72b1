/** Attention in layers models: loading Keras models with it, and replacing it in a model that is loaded already. */
import type * as tf from '@tensorflow/tfjs-core';
import type * as tfl from '@tensorflow/tfjs-layers';
import {AttentionLayer} from '../layers/attention_layer.js';
import {followMasks, type Layer} from '../layers/follow_masks.js';
import {buildModel} from '../layers/keras_format/build_model.js';
import {openModel, type ModelSource} from '../layers/keras_format/open_model.js';
import {
  isTfjsAttention,
  patchTfjsAttention,
  patternOf,
  type PatchedAttention,
} from '../layers/patch_tfjs_attention.js';
import {SageAttentionError} from '../runtime/errors.js';
import {
  setModelAttentions,
  type AttentionObserver,
  type AttentionSite,
  type RecipeOptions,
} from './model_attentions.js';
import {
  checkReplaceOptions,
  type CheckedReplaceOptions,
  type ReplaceOptions,
} from './replace_options.js';
import {makeReplacementReport, setReplacementReport, type ReplacementRow} from './report.js';

/** Options of `loadLayersModel`: those of tfjs, and `sage`. */
export interface LoadLayersModelOptions extends tf.io.LoadOptions {
  /** How attentions are computed, and which ones are replaced. Default `{}`: all, automatically. */
  readonly sage?: ReplaceOptions | undefined;
}

/** What `predict` takes. */
export type LayersInputs = tf.Tensor | tf.Tensor[];

/**
 * Loads a layers model of Keras 2, Keras 3 or tfjs, attention layers included, which run on sageAttention.
 *
 * ```js
 * const model = await loadLayersModel('https://example.com/classifier/model.json', {sage: {}});
 * console.table(getReplacementReport(model).rows);
 * ```
 *
 * @param source An address or an IOHandler, as of `tf.loadLayersModel`; in Node also the path of a model.json.
 * @param options `sage`, and the options of `tf.loadLayersModel`.
 * @throws SageAttentionError `invalid-model`, `unknown-layer` or `unsupported-layer`, with the file and the layer.
 */
export async function loadLayersModel(
  source: ModelSource,
  options: LoadLayersModelOptions = {},
): Promise<tfl.LayersModel> {
  const {sage, strict = true, ...rest} = options;
  const checked = checkOptions('loadLayersModel', sage);
  const {file, artifacts} = await openModel(source, rest);
  const model = await buildModel(file, artifacts, strict);
  replace(model, checked);
  return model;
}

/**
 * Replaces the attentions of a layers model in place: layers of this package, those of tfjs' unexported nlp folder
 * (MultiHeadAttention, CachedMultiHeadAttention), and user layers with the same methods. Masks of `maskZero` and Masking
 * reach every attention, through nested models too. A second call gives the attentions new options.
 *
 * @returns The same model. `getReplacementReport(model)` has a row for each attention.
 * @throws SageAttentionError `invalid-option`, `unknown-option`; the model is then as it was.
 */
export function patchLayersModel<M extends tfl.LayersModel>(
  model: M,
  options: ReplaceOptions = {},
): M {
  const operation = 'patchLayersModel';
  const checked = checkOptions(operation, options);
  if (!Array.isArray((model as Partial<tfl.LayersModel> | null | undefined)?.layers)) {
    throw new SageAttentionError({
      code: 'invalid-model',
      argument: 'model',
      message: `${operation}: \`model\` is no layers model.`,
      hint: 'Pass what tf.model(), tf.sequential() or await tf.loadLayersModel() gave.',
    });
  }
  const ownLayers = attentionsOf(model).map(({layer}) => layer);
  const own = ownLayers.filter((layer) => layer instanceof AttentionLayer);
  // The masks of a model without attention of this package stay as tfjs passes them.
  if (own.length > 0) followMasks(model, own.some(({keras}) => keras === 2) ? 2 : 3);
  replace(model, checked);
  return model;
}

function checkOptions(
  operation: string,
  options: ReplaceOptions | undefined,
): CheckedReplaceOptions {
  const checked = checkReplaceOptions(operation, options);
  if (checked.protect.size === 0) return checked;
  throw new SageAttentionError({
    code: 'invalid-option',
    argument: 'protect',
    message: `${operation}: \`protect\` is for graph models; layers have no inner nodes to read.`,
    hint: 'exclude leaves a layer as it is.',
  });
}

/** A layer that is an attention, and its name with those of the models and layers around it. */
interface NamedLayer {
  readonly name: string;
  readonly layer: Layer;
}

/** All attentions of a model: in nested models, in wrappers, and in layers that users built of layers. */
function attentionsOf(model: tfl.LayersModel): NamedLayer[] {
  const found: NamedLayer[] = [];
  const seen = new Set<Layer>();
  const visit = (layer: Layer, prefix: string): void => {
    if (seen.has(layer)) return;
    seen.add(layer);
    const name = `${prefix}${layer.name}`;
    if (layer instanceof AttentionLayer || isTfjsAttention(layer)) {
      found.push({name, layer});
      return;
    }
    for (const inner of layersIn(layer)) visit(inner, `${name}/`);
  };
  for (const layer of model.layers) visit(layer, '');
  return found;
}

/** Layers among the properties of a layer, one by one and in lists. */
function layersIn(layer: Layer): Layer[] {
  const {layers} = layer as Partial<tfl.LayersModel>;
  if (Array.isArray(layers)) return layers;
  return Object.entries(layer)
    .filter(([property]) => !LINKS.has(property))
    .flatMap(([, value]) => (Array.isArray(value) ? (value as unknown[]) : [value]))
    .filter(isLayer);
}

/** Properties that lead out of a layer, not into it. */
const LINKS: ReadonlySet<string> = new Set(['inboundNodes', 'outboundNodes']);

function isLayer(value: unknown): value is Layer {
  const {apply, call, computeOutputShape} = (value ?? {}) as Partial<Layer>;
  return [apply, call, computeOutputShape].every((method) => typeof method === 'function');
}

/** An attention of the model in the one way that the rest of this file treats it. */
interface Attention {
  readonly site: AttentionSite;
  readonly row: () => ReplacementRow;
  /** Computes as before the replacement. */
  setPlain(plain: boolean): void;
  observe(observer: AttentionObserver | null): void;
}

function replace(model: tfl.LayersModel, options: CheckedReplaceOptions): void {
  const attentions: Attention[] = [];
  const report = (): void => {
    setReplacementReport(model, makeReplacementReport(attentions.map(({row}) => row())));
  };
  for (const {name, layer} of attentionsOf(model)) {
    const left = options.exclude.has(name)
      ? 'excluded by the options'
      : options.only !== null && !options.only.has(name)
        ? 'not among those that `only` names'
        : null;
    const recipe = options.recipeOf(name);
    if (layer instanceof AttentionLayer) attentions.push(ownAttention(name, layer, left, recipe));
    else if (isTfjsAttention(layer)) {
      const patched = patchTfjsAttention(layer, report);
      attentions.push(patchedAttention(name, patched, left, recipe));
    }
  }
  report();
  const replaced = attentions.filter(({row}) => row().replaced);
  setModelAttentions<LayersInputs>(model, {
    sites: replaced.map(({site}) => site),
    run: (inputs) => Promise.resolve(predict(model, inputs)),
    runOriginal: (inputs) => {
      for (const attention of replaced) attention.setPlain(true);
      try {
        return Promise.resolve(predict(model, inputs));
      } finally {
        for (const attention of replaced) attention.setPlain(false);
      }
    },
    observe(observer) {
      for (const attention of replaced) attention.observe(observer);
    },
  });
}

function ownAttention(
  name: string,
  layer: AttentionLayer,
  left: string | null,
  recipe: RecipeOptions,
): Attention {
  layer.site = name;
  layer.plain = left !== null;
  // A layer keeps the options that it was made or saved with, unless others are given.
  if (Object.keys(recipe).length > 0) layer.sage = recipe;
  return {
    site: {
      name,
      get options() {
        return layer.sage;
      },
      setOptions(options) {
        layer.sage = options;
      },
    },
    row: () => {
      const reason = left ?? layer.whyNotReplaced();
      return {
        node: name,
        pattern: layer.getClassName(),
        replaced: reason === null,
        reason: reason ?? layer.replacedNote(),
      };
    },
    setPlain(plain) {
      layer.plain = plain;
    },
    observe(observer) {
      layer.observe(observer);
    },
  };
}

function patchedAttention(
  name: string,
  patched: PatchedAttention,
  left: string | null,
  recipe: RecipeOptions,
): Attention {
  patched.plain = left !== null;
  patched.recipe = recipe;
  return {
    site: {
      name,
      get options() {
        return patched.recipe;
      },
      setOptions(options) {
        patched.recipe = options;
      },
    },
    row: () => {
      const reason = left ?? patched.refusal();
      return {node: name, pattern: patternOf(patched.layer), replaced: reason === null, reason};
    },
    setPlain(plain) {
      patched.plain = plain;
    },
    observe(observer) {
      patched.observer = observer === null ? null : {site: name, tell: observer};
    },
  };
}

/** Outputs of one run over the whole batch. */
function predict(model: tfl.LayersModel, inputs: LayersInputs): tf.Tensor[] {
  const [first] = Array.isArray(inputs) ? inputs : [inputs];
  const outputs = model.predict(inputs, {batchSize: Math.max(1, first?.shape[0] ?? 1)});
  return Array.isArray(outputs) ? outputs : [outputs];
}
