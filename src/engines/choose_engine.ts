/**
 * Which engine serves which backend and recipe: one table, read from the top, first match wins.
 * `doctor` prints it through `engineChoices`; `auto` takes the matching engine's preferred recipe.
 */
import {PRECISIONS, type Precision} from '../numerics/recipes.js';
import {configVersion, sageConfig} from '../runtime/config.js';
import {SageAttentionError} from '../runtime/errors.js';
import type {Engine, EngineName} from './engine.js';
import {nativeEngine} from './native.js';
import {typescriptEngine} from './typescript/typescript_engine.js';

/** What the table is asked. */
export interface EngineQuestion {
  readonly backend: string;
  readonly precision: Precision | 'auto';
}

/** What the machine and the configuration say. */
export interface EngineFacts {
  readonly native: {readonly engine: Engine | null; readonly reason: string};
  readonly typescript: Engine;
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
  readonly reason: string;
}

interface EngineRow {
  readonly backends: readonly string[] | 'any';
  /** `unquantised`: `exact`, and `auto`, which then means `exact`. */
  readonly precisions: 'any' | 'unquantised';
  readonly engine: EngineName;
  readonly hostCopy: boolean;
  /** Serves only calls for which this engine was asked by name. */
  readonly onlyIfRequired?: true;
  readonly reason: (facts: EngineFacts, backend: string) => string;
}

/** Backends whose buffers lie in this process' memory, where the engines read and write them in place. */
const IN_PLACE = ['cpu', 'wasm'];

export const ENGINE_TABLE: readonly EngineRow[] = [
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
    backends: ['tensorflow'],
    precisions: 'any',
    engine: 'native',
    hostCopy: true,
    reason: ({native}) => `${native.reason}; backend 'tensorflow' lends its buffers`,
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
    const choice = chooseFromRow(row, precision, facts);
    if (choice === null) continue;
    const {engine, hostCopy} = row;
    const because = `${row.reason(facts, backend)}${asked ? ', as configured' : ''}`;
    return {engine, precision: choice, hostCopy, reason: because};
  }
  return null;
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
  const engine = row.engine === 'native' ? facts.native.engine : facts.typescript;
  if (engine === null) return null;
  const chosen = precision === 'auto' ? engine.preferred : precision;
  return engine.supports(chosen) ? chosen : null;
}

const choices = new Map<string, Map<string, EngineChoice>>();
let choicesVersion = -1;

/**
 * The engine for a call on `backend`, remembered until the configuration changes.
 * @throws SageAttentionError `unsupported-engine` when the configured engine cannot serve it.
 */
export function chooseEngine(backend: string, precision: Precision | 'auto'): EngineChoice {
  if (choicesVersion !== configVersion()) {
    choices.clear();
    choicesVersion = configVersion();
  }
  const known = choices.get(backend)?.get(precision);
  if (known !== undefined) return known;
  const facts = engineFacts();
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

/** The engine object behind a choice; null for `composition`, which works on tensors. */
export function engineOf(choice: EngineChoice): Engine | null {
  if (choice.engine === 'native') return nativeEngine().engine;
  return choice.engine === 'typescript' ? typescriptEngine : null;
}

function engineFacts(): EngineFacts {
  const {engine} = sageConfig();
  return {native: nativeEngine(), typescript: typescriptEngine, required: engine};
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
  const facts = engineFacts();
  return backends.flatMap((backend) =>
    (['auto', ...PRECISIONS] as const).map((precision): EngineChoiceRow => {
      const choice = findEngine({backend, precision}, facts);
      if (choice === null) {
        const {message} = noEngine(backend, precision, facts);
        return {backend, precision, engine: null, reason: message};
      }
      const meaning = precision === 'auto' ? `auto is ${choice.precision}: ` : '';
      return {backend, precision, engine: choice.engine, reason: `${meaning}${choice.reason}`};
    }),
  );
}

function noEngine(
  backend: string,
  precision: Precision | 'auto',
  facts: EngineFacts,
): SageAttentionError {
  const {required, native} = facts;
  const why =
    required === 'native' && native.engine === null
      ? `the native engine is not available: ${native.reason}`
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
