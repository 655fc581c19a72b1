/** The graph models of test/fixtures/graphs, made by make_graphs.py with the tools that users have. */
import {readdirSync, readFileSync} from 'node:fs';
import {join} from 'node:path';
import {gunzipSync} from 'node:zlib';
import * as tf from '@tensorflow/tfjs-core';

const FOLDER = join(__dirname, '../fixtures/graphs');

interface EncodedTensor {
  readonly shape: number[];
  readonly dtype: 'float32' | 'int32' | 'bool';
  readonly data: string;
}

export interface GraphFixture {
  readonly name: string;
  /** How many attentions must be replaced, and how many places left alone. */
  readonly replaced: number;
  readonly left: number;
  /** Relative L1 that tfjs may lie from TensorFlow. */
  readonly tolerance: number;
  readonly model: tf.io.ModelJSON;
  readonly weights: string;
  readonly inputs: Readonly<Record<string, EncodedTensor>>;
  readonly outputs: Readonly<Record<string, EncodedTensor>>;
}

/** Such as `tf_functions/bert`, of all sources or of one. */
export function fixtureNames(source?: string): string[] {
  const folders = readdirSync(FOLDER, {withFileTypes: true}).filter(
    (entry) => entry.isDirectory() && (source === undefined || entry.name === source),
  );
  return folders.flatMap(({name}) =>
    readdirSync(join(FOLDER, name))
      .filter((file) => file.endsWith('.json.gz'))
      .map((file) => `${name}/${file.replace('.json.gz', '')}`),
  );
}

export function readFixture(name: string): GraphFixture {
  const bytes = gunzipSync(readFileSync(join(FOLDER, `${name}.json.gz`)));
  return JSON.parse(bytes.toString('utf8')) as GraphFixture;
}

/** Fresh artifacts at every load. */
export function handlerOf(fixture: GraphFixture): tf.io.IOHandler {
  return {load: () => Promise.resolve(artifactsOf(fixture))};
}

export function artifactsOf({model, weights}: GraphFixture): tf.io.ModelArtifacts {
  const {modelTopology, weightsManifest, signature, userDefinedMetadata} = structuredClone(model);
  return {
    modelTopology,
    weightSpecs: weightsManifest.flatMap((group) => group.weights),
    weightData: bytesOf(weights),
    ...(signature === undefined ? {} : {signature}),
    ...(userDefinedMetadata === undefined ? {} : {userDefinedMetadata}),
  };
}

function bytesOf(text: string): ArrayBuffer {
  return new Uint8Array(Buffer.from(text, 'base64')).buffer;
}

export function decodeTensor({shape, dtype, data}: EncodedTensor): tf.Tensor {
  return tf.tensor(valuesOf({shape, dtype, data}), shape, dtype);
}

export function valuesOf({dtype, data}: EncodedTensor): Float32Array | Int32Array | Uint8Array {
  const bytes = bytesOf(data);
  if (dtype === 'bool') return new Uint8Array(bytes);
  return dtype === 'int32' ? new Int32Array(bytes) : new Float32Array(bytes);
}

export function inputsOf({inputs}: GraphFixture): tf.NamedTensorMap {
  return Object.fromEntries(
    Object.entries(inputs).map(([name, value]) => [name, decodeTensor(value)]),
  );
}
