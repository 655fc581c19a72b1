/** Settings of layers: what Keras 3 spells otherwise, and what tfjs would drop without a word. */
import {serialization} from '@tensorflow/tfjs-core';
import {tfjsClassName} from '../keras_objects.js';
import {isObject, textAt, type JsonObject} from './json_values.js';
import {callStyle} from './layer_calls.js';
import type {ModelFile} from './model_errors.js';

/** Settings that Keras 3 renamed, by class. */
const RENAMED: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  InputLayer: {batch_shape: 'batch_input_shape'},
  LeakyReLU: {negative_slope: 'alpha'},
};

/** Settings of every layer that only Keras has. */
const DROPPED: ReadonlySet<string> = new Set([
  'module',
  'registered_name',
  'shared_object_id',
  'build_config',
  'compile_config',
  'build_input_shape',
  'ragged',
  'optional',
  'synchronized',
  'zero_output_for_mask',
  'implementation',
  'time_major',
  'autocast',
  'softmax_robust_masking',
]);

/** Settings with the one value that tfjs computes, and the classes that have them. */
const ONLY_VALUES: readonly {classes: RegExp; setting: string; value: unknown}[] = [
  {classes: /^(Dense|Embedding)$/, setting: 'quantization_config', value: null},
  {classes: /Conv\dD(Transpose)?$/, setting: 'groups', value: 1},
  {classes: /^Conv2DTranspose$/, setting: 'output_padding', value: null},
  {classes: /^Global/, setting: 'keepdims', value: false},
  {classes: /^BatchNormalization$/, setting: 'renorm', value: false},
  {classes: /^GRU(Cell)?$/, setting: 'reset_after', value: false},
  {classes: /^LayerNormalization$/, setting: 'rms_scaling', value: false},
  {classes: /^ReLU$/, setting: 'negative_slope', value: 0},
  {classes: /^ReLU$/, setting: 'threshold', value: 0},
];

/** Activations and the like that tfjs has under another name. */
const RENAMED_FUNCTIONS: Readonly<Record<string, string>> = {
  silu: 'swish',
  hard_silu: 'hardSwish',
  log_softmax: 'logSoftmax',
  hard_sigmoid: 'hardSigmoid',
  soft_plus: 'softplus',
};

/** The settings of a layer in Keras 2's spelling, with those gone that mean nothing to tfjs. */
export function readSettings(
  file: ModelFile,
  layer: string,
  className: string,
  config: JsonObject,
): Record<string, unknown> {
  const settings: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(config)) {
    const only = ONLY_VALUES.find(
      ({classes, setting}) => setting === name && classes.test(className),
    );
    if (only !== undefined) {
      if (value == null || value === only.value) continue;
      throw file.unsupported(
        layer,
        `${className} with ${name}: ${JSON.stringify(value)} is not in tfjs`,
        `tfjs computes ${name}: ${JSON.stringify(only.value)} only; convert the model as a graph model.`,
      );
    }
    if (className === 'Conv1D' && name === 'padding' && value === 'causal') {
      throw file.unsupported(
        layer,
        'Conv1D with causal padding is not in tfjs',
        'Pad the left side in a layer of its own, or convert the model as a graph model.',
      );
    }
    if (DROPPED.has(name)) continue;
    if (name === 'activity_regularizer' && value != null && callStyle(className) === 'plain') {
      throw file.unsupported(
        layer,
        'it has an activity_regularizer, with which tfjs runs no layer',
        'Save the Keras model without it: a trained model does not need it.',
      );
    }
    settings[RENAMED[className]?.[name] ?? name] = readValue(file, layer, name, value);
  }
  return settings;
}

function readValue(file: ModelFile, layer: string, name: string, value: unknown): unknown {
  if (name === 'dtype') return dtypeName(value);
  if (/_(initializer|regularizer|constraint)$/.test(name))
    return registered(file, layer, name, value);
  if (/activation$/.test(name)) return activation(file, layer, name, value);
  return value;
}

/** The storage type of a layer: tfjs computes in float32 whatever a policy says. */
export function dtypeName(value: unknown): string {
  const policy = isObject(value) && isObject(value.config) ? textAt(value.config, 'name') : value;
  if (policy === 'bool' || policy === 'string') return policy;
  return typeof policy === 'string' && /int/.test(policy) ? 'int32' : 'float32';
}

function registered(file: ModelFile, layer: string, name: string, value: unknown): unknown {
  if (value == null) return null;
  const className = isObject(value) ? textAt(value, 'class_name') : value;
  const known = typeof className === 'string' ? tfjsClassName(className) : null;
  if (known === null) {
    throw file.unsupported(
      layer,
      `its ${name} ${JSON.stringify(className)} is not in tfjs`,
      'Save the Keras model without it: a trained model does not need it.',
    );
  }
  const config = isObject(value) && isObject(value.config) ? value.config : {};
  // Keras' L1 and L2 are one class in tfjs, whose default for the other part is not 0.
  const parts = known === 'L1L2' ? {l1: 0, l2: 0} : {};
  return {class_name: known, config: {...parts, ...config}};
}

function activation(file: ModelFile, layer: string, name: string, value: unknown): unknown {
  if (value == null) return value;
  const given = isObject(value) ? (textAt(value, 'config') ?? textAt(value, 'class_name')) : value;
  const named = typeof given === 'string' ? (RENAMED_FUNCTIONS[given] ?? given) : null;
  const known = named === null ? null : activationName(named);
  if (known !== null) return known;
  throw file.unsupported(
    layer,
    `its ${name} ${JSON.stringify(given)} is not in tfjs`,
    'Convert the model as a graph model.',
  );
}

/** tfjs registers activations by their own names, such as `hardSigmoid`. */
function activationName(name: string): string | null {
  const camel = name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
  const {classNameMap} = serialization.SerializationMap.getMap();
  return [name, camel].find((spelling) => spelling in classNameMap) ?? null;
}
