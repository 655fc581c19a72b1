// Several safetensors files that together hold one model, joined by `model.safetensors.index.json`. Browser-safe.

import {quote, SafetensorsError} from './errors.js';
import {isRecord, reasonOf, type TensorEntry, type TensorStore} from './safetensors.js';
import {parseStrictJson} from './strict_json.js';

/** The index of a sharded model: which file holds which tensor. */
export interface ShardIndex {
  /** Name of the index file, for messages. */
  readonly file: string;
  /** Tensor name to shard file name. */
  readonly weightMap: ReadonlyMap<string, string>;
}

/**
 * Parses the text of a `model.safetensors.index.json`.
 *
 * @param text the JSON text
 * @param file what to call the index in messages
 * @throws SafetensorsError for bad JSON, duplicate keys, a missing weight_map, or shard names that are not plain
 *   file names (a path could reach out of the model's directory)
 */
export function parseShardIndex(text: string, file = 'model.safetensors.index.json'): ShardIndex {
  let index: unknown;
  try {
    index = parseStrictJson(text);
  } catch (cause) {
    throw new SafetensorsError(`is not valid JSON (${reasonOf(cause)})`, {file, cause});
  }
  const map = isRecord(index) ? index['weight_map'] : undefined;
  if (!isRecord(map)) {
    throw new SafetensorsError(`weight_map is ${quote(map)}; expected {tensor: file}`, {file});
  }
  const weightMap = new Map<string, string>();
  for (const [tensor, shard] of Object.entries(map)) {
    if (typeof shard !== 'string' || !/^[\w.-]+$/.test(shard) || /^\.+$/.test(shard)) {
      throw new SafetensorsError(
        `its shard is ${quote(shard)}; expected a plain file name in the same directory`,
        {file, tensor},
      );
    }
    weightMap.set(tensor, shard);
  }
  return {file, weightMap};
}

/** A model in several files. */
export class ShardedSafetensors implements TensorStore {
  readonly file: string;
  private readonly homes = new Map<string, TensorStore>();

  /**
   * @param index the parsed index
   * @param shards the opened files, by the names that the index uses
   * @throws SafetensorsError if a shard is missing, or lacks a tensor that the index places in it
   */
  constructor(index: ShardIndex, shards: ReadonlyMap<string, TensorStore>) {
    this.file = index.file;
    for (const [tensor, shard] of index.weightMap) {
      const home = shards.get(shard);
      if (home === undefined) {
        throw new SafetensorsError(`its shard ${quote(shard)} is missing`, {
          file: index.file,
          tensor,
        });
      }
      if (!home.has(tensor)) {
        throw new SafetensorsError(`${index.file} places it here, but the file does not hold it`, {
          file: home.file,
          tensor,
        });
      }
      this.homes.set(tensor, home);
    }
  }

  names(): string[] {
    return [...this.homes.keys()];
  }

  has(name: string): boolean {
    return this.homes.has(name);
  }

  entry(name: string): TensorEntry {
    return this.home(name).entry(name);
  }

  bytes(name: string): Uint8Array {
    return this.home(name).bytes(name);
  }

  float32(name: string): Float32Array {
    return this.home(name).float32(name);
  }

  int32(name: string): Int32Array {
    return this.home(name).int32(name);
  }

  private home(name: string): TensorStore {
    const home = this.homes.get(name);
    if (home === undefined) {
      throw new SafetensorsError(
        `no tensor of this name; the index lists ${this.homes.size} others`,
        {file: this.file, tensor: name},
      );
    }
    return home;
  }
}
