/**
 * Engine `cuda` on arrays of this process: staged, copied and computed by the addon (csrc/cuda/host). What the GPU does
 * not compute, for whatever reason, the native engine computes, and the reason is kept. Inside TensorFlow the same kernels
 * work on TensorFlow's own memory (`tensorflow_op.ts`).
 */
import {isRefusal, PRECISIONS, resolveRecipe, type Precision} from '../numerics/recipes.js';
import {encodeProblem, plainProblem, PROBLEM_WORDS, type AttentionProblem} from '../problem.js';
import {configVersion, cudaDeviceOfEnvironment, sageConfig} from '../runtime/config.js';
import {loadAddon} from '../runtime/load_addon.js';
import type {NativeAddon} from '../runtime/native_addon.js';
import {measureCudaCosts, type CudaCosts} from './cuda_costs.js';
import type {BackwardBuffers, Engine, ForwardBuffers} from './engine.js';
import {nativeEngine, wordFailure} from './native.js';

/** The engine as it stands. */
export interface CudaEngineState {
  /** null: no GPU of this machine can be used. */
  readonly engine: Engine | null;
  /** One sentence: which device, or why none. */
  readonly reason: string;
}

let state: CudaEngineState | null = null;
let stateVersion = -1;
/** The environment is read once, and the device holds for the process. */
let chosen = false;

/**
 * The engine under the present configuration.
 * @throws SageAttentionError `invalid-environment` for a SAGE_CUDA_DEVICE or SAGE_CUDA_MEMORY that means nothing.
 */
export function cudaEngine(): CudaEngineState {
  if (state === null || stateVersion !== configVersion()) {
    state = describe(loadAddon().addon);
    stateVersion = configVersion();
  }
  return state;
}

function describe(addon: NativeAddon | null): CudaEngineState {
  const wanted = cudaDeviceOfEnvironment();
  if (addon === null) return {engine: null, reason: 'there is no native addon'};
  if (isOld(addon)) {
    return {engine: null, reason: 'the native addon was built before there was such an engine'};
  }
  const {cudaMemory} = sageConfig();
  if (!chosen) {
    const refusal = addon.cudaChooseDevice(wanted);
    if (refusal !== null) {
      const where = refusal.code === 'SAGE_INVALID_ARGUMENT' ? 'SAGE_CUDA_DEVICE: ' : '';
      return {engine: null, reason: `${where}${refusal.message}`};
    }
    chosen = true;
  }
  if (cudaMemory !== 'auto' || limited) {
    limited = true;
    addon.cudaLimitMemory(cudaMemory === 'auto' ? 0 : cudaMemory * 2 ** 20);
  }
  const {available, reason, failed} = addon.cudaState();
  if (available) return {engine: new CudaEngine(addon), reason};
  // After a failure the engine stays what it was to its callers: every call of it goes to the native engine.
  return {engine: failed ? (state?.engine ?? null) : null, reason};
}

/** Whether this environment has set the limit of the process. */
let limited = false;

function isOld(addon: Partial<NativeAddon>): boolean {
  return addon.cudaChooseDevice === undefined;
}

let refusal: string | null = null;

/** Why the last call that this engine could not compute went to the native engine; null when there was none. */
export function lastCudaRefusal(): string | null {
  return refusal;
}

/** For errors of the engine that end in another engine's serving the call. */
export function noteCudaRefusal(error: unknown): void {
  const {message} = (error ?? {}) as {message?: unknown};
  refusal = typeof message === 'string' ? message : String(error);
}

/** Whether a failure of CUDA has ended its use in this process. */
export function cudaFailed(): boolean {
  return cudaEngine().engine !== null && loadAddon().addon?.cudaState().failed === true;
}

let costs: CudaCosts | null = null;
let costsKey = '';

/** The cost model, measured at the first question under the present threads and instruction set; null without a GPU. */
export function cudaCosts(): CudaCosts | null {
  const {addon} = loadAddon();
  const cuda = cudaEngine().engine;
  const native = nativeEngine().engine;
  if (addon === null || cuda === null || native === null || cudaFailed()) return null;
  const {isa, threads} = addon.capabilities();
  const key = `${isa.chosen} ${threads.chosen}`;
  if (costs === null || costsKey !== key) {
    costs = measureCudaCosts(addon, cuda, native);
    costsKey = key;
  }
  return costs;
}

/** Frees device and page-locked memory that no call uses; bytes freed, 0 where there is no CUDA. */
export function releaseCudaMemory(): number {
  const {addon} = loadAddon();
  return addon === null || isOld(addon) ? 0 : addon.cudaRelease();
}

/** Codes of the addon for calls that another engine can compute. */
const SERVED_BY_NATIVE = ['SAGE_UNSUPPORTED', 'SAGE_OUT_OF_MEMORY', 'SAGE_INTERNAL'];

class CudaEngine implements Engine {
  readonly name = 'cuda';
  /** Speed is had without giving up float32; whoever asks for a recipe gets it. */
  readonly preferred = 'exact';
  private readonly words = new Float64Array(PROBLEM_WORDS);
  private readonly computed: ReadonlySet<Precision>;

  constructor(private readonly addon: NativeAddon) {
    this.computed = new Set(PRECISIONS.filter((precision) => this.computes(precision)));
  }

  supports(precision: Precision): boolean {
    return this.computed.has(precision);
  }

  forward(problem: AttentionProblem, buffers: ForwardBuffers): void {
    const {q, k, v, mask, o, lse} = buffers;
    try {
      this.addon.cudaForward(encodeProblem(problem, this.words), q, k, v, mask, o, lse);
    } catch (error) {
      nativeInstead(error).forward(problem, buffers);
    }
  }

  backward(problem: AttentionProblem, buffers: BackwardBuffers): void {
    const {q, k, v, mask, o, lse, dO, dLse, dQ, dK, dV, dMask} = buffers;
    const words = encodeProblem(problem, this.words);
    try {
      this.addon.cudaBackward(words, q, k, v, mask, o, lse, dO, dLse, dQ, dK, dV, dMask);
    } catch (error) {
      nativeInstead(error).backward(problem, buffers);
    }
  }

  async forwardAsync(
    problem: AttentionProblem,
    buffers: ForwardBuffers,
    signal?: AbortSignal,
  ): Promise<void> {
    signal?.throwIfAborted();
    const {q, k, v, mask, o, lse} = buffers;
    const cancelled = new Uint8Array(1);
    const cancel = (): void => {
      cancelled[0] = 1;
    };
    signal?.addEventListener('abort', cancel, {once: true});
    try {
      const words = encodeProblem(problem, this.words);
      await this.addon.cudaForwardAsync(words, q, k, v, mask, o, lse, cancelled);
    } catch (error) {
      signal?.throwIfAborted();
      await nativeInstead(error).forwardAsync(problem, buffers, signal);
    } finally {
      signal?.removeEventListener('abort', cancel);
    }
    // Aborted too late to stop the engine: the caller asked for the rejection all the same.
    signal?.throwIfAborted();
  }

  /** Whether there are kernels for at least a plain problem of a recipe. */
  private computes(precision: Precision): boolean {
    const recipe = resolveRecipe(precision, {});
    if (isRefusal(recipe)) return false;
    return (
      this.addon.cudaHostSupports(encodeProblem(plainProblem(128, recipe), this.words)) === null
    );
  }
}

/** Whether an error of the addon leaves the call to another engine. */
export function isServedByNative(error: unknown): boolean {
  const {code} = (error ?? {}) as {code?: unknown};
  return SERVED_BY_NATIVE.includes(String(code));
}

/** The engine for a call that CUDA did not compute. Errors of the call itself are thrown. */
function nativeInstead(error: unknown): Engine {
  const {engine} = nativeEngine();
  if (engine === null || !isServedByNative(error)) throw wordFailure(error, 'CUDA');
  noteCudaRefusal(error);
  return engine;
}
