/**
 * Key/value caches inside TensorFlow: ops that append and attend on TensorFlow's own memory, so that k, v, q and o stay
 * there; on a GPU in TensorFlow's stream. Null or false where another way must be taken: the values through the host.
 */
import * as tf from '@tensorflow/tfjs-core';
import {noteCudaRefusal} from '../engines/cuda.js';
import type {CacheStore} from '../engines/kv_cache.js';
import {
  CALL_WORDS,
  callSettings,
  TENSORFLOW_BACKEND,
  tensorflowOp,
} from '../engines/tensorflow_op.js';
import {encodeProblem, PROBLEM_WORDS, type AttentionProblem} from '../problem.js';
import type {TensorflowOpNames} from '../runtime/native_addon.js';
import {engineFailure} from './run_engine.js';
import type {TensorflowBackend} from './SageAttention.tensorflow.js';

type Outputs = ReturnType<TensorflowBackend['binding']['executeOp']>;

/** int32 words of the input `call` of the op that appends. */
const APPEND_WORDS = 4;
/** Of those that attend. */
const ATTEND_WORDS = CALL_WORDS + 2;

/** Once TensorFlow itself says that it has no such op. */
let denied = false;

/** The ops, where the active backend runs them on the device that holds the cache. */
function cacheOps(store: CacheStore): NonNullable<TensorflowOpNames['cache']> | null {
  if (denied || tf.getBackend() !== TENSORFLOW_BACKEND) return null;
  const {names, device} = tensorflowOp();
  if (device !== (store.engine === 'cuda' ? 'GPU' : 'CPU')) return null;
  return names?.cache ?? null;
}

/** Whether k and v [B,Hkv,n,D] were appended. */
export function appendInTensorflow(store: CacheStore, k: tf.Tensor, v: tf.Tensor): boolean {
  const ops = cacheOps(store);
  const number = ops === null ? null : store.number;
  if (ops === null || number === null) return false;
  const words = new Int32Array(APPEND_WORDS);
  putNumber(words, 0, number);
  const {isa, threads} = callSettings();
  words.set([isa, threads], 2);
  const outputs = run(store, ops.append, words, [k, v], 1);
  if (outputs === null) return false;
  backend().binding.deleteTensor(outputs[0]!.id);
  return true;
}

/** o and, if wanted, lse as tensors, which belong to the tidy of the caller. */
export function attendInTensorflow(
  store: CacheStore,
  problem: AttentionProblem,
  q: tf.Tensor,
  mask: tf.Tensor | null,
): tf.Tensor[] | null {
  const ops = cacheOps(store);
  const number = ops === null ? null : store.number;
  if (ops === null || number === null) return null;
  const words = new Int32Array(ATTEND_WORDS);
  encodeProblem(problem, new Float64Array(words.buffer, 0, PROBLEM_WORDS));
  const {isa, threads} = callSettings();
  words.set([isa, threads], CALL_WORDS - 2);
  putNumber(words, CALL_WORDS, number);
  const {wantLse} = problem;
  const inputs = mask === null ? [q] : [q, mask];
  const plain = wantLse ? ops.lse : ops.plain;
  const name = mask === null ? plain : wantLse ? ops.maskedLse : ops.masked;
  const outputs = run(store, name, words, inputs, wantLse ? 2 : 1);
  // TensorFlow's backend makes tensors that the engine knows of.
  return outputs?.map((metadata) => backend().createOutputTensor(metadata) as tf.Tensor) ?? null;
}

function backend(): TensorflowBackend {
  return tf.backend() as unknown as TensorflowBackend;
}

/** A whole number as a pair of words, the low one first. */
function putNumber(words: Int32Array, at: number, number: number): void {
  words[at] = number | 0;
  words[at + 1] = Math.floor(number / 2 ** 32);
}

/** TF_Status of calls that the host's way may still do: out of memory, not implemented, internal. */
const HOST_INSTEAD = ['8', '12', '13'];

/** What the op answers; null where it did nothing and the values should go through the host. */
function run(
  store: CacheStore,
  name: string,
  words: Int32Array,
  inputs: readonly tf.Tensor[],
  outputs: number,
): Outputs | null {
  const {binding} = backend();
  const call = binding.createTensor([words.length], binding.TF_INT32, words);
  try {
    const ids = backend().getInputTensorIds([...inputs]);
    return binding.executeOp(name, [], [call, ...ids], outputs);
  } catch (error) {
    const {message} = error as {message?: unknown};
    const [, status, text] =
      /^Invalid TF_Status: (\d+)\s*Message: ([^]*)/.exec(String(message)) ?? [];
    if (status === '5') {
      denied = true;
      return null;
    }
    if (status !== undefined && HOST_INSTEAD.includes(status)) {
      if (store.engine === 'cuda') noteCudaRefusal({message: text});
      return null;
    }
    throw engineFailure(store.engine, text === undefined ? error : new Error(text, {cause: error}));
  } finally {
    binding.deleteTensor(call);
  }
}
