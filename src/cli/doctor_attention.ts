/** A small attention by each engine against float64: does what is installed compute what it should? */
import * as tf from '@tensorflow/tfjs-core';
import {
  accuracyInputs,
  accuracyProblem,
  type AccuracyCase,
  type AccuracyInputs,
} from '../accuracy/accuracy_cases.js';
import {compareArrays} from '../accuracy/metrics.js';
import {RELATIVE_L1_BOUNDS} from '../accuracy/tolerances.js';
import {cudaEngine} from '../engines/cuda.js';
import type {Engine, EngineName} from '../engines/engine.js';
import {nativeEngine} from '../engines/native.js';
import {typescriptEngine} from '../engines/typescript/typescript_engine.js';
import {configureSageAttention, sageAttention} from '../index.js';
import type {Precision} from '../numerics/recipes.js';
import {CliError} from './cli_error.js';

/** Odd sizes, several tiles, grouped heads. */
const CASE: AccuracyCase = {
  distribution: 'normal',
  batch: 1,
  heads: 4,
  kvHeads: 2,
  qLen: 129,
  kvLen: 129,
  headDim: 64,
  causal: true,
};

/** Largest error of `exact`, which computes in float32, on N(0,1). */
const EXACT_MAX_ABS = 1e-5;

/** Short rows average less than the 1,000 tokens that the bounds are stated for. */
const SHORT_ROWS = 1.5;

export interface AttentionCheck {
  readonly ok: boolean;
  readonly message: string;
  /** What to do where it is not ok. */
  readonly fix: string | null;
}

/** Says nothing against the engine. */
export const NOT_TRIED = 'not tried: no tfjs backend is installed';

const FIX = `configureSageAttention({engine: 'typescript'}) does without it; please report this output.`;

/** One engine on the small case: `exact`, and the recipe that `auto` means there. Never throws. */
export function checkAttention(name: EngineName): AttentionCheck {
  try {
    const inputs = accuracyInputs(CASE);
    const preferred = preferredPrecision(name);
    const exact = compareArrays(attend(name, 'exact', inputs), inputs.expected);
    let ok = exact.maxAbs <= EXACT_MAX_ABS;
    let message = `max error ${exact.maxAbs.toExponential(1)} (exact)`;
    if (preferred !== 'exact') {
      const {relativeL1} = compareArrays(attend(name, preferred, inputs), inputs.expected);
      // Written so that a NaN fails.
      ok = ok && relativeL1 <= SHORT_ROWS * RELATIVE_L1_BOUNDS[preferred];
      message += `, relative L1 ${relativeL1.toPrecision(2)} (${preferred})`;
    }
    return {
      ok,
      message: `${ok ? 'works' : 'computes wrongly'}: ${message}`,
      fix: ok ? null : FIX,
    };
  } catch (error) {
    const {message, hint} = (error ?? {}) as {message?: unknown; hint?: unknown};
    return {
      ok: false,
      message: typeof message === 'string' ? message : String(error),
      fix: typeof hint === 'string' ? hint : FIX,
    };
  }
}

function preferredPrecision(name: EngineName): Precision {
  if (name === 'composition') return 'exact';
  return engineNamed(name).preferred;
}

function attend(name: EngineName, precision: Precision, inputs: AccuracyInputs): Float32Array {
  if (name === 'composition') return attendByOps(inputs);
  const o = new Float32Array(inputs.expected.length);
  const {q, k, v} = inputs;
  engineNamed(name).forward(accuracyProblem(CASE, precision), {q, k, v, mask: null, o, lse: null});
  return o;
}

function engineNamed(name: Exclude<EngineName, 'composition'>): Engine {
  if (name === 'typescript') return typescriptEngine;
  const {engine, reason} = name === 'cuda' ? cudaEngine() : nativeEngine();
  if (engine === null) throw new CliError(reason);
  return engine;
}

/** Works on tensors, so it needs a tfjs backend that runs. */
function attendByOps({q, k, v}: AccuracyInputs): Float32Array {
  if (tf.getBackend() === '') {
    throw new CliError(NOT_TRIED, 'npm install @tensorflow/tfjs-backend-wasm');
  }
  const {batch, heads, kvHeads, qLen, kvLen, headDim, causal} = CASE;
  const before = configureSageAttention({engine: 'composition'});
  try {
    return tf.tidy(() =>
      sageAttention(
        tf.tensor4d(q, [batch, heads, qLen, headDim]),
        tf.tensor4d(k, [batch, kvHeads, kvLen, headDim]),
        tf.tensor4d(v, [batch, kvHeads, kvLen, headDim]),
        {precision: 'exact', isCausal: causal},
      ).dataSync<'float32'>(),
    );
  } finally {
    configureSageAttention(before);
  }
}
