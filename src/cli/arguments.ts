/** Readers of option values for commander: a wrong value is refused with what is expected. */
import {InvalidArgumentError} from 'commander';
import {listChoices} from '../runtime/errors.js';

/** One of a few names. */
export function choiceOf<T extends string>(names: readonly T[]): (text: string) => T {
  return (text) => {
    const name = names.find((known) => known === text);
    if (name === undefined) throw new InvalidArgumentError(`Expected ${listChoices(names)}.`);
    return name;
  };
}

/** Names with commas between them, each once, in the order given. */
export function listOf<T extends string>(names: readonly T[]): (text: string) => T[] {
  const read = choiceOf(names);
  return (text) => [...new Set(splitList(text).map(read))];
}

/** A whole number >= 1. */
export function count(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value) || value < 1) {
    throw new InvalidArgumentError('Expected a whole number >= 1.');
  }
  return value;
}

/** Whole numbers >= 1 with commas between them. */
export function counts(text: string): number[] {
  return [...new Set(splitList(text).map(count))];
}

/** A finite number >= 0. */
export function amount(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !(value >= 0 && value < Infinity)) {
    throw new InvalidArgumentError('Expected a number >= 0.');
  }
  return value;
}

/** A whole number >= 0. */
export function seed(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) {
    throw new InvalidArgumentError('Expected a whole number >= 0.');
  }
  return value;
}

/** Whole numbers >= 0 with commas between them, as often as given. */
export function classes(text: string): number[] {
  return splitList(text).map(seed);
}

/** Parts with commas between them, at least one, none empty. */
export function splitList(text: string): string[] {
  const parts = text.split(',').map((part) => part.trim());
  if (parts.includes(''))
    throw new InvalidArgumentError('Expected names with commas between them.');
  return parts;
}
