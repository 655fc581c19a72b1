/**
 * What a call on arrays of this process costs on the GPU, copies included, and on the native engine: a model of four
 * numbers, measured once per process when the first call asks that is large enough to gain.
 */
import {isRefusal, resolveRecipe, type Precision} from '../numerics/recipes.js';
import {encodeProblem, plainProblem, PROBLEM_WORDS, type AttentionProblem} from '../problem.js';
import type {NativeAddon} from '../runtime/native_addon.js';
import type {Engine} from './engine.js';

/** The sizes that decide; an AttentionProblem is one. */
export interface CallSizes {
  readonly batch: number;
  readonly qHeads: number;
  readonly kvHeads: number;
  readonly qLen: number;
  readonly kvLen: number;
  readonly qkDim: number;
  readonly vDim: number;
}

/** The measured numbers. Rates are operations (`operationsOf`) per millisecond. */
export interface CudaCosts {
  /** A call with next to nothing to compute or to copy. */
  readonly launchMs: number;
  /** One byte of an array to the device or back, gathered and scattered by this process' threads. */
  readonly copyMsPerByte: number;
  /** Of the kernels, on device memory. */
  cudaRate(precision: Precision): number;
  /** Of the native engine. */
  nativeRate(precision: Precision): number;
}

export interface Prediction {
  readonly cudaMs: number;
  readonly nativeMs: number;
}

/**
 * Operations below which nobody asks: the native engine takes some ten milliseconds at most, and the first question of a
 * process costs a few hundred (CUDA starts, the rates are measured).
 */
export const LEAST_OPERATIONS = 4e9;

/**
 * Operations per copied byte below which copying cannot pay: reading k and v once is all that the native engine does
 * then, as in decoding, and it reads them faster than they are copied.
 */
export const LEAST_OPERATIONS_PER_BYTE = 64;

/** Multiplications and additions of q·k and p·v; half of them count under causality. */
export function operationsOf(sizes: CallSizes, causal: boolean): number {
  const {batch, qHeads, qLen, kvLen, qkDim, vDim} = sizes;
  return (2 * batch * qHeads * qLen * kvLen * (qkDim + vDim)) / (causal ? 2 : 1);
}

/** Bytes of q, k, v and o. */
export function copiedBytes(sizes: CallSizes): number {
  const {batch, qHeads, kvHeads, qLen, kvLen, qkDim, vDim} = sizes;
  return 4 * batch * (qHeads * qLen + kvHeads * kvLen) * (qkDim + vDim);
}

/** Whether the question is worth an answer: large, and not bound by copies. */
export function mayGain(sizes: CallSizes, causal: boolean): boolean {
  const operations = operationsOf(sizes, causal);
  return (
    operations >= LEAST_OPERATIONS && operations >= LEAST_OPERATIONS_PER_BYTE * copiedBytes(sizes)
  );
}

/** Copies overlap with kernels, so the slower of the two counts. */
export function predict(
  costs: CudaCosts,
  sizes: CallSizes,
  causal: boolean,
  onCuda: Precision,
  onNative: Precision,
): Prediction {
  const operations = operationsOf(sizes, causal);
  const copyMs = copiedBytes(sizes) * costs.copyMsPerByte;
  return {
    cudaMs: costs.launchMs + Math.max(copyMs, operations / costs.cudaRate(onCuda)),
    nativeMs: operations / costs.nativeRate(onNative),
  };
}

/** Shapes that are timed. `heads` key/value heads for as many query heads, head_dim 128. */
const TINY = {heads: 1, qLen: 16, kvLen: 16};
/** 32 MiB of k and v for eight rows of q. */
const COPIED = {heads: 8, qLen: 1, kvLen: 4096};
/** Some milliseconds of the native engine, and enough to fill a GPU. */
const COMPUTED = {heads: 8, qLen: 512, kvLen: 512};
const FILLING = {heads: 16, qLen: 1024, kvLen: 1024};
const HEAD_DIM = 128;

type Shape = typeof TINY;

/** Measures: launch and copies at once, rates when they are first asked for. */
export function measureCudaCosts(
  addon: Pick<NativeAddon, 'timeCudaForward'>,
  cuda: Pick<Engine, 'forward'>,
  native: Pick<Engine, 'forward'>,
  now: () => number = () => performance.now(),
): CudaCosts {
  const values = someNumbers(COPIED.heads * COPIED.kvLen * HEAD_DIM);
  const time = (engine: Pick<Engine, 'forward'>, shape: Shape, precision: Precision) => {
    const problem = problemOf(shape, precision);
    const o = new Float32Array(shape.heads * shape.qLen * HEAD_DIM);
    const start = now();
    engine.forward(problem, {q: values, k: values, v: values, mask: null, o, lse: null});
    return now() - start;
  };
  const least = (count: number, measure: () => number) => {
    measure(); // loads code, gets memory, wakes clocks and threads
    return Math.min(...Array.from({length: count}, measure));
  };
  const launchMs = least(5, () => time(cuda, TINY, 'exact'));
  const copiedMs = least(3, () => time(cuda, COPIED, 'exact')) - launchMs;
  const copyMsPerByte = Math.max(copiedMs, 0) / copiedBytes(sizesOf(COPIED));
  const rates = new Map<string, number>();
  const rate = (engine: 'cuda' | 'native', precision: Precision) => {
    const key = `${engine} ${precision}`;
    let known = rates.get(key);
    if (known === undefined) {
      const shape = engine === 'cuda' ? FILLING : COMPUTED;
      const ms =
        engine === 'cuda'
          ? Math.min(...timeOnDevice(addon, problemOf(shape, precision), values))
          : least(2, () => time(native, shape, precision));
      known = operationsOf(sizesOf(shape), false) / ms;
      rates.set(key, known);
    }
    return known;
  };
  return {
    launchMs,
    copyMsPerByte,
    cudaRate: (precision) => rate('cuda', precision),
    nativeRate: (precision) => rate('native', precision),
  };
}

function timeOnDevice(
  addon: Pick<NativeAddon, 'timeCudaForward'>,
  problem: AttentionProblem,
  values: Float32Array,
): number[] {
  const words = encodeProblem(problem, new Float64Array(PROBLEM_WORDS));
  return addon.timeCudaForward(words, values, values, values, null, 3);
}

function sizesOf({heads, qLen, kvLen}: Shape): CallSizes {
  return {batch: 1, qHeads: heads, kvHeads: heads, qLen, kvLen, qkDim: HEAD_DIM, vDim: HEAD_DIM};
}

function problemOf(shape: Shape, precision: Precision): AttentionProblem {
  const recipe = resolveRecipe(precision, {});
  if (isRefusal(recipe)) throw new Error(`The recipe '${precision}' has a default form.`);
  const strides = (tokens: number) => ({
    batch: shape.heads * tokens * HEAD_DIM,
    head: tokens * HEAD_DIM,
    token: HEAD_DIM,
  });
  return {
    ...plainProblem(1, recipe),
    ...sizesOf(shape),
    q: strides(shape.qLen),
    k: strides(shape.kvLen),
    v: strides(shape.kvLen),
    o: strides(shape.qLen),
    scale: 1 / Math.sqrt(HEAD_DIM),
  };
}

/** Numbers that kernels find nothing special about: uniform in -2 to 2, the same in every process. */
function someNumbers(count: number): Float32Array {
  const values = new Float32Array(count);
  let state = 1;
  for (let i = 0; i < count; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    values[i] = state / 2 ** 30;
  }
  return values;
}
