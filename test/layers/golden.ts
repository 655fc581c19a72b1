/** The models of test/fixtures/keras with their inputs and the outputs that Python computes. */
import {readdirSync, readFileSync} from 'node:fs';
import {join} from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import {compareArrays} from '../../src/accuracy/metrics';

interface GoldenTensor {
  readonly shape: number[];
  readonly dtype?: tf.DataType;
  readonly values: number[];
}

interface Golden {
  readonly inputs: readonly GoldenTensor[];
  readonly outputs: readonly GoldenTensor[];
}

const FOLDER = join(__dirname, '..', 'fixtures', 'keras');

export const MODEL_NAMES: readonly string[] = readdirSync(FOLDER, {withFileTypes: true})
  .filter((entry) => entry.isDirectory())
  .map(({name}) => name)
  .sort();

export function modelPath(name: string): string {
  return join(FOLDER, name, 'model.json');
}

export function modelJson(name: string): tf.io.ModelJSON {
  return JSON.parse(readFileSync(modelPath(name), 'utf8')) as tf.io.ModelJSON;
}

/** Topology and weights of a model, to change before loading. */
export function modelArtifacts(name: string): tf.io.ModelArtifacts & {weightData: ArrayBuffer} {
  const {modelTopology, weightsManifest} = modelJson(name);
  const bytes = weightsManifest.flatMap(({paths}) =>
    paths.map((path) => readFileSync(join(FOLDER, name, path))),
  );
  const all = new Uint8Array(Buffer.concat(bytes));
  return {
    modelTopology,
    weightSpecs: weightsManifest.flatMap(({weights}) => weights),
    weightData: all.buffer.slice(all.byteOffset, all.byteOffset + all.byteLength),
  };
}

export function golden(name: string): {inputs: tf.Tensor[]; outputs: readonly GoldenTensor[]} {
  const {inputs, outputs} = JSON.parse(
    readFileSync(join(FOLDER, name, 'golden.json'), 'utf8'),
  ) as Golden;
  return {
    inputs: inputs.map(({values, shape, dtype}) => tf.tensor(values, shape, dtype)),
    outputs,
  };
}

/** The outputs of a model as a list. */
export function predictAll(
  model: {predict(x: tf.Tensor | tf.Tensor[]): tf.Tensor | tf.Tensor[]},
  inputs: tf.Tensor[],
): tf.Tensor[] {
  const outputs = model.predict(inputs.length === 1 ? (inputs[0] as tf.Tensor) : inputs);
  return Array.isArray(outputs) ? outputs : [outputs];
}

/** Relative L1 of each output against the golden one, whose shape it must have. */
export function errorsAgainst(
  outputs: readonly tf.Tensor[],
  wanted: readonly GoldenTensor[],
): number[] {
  expect(outputs.map(({shape}) => shape)).toEqual(wanted.map(({shape}) => shape));
  return outputs.map(
    (output, i) =>
      compareArrays(output.dataSync(), wanted[i]?.values as unknown as Float32Array).relativeL1,
  );
}
