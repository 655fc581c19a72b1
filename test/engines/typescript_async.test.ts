/** The TypeScript engine off the event loop: same bits, other events get their turn, an abort stops the work. */
import {typescriptEngine} from '../../src/engines/typescript/typescript_engine.js';
import {CASES, makeInputs, problemOf} from '../cases.js';
import type {AttentionCase} from '../cases.js';
import {attend, bytesOf, makeOutputs, recipeOf, UNWRITTEN} from './typescript_checks.js';

const LARGE: AttentionCase = CASES.find((c) => c.name === 'N 512, head_dim 64')!;
const SMALL: AttentionCase = CASES.find((c) => c.name === 'NHD')!;

test('gives what the synchronous call gives', async () => {
  for (const precision of ['exact', 'int8_fp8'] as const) {
    const problem = problemOf(SMALL, recipeOf(precision));
    const inputs = makeInputs(SMALL, 41);
    const outputs = makeOutputs(problem);
    await typescriptEngine.forwardAsync(problem, {...inputs, ...outputs});
    const expected = attend(problem, inputs);
    expect(bytesOf(outputs.o).equals(bytesOf(expected.o))).toBe(true);
    expect(bytesOf(outputs.lse).equals(bytesOf(expected.lse))).toBe(true);
  }
});

test('timers fire while it computes', async () => {
  const problem = problemOf(LARGE, recipeOf('exact'));
  const outputs = makeOutputs(problem);
  let ticks = 0;
  const timer = setInterval(() => ticks++, 1);
  const started = performance.now();
  await typescriptEngine.forwardAsync(problem, {...makeInputs(LARGE, 42), ...outputs});
  const elapsed = performance.now() - started;
  clearInterval(timer);
  expect(outputs.o.includes(UNWRITTEN)).toBe(false);
  // A slice takes 8 ms and a garbage collection may come on top: one turn in 40 ms is a loop that is alive.
  expect(ticks).toBeGreaterThanOrEqual(Math.floor(elapsed / 40));
  expect(ticks).toBeGreaterThan(0);
});

test('an abort in the middle rejects with the reason and stops', async () => {
  const problem = problemOf(LARGE, recipeOf('exact'));
  const outputs = makeOutputs(problem);
  const controller = new AbortController();
  const reason = new Error('enough');
  setTimeout(() => controller.abort(reason), 1);
  const call = typescriptEngine.forwardAsync(
    problem,
    {...makeInputs(LARGE, 43), ...outputs},
    controller.signal,
  );
  await expect(call).rejects.toBe(reason);
  expect(outputs.o[outputs.o.length - 1]).toBe(UNWRITTEN);
  const written = outputs.o.slice();
  await new Promise((resolve) => setTimeout(resolve, 30));
  expect(bytesOf(outputs.o).equals(bytesOf(written))).toBe(true);
});

test('a signal that is already aborted: nothing is written', async () => {
  const problem = problemOf(SMALL, recipeOf('exact'));
  const outputs = makeOutputs(problem);
  const signal = AbortSignal.abort('too late');
  const inputs = makeInputs(SMALL, 44);
  await expect(
    typescriptEngine.forwardAsync(problem, {...inputs, ...outputs}, signal),
  ).rejects.toBe('too late');
  expect(outputs.o.every((x) => x === UNWRITTEN)).toBe(true);
});

test.each(['setImmediate', 'MessageChannel', 'setTimeout'] as const)(
  'yields by %s',
  async (name) => {
    const saved = {
      setImmediate: globalThis.setImmediate,
      MessageChannel: globalThis.MessageChannel,
    };
    const used = jest.fn();
    const channel = class extends saved.MessageChannel {
      constructor() {
        super();
        used('MessageChannel');
      }
    };
    const immediate = (callback: () => void): NodeJS.Immediate => {
      used('setImmediate');
      return saved.setImmediate(callback);
    };
    const absent = undefined as never;
    globalThis.setImmediate = name === 'setImmediate' ? (immediate as typeof setImmediate) : absent;
    globalThis.MessageChannel = name === 'setTimeout' ? absent : channel;
    try {
      const problem = problemOf(LARGE, recipeOf('exact'));
      const inputs = makeInputs(LARGE, 45);
      const outputs = makeOutputs(problem);
      await typescriptEngine.forwardAsync(problem, {...inputs, ...outputs});
      expect(outputs.o.includes(UNWRITTEN)).toBe(false);
    } finally {
      Object.assign(globalThis, saved);
    }
    const names = new Set(used.mock.calls.map(([one]: [string]) => one));
    expect([...names]).toEqual(name === 'setTimeout' ? [] : [name]);
  },
);
