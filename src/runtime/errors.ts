/**
 * The one error class of this package. `docs/errors.md` has a heading per code; a test compares the two lists.
 */

/** Every code, in the order of docs/errors.md. */
export const SAGE_ERROR_CODES = [
  'not-a-tensor',
  'disposed-tensor',
  'unsupported-dtype',
  'unsupported-rank',
  'unsupported-head-dim',
  'shape-mismatch',
  'unknown-option',
  'invalid-option',
  'unsupported-granularity',
  'unsupported-accumulator',
  'unsupported-variant',
  'unsupported-engine',
  'unsupported-isa',
  'invalid-environment',
  'engine-failed',
  'second-order-gradient',
  'no-backend',
  'disposed-cache',
  'invalid-model',
  'no-attention',
  'unknown-layer',
  'unsupported-layer',
  'tensorflow-not-set-up',
  'tensorflow-damaged',
  'tensorflow-mismatch',
  'tensorflow-already-loaded',
  'tensorflow-set-up-failed',
] as const;
export type SageErrorCode = (typeof SAGE_ERROR_CODES)[number];

/** What an error is made of. */
export interface SageErrorParts {
  readonly code: SageErrorCode;
  /** Bare name of the argument, option or variable at fault; null when it is none of them. */
  readonly argument: string | null;
  /** What came and what was expected, in one or two sentences, with the operation in front. */
  readonly message: string;
  /** What to do about it. */
  readonly hint: string;
  readonly cause?: unknown;
}

/**
 * Thrown for every misuse and for every failure of an engine.
 * Read `code` (stable, for programs), `argument`, `hint`, and `docsUrl` (relative to the package's root).
 */
export class SageAttentionError extends Error {
  readonly code: SageErrorCode;
  readonly argument: string | null;
  readonly hint: string;
  readonly docsUrl: string;

  constructor({code, argument, message, hint, cause}: SageErrorParts) {
    super(`${message} ${hint}`, cause === undefined ? undefined : {cause});
    this.name = 'SageAttentionError';
    this.code = code;
    this.argument = argument;
    this.hint = hint;
    this.docsUrl = `docs/errors.md#${code}`;
  }
}

const MAX_SHOWN_CHARACTERS = 60;

/** A value as an error text shows it: strings quoted, arrays in brackets, objects by their kind, never long. */
export function describeValue(value: unknown): string {
  const text = spell(value);
  return text.length > MAX_SHOWN_CHARACTERS ? `${text.slice(0, MAX_SHOWN_CHARACTERS)}...` : text;
}

function spell(value: unknown): string {
  if (typeof value === 'string') return `'${value}'`;
  if (typeof value === 'function') return 'a function';
  if (typeof value === 'symbol') return 'a symbol';
  if (Array.isArray(value)) return `[${value.slice(0, 8).map(spell).join(', ')}]`;
  if (typeof value !== 'object' || value === null) return String(value);
  const {constructor} = value as {constructor?: {name?: string}};
  return `an object of kind ${constructor?.name || 'Object'}`;
}

/** `invalid-option`: what came and what was expected. `page` lists the options; `near` is what was probably meant. */
export function invalidOption(
  operation: string,
  argument: string,
  value: unknown,
  expected: string,
  page: string,
  near?: string,
): SageAttentionError {
  const suggestion = near === undefined ? '' : `Did you mean '${near}'? `;
  return new SageAttentionError({
    code: 'invalid-option',
    argument,
    message: `${operation}: \`${argument}\` is ${describeValue(value)}, expected ${expected}.`,
    hint: `${suggestion}${page} lists every option with its default.`,
  });
}

/** Names as a choice: `'a', 'b' or 'c'`. */
export function listChoices(names: readonly string[]): string {
  const quoted = names.map((name) => `'${name}'`);
  const last = quoted.pop() ?? '';
  return quoted.length === 0 ? last : `${quoted.join(', ')} or ${last}`;
}
