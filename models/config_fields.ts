// The fields of a config.json, read one by one: each is checked, and a wrong one is named with what was expected.

import {ModelError} from './model_error.js';
import {isJsonObject, type JsonObject, requireJsonObject} from './read_json.js';

/** Reads fields of one JSON object. Every reader throws `ModelError` for a value that does not fit. */
export class ConfigFields {
  private readonly fields: JsonObject;

  /**
   * @param json the parsed file
   * @param file what to call the file in messages
   * @param path names of the objects around this one, for messages. Default: none
   */
  constructor(
    json: unknown,
    readonly file: string,
    private readonly path = '',
  ) {
    this.fields = requireJsonObject(json, path === '' ? file : `${file}, ${path}`);
  }

  /** The error for a field: what it is, what was expected. */
  fail(field: string, expected: string): ModelError {
    const value = this.fields[field];
    const came = value === undefined ? 'is missing' : `is ${JSON.stringify(value)}`;
    return new ModelError(`${came}; expected ${expected}`, {
      file: this.file,
      field: `${this.path}${this.path === '' ? '' : '.'}${field}`,
    });
  }

  /** The value as it stands; null counts as missing. */
  value(field: string): unknown {
    return this.fields[field] ?? undefined;
  }

  has(field: string): boolean {
    return this.value(field) !== undefined;
  }

  /** A whole number >= 1. */
  count(field: string, whenMissing?: number): number {
    const value = this.value(field) ?? whenMissing;
    if (!Number.isSafeInteger(value) || (value as number) < 1) {
      throw this.fail(field, 'a whole number >= 1');
    }
    return value as number;
  }

  /** A finite number > 0. */
  positive(field: string, whenMissing?: number): number {
    const value = this.value(field) ?? whenMissing;
    if (typeof value !== 'number' || !(value > 0 && value < Infinity)) {
      throw this.fail(field, 'a number > 0');
    }
    return value;
  }

  flag(field: string, whenMissing: boolean): boolean {
    const value = this.value(field) ?? whenMissing;
    if (typeof value !== 'boolean') throw this.fail(field, 'true or false');
    return value;
  }

  /** One of the names, as the value that the map gives it. */
  choice<T>(field: string, choices: ReadonlyMap<unknown, T>, whenMissing?: string): T {
    const chosen = choices.get(this.value(field) ?? whenMissing);
    if (chosen === undefined) throw this.fail(field, `one of ${[...choices.keys()].join(', ')}`);
    return chosen;
  }

  /** Token ids: a number, a list of numbers, or nothing. */
  tokenIds(field: string, vocabSize: number): readonly number[] {
    const value = this.value(field);
    const ids: unknown[] = value === undefined ? [] : Array.isArray(value) ? value : [value];
    if (!ids.every((id) => isTokenId(id, vocabSize))) {
      throw this.fail(field, `token ids below vocab_size, ${vocabSize}`);
    }
    return ids as number[];
  }

  /** The fields of an object within this one; undefined where it is missing or null. */
  object(field: string): ConfigFields | undefined {
    const value = this.value(field);
    if (value === undefined) return undefined;
    if (!isJsonObject(value)) throw this.fail(field, 'an object');
    return new ConfigFields(value, this.file, `${this.path}${this.path === '' ? '' : '.'}${field}`);
  }
}

/** Whether `id` is one of the `vocabSize` tokens. */
export function isTokenId(id: unknown, vocabSize: number): id is number {
  return Number.isSafeInteger(id) && (id as number) >= 0 && (id as number) < vocabSize;
}
