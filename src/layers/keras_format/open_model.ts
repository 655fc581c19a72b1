/** From a path, an address or a handler to the artifacts of a layers model. */
import {io} from '@tensorflow/tfjs-core';
import {platform} from '#platform';
import {isObject} from './json_values.js';
import {ModelFile} from './model_errors.js';

/** What `loadLayersModel` reads a model from. */
export type ModelSource = string | io.IOHandler;

/** @param options Of tfjs' handlers: `onProgress`, `requestInit`, `fetchFunc`, `weightPathPrefix`, ... */
export async function openModel(
  source: ModelSource,
  options: io.LoadOptions,
): Promise<{file: ModelFile; artifacts: io.ModelArtifacts}> {
  const file = new ModelFile(typeof source === 'string' ? source : 'the given handler');
  const handler = typeof source === 'string' ? handlerOf(file, source, options) : source;
  if (typeof handler?.load !== 'function') {
    throw file.invalid(
      null,
      'the source is neither a path, nor an address, nor a handler with load()',
    );
  }
  let artifacts: io.ModelArtifacts;
  try {
    artifacts = await handler.load();
  } catch (cause) {
    throw file.invalid(null, `it cannot be read (${reason(cause)})`, cause);
  }
  if (!isObject(artifacts)) throw file.invalid(null, 'the handler gave no artifacts');
  return {file, artifacts};
}

function handlerOf(file: ModelFile, source: string, options: io.LoadOptions): io.IOHandler {
  const [handler] = io.getLoadHandlers(source, options) as io.IOHandler[];
  if (handler !== undefined) return handler;
  const path = source.replace(/^file:\/\//, '');
  const isAddress = /^[a-z][a-z0-9+.-]+:\/\//i.test(path);
  return platform.name === 'node' && !isAddress
    ? {load: () => Promise.resolve(readFiles(file, path))}
    : io.http(source, options);
}

/** model.json and its weight files, in Node without tfjs-node. */
function readFiles(file: ModelFile, path: string): io.ModelArtifacts {
  const text = platform.readText(path);
  if (text === null) throw new Error('there is no such file');
  const json = JSON.parse(text) as io.ModelJSON;
  const folder = path.replace(/[^/\\]*$/, '') || '.';
  const manifest = Array.isArray(json.weightsManifest) ? json.weightsManifest : null;
  const parts = (manifest ?? []).flatMap(({paths}) =>
    paths.map((name) => {
      const bytes = platform.readBytes(platform.joinPath(folder, name));
      if (bytes === null) throw file.invalid(null, `its weight file ${name} is not there`);
      return bytes;
    }),
  );
  const {modelTopology, format, generatedBy, convertedBy, trainingConfig, userDefinedMetadata} =
    json;
  return {
    modelTopology,
    ...(format === undefined ? {} : {format}),
    ...(generatedBy === undefined ? {} : {generatedBy}),
    ...(convertedBy == null ? {} : {convertedBy}),
    ...(trainingConfig === undefined ? {} : {trainingConfig}),
    ...(userDefinedMetadata === undefined ? {} : {userDefinedMetadata}),
    ...(manifest === null
      ? {}
      : {weightSpecs: manifest.flatMap(({weights}) => weights), weightData: joined(parts)}),
  };
}

function joined(parts: readonly Uint8Array[]): ArrayBuffer {
  const all = new Uint8Array(parts.reduce((sum, {length}) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all.buffer;
}

export function reason(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}
