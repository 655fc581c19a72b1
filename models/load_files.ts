// Node only: the JSON files of a model's directory.

import {existsSync, readFileSync} from 'node:fs';
import {join} from 'node:path';
import {ModelError} from './model_error.js';
import {type JsonObject, readJsonObject} from './read_json.js';
import {createTokenizer, type TextTokenizer} from './tokenizer.js';

/**
 * Reads a JSON object.
 *
 * @throws ModelError for a file that is missing, not JSON or no object
 */
export function loadJson(directory: string, name: string): JsonObject {
  const file = join(directory, name);
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new ModelError(`cannot be read as JSON (${reason})`, {file, cause});
  }
  return readJsonObject(text, file);
}

/** As `loadJson`; undefined if there is no such file. */
export function loadJsonIfThere(directory: string, name: string): JsonObject | undefined {
  return existsSync(join(directory, name)) ? loadJson(directory, name) : undefined;
}

/**
 * Loads tokenizer.json, and tokenizer_config.json if it is there.
 *
 * @throws ModelError for a missing or damaged file
 */
export function loadTokenizer(directory: string): TextTokenizer {
  const config = loadJsonIfThere(directory, 'tokenizer_config.json') ?? {};
  const json = loadJson(directory, 'tokenizer.json');
  return createTokenizer(json, config, join(directory, 'tokenizer.json'));
}
