/** Between kernel and engine: empty calls never reach an engine, and its failures are told in the package's words. */
import type {Engine, ForwardBuffers} from '../../src/engines/engine';
import {typescriptEngine} from '../../src/engines/typescript/typescript_engine';
import {runBackward, runForward, runForwardAsync} from '../../src/kernels/run_engine';
import {isRefusal, resolveRecipe} from '../../src/numerics/recipes';
import type {AttentionProblem} from '../../src/problem';
import {SageAttentionError} from '../../src/runtime/errors';
import {CASES, problemOf} from '../cases';

const failure = new Error('the roof is on fire');

/** An engine that cannot do anything. */
const failing: Engine = {
  ...typescriptEngine,
  forward() {
    throw failure;
  },
  backward() {
    throw failure;
  },
  forwardAsync: () => Promise.reject(failure),
};

function problemOfCase(name: string): AttentionProblem {
  const found = CASES.find((c) => c.name === name);
  const recipe = resolveRecipe('exact', {});
  if (found === undefined || isRefusal(recipe)) throw new Error(`no case ${name}`);
  return problemOf(found, recipe);
}

function buffersOf({batch, qHeads, qLen, vDim}: AttentionProblem): ForwardBuffers {
  const empty = new Float32Array(0);
  const rows = batch * qHeads * qLen;
  return {
    q: empty,
    k: empty,
    v: empty,
    mask: null,
    o: new Float32Array(rows * vDim).fill(7),
    lse: new Float32Array(rows).fill(7),
  };
}

it.each(['no keys', 'no queries', 'no tokens', 'batch 0'])('%s', async (name) => {
  const problem = problemOfCase(name);
  for (const run of [runForward, runForwardAsync]) {
    const buffers = buffersOf(problem);
    await run(failing, problem, buffers);
    expect(buffers.o.every((x) => x === 0)).toBe(true);
    expect(buffers.lse?.every((x) => x === -Infinity)).toBe(true);
  }
  const [dQ, dK, dV, dMask] = [3, 4, 5, 6].map((size) => new Float32Array(size).fill(7));
  const buffers = buffersOf(problem);
  const lse = new Float32Array(0);
  runBackward(failing, problem, {
    ...buffers,
    lse,
    dO: buffers.o,
    dLse: null,
    dQ: dQ!,
    dK: dK!,
    dV: dV!,
    dMask: dMask!,
  });
  for (const gradient of [dQ!, dK!, dV!, dMask!]) expect(gradient.every((x) => x === 0)).toBe(true);
});

describe('an engine that fails', () => {
  const problem = problemOfCase('N 17');
  const buffers = buffersOf(problem);

  function expectFailure(error: unknown): void {
    expect(error).toBeInstanceOf(SageAttentionError);
    expect(error).toMatchObject({code: 'engine-failed', argument: null, cause: failure});
    expect((error as Error).message).toContain(`engine 'typescript' failed: the roof is on fire`);
  }

  it('at once', () => {
    try {
      runForward(failing, problem, buffers);
      throw new Error('nothing was thrown');
    } catch (error) {
      expectFailure(error);
    }
  });

  it('later', async () => {
    expectFailure(
      await runForwardAsync(failing, problem, buffers).catch((error: unknown) => error),
    );
  });

  it('in words of its own, which stay', () => {
    const own = new SageAttentionError({
      code: 'unsupported-isa',
      argument: 'isa',
      message: 'No.',
      hint: 'Yes.',
    });
    const refusing: Engine = {
      ...failing,
      forward() {
        throw own;
      },
    };
    expect(() => runForward(refusing, problem, buffers)).toThrow(own);
  });

  it('and was aborted: the reason of the signal counts', async () => {
    const controller = new AbortController();
    const reason = new Error('enough');
    const slow: Engine = {
      ...failing,
      async forwardAsync() {
        controller.abort(reason);
        throw failure;
      },
    };
    await expect(runForwardAsync(slow, problem, buffers, controller.signal)).rejects.toBe(reason);
  });
});
