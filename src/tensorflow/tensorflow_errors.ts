/** What can be wrong with TensorFlow under tfjs-node, in the package's own error class (docs/errors.md). */
import {SageAttentionError} from '../runtime/errors.js';

/** What a user types to mend nearly all of it. */
export const SET_UP_COMMAND = 'npx tfjs-sage-attention setup-tensorflow';

/** `setup-tensorflow` cannot go on. `argument`: the option at fault, without dashes, or null. */
export function setUpFailed(
  message: string,
  hint: string,
  argument: string | null = null,
  cause?: unknown,
): SageAttentionError {
  return new SageAttentionError({
    code: 'tensorflow-set-up-failed',
    argument,
    message: `setup-tensorflow: ${message}`,
    hint,
    cause,
  });
}

/** There is no prepared folder, or tfjs-node has no binding. */
export function notSetUp(message: string): SageAttentionError {
  return new SageAttentionError({
    code: 'tensorflow-not-set-up',
    argument: null,
    message: `tensorflow: ${message}`,
    hint: `Run ${SET_UP_COMMAND} in your project, or set SAGE_TENSORFLOW_DIR to a folder that it made.`,
  });
}

/** The prepared folder is not as the set-up left it. */
export function damaged(folder: string, what: string, cause?: unknown): SageAttentionError {
  return new SageAttentionError({
    code: 'tensorflow-damaged',
    argument: null,
    message: `tensorflow: ${folder} is not as the set-up left it: ${what}.`,
    hint: `Run ${SET_UP_COMMAND} again; it makes anew what is wrong.`,
    cause,
  });
}

/** The prepared folder is whole, but for something else than what is running. */
export function mismatch(folder: string, what: string): SageAttentionError {
  return new SageAttentionError({
    code: 'tensorflow-mismatch',
    argument: null,
    message: `tensorflow: ${folder} does not fit: ${what}.`,
    hint: `Run ${SET_UP_COMMAND} again with the Node and the tfjs-node that you use.`,
  });
}

/** tfjs-node runs already, on something that is not the prepared folder. */
export function alreadyLoaded(path: string, what: string): SageAttentionError {
  return new SageAttentionError({
    code: 'tensorflow-already-loaded',
    argument: null,
    message: `tensorflow: ${path} was loaded before 'tfjs-sage-attention/tensorflow': ${what}.`,
    hint: `Import 'tfjs-sage-attention/tensorflow' first, or start with node -r tfjs-sage-attention/tensorflow.`,
  });
}

/** The message of whatever was thrown; errors of addons come from another realm. */
export function textOf(error: unknown): string {
  const {message} = (error ?? {}) as {message?: unknown};
  return typeof message === 'string' && message !== '' ? message : String(error);
}
