/** The option `signal` of asynchronous calls, apart from those that their synchronous siblings take too. */
import {describeValue, SageAttentionError} from '../runtime/errors.js';

/** What an asynchronous call takes beside its other options. */
export interface SignalOption {
  /** Aborting it rejects the promise with the signal's reason. Default: none. */
  signal?: AbortSignal | undefined;
}

/**
 * Takes `signal` out of the options.
 * @throws SageAttentionError `invalid-option` for what is no AbortSignal.
 */
export function splitSignal<T extends object>(
  operation: string,
  options: (T & SignalOption) | undefined,
): {signal: AbortSignal | undefined; opOptions: T | undefined} {
  if (typeof options !== 'object' || options === null || !('signal' in options)) {
    return {signal: undefined, opOptions: options};
  }
  const {signal, ...rest} = options;
  if (signal !== undefined && typeof signal?.throwIfAborted !== 'function') {
    throw new SageAttentionError({
      code: 'invalid-option',
      argument: 'signal',
      message: `${operation}: \`signal\` is ${describeValue(signal)}, expected an AbortSignal.`,
      hint: 'Pass the signal of an AbortController.',
    });
  }
  return {signal, opOptions: rest as unknown as T};
}
