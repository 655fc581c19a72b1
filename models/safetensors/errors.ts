// The one error of the safetensors reader: says which file, which tensor, what came and what was expected.

/** Where in a set of files something is wrong. */
export interface SafetensorsErrorPlace {
  /** Name or path of the file. */
  readonly file: string;
  /** Name of the tensor, where the trouble belongs to one. */
  readonly tensor?: string | undefined;
  /** The error underneath (of JSON.parse or of the file system), if any. */
  readonly cause?: unknown;
}

/** A safetensors file, index or directory that cannot be read as asked. */
export class SafetensorsError extends Error {
  readonly file: string;
  readonly tensor: string | undefined;

  constructor(message: string, place: SafetensorsErrorPlace) {
    const where =
      place.tensor === undefined ? place.file : `${place.file}, tensor ${quote(place.tensor)}`;
    super(`${where}: ${message}`, place.cause === undefined ? undefined : {cause: place.cause});
    this.name = 'SafetensorsError';
    this.file = place.file;
    this.tensor = place.tensor;
  }
}

/** Longest name shown whole: a hostile header may hold names of megabytes. */
const MAX_SHOWN = 120;

/** A value of the file as it may appear in a message: JSON, cut to a readable length. */
export function quote(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length <= MAX_SHOWN ? text : `${text.slice(0, MAX_SHOWN)}...`;
}
