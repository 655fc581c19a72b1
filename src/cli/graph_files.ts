/** Graph models on disk: model.json and its weight files, read for `inspect` and `rewrite`. */
import {readFileSync} from 'node:fs';
import {dirname, join} from 'node:path';
import type {io} from '@tensorflow/tfjs-core';
import type * as entry from '../converter.js';
import {CliError, messageOf} from './cli_error.js';
import {startBackend} from './tfjs_backend.js';

export interface GraphFiles {
  /** model.json as it was written. */
  readonly json: io.ModelJSON;
  /** Weight files in order: name as model.json has it, and bytes. */
  readonly shards: readonly {readonly name: string; readonly bytes: Uint8Array}[];
  /** Gives the model to tfjs; its path is what errors name. */
  readonly handler: io.IOHandler & {readonly path: string};
}

/** @throws CliError that names the file. */
export function readGraphFiles(path: string): GraphFiles {
  const json = parse(path, read(path).toString('utf8'));
  const groups = json.weightsManifest ?? [];
  if (!Array.isArray(groups)) {
    throw new CliError(`${path} is no graph model: its weightsManifest is no list.`);
  }
  const shards = groups.flatMap((group) =>
    group.paths.map((name) => ({name, bytes: read(join(dirname(path), name))})),
  );
  const whole = Buffer.concat(shards.map(({bytes}) => bytes));
  const weightData = new Uint8Array(whole).buffer;
  const weightSpecs = groups.flatMap((group) => group.weights);
  return {
    json,
    shards,
    handler: {
      path,
      // tfjs must not find its own objects changed by a rewrite.
      load: () => Promise.resolve({...structuredClone(json), weightSpecs, weightData}),
    },
  };
}

/** The part of the package that needs tfjs-converter, on the cpu backend: commands look at graphs, they run none. */
export async function loadConverterEntry(): Promise<typeof entry> {
  await startBackend('cpu');
  try {
    return await import('../converter.js');
  } catch (cause) {
    throw new CliError(
      `@tensorflow/tfjs-converter cannot be loaded: ${messageOf(cause)}`,
      'npm install @tensorflow/tfjs-converter',
      {cause},
    );
  }
}

function read(path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (cause) {
    throw new CliError(`Cannot read ${path}: ${messageOf(cause)}`, null, {cause});
  }
}

function parse(path: string, text: string): io.ModelJSON {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new CliError(`${path} is no JSON: ${messageOf(cause)}`, null, {cause});
  }
  if (typeof json !== 'object' || json === null || !('modelTopology' in json)) {
    throw new CliError(`${path} is no tfjs model: it has no modelTopology.`);
  }
  return json as io.ModelJSON;
}
