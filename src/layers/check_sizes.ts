/** Checks of the sizes that layers are made with. */
import {describeValue, SageAttentionError} from '../runtime/errors.js';

/** `value` when it is a positive integer. */
export function checkPositiveInteger(layer: string, argument: string, value: unknown): number {
  if (Number.isSafeInteger(value) && (value as number) > 0) return value as number;
  throw new SageAttentionError({
    code: 'invalid-option',
    argument,
    message: `${layer}: \`${argument}\` is ${describeValue(value)}, expected a positive integer.`,
    hint: 'docs/layers.md lists the arguments of every layer.',
  });
}
