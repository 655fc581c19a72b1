/** From the artifacts of a layers model to the model: layers of tfjs, and of this package for attention. */
import * as tf from '@tensorflow/tfjs-core';
import type * as tfl from '@tensorflow/tfjs-layers';
import {SageAttentionError} from '../../runtime/errors.js';
import {followMasks} from '../follow_masks.js';
import {withAttentionLayers} from '../register_layers.js';
import {assignWeights} from './assign_weights.js';
import type {ModelFile} from './model_errors.js';
import {reason} from './open_model.js';
import {readModel, type ReadModel} from './read_model.js';

/** @param strict Every weight of the file has a layer, and the other way round. */
export async function buildModel(
  file: ModelFile,
  artifacts: tf.io.ModelArtifacts,
  strict: boolean,
): Promise<tfl.LayersModel> {
  const {modelTopology, trainingConfig, userDefinedMetadata} = artifacts;
  const {read, model} = withAttentionLayers(() => {
    const read = readModel(file, modelTopology);
    return {read, model: construct(file, read, strict && artifacts.weightData != null)};
  });
  followMasks(model, read.keras, read.masked);
  try {
    if (trainingConfig !== undefined) {
      model.loadTrainingConfig(trainingConfig as Parameters<typeof model.loadTrainingConfig>[0]);
    }
    if (userDefinedMetadata !== undefined) model.setUserDefinedMetadata(userDefinedMetadata);
    await loadWeights(file, model, read, artifacts, strict);
  } catch (cause) {
    model.dispose();
    if (cause instanceof SageAttentionError) throw cause;
    throw file.invalid(null, reason(cause), cause);
  }
  return model;
}

/** @param weightsFollow Initializers need not run: every weight comes from the file. */
function construct(file: ModelFile, {tfjs}: ReadModel, weightsFollow: boolean): tfl.LayersModel {
  const {className, config} = tfjs;
  const [cls, fromConfig] = tf.serialization.SerializationMap.getMap().classNameMap[
    className
  ] as unknown as [unknown, (...args: unknown[]) => tfl.LayersModel];
  try {
    return fromConfig(cls, config, {}, weightsFollow);
  } catch (cause) {
    if (cause instanceof SageAttentionError) throw cause;
    throw file.invalid(null, `tfjs cannot build it (${reason(cause)})`, cause);
  }
}

async function loadWeights(
  file: ModelFile,
  model: tfl.LayersModel,
  read: ReadModel,
  {weightData, weightSpecs}: tf.io.ModelArtifacts,
  strict: boolean,
): Promise<void> {
  if (weightData == null) return;
  if (weightSpecs == null) throw file.invalid(null, 'it has weights, and nothing says which');
  const weights = decode(file, weightData, weightSpecs);
  try {
    const ofOptimizer = weightSpecs.filter(({group}) => group === 'optimizer');
    const ofModel = {...weights};
    for (const {name} of ofOptimizer) Reflect.deleteProperty(ofModel, name);
    if (read.weightsByOrder) assignWeights(file, model, read.listed, ofModel);
    else model.loadWeights(ofModel, strict);
    if (model.optimizer != null && ofOptimizer.length > 0) {
      const named = ofOptimizer.map(({name}) => ({name, tensor: weights[name] as tf.Tensor}));
      await model.optimizer.setWeights(named);
    }
  } finally {
    tf.dispose(weights);
  }
}

function decode(
  file: ModelFile,
  data: tf.io.WeightData,
  specs: readonly tf.io.WeightsManifestEntry[],
): tf.NamedTensorMap {
  const given = Array.isArray(data)
    ? data.reduce((sum, {byteLength}) => sum + byteLength, 0)
    : data.byteLength;
  let needed = 0;
  for (const spec of specs) {
    needed += bytesOf(spec);
    if (needed > given) {
      throw file.invalid(
        null,
        `its weight files end inside \`${spec.name}\`: ${given} bytes, expected at least ${needed}`,
      );
    }
  }
  try {
    return tf.io.decodeWeights(data, [...specs]);
  } catch (cause) {
    throw file.invalid(null, `its weights cannot be decoded (${reason(cause)})`, cause);
  }
}

/** Strings tell their length only in the data. */
function bytesOf({shape, dtype, quantization}: tf.io.WeightsManifestEntry): number {
  const size = shape.reduce((a, b) => a * b, 1);
  const stored = quantization?.dtype ?? dtype;
  const widths: Readonly<Record<string, number>> = {
    float32: 4,
    int32: 4,
    complex64: 8,
    float16: 2,
    uint16: 2,
    uint8: 1,
    bool: 1,
  };
  return size * (widths[stored] ?? 0);
}
