/**
 * Which engine serves a call: the table of `engine_table.ts`, asked with what machine and configuration say.
 * `doctor` prints it through `engineChoices`; `auto` takes the matching engine's preferred recipe.
 */
import {PRECISIONS, type Precision} from '../numerics/recipes.js';
import {configVersion, sageConfig} from '../runtime/config.js';
import {SageAttentionError} from '../runtime/errors.js';
import {cudaCosts, cudaEngine, noteCudaRefusal} from './cuda.js';
import {mayGain, predict, type CallSizes, type Prediction} from './cuda_costs.js';
import type {Engine, EngineName} from './engine.js';
import {findEngine, IN_PLACE, type EngineChoice, type EngineFacts} from './engine_table.js';
import {nativeEngine} from './native.js';
import {TENSORFLOW_BACKEND, tensorflowOp, type TensorflowOpState} from './tensorflow_op.js';
import {typescriptEngine} from './typescript/typescript_engine.js';

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
  if (choice.onGpu && precision === 'auto' && sizes !== undefined) {
    const meant = tensorflowOp().autoOnGpu(sizes);
    return meant === choice.precision ? choice : chooseForAnySize(backend, meant);
  }
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
      // src/ops/decoding.ts has the rule for few queries, gpu_auto.ts that for few keys.
      const quantised = choice.precision !== 'exact';
      const few =
        quantised && choice.onGpu
          ? ', decoding and few keys exact'
          : quantised && choice.engine === 'native'
            ? ', decoding exact'
            : '';
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
