/**
 * Engine `native`: the C++ addon behind the Engine interface. Buffers go through as they are, views and byte offsets
 * included; the problem travels as float64 words. Errors of the addon come from another realm and are worded here.
 */
import {encodeProblem, PROBLEM_WORDS, type AttentionProblem} from '../problem.js';
import type {Precision} from '../numerics/recipes.js';
import {configVersion, sageConfig, type Isa} from '../runtime/config.js';
import {listChoices, SageAttentionError} from '../runtime/errors.js';
import {loadAddon, type LoadedAddon} from '../runtime/load_addon.js';
import type {NativeAddon, NativeCapabilities} from '../runtime/native_addon.js';
import type {BackwardBuffers, Engine, ForwardBuffers} from './engine.js';

/** The native engine as it stands. */
export interface NativeEngineState {
  /** null: there is no addon here. */
  readonly engine: Engine | null;
  /** One sentence: what runs, or why nothing does. */
  readonly reason: string;
  /** For `doctor`: path, source, version, cpu, isa, threads, features, attempts. */
  readonly details: Readonly<Record<string, unknown>>;
}

/** What `auto` means by the kernels that run: the fastest recipe with more than 8 bits in P·V. */
const PREFERRED: Readonly<Record<Isa, Precision>> = {
  portable: 'exact',
  avx2: 'int8_int16',
  avx512: 'int8_int16',
  avx512_bf16: 'int8_bf16',
  amx: 'int8_bf16',
  neon: 'exact',
  neon_dot: 'int8_int16',
};

let state: NativeEngineState | null = null;
let stateVersion = -1;

/**
 * The native engine under the present configuration. Looks for the addon at the first call only.
 * @throws SageAttentionError `unsupported-isa` or `invalid-environment`: a forced value is never passed over in silence.
 */
export function nativeEngine(): NativeEngineState {
  if (state === null || stateVersion !== configVersion()) {
    state = describe(loadAddon());
    stateVersion = configVersion();
  }
  return state;
}

function describe({addon, attempts}: LoadedAddon): NativeEngineState {
  if (addon === null) {
    const tried = attempts.map(({source, message}) => `${source}: ${message}`).join('; ');
    const reason = tried === '' ? 'native modules exist in Node only' : `no addon (${tried})`;
    return {engine: null, reason, details: {attempts}};
  }
  configure(addon);
  const facts = addon.capabilities();
  const {version, cpu, isa, threads, features} = facts;
  const {path, source} = attempts[attempts.length - 1] ?? {path: null, source: null};
  return {
    engine: new NativeEngine(addon, PREFERRED[isa.chosen]),
    reason: sentence(facts),
    details: {path, source, version, cpu, isa, threads, features, attempts},
  };
}

function sentence({isa, threads}: NativeCapabilities): string {
  const path =
    isa.kernels === isa.chosen ? isa.chosen : `${isa.chosen} (kernels of ${isa.kernels})`;
  return `native C++, ${path}, ${threads.chosen} ${threads.chosen === 1 ? 'thread' : 'threads'}`;
}

/** Gives the configuration to the addon. */
function configure(addon: NativeAddon): void {
  const {isa, threads} = sageConfig();
  const facts = addon.capabilities();
  if (isa !== 'auto' && !facts.isa.available.includes(isa)) {
    throw unsupportedIsa(isa, facts.isa);
  }
  try {
    addon.configure({
      isa: isa === 'auto' ? null : isa,
      threads: threads === 'auto' ? null : Math.min(threads, facts.threads.max),
    });
  } catch (error) {
    throw wordFailure(error);
  }
}

function unsupportedIsa(
  isa: Isa,
  {available, refused}: NativeCapabilities['isa'],
): SageAttentionError {
  const reason = refused[isa];
  return new SageAttentionError({
    code: 'unsupported-isa',
    argument: 'isa',
    message: `sageAttention: this machine cannot run the instruction set '${isa}' (SAGE_CPU_ISA, or \`isa\` of configureSageAttention)${reason === undefined ? '' : `: ${reason}`}.`,
    hint: `It can run ${listChoices(available)}; 'auto' takes the best of them.`,
  });
}

class NativeEngine implements Engine {
  readonly name = 'native';
  /** The addon copies the words before it returns, also for asynchronous calls. */
  private readonly words = new Float64Array(PROBLEM_WORDS);

  constructor(
    private readonly addon: NativeAddon,
    readonly preferred: Precision,
  ) {}

  /** Every recipe: those without kernels of their own are emulated exactly. */
  supports(): boolean {
    return true;
  }

  forward(problem: AttentionProblem, {q, k, v, mask, o, lse}: ForwardBuffers): void {
    try {
      this.addon.forward(encodeProblem(problem, this.words), q, k, v, mask, o, lse);
    } catch (error) {
      throw wordFailure(error);
    }
  }

  backward(problem: AttentionProblem, b: BackwardBuffers): void {
    const words = encodeProblem(problem, this.words);
    const {q, k, v, mask, o, lse, dO, dLse, dQ, dK, dV, dMask} = b;
    try {
      this.addon.backward(words, q, k, v, mask, o, lse, dO, dLse, dQ, dK, dV, dMask);
    } catch (error) {
      throw wordFailure(error);
    }
  }

  async forwardAsync(
    problem: AttentionProblem,
    {q, k, v, mask, o, lse}: ForwardBuffers,
    signal?: AbortSignal,
  ): Promise<void> {
    await runCancellable(signal, (cancelled) => {
      const words = encodeProblem(problem, this.words);
      return this.addon.forwardAsync(words, q, k, v, mask, o, lse, cancelled);
    });
  }
}

/** An asynchronous call of the addon: an abort ends it at its next tile and rejects with the signal's reason. */
export async function runCancellable(
  signal: AbortSignal | undefined,
  call: (cancelled: Uint8Array) => Promise<void>,
): Promise<void> {
  signal?.throwIfAborted();
  const cancelled = new Uint8Array(1);
  const cancel = (): void => {
    cancelled[0] = 1;
  };
  signal?.addEventListener('abort', cancel, {once: true});
  try {
    await call(cancelled);
  } catch (error) {
    signal?.throwIfAborted();
    throw wordFailure(error);
  } finally {
    signal?.removeEventListener('abort', cancel);
  }
  // Aborted too late to stop the engine: the caller asked for the rejection all the same.
  signal?.throwIfAborted();
}

const HINTS: Readonly<Record<string, string>> = {
  SAGE_OUT_OF_MEMORY: 'Free memory, or call with fewer heads or tokens at a time.',
  SAGE_UNSUPPORTED: `configureSageAttention({engine: 'typescript'}) computes it more slowly.`,
};

/** The addon's error in the package's words; `engine` is whose it is. */
export function wordFailure(error: unknown, engine = 'native'): SageAttentionError {
  const {code, message} = (error ?? {}) as {code?: unknown; message?: unknown};
  return new SageAttentionError({
    code: 'engine-failed',
    argument: null,
    message: `sageAttention: the ${engine} engine failed: ${String(message ?? error)}.`,
    hint:
      (typeof code === 'string' ? HINTS[code] : undefined) ??
      '`npx tfjs-sage-attention doctor` checks the installation.',
    cause: error,
  });
}
