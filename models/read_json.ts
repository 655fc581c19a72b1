// JSON as it comes from a model's directory: named in messages, and an object before anything is read from it.

import {ModelError} from './model_error.js';

/** A parsed JSON object. */
export type JsonObject = Readonly<Record<string, unknown>>;

/** Whether a parsed value is an object, not a list or null. */
export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * Parses the text of a JSON file.
 *
 * @param file what to call the file in messages
 * @throws ModelError for text that is not JSON, or holds no object
 */
export function readJsonObject(text: string, file: string): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new ModelError(`is not JSON (${reason})`, {file, cause});
  }
  return requireJsonObject(value, file);
}

/** @throws ModelError unless the parsed file is an object */
export function requireJsonObject(value: unknown, file: string): JsonObject {
  if (isJsonObject(value)) return value;
  throw new ModelError(`is ${JSON.stringify(value)}; expected a JSON object`, {file});
}
