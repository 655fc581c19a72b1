/**
 * Weights of a Keras 3 file to the layers of a model. The file names them by the place of the layer: `layers/`, the
 * class in snake case, a number behind the second and later ones, then the part of the layer, `vars` and the number of
 * the weight: `layers/multi_head_attention_1/key_dense/vars/0`.
 */
import * as tf from '@tensorflow/tfjs-core';
import type * as tfl from '@tensorflow/tfjs-layers';
import type {Layer} from '../follow_masks.js';
import type {ModelFile} from './model_errors.js';
import type {ListedLayer} from './read_model.js';

/** Class names that files spell otherwise. */
const FILE_CLASSES: Readonly<Record<string, string>> = {
  GroupQueryAttention: 'GroupedQueryAttention',
  Model: 'Functional',
};

/** Parts of a layer in the order in which tfjs has their weights; the layer's own come first. */
const PARTS: readonly string[] = [
  'cell',
  'layer',
  'forward_layer',
  'backward_layer',
  'query_dense',
  'key_dense',
  'gate_dense',
  'value_dense',
  'output_dense',
];

/** Parts of a file that are no weights of a layer. */
const NO_WEIGHTS = /(^|\/)(seed_generator|optimizer)\//;

/** Keras' own rule for names of files. */
function snakeCase(className: string): string {
  return className
    .replace(/\W+/g, '')
    .replace(/(.)([A-Z][a-z]+)/g, '$1_$2')
    .replace(/([a-z])([A-Z])/g, '$1_$2')
    .toLowerCase();
}

/** @param weights By name; tensors stay the caller's. */
export function assignWeights(
  file: ModelFile,
  model: tfl.LayersModel,
  listed: ListedLayer,
  weights: Readonly<Record<string, tf.Tensor>>,
): void {
  const left = new Set(Object.keys(weights).filter((name) => !NO_WEIGHTS.test(name)));
  assign(file, model, listed, '', weights, left);
  const [extra] = left;
  if (extra !== undefined) throw file.invalid(null, `its weight \`${extra}\` belongs to no layer`);
}

function assign(
  file: ModelFile,
  model: tfl.LayersModel,
  {layers}: ListedLayer,
  prefix: string,
  weights: Readonly<Record<string, tf.Tensor>>,
  left: Set<string>,
): void {
  const counts = new Map<string, number>();
  for (const entry of layers ?? []) {
    const base = snakeCase(FILE_CLASSES[entry.className] ?? entry.className);
    const count = counts.get(base) ?? 0;
    counts.set(base, count + 1);
    const place = `${prefix}layers/${base}${count === 0 ? '' : `_${count}`}/`;
    const layer = model.layers.find(({name}) => name === entry.name);
    if (layer === undefined) continue;
    if (entry.layers !== null) {
      assign(file, layer as tfl.LayersModel, entry, place, weights, left);
      continue;
    }
    setWeights(
      file,
      layer,
      ordered(
        [...left].filter((name) => name.startsWith(place)),
        place,
      ),
      weights,
    );
    for (const name of left) if (name.startsWith(place)) left.delete(name);
  }
}

/** Names of one layer's weights in tfjs' order. */
function ordered(names: readonly string[], place: string): string[] {
  const keyOf = (name: string): number[] =>
    name
      .slice(place.length)
      .split('/')
      .map((part) => {
        if (part === 'vars') return -1;
        const index = PARTS.indexOf(part.replace(/^_/, ''));
        return index >= 0 ? index : Number.isInteger(Number(part)) ? Number(part) : PARTS.length;
      });
  return [...names].sort((a, b) => {
    const keysA = keyOf(a);
    const keysB = keyOf(b);
    const at = keysA.findIndex((key, i) => key !== keysB[i]);
    return at < 0 ? 0 : (keysA[at] ?? 0) - (keysB[at] ?? 0);
  });
}

function setWeights(
  file: ModelFile,
  layer: Layer,
  names: readonly string[],
  weights: Readonly<Record<string, tf.Tensor>>,
): void {
  const variables = layer.weights;
  if (variables.length !== names.length) {
    throw file.invalid(
      layer.name,
      `it has ${variables.length} weights and the file ${names.length}`,
    );
  }
  tf.tidy(() => {
    const values = names.map((name, i) => {
      const value = weights[name] as tf.Tensor;
      const shape = variables[i]?.shape as number[];
      // PReLU and the like: the same numbers with axes of 1 more or less.
      if (value.size !== shape.reduce((a, b) => a * b, 1)) {
        throw file.invalid(
          layer.name,
          `its weight ${variables[i]?.originalName} is [${shape.join(',')}] and \`${name}\` in the file [${value.shape.join(',')}]`,
        );
      }
      return tf.reshape(value, shape);
    });
    layer.setWeights(values);
  });
}
