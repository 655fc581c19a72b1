/** The texts of the demo: a real source file cut into windows, and the beginning that the model is to continue. */
import {readFileSync, statSync} from 'node:fs';
import {join} from 'node:path';
import {platform} from '#platform';
import {cutWindows, decodeBytes, encodeBytes, END_OF_TEXT} from '../../models/gpt2/bytes.js';
import {CliError, messageOf} from './cli_error.js';

/** A file of this project that every copy of the package has. */
const DEFAULT_FILE = ['src', 'numerics', 'recipes.ts'];

/** Text that the model continues unless `--file` says otherwise: written for this project, never seen in training. */
const DEFAULT_PROMPT = ['models', 'gpt2', 'js-gpt', 'prompts', 'matrix.js'];

/** Path of a file that comes with the package. */
export function shippedPath(segments: readonly string[]): string {
  const {packageRoot} = platform;
  if (packageRoot === null) {
    throw new CliError(
      'The folder of this package is not known, so its model and texts cannot be found.',
      'Give --model and --file.',
    );
  }
  return join(packageRoot, ...segments);
}

/** Windows of token ids to be scored, and what they are cut from. */
export interface ScoredText {
  readonly path: string;
  /** Each is [256, ...bytes] cut at the model's context; nothing is added. */
  readonly windows: readonly (readonly number[])[];
}

/**
 * @param file Path; undefined: a source file of this project.
 * @param count Most windows to take.
 * @param size Ids of a window.
 * @throws CliError for a file that is missing, empty, or no file.
 */
export function readScoredText(file: string | undefined, count: number, size: number): ScoredText {
  const path = file ?? shippedPath(DEFAULT_FILE);
  const windows = cutWindows(encodeBytes(readBytes(path)), size);
  return {path, windows: windows.slice(0, count)};
}

/** At most `mostIds` ids of the beginning of the file, up to a line end, and the same as text. */
export function readPrompt(
  file: string | undefined,
  mostIds: number,
): {ids: number[]; text: string} {
  const bytes = readBytes(file ?? shippedPath(DEFAULT_PROMPT));
  const start = bytes.subarray(0, mostIds - 1);
  const lineEnd = start.lastIndexOf(10);
  const whole = lineEnd > 0 && start.length < bytes.length ? start.subarray(0, lineEnd + 1) : start;
  const ids = encodeBytes(whole);
  return {ids, text: decodeBytes(ids.filter((id) => id !== END_OF_TEXT))};
}

function readBytes(path: string): Buffer {
  let bytes: Buffer;
  try {
    if (statSync(path).isDirectory()) {
      throw new CliError(`'${path}' is a directory.`, 'Give a text file with --file.');
    }
    bytes = readFileSync(path);
  } catch (cause) {
    if (cause instanceof CliError) throw cause;
    const {code} = cause as NodeJS.ErrnoException;
    const why = code === 'ENOENT' ? 'there is no such file' : messageOf(cause);
    throw new CliError(`'${path}' cannot be read: ${why}.`, null, {cause});
  }
  if (bytes.length === 0) {
    throw new CliError(`'${path}' is empty; there is nothing to predict in it.`);
  }
  return bytes;
}
