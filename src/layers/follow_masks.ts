/**
 * Keras masks that follow tensors. tfjs hands a layer the mask of its first input only, keeps the last mask for layers
 * that have none, loses masks at the borders of nested models, and stumbles over a sum of a masked and an unmasked
 * tensor. In a model whose masks are followed, each layer sees the masks of its own inputs, as in Keras.
 */
import * as tf from '@tensorflow/tfjs-core';
import type * as tfl from '@tensorflow/tfjs-layers';

export type Layer = tfl.layers.Layer;
type Inputs = Parameters<Layer['apply']>[0];
type Outputs = ReturnType<Layer['apply']>;
type Kwargs = Record<string, unknown>;

/** Keras 2 and 3 differ in how masks join, and in what a query that sees nothing gives. */
export type KerasMajor = 2 | 3;

/** What a layer of this package says about its masks. */
export interface MaskedAttention {
  /** Its call reads the masks of its inputs itself. */
  readonly readsMasks: true;
  /** Keras 3's MultiHeadAttention takes the masks off its inputs: layers that run later find none. */
  takesMasksOff(): boolean;
}

interface FollowedMask {
  readonly mask: tf.Tensor;
  /** The layer that took it off: tfjs runs a layer once for each of its outputs, and each run must find it. */
  takenBy: Layer | null;
}

/** bool masks of the tensors that have one. */
const masks = new WeakMap<tf.Tensor, FollowedMask>();

/** Layers whose masks are followed, with the rules they follow. */
const followed = new WeakMap<Layer, KerasMajor>();

/** Masks made inside a nested model, to be kept over the end of its own tidy; one list per model on the call stack. */
const scopes: tf.Tensor[][] = [];

/**
 * The mask of a tensor, bool [batch, tokens]; null when it has none.
 *
 * @param reader The layer that asks.
 */
export function maskOf(tensor: tf.Tensor, reader: Layer | null = null): tf.Tensor | null {
  const found = masks.get(tensor);
  if (found === undefined || found.mask.isDisposed) return null;
  const {takenBy, mask} = found;
  if (takenBy === null || takenBy === reader || runsBefore(reader, takenBy)) return mask;
  return reader !== null && alwaysMasked.has(reader) ? mask : null;
}

/** Where Keras runs a layer: by depth, the deepest first. tfjs keeps `layers` in this order, and runs them in another. */
const places = new WeakMap<Layer, {readonly model: tfl.LayersModel; readonly place: number}>();

function runsBefore(layer: Layer | null, other: Layer): boolean {
  const [a, b] = [layer === null ? undefined : places.get(layer), places.get(other)];
  return a !== undefined && b !== undefined && a.model === b.model && a.place < b.place;
}

/** Layers that have the mask of their input whatever ran before. */
const alwaysMasked = new WeakSet<Layer>();

/**
 * Follows the masks through all layers of a model, nested ones too. Doing so again changes nothing.
 *
 * @param masked Layers that have the mask of their input whatever ran before: names by the name of their model.
 */
export function followMasks(
  model: tfl.LayersModel,
  keras: KerasMajor,
  masked: ReadonlyMap<string, ReadonlySet<string>> = NONE_MASKED,
): void {
  const own = masked.get(model.name);
  model.layers.forEach((layer, place) => {
    if (own?.has(layer.name)) alwaysMasked.add(layer);
    if (!places.has(layer)) places.set(layer, {model, place});
    followLayer(layer, keras, masked);
  });
}

const NONE_MASKED: ReadonlyMap<string, ReadonlySet<string>> = new Map();

/** Follows the masks of everything that leads to these tensors. */
export function followMasksTo(tensors: readonly tfl.SymbolicTensor[], keras: KerasMajor): void {
  const waiting = [...tensors];
  const seen = new Set<number>();
  for (let tensor = waiting.pop(); tensor !== undefined; tensor = waiting.pop()) {
    if (seen.has(tensor.id)) continue;
    seen.add(tensor.id);
    followLayer(tensor.sourceLayer, keras);
    waiting.push(...tensor.inputs);
  }
}

function followLayer(
  layer: Layer,
  keras: KerasMajor,
  masked: ReadonlyMap<string, ReadonlySet<string>> = NONE_MASKED,
): void {
  if (followed.has(layer)) return;
  followed.set(layer, keras);
  const inner = isModel(layer) ? layer : null;
  if (inner !== null) followMasks(inner, keras, masked);
  const apply = layer.apply.bind(layer);
  const makeMask = layer.computeMask.bind(layer);
  // The masks that tfjs would pass on beside these are off: none for each output.
  layer.computeMask = () => {
    const outputs = layer.inboundNodes[0]?.outputTensors.length ?? 1;
    return (outputs > 1 ? new Array<null>(outputs).fill(null) : null) as unknown as tf.Tensor;
  };
  layer.apply = (inputs: Inputs, kwargs: Kwargs = {}): Outputs => {
    const tensors = concrete(inputs);
    if (tensors === null) return apply(inputs, kwargs);
    const inputMasks = tensors.map((tensor) => maskOf(tensor, layer));
    const own = ownArguments(layer, kwargs, inputMasks);
    const run = (): Outputs => maskedCall(layer, tensors, inputMasks) ?? apply(inputs, own);
    if (inner !== null) return runModel(run);
    const outputs = run();
    const mask = outputMask(layer, keras, tensors, inputMasks, makeMask);
    if (takesMasksOff(layer)) {
      for (const tensor of tensors) {
        const found = masks.get(tensor);
        if (found !== undefined) found.takenBy ??= layer;
      }
    }
    const first = concrete(outputs)?.[0];
    if (first !== undefined && mask !== null) {
      if (!inputMasks.includes(mask)) keepInModel(mask);
      masks.set(first, {mask, takenBy: null});
    }
    return outputs;
  };
}

/** The keyword arguments of one layer: its own mask, not one that an earlier layer left behind. */
function ownArguments(
  layer: Layer,
  kwargs: Kwargs,
  inputMasks: readonly (tf.Tensor | null)[],
): Kwargs {
  const {mask, ...others} = kwargs;
  // An attention of this package reads the masks of its inputs, unless its caller names others.
  if (readsMasks(layer)) return Array.isArray(mask) ? kwargs : others;
  const [first] = inputMasks;
  return first == null || isModel(layer) ? others : {...others, mask: first};
}

/** Layers of tfjs that leave a mask unread which Keras reads. */
function maskedCall(
  layer: Layer,
  [x]: readonly tf.Tensor[],
  [mask]: readonly (tf.Tensor | null)[],
): tf.Tensor | null {
  if (layer.getClassName() !== 'GlobalAveragePooling1D' || x === undefined || mask == null) {
    return null;
  }
  return tf.tidy(() => {
    const steps = tf.expandDims(tf.cast(mask, 'float32'), 2);
    return tf.div(tf.sum(tf.mul(x, steps), 1), tf.sum(steps, 1));
  });
}

function outputMask(
  layer: Layer,
  keras: KerasMajor,
  inputs: readonly tf.Tensor[],
  inputMasks: readonly (tf.Tensor | null)[],
  makeMask: Layer['computeMask'],
): tf.Tensor | null {
  const name = layer.getClassName();
  const [first] = inputMasks;
  if (name === 'Embedding' || name === 'Masking') return only(makeMask([...inputs]));
  if (SUMS.has(name)) return joinMasks(keras, inputMasks);
  if (name === 'Concatenate') {
    const present = inputMasks.filter((mask) => mask !== null);
    return present.length === 0 ? null : only(makeMask([...inputs], inputMasks as tf.Tensor[]));
  }
  if (!layer.supportsMasking || name === 'GlobalAveragePooling1D' || first == null) return null;
  // A recurrent layer knows whether its output still has steps.
  return readsMasks(layer) ? first : only(makeMask(inputs[0] as tf.Tensor, first));
}

/** Layers whose output is a sum, product or the like of their inputs. */
const SUMS: ReadonlySet<string> = new Set(['Add', 'Multiply', 'Average', 'Maximum', 'Minimum']);

/** Keras 2: seen by all that have a mask. Keras 3: seen by any, and no mask at all where one input has none. */
function joinMasks(keras: KerasMajor, inputMasks: readonly (tf.Tensor | null)[]): tf.Tensor | null {
  const present = inputMasks.filter((mask) => mask !== null);
  if (keras === 3 && present.length < inputMasks.length) return null;
  const join = keras === 3 ? tf.logicalOr : tf.logicalAnd;
  return present.length === 0 ? null : present.reduce((a, b) => join(a, b));
}

/** Runs a nested model so that masks made inside are good outside. */
function runModel(run: () => Outputs): Outputs {
  const kept: tf.Tensor[] = [];
  scopes.push(kept);
  let outputs: Outputs;
  try {
    outputs = run();
  } finally {
    scopes.pop();
  }
  for (const output of concrete(outputs) ?? []) {
    const mask = maskOf(output);
    if (mask === null || !kept.includes(mask)) continue;
    const outside = tf.clone(mask);
    keepInModel(outside);
    masks.set(output, {mask: outside, takenBy: null});
  }
  tf.dispose(kept);
  return outputs;
}

/** Keeps a new mask until the nested model that runs, if one does, has ended. */
function keepInModel(mask: tf.Tensor): void {
  const scope = scopes.at(-1);
  if (scope === undefined) return;
  tf.keep(mask);
  scope.push(mask);
}

function readsMasks(layer: Layer): layer is Layer & MaskedAttention {
  return (layer as Partial<MaskedAttention>).readsMasks === true;
}

function takesMasksOff(layer: Layer): boolean {
  return readsMasks(layer) && layer.takesMasksOff();
}

function isModel(layer: Layer): layer is tfl.LayersModel {
  return Array.isArray((layer as Partial<tfl.LayersModel>).layers);
}

/** The tensors among a call's inputs or outputs; null when they are symbolic. */
function concrete(values: Inputs | Outputs): tf.Tensor[] | null {
  const list = Array.isArray(values) ? values : [values];
  return list.every((value) => value instanceof tf.Tensor) ? list : null;
}

function only(mask: tf.Tensor | tf.Tensor[] | null | undefined): tf.Tensor | null {
  return (Array.isArray(mask) ? mask[0] : mask) ?? null;
}
