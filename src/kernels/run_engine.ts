/** From a kernel's buffers to the chosen engine: empty calls, and failures in words. */
import type {BackwardBuffers, Engine, EngineName, ForwardBuffers} from '../engines/engine.js';
import {chooseEngine, engineOf} from '../engines/choose_engine.js';
import type {AttentionProblem} from '../problem.js';
import {SageAttentionError} from '../runtime/errors.js';

/** The engine that computes on buffers for this backend and recipe; null when the call is composed of tfjs ops. */
export function bufferEngine(backend: string, problem: AttentionProblem): Engine | null {
  const {recipe, causal} = problem;
  return engineOf(chooseEngine(backend, recipe.precision, problem, causal !== 'none'));
}

/** Writes o and lse. */
export function runForward(
  engine: Engine,
  problem: AttentionProblem,
  buffers: ForwardBuffers,
): void {
  if (writeTrivialForward(problem, buffers)) return;
  try {
    engine.forward(problem, buffers);
  } catch (error) {
    throw engineFailure(engine.name, error);
  }
}

/** The same off the event loop; an abort rejects with the signal's reason. */
export async function runForwardAsync(
  engine: Engine,
  problem: AttentionProblem,
  buffers: ForwardBuffers,
  signal?: AbortSignal,
): Promise<void> {
  signal?.throwIfAborted();
  if (writeTrivialForward(problem, buffers)) return;
  try {
    await engine.forwardAsync(problem, buffers, signal);
  } catch (error) {
    signal?.throwIfAborted();
    throw engineFailure(engine.name, error);
  }
  signal?.throwIfAborted();
}

/** Writes dQ, dK, dV and dMask. */
export function runBackward(
  engine: Engine,
  problem: AttentionProblem,
  buffers: BackwardBuffers,
): void {
  const {dQ, dK, dV, dMask} = buffers;
  if (isTrivial(problem)) {
    for (const gradient of [dQ, dK, dV, dMask]) gradient?.fill(0);
    return;
  }
  try {
    engine.backward(problem, buffers);
  } catch (error) {
    throw engineFailure(engine.name, error);
  }
}

/** Nothing to compute, or nothing to attend to: no engine needs to see empty buffers. */
export function isTrivial(problem: AttentionProblem): boolean {
  const {batch, qHeads, qLen, kvLen} = problem;
  return kvLen === 0 || batch * qHeads * qLen === 0;
}

function writeTrivialForward(
  problem: AttentionProblem,
  {o, lse}: Pick<ForwardBuffers, 'o' | 'lse'>,
): boolean {
  if (!isTrivial(problem)) return false;
  o.fill(0);
  lse?.fill(-Infinity);
  return true;
}

/** A failure of an engine in words; errors of this package pass. The error may come from another realm. */
export function engineFailure(engine: EngineName, error: unknown): SageAttentionError {
  if (error instanceof SageAttentionError) return error;
  const {message} = (error ?? {}) as {message?: unknown};
  const what = typeof message === 'string' ? message : String(error);
  return new SageAttentionError({
    code: 'engine-failed',
    argument: null,
    message: `sageAttention: engine '${engine}' failed: ${what.replace(/[.\s]*$/, '.')}`,
    hint: `configureSageAttention({engine: 'typescript'}) computes the same without it.`,
    cause: error,
  });
}
