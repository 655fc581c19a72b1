/** A failure of a command that is told in words: what is wrong, and what to do about it. */

export class CliError extends Error {
  /**
   * @param message One sentence: what came and what was expected.
   * @param hint What to do about it, often a command; null when the message says it all.
   */
  constructor(
    message: string,
    readonly hint: string | null = null,
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.name = 'CliError';
  }
}

/** The message of whatever was thrown, with the hint where there is one. Errors of addons come from another realm. */
export function messageOf(error: unknown): string {
  const {message} = (error ?? {}) as {message?: unknown};
  const text = typeof message === 'string' && message !== '' ? message : String(error);
  return error instanceof CliError && error.hint !== null ? `${text}\n${error.hint}` : text;
}
