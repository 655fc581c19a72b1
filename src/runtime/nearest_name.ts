import {closest, distance} from 'fastest-levenshtein';

/** More edits than this and a name is another word, not a slip of the keys. */
const MAX_EDITS = 4;

/** A part of a name, such as `window`, means that name from this length on. */
const MIN_PART = 4;

/**
 * The name that `written` was probably meant to be, undefined where none is near. Case and underscores do not count; at
 * least one name.
 */
export function nearestName(written: string, names: readonly string[]): string | undefined {
  const plain = (name: string) => name.toLowerCase().replaceAll('_', '');
  const lowered = names.map(plain);
  const wanted = plain(written);
  const holding = lowered.includes(wanted)
    ? wanted
    : lowered.find((name) => wanted.length >= MIN_PART && name.includes(wanted));
  if (holding !== undefined) return names[lowered.indexOf(holding)];
  const nearest = closest(wanted, lowered);
  const near = distance(wanted, nearest) <= Math.min(MAX_EDITS, Math.ceil(wanted.length / 2));
  return near ? names[lowered.indexOf(nearest)] : undefined;
}
