/** Every misuse: its code, the argument it names, and words that help. */
import * as tf from '@tensorflow/tfjs-core';
import {sageAttention, sageAttentionAsync, SageAttentionError} from '../../src/index';
import {useBackend} from '../kernels/backends';
import {good, MISUSES, type Misuse} from './misuses';

beforeAll(() => useBackend('cpu'));

const rows = MISUSES.map((m) => [m.what, m] as const);

function check(error: unknown, {code, argument, says}: Misuse, operation: string): void {
  expect(error).toBeInstanceOf(SageAttentionError);
  const sage = error as SageAttentionError;
  expect({code: sage.code, argument: sage.argument}).toEqual({code, argument});
  expect(sage.message.startsWith(`${operation}: `)).toBe(true);
  for (const piece of says) expect(sage.message).toContain(piece);
  expect(sage.hint.length).toBeGreaterThan(0);
  expect(sage.message).toContain(sage.hint);
  expect(sage.name).toBe('SageAttentionError');
  expect(sage.docsUrl).toBe(`docs/errors.md#${code}`);
}

function caught(call: () => unknown): unknown {
  try {
    call();
  } catch (error) {
    return error;
  }
  return 'nothing was thrown';
}

// The compiler would refuse most of these calls; JavaScript does not.
const looseCall = sageAttention as (...args: unknown[]) => unknown;
const looseAsync = sageAttentionAsync as (...args: unknown[]) => Promise<unknown>;

it.each(rows)('%s', (_, misuse) => {
  check(
    caught(() => looseCall(...misuse.call())),
    misuse,
    'sageAttention',
  );
});

it.each(rows.filter(([, m]) => m.what !== 'signal: undefined'))('async, %s', async (_, misuse) => {
  const before = tf.memory().numTensors;
  const args = misuse.call();
  const made = tf.memory().numTensors - before;
  const error = await looseAsync(...args).catch((reason: unknown) => reason);
  check(error, misuse, 'sageAttentionAsync');
  expect(tf.memory().numTensors - before).toBe(made);
});

it('the wrong kind of signal', async () => {
  const error = await looseAsync(...good({signal: 5})).catch((reason: unknown) => reason);
  check(
    error,
    {
      what: '',
      call: good,
      code: 'invalid-option',
      argument: 'signal',
      says: ['`signal` is 5', 'AbortController'],
    },
    'sageAttentionAsync',
  );
});
