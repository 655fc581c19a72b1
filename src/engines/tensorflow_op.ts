/**
 * The ops inside TensorFlow (backend `tensorflow` of @tensorflow/tfjs-node): whether they are registered, where they run,
 * and why not. TensorFlow is never loaded here, only found; as long as there is none the question is asked again.
 */
import {findBackend} from '@tensorflow/tfjs-core';
import {PRECISIONS, isRefusal, resolveRecipe, type Precision} from '../numerics/recipes.js';
import {encodeProblem, plainProblem, PROBLEM_WORDS} from '../problem.js';
import {ISAS, configVersion, tensorflowStreamOfEnvironment} from '../runtime/config.js';
import {loadAddon} from '../runtime/load_addon.js';
import type {
  NativeAddon,
  TensorflowOpNames,
  TensorflowRegistration,
} from '../runtime/native_addon.js';
import {checkCudaRecipe} from './check_cuda_recipe.js';
import {cudaEngine, lastCudaRefusal} from './cuda.js';
import type {CallSizes} from './cuda_costs.js';
import {autoOnGpu, gpuPreferences} from './gpu_auto.js';
import {nativeEngine} from './native.js';

export const TENSORFLOW_BACKEND = 'tensorflow';

/** int32 words of the input `call`: the float64 words of the problem as pairs, then instruction set and threads. */
export const CALL_WORDS = 2 * PROBLEM_WORDS + 2;

/** The ops as they stand. The same object as long as nothing has changed. */
export interface TensorflowOpState {
  /** null: calls are served without the ops. */
  readonly names: TensorflowOpNames | null;
  /** One sentence: where the ops run, or why there are none. */
  readonly reason: string;
  /** TensorFlow's version, null when no TensorFlow is loaded. */
  readonly version: string | null;
  /** Name of TensorFlow's library, null when none is loaded. */
  readonly library: string | null;
  /** Devices that the ops have kernels for. */
  readonly devices: readonly ('CPU' | 'GPU')[];
  /** The device on which calls of the backend run, null as long as there is no such backend. */
  readonly device: 'CPU' | 'GPU' | null;
  /** Recipes that are computed on `device`. */
  readonly precisions: readonly Precision[];
  /** What `auto` means for a call on a GPU; of a long one when `sizes` are not known. */
  autoOnGpu(sizes?: CallSizes): Precision;
}

/** The parts of NodeJSKernelBackend that tell where TensorFlow runs. */
interface Placement {
  readonly isUsingGpuDevice?: unknown;
  readonly binding?: {readonly executeOp?: unknown};
}

let state: TensorflowOpState | null = null;
/** Set once TensorFlow itself says that it has no such op. */
let denial: string | null = null;

/**
 * Registers the ops as soon as there is a TensorFlow, and tells the result.
 * @throws SageAttentionError `invalid-environment` for SAGE_TENSORFLOW_STREAM.
 */
export function tensorflowOp(): TensorflowOpState {
  // Final once the backend is there.
  if (state !== null && state.device !== null) return state;
  const found = look();
  if (state === null || state.reason !== found.reason || state.device !== found.device) {
    state = found;
  }
  return state;
}

/** For the case that the backend runs on another TensorFlow than the one that was found. */
export function denyTensorflowOp(reason: string): void {
  denial = reason;
  state = null;
}

let refusal: string | null = null;

/** The CUDA kernels do not compute a problem, which goes to the composition of TensorFlow's own ops. */
export function noteGpuRefusal(reason: string): void {
  refusal = reason;
}

/** The last such reason, null when there was none. */
export function lastGpuRefusal(): string | null {
  return refusal;
}

function look(): TensorflowOpState {
  const {addon} = loadAddon();
  if (addon === null) return without('there is no native addon');
  if (isOld(addon)) return without('the native addon was built before there was such an op');
  const stream = tensorflowStreamOfEnvironment();
  const registration = addon.registerTensorflowOp();
  if (stream !== 'auto') addon.setTensorflowStream(stream);
  const {state: came, library, version, gpu, ops, callWords} = registration;
  if (came !== 'registered' && came !== 'registered-by-other') {
    return without(whyNot(registration), registration);
  }
  if (callWords !== CALL_WORDS) return without('the native addon is of another version');
  if (denial !== null) return {...without(denial, registration), device: 'CPU'};
  const backend = findBackend(TENSORFLOW_BACKEND) as Placement | null;
  const isNode = backend === null || typeof backend.binding?.executeOp === 'function';
  if (!isNode) {
    const reason = `backend '${TENSORFLOW_BACKEND}' is not that of @tensorflow/tfjs-node`;
    return {...without(reason, registration), device: 'CPU'};
  }
  const device = backend === null ? null : backend.isUsingGpuDevice === true && gpu ? 'GPU' : 'CPU';
  const away = device === 'CPU' && backend?.isUsingGpuDevice === true;
  const place = device === null ? '' : ` on the ${device}`;
  const why = away ? `, away from TensorFlow's GPU: ${addon.capabilities().cuda.reason}` : '';
  return {
    names: ops,
    reason: `an op of TensorFlow ${version} (${library})${place}${why}`,
    version,
    library,
    devices: gpu ? ['CPU', 'GPU'] : ['CPU'],
    device,
    precisions: device === 'GPU' ? cudaPrecisions(addon) : PRECISIONS,
    autoOnGpu: device === 'GPU' ? autoOf(addon) : () => 'exact',
  };
}

function isOld(addon: Partial<NativeAddon>): boolean {
  return addon.registerTensorflowOp === undefined;
}

function without(reason: string, {version, library}: Partial<TensorflowRegistration> = {}) {
  return {
    names: null,
    reason,
    version: version || null,
    library: library || null,
    devices: [],
    device: null,
    precisions: [],
    autoOnGpu: () => 'exact',
  } satisfies TensorflowOpState;
}

function whyNot({state: came, library, message, missing}: TensorflowRegistration): string {
  if (came === 'no-library') return 'no TensorFlow library is loaded in this process';
  if (came === 'missing-symbols') return `${library} lacks ${missing.join(', ')}`;
  return `TensorFlow refused the op: ${message}`;
}

/** Recipes of which the CUDA kernels compute at least a plain problem. */
function cudaPrecisions(addon: NativeAddon): Precision[] {
  return PRECISIONS.filter((precision) => cudaComputes(addon, precision, 128, 128));
}

/** Of the problem that the kernels are asked about; any number will do. */
const TOKENS = 128;

const tokenStrides = (dim: number) => ({batch: TOKENS * dim, head: TOKENS * dim, token: dim});

/** Whether the CUDA kernels compute a recipe at these head_dims. */
function cudaComputes(
  addon: NativeAddon,
  precision: Precision,
  qkDim: number,
  vDim: number,
): boolean {
  const recipe = resolveRecipe(precision, {});
  if (isRefusal(recipe)) return false;
  const keys = tokenStrides(qkDim);
  const values = tokenStrides(vDim);
  const sizes = {qkDim, vDim, q: keys, k: keys, v: values, o: values};
  const problem = {...plainProblem(TOKENS, recipe), ...sizes};
  return addon.cudaSupports(encodeProblem(problem, new Float64Array(PROBLEM_WORDS))) === null;
}

let fp4Trusted: boolean | null = null;

/**
 * Whether `auto` may mean a recipe unasked. The native FP4 kernels have not run on a Blackwell (docs/kernels_fp4.md), so they
 * show first what they compute on the device at hand; if that is wrong the next recipe serves.
 */
function isTrusted(precision: Precision): boolean {
  if (precision !== 'fp4') return true;
  if (fp4Trusted === null) {
    const wrong = whatIsWrongWithFp4();
    if (wrong !== null) noteGpuRefusal(`fp4 is not taken by auto: ${wrong}`);
    fp4Trusted = wrong === null;
  }
  return fp4Trusted;
}

/** In words; null when nothing is. Whatever goes wrong here must not fail a call that another recipe can serve. */
function whatIsWrongWithFp4(): string | null {
  try {
    const cuda = cudaEngine().engine;
    const native = nativeEngine().engine;
    if (cuda === null || native === null) return 'the FP4 kernels could not be checked';
    return checkCudaRecipe('fp4', cuda, native, lastCudaRefusal);
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** The kernels are asked once for each pair of head_dims. */
function autoOf(addon: NativeAddon): TensorflowOpState['autoOnGpu'] {
  const preferences = gpuPreferences(addon.capabilities().cuda);
  const known = new Map<string, boolean>();
  return (sizes) =>
    autoOnGpu(
      preferences,
      (precision, qkDim, vDim) => {
        const key = `${precision} ${qkDim} ${vDim}`;
        let computes = known.get(key);
        if (computes === undefined) {
          computes = cudaComputes(addon, precision, qkDim, vDim) && isTrusted(precision);
          known.set(key, computes);
        }
        return computes;
      },
      sizes,
    );
}

/** Settings of the CPU engine as a call carries them. */
export interface CallSettings {
  /** Place in `ISAS`. */
  readonly isa: number;
  readonly threads: number;
}

let settings: CallSettings = {isa: 0, threads: 1};
let settingsVersion = -1;

/** What the configuration of this environment means for the ops; other environments' calls carry their own. */
export function callSettings(): CallSettings {
  if (settingsVersion !== configVersion()) {
    nativeEngine(); // hands the configuration to the addon, which knows what 'auto' means
    const facts = loadAddon().addon?.capabilities();
    if (facts !== undefined) {
      settings = {isa: ISAS.indexOf(facts.isa.chosen), threads: facts.threads.chosen};
    }
    settingsVersion = configVersion();
  }
  return settings;
}
