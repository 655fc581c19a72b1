/** Refuses keys that an options object does not have, with the nearest name that it has. */
import {listChoices, SageAttentionError} from './errors.js';
import {nearestName} from './nearest_name.js';

/** The error for an unknown key of `operation`'s options. */
export function unknownKeyError(
  operation: string,
  key: string,
  known: readonly string[],
): SageAttentionError {
  const suggestion = nearestName(key, known);
  return new SageAttentionError({
    code: 'unknown-option',
    argument: key,
    message: `${operation}: there is no option \`${key}\`.`,
    hint:
      suggestion !== undefined
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
