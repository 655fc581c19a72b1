// What can be wrong with a model's files or a call of it, in words.

/** Where the trouble is; each field only if it applies. */
export interface ModelErrorPlace {
  /** The file that holds the wrong thing. */
  readonly file?: string | undefined;
  /** The field of a JSON file, or the argument of the call. */
  readonly field?: string | undefined;
  /** The tensor among the weights. */
  readonly tensor?: string | undefined;
  /** The error underneath, if any. */
  readonly cause?: unknown;
}

/** A wrong configuration, wrong weights or a wrong argument. The message says what came and what was expected. */
export class ModelError extends Error {
  readonly file: string | undefined;
  readonly field: string | undefined;
  readonly tensor: string | undefined;

  constructor(message: string, place: ModelErrorPlace = {}) {
    const where = [place.file, place.field, place.tensor && `tensor '${place.tensor}'`];
    const prefix = where.filter((part) => part !== undefined && part !== '').join(', ');
    super(
      prefix === '' ? message : `${prefix}: ${message}`,
      place.cause === undefined ? undefined : {cause: place.cause},
    );
    this.name = 'ModelError';
    this.file = place.file;
    this.field = place.field;
    this.tensor = place.tensor;
  }
}
