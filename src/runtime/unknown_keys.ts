/** Refuses keys that an options object does not have, with the nearest name that it has. */
import {closest, distance} from 'fastest-levenshtein';
import {listChoices, SageAttentionError} from './errors.js';

/** More edits than this and a name is another word, not a slip of the keys. */
const MAX_SUGGESTED_EDITS = 4;

/** A part of a name, such as `window`, means that name from this length on. */
const MIN_PART = 4;

/** The error for an unknown key of `operation`'s options. */
export function unknownKeyError(
  operation: string,
  key: string,
  known: readonly string[],
): SageAttentionError {
  const lowered = known.map((name) => name.toLowerCase().replaceAll('_', ''));
  const written = key.toLowerCase().replaceAll('_', '');
  const holding =
    written.length < MIN_PART ? undefined : lowered.find((name) => name.includes(written));
  const nearest = holding ?? closest(written, lowered);
  const edits = distance(written, nearest);
  const suggestion = known[lowered.indexOf(nearest)];
  const near =
    holding !== undefined || edits <= Math.min(MAX_SUGGESTED_EDITS, Math.ceil(written.length / 2));
  return new SageAttentionError({
    code: 'unknown-option',
    argument: key,
    message: `${operation}: there is no option \`${key}\`.`,
    hint:
      near && suggestion !== undefined
        ? `Did you mean \`${suggestion}\`?`
        : `The options are ${listChoices(known)}.`,
  });
}

/** Throws for the first key of `options` that is not in `known`. */
export function refuseUnknownKeys(
  operation: string,
  options: object,
  known: ReadonlySet<string>,
): void {
  for (const key in options) {
    if (!known.has(key)) throw unknownKeyError(operation, key, [...known]);
  }
}
