/**
 * Which engine serves which backend and recipe: one table, read from the top, first match wins.
 * `doctor` prints it through `engineChoices`; `auto` takes the matching engine's preferred recipe.
 */
import {PRECISIONS, type Precision} from '../numerics/recipes.js';
import {configVersion, sageConfig} from '../runtime/config.js';
import {SageAttentionError} from '../runtime/errors.js';
import {cudaCosts, cudaEngine, noteCudaRefusal} from './cuda.js';
import {mayGain, predict, type CallSizes, type Prediction} from './cuda_costs.js';
import type {Engine, EngineName} from './engine.js';
import {nativeEngine} from './native.js';
import {TENSORFLOW_BACKEND, tensorflowOp, type TensorflowOpState} from './tensorflow_op.js';
import {typescriptEngine} from './typescript/typescript_engine.js';

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
  readonly tensorflow: Pick<TensorflowOpState, 'names' | 'reason' | 'device' | 'precisions'> | null;
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
const IN_PLACE = ['cpu', 'wasm'];

/** Takes the place of a recipe without CUDA kernels where the engine was asked for by name, or is TensorFlow's device. */
const EXACT_INSTEAD = {
  precision: 'exact',
  because: 'there are no CUDA kernels of this recipe yet',
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
        ? chooseFromRow(row, precision, facts)
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
  precision: Precision | 'auto',
  facts: EngineFacts,
): Precision | null {
  if (row.precisions === 'unquantised') {
    return precision === 'exact' || precision === 'auto' ? 'exact' : null;
  }
  if (row.tensorflowOn !== undefined && !hasOpOn(row.tensorflowOn, facts)) return null;
  if (row.standIn !== undefined) {
    const computed = facts.tensorflow?.precisions ?? [];
    const wanted = precision === 'auto' ? row.standIn.precision : precision;
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

const choices = new Map<string, Map<string, EngineChoice>>();
let choicesVersion = -1;
let choicesTensorflow: TensorflowOpState | null = null;

/**
 * The engine for a call on `backend`, remembered until the configuration changes.
 * @param sizes Of the call, where known: large calls may go to a GPU.
 * @param causal Whether a query sees half of the keys on average.
 * @throws SageAttentionError `unsupported-engine` when the configured engine cannot serve it.
 */
export function chooseEngine(
  backend: string,
  precision: Precision | 'auto',
  sizes?: CallSizes,
  causal = false,
): EngineChoice {
  const choice = chooseForAnySize(backend, precision);
  if (sizes === undefined || choice.engine !== 'native' || !IN_PLACE.includes(backend)) {
    return choice;
  }
  if (sageConfig().engine !== 'auto' || !mayGain(sizes, causal) || cudaEngine().engine === null) {
    return choice;
  }
  return findEngine({backend, precision, sizes, causal}, engineFacts(backend)) ?? choice;
}

function chooseForAnySize(backend: string, precision: Precision | 'auto'): EngineChoice {
  if (choicesVersion !== configVersion()) {
    choices.clear();
    choicesVersion = configVersion();
  }
  if (backend === TENSORFLOW_BACKEND && tensorflowOp() !== choicesTensorflow) {
    choices.delete(backend);
    choicesTensorflow = tensorflowOp();
  }
  const known = choices.get(backend)?.get(precision);
  if (known !== undefined) return known;
  const facts = engineFacts(backend);
  const choice = findEngine({backend, precision}, facts);
  if (choice === null) throw noEngine(backend, precision, facts);
  let ofBackend = choices.get(backend);
  if (ofBackend === undefined) choices.set(backend, (ofBackend = new Map()));
  ofBackend.set(precision, choice);
  return choice;
}

/** What `precision` means on `backend`: itself, or the choice behind `auto`. */
export function choosePrecision(backend: string, precision: Precision | 'auto'): Precision {
  return chooseEngine(backend, precision).precision;
}

/** The engine object behind a choice; null where tensors are not in this process' memory, or are composed of. */
export function engineOf(choice: EngineChoice): Engine | null {
  if (choice.engine === 'native') return nativeEngine().engine;
  if (choice.engine === 'cuda') return choice.onGpu ? null : cudaEngine().engine;
  return choice.engine === 'typescript' ? typescriptEngine : null;
}

function engineFacts(backend: string): EngineFacts {
  const {engine} = sageConfig();
  return {
    native: nativeEngine(),
    typescript: typescriptEngine,
    cuda: {...cudaEngine(), weigh: weighCosts},
    tensorflow: backend === TENSORFLOW_BACKEND ? tensorflowOp() : null,
    required: engine,
  };
}

/** Predicted times, null where nothing can be gained or measured. Measures at the first question that is worth it. */
function weighCosts(
  sizes: CallSizes,
  causal: boolean,
  onCuda: Precision,
  onNative: Precision,
): Prediction | null {
  if (!mayGain(sizes, causal)) return null;
  try {
    const costs = cudaCosts();
    return costs === null ? null : predict(costs, sizes, causal, onCuda, onNative);
  } catch (error) {
    noteCudaRefusal(error);
    return null;
  }
}

/** One row of `getSageAttentionInfo().choices`. */
export interface EngineChoiceRow {
  readonly backend: string;
  readonly precision: Precision | 'auto';
  /** null when no engine serves it as configured. */
  readonly engine: EngineName | null;
  readonly reason: string;
}

/** The whole table as it stands on this machine: `auto` and every recipe on each of `backends`. */
export function engineChoices(backends: readonly string[]): EngineChoiceRow[] {
  return backends.flatMap((backend) => {
    const facts = engineFacts(backend);
    return (['auto', ...PRECISIONS] as const).map((precision): EngineChoiceRow => {
      const choice = findEngine({backend, precision}, facts);
      if (choice === null) {
        const {message} = noEngine(backend, precision, facts);
        return {backend, precision, engine: null, reason: message};
      }
      // src/ops/decoding.ts has the rule for few queries.
      const few =
        choice.engine === 'native' && choice.precision !== 'exact' ? ', decoding exact' : '';
      const meaning = precision === 'auto' ? `auto is ${choice.precision}${few}: ` : '';
      return {backend, precision, engine: choice.engine, reason: `${meaning}${choice.reason}`};
    });
  });
}

function noEngine(
  backend: string,
  precision: Precision | 'auto',
  facts: EngineFacts,
): SageAttentionError {
  const {required, native, cuda} = facts;
  const why =
    required === 'native' && native.engine === null
      ? `the native engine is not available: ${native.reason}`
      : required === 'cuda' && cuda?.engine == null
        ? `CUDA is not available: ${cuda?.reason}`
        : required === 'composition'
          ? `engine 'composition' computes 'exact' only`
          : `no engine computes it`;
  return new SageAttentionError({
    code: 'unsupported-engine',
    argument: required === 'auto' ? 'precision' : 'engine',
    message: `sageAttention: precision '${precision}' on backend '${backend}' with engine '${required}': ${why}.`,
    hint: `configureSageAttention({engine: 'auto'}) lets the package choose.`,
  });
}
