// Node only: opens the safetensors files of a model directory. Tensors are read from disk when asked for, so a model
// larger than the largest Buffer opens too.

import {closeSync, existsSync, fstatSync, openSync, readFileSync, readSync} from 'node:fs';
import {join} from 'node:path';
import {SafetensorsError} from './errors.js';
import {type ByteSource, reasonOf, SafetensorsFile, type TensorStore} from './safetensors.js';
import {parseShardIndex, ShardedSafetensors} from './sharded.js';

/**
 * Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists if there is no single file.
 *
 * @param directory path of the model's directory
 * @param name what the files are called in place of `model`; diffusers has `diffusion_pytorch_model`
 * @throws SafetensorsError if neither file exists, or any of the files is damaged or missing
 */
export function openSafetensorsDirectory(directory: string, name = 'model'): TensorStore {
  const singleFile = `${name}.safetensors`;
  const indexFile = `${singleFile}.index.json`;
  const single = join(directory, singleFile);
  if (existsSync(single)) return openSafetensorsFile(single);

  const indexPath = join(directory, indexFile);
  if (!existsSync(indexPath)) {
    throw new SafetensorsError(`holds neither ${singleFile} nor ${indexFile}`, {file: directory});
  }
  const index = parseShardIndex(readText(indexPath), indexPath);
  const shards = new Map<string, TensorStore>();
  for (const [tensor, shard] of index.weightMap) {
    if (shards.has(shard)) continue;
    const path = join(directory, shard);
    if (!existsSync(path)) {
      throw new SafetensorsError(`missing shard; ${indexFile} lists it`, {file: path, tensor});
    }
    shards.set(shard, openSafetensorsFile(path));
  }
  return new ShardedSafetensors(index, shards);
}

/**
 * Opens one safetensors file.
 *
 * @param path path of the file
 * @throws SafetensorsError if it cannot be read or is not well-formed
 */
export function openSafetensorsFile(path: string): SafetensorsFile {
  return new SafetensorsFile(fileSource(path), path);
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (cause) {
    throw new SafetensorsError(`cannot be read (${reasonOf(cause)})`, {file: path, cause});
  }
}

/** Reads pieces of a file; opens it anew each time, so that nothing has to be closed later. */
function fileSource(path: string): ByteSource {
  const withFile = <T>(action: (descriptor: number) => T): T => {
    try {
      const descriptor = openSync(path, 'r');
      try {
        return action(descriptor);
      } finally {
        closeSync(descriptor);
      }
    } catch (cause) {
      if (cause instanceof SafetensorsError) throw cause;
      throw new SafetensorsError(`cannot be read (${reasonOf(cause)})`, {file: path, cause});
    }
  };
  return {
    length: withFile((descriptor) => fstatSync(descriptor).size),
    read: (begin, end) =>
      withFile((descriptor) => {
        const bytes = new Uint8Array(end - begin);
        let filled = 0;
        while (filled < bytes.length) {
          const got = readSync(descriptor, bytes, filled, bytes.length - filled, begin + filled);
          if (got === 0) {
            throw new SafetensorsError(
              `ended at byte ${begin + filled} while bytes up to ${end} were expected ` +
                '(shortened since it was opened?)',
              {file: path},
            );
          }
          filled += got;
        }
        return bytes;
      }),
  };
}
