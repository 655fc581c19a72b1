/** The op off the event loop: for servers and pages that must answer while a long attention is computed. */
import * as tf from '@tensorflow/tfjs-core';
import {platform} from '#platform';
import {lseShape, outputShape} from '../kernels/kernel_names.js';
import {ensureKernels} from '../kernels/register_all.js';
import {bufferEngine, runForwardAsync} from '../kernels/run_engine.js';
import type {SageAttentionOptions} from './options.js';
import {prepareCall, type PreparedCall} from './prepare_call.js';
import {sageAttention} from './sage_attention.js';
import {splitSignal, type SignalOption} from './signal_option.js';

const OPERATION = 'sageAttentionAsync';

/** Options of `sageAttention`, and a signal. */
export interface SageAttentionAsyncOptions extends SageAttentionOptions, SignalOption {}

type Attended = tf.Tensor | [o: tf.Tensor, lse: tf.Tensor];

/**
 * `sageAttention` that computes off the event loop (native threads, or slices of a few milliseconds in TypeScript).
 * The inputs may be disposed as soon as the call has returned its promise; on backend `wasm` they are copied first.
 * Not recorded for gradients, and its results belong to no tf.tidy(): dispose them yourself.
 *
 * ```js
 * const o = await sageAttentionAsync(q, k, v, {isCausal: true, signal: AbortSignal.timeout(1000)});
 * ```
 *
 * @param options As of `sageAttention`, and `signal`.
 * @returns A promise of o, or of `[o, lse]` with `returnLse`. Misuse rejects with a SageAttentionError.
 */
export async function sageAttentionAsync<T extends tf.Tensor>(
  q: T | tf.TensorLike,
  k: tf.Tensor | tf.TensorLike,
  v: tf.Tensor | tf.TensorLike,
  options?: SageAttentionAsyncOptions & {returnLse?: false | undefined},
): Promise<T>;
export async function sageAttentionAsync<T extends tf.Tensor>(
  q: T | tf.TensorLike,
  k: tf.Tensor | tf.TensorLike,
  v: tf.Tensor | tf.TensorLike,
  options: SageAttentionAsyncOptions & {returnLse: true},
): Promise<[o: T, lse: tf.Tensor]>;
export async function sageAttentionAsync<T extends tf.Tensor>(
  q: T | tf.TensorLike,
  k: tf.Tensor | tf.TensorLike,
  v: tf.Tensor | tf.TensorLike,
  options?: SageAttentionAsyncOptions,
): Promise<T | [o: T, lse: tf.Tensor]>;
export async function sageAttentionAsync(
  q: tf.Tensor | tf.TensorLike,
  k: tf.Tensor | tf.TensorLike,
  v: tf.Tensor | tf.TensorLike,
  options?: SageAttentionAsyncOptions,
): Promise<Attended> {
  const {signal, opOptions} = splitSignal<SageAttentionOptions>(OPERATION, options);
  signal?.throwIfAborted();
  ensureKernels(OPERATION);
  const made: tf.Tensor[] = [];
  try {
    const call = prepareKept(q, k, v, opOptions, made);
    const {inputs, problem} = call;
    const engine = bufferEngine(tf.getBackend(), problem);
    if (engine === null) return composed(call, opOptions);
    // Backend `cpu` hands out the tensors' own arrays, others copies: valid whatever happens to the tensors.
    const values = await Promise.all([
      inputs.q.data<'float32'>(),
      inputs.k.data<'float32'>(),
      inputs.v.data<'float32'>(),
      inputs.mask === undefined ? null : inputs.mask.data(),
    ]);
    const [qValues, kValues, vValues] = values;
    const mask = values[3] as Float32Array | Uint8Array | null;
    const rows = problem.batch * problem.qHeads * problem.qLen;
    const o = platform.allocateFloats(rows * problem.vDim);
    const lse = problem.wantLse ? platform.allocateFloats(rows) : null;
    const buffers = {q: qValues, k: kValues, v: vValues, mask, o, lse};
    await runForwardAsync(engine, problem, buffers, signal);
    const output = tf.tensor(o, outputShape(inputs.q, problem), 'float32');
    if (lse === null) return output;
    return [output, tf.tensor(lse, lseShape(inputs.q, problem), 'float32')];
  } finally {
    tf.dispose(made);
  }
}

/** Tensors made of nested arrays must outlive this turn of the event loop; they are collected in `made`. */
function prepareKept(
  q: unknown,
  k: unknown,
  v: unknown,
  options: SageAttentionOptions | undefined,
  made: tf.Tensor[],
): PreparedCall {
  const given: unknown[] = [q, k, v, options?.mask];
  let prepared: PreparedCall | null = null;
  tf.tidy(() => {
    prepared = prepareCall(OPERATION, q, k, v, options, false);
    for (const tensor of Object.values(prepared.inputs) as tf.Tensor[]) {
      if (!given.includes(tensor)) made.push(tf.keep(tensor));
    }
  });
  return prepared as unknown as PreparedCall;
}

/** Backends whose kernels are compositions compute off the event loop by themselves, or not at all. */
function composed({inputs}: PreparedCall, options: SageAttentionOptions | undefined): Attended {
  const {q, k, v, mask} = inputs;
  const attended = sageAttention(q, k, v, mask === undefined ? options : {...options, mask});
  // Made within the caller's tf.tidy(), if there is one, whose end must not take them away.
  for (const result of Array.isArray(attended) ? attended : [attended]) tf.keep(result);
  return attended;
}
