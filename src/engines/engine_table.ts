/**
 * The table of engines: which one serves which backend and recipe, read from the top, first match wins. Pure: it is asked
 * with facts, and the tests ask it row by row.
 */
import type {Precision} from '../numerics/recipes.js';
import type {CallSizes, Prediction} from './cuda_costs.js';
import type {Engine, EngineName} from './engine.js';
import {TENSORFLOW_BACKEND, type TensorflowOpState} from './tensorflow_op.js';

/** What the table is asked. */
export interface EngineQuestion {
  readonly backend: string;
  readonly precision: Precision | 'auto';
  /** Sizes of the call, where they are known: the way to a GPU and back pays for large ones only. */
  readonly sizes?: CallSizes | undefined;
  /** Whether a query sees half of the keys on average. */
  readonly causal?: boolean | undefined;
}

/** What the machine and the configuration say. */
export interface EngineFacts {
  readonly native: {readonly engine: Engine | null; readonly reason: string};
  readonly typescript: Engine;
  /** Null where nobody asks. `weigh` predicts times by the measured cost model, null without one. */
  readonly cuda: {
    readonly engine: Engine | null;
    readonly reason: string;
    weigh(
      sizes: CallSizes,
      causal: boolean,
      onCuda: Precision,
      onNative: Precision,
    ): Prediction | null;
  } | null;
  /** The ops inside TensorFlow; null where nobody asks for backend `tensorflow`. */
  readonly tensorflow: Pick<
    TensorflowOpState,
    'names' | 'reason' | 'device' | 'precisions' | 'autoOnGpu'
  > | null;
  /** Engine set by `configureSageAttention`, or `'auto'`. */
  readonly required: EngineName | 'auto';
}

/** The answer: who computes, what, and why. */
export interface EngineChoice {
  readonly engine: EngineName;
  /** The recipe that is computed: the one asked for, or what `auto` means here. */
  readonly precision: Precision;
  /** Whether q, k and v leave the backend to be computed. */
  readonly hostCopy: boolean;
  /** Whether the backend's own tensors lie in the memory that the engine computes in, a GPU's. */
  readonly onGpu: boolean;
  readonly reason: string;
}

interface EngineRow {
  readonly backends: readonly string[] | 'any';
  /** `unquantised`: `exact`, and `auto`, which then means `exact`. */
  readonly precisions: 'any' | 'unquantised';
  readonly engine: EngineName;
  readonly hostCopy: boolean;
  /** Serves only where TensorFlow has the ops and runs them on this device. */
  readonly tensorflowOn?: 'CPU' | 'GPU';
  /** Serves only calls for which this engine was asked by name. */
  readonly onlyIfRequired?: true;
  /** Serves arrays of this process on the GPU: if asked by name, or if the cost model says that it pays. */
  readonly throughGpu?: true;
  readonly reason: (facts: EngineFacts, backend: string) => string;
  /** The recipe that stands in for one that the row lacks; what is added to the reason then. */
  readonly standIn?: {readonly precision: Precision; readonly because: string};
}

/** Backends whose buffers lie in this process' memory, where the engines read and write them in place. */
export const IN_PLACE: readonly string[] = ['cpu', 'wasm'];

/** Takes the place of a recipe without CUDA kernels where the engine was asked for by name, or is TensorFlow's device. */
const EXACT_INSTEAD = {
  precision: 'exact',
  because:
    'no CUDA kernels compute it on this device (int16, int8_int16, int8_bf16 and int8 are recipes for CPUs)',
} as const;

export const ENGINE_TABLE: readonly EngineRow[] = [
  {
    backends: IN_PLACE,
    precisions: 'any',
    engine: 'cuda',
    hostCopy: false,
    throughGpu: true,
    reason: ({cuda}) => `${cuda?.reason}, copies included`,
    standIn: EXACT_INSTEAD,
  },
  {
    backends: IN_PLACE,
    precisions: 'any',
    engine: 'native',
    hostCopy: false,
    reason: ({native}) => native.reason,
  },
  {
    backends: IN_PLACE,
    precisions: 'any',
    engine: 'typescript',
    hostCopy: false,
    reason: ({native, required}) =>
      required === 'typescript' || native.engine !== null
        ? 'portable TypeScript'
        : `portable TypeScript, because there is no native engine: ${native.reason}`,
  },
  {
    backends: IN_PLACE,
    precisions: 'unquantised',
    engine: 'composition',
    hostCopy: false,
    onlyIfRequired: true,
    reason: () => 'tfjs ops over blocks of queries',
  },
  {
    backends: [TENSORFLOW_BACKEND],
    precisions: 'any',
    engine: 'cuda',
    hostCopy: false,
    tensorflowOn: 'GPU',
    reason: ({tensorflow}) => `CUDA kernels, ${tensorflow?.reason}`,
    standIn: EXACT_INSTEAD,
  },
  {
    backends: 'any',
    precisions: 'any',
    engine: 'cuda',
    hostCopy: true,
    throughGpu: true,
    onlyIfRequired: true,
    reason: ({cuda}, backend) =>
      `${cuda?.reason}; q, k, v of backend '${backend}' are copied to the host first`,
    standIn: EXACT_INSTEAD,
  },
  {
    backends: [TENSORFLOW_BACKEND],
    precisions: 'any',
    engine: 'native',
    hostCopy: false,
    tensorflowOn: 'CPU',
    reason: ({native, tensorflow}) => `${native.reason}, ${tensorflow?.reason}`,
  },
  {
    backends: [TENSORFLOW_BACKEND],
    precisions: 'any',
    engine: 'native',
    hostCopy: true,
    reason: ({native, tensorflow}) =>
      `${native.reason}; q, k, v are copied to the host, ` +
      (tensorflow?.names == null ? `because ${tensorflow?.reason}` : 'away from the GPU'),
  },
  {
    backends: 'any',
    precisions: 'unquantised',
    engine: 'composition',
    hostCopy: false,
    reason: (_, backend) =>
      `backend '${backend}' has no kernel of its own: tfjs ops over blocks of queries`,
  },
  {
    backends: 'any',
    precisions: 'any',
    engine: 'native',
    hostCopy: true,
    reason: ({native}, backend) =>
      `${native.reason}; backend '${backend}' has no kernel of its own: q, k, v are copied to the host`,
  },
  {
    backends: 'any',
    precisions: 'any',
    engine: 'typescript',
    hostCopy: true,
    reason: (_, backend) =>
      `portable TypeScript; backend '${backend}' has no kernel of its own: q, k, v are copied to the host`,
  },
];

/** The first row of the table that matches, or null. Pure: the tests ask it row by row. */
export function findEngine(question: EngineQuestion, facts: EngineFacts): EngineChoice | null {
  const {backend, precision} = question;
  for (const row of ENGINE_TABLE) {
    if (row.backends !== 'any' && !row.backends.includes(backend)) continue;
    const asked = facts.required === row.engine;
    if (facts.required === 'auto' ? row.onlyIfRequired : !asked) continue;
    const choice =
      row.throughGpu === undefined
        ? chooseFromRow(row, question, facts)
        : chooseThroughGpu(row, question, facts);
    if (choice === null) continue;
    const {engine, hostCopy, standIn} = row;
    const onGpu = row.tensorflowOn === 'GPU';
    const replaced = precision !== 'auto' && choice !== precision;
    const because =
      row.reason(facts, backend) +
      (replaced ? `; '${precision}' runs as '${choice}': ${standIn?.because}` : '') +
      (asked ? ', as configured' : '');
    return {engine, precision: choice, hostCopy, onGpu, reason: because};
  }
  return null;
}

/** The recipe that the engine `cuda` computes for arrays of this process, null where another engine serves. */
function chooseThroughGpu(
  {standIn}: EngineRow,
  {precision, sizes, causal = false}: EngineQuestion,
  {cuda, native, required}: EngineFacts,
): Precision | null {
  const engine = cuda?.engine ?? null;
  if (cuda === null || engine === null) return null;
  const wanted = precision === 'auto' ? engine.preferred : precision;
  if (required === 'cuda') {
    const chosen = engine.supports(wanted) ? wanted : standIn?.precision;
    return chosen !== undefined && engine.supports(chosen) ? chosen : null;
  }
  // Nobody asked for the GPU: it may be faster, and must compute what was asked.
  if (sizes === undefined || native.engine === null || !engine.supports(wanted)) return null;
  const onNative = precision === 'auto' ? native.engine.preferred : precision;
  const times = cuda.weigh(sizes, causal, wanted, onNative);
  return times !== null && times.cudaMs < times.nativeMs ? wanted : null;
}

/** The recipe that a row would compute, null when it does not serve the question. */
function chooseFromRow(
  row: EngineRow,
  {precision, sizes}: EngineQuestion,
  facts: EngineFacts,
): Precision | null {
  if (row.precisions === 'unquantised') {
    return precision === 'exact' || precision === 'auto' ? 'exact' : null;
  }
  if (row.tensorflowOn !== undefined && !hasOpOn(row.tensorflowOn, facts)) return null;
  if (row.standIn !== undefined) {
    const {precisions: computed = [], autoOnGpu} = facts.tensorflow ?? {};
    const automatic = autoOnGpu?.(sizes) ?? row.standIn.precision;
    const wanted = precision === 'auto' ? automatic : precision;
    const chosen = computed.includes(wanted) ? wanted : row.standIn.precision;
    return computed.includes(chosen) ? chosen : null;
  }
  const engine = row.engine === 'native' ? facts.native.engine : facts.typescript;
  if (engine === null) return null;
  const chosen = precision === 'auto' ? engine.preferred : precision;
  return engine.supports(chosen) ? chosen : null;
}

function hasOpOn(device: 'CPU' | 'GPU', {tensorflow}: EngineFacts): boolean {
  // Before the backend is there, a CPU is what it will have for all that is known.
  return tensorflow?.names != null && (tensorflow.device ?? 'CPU') === device;
}
