/**
 * Accuracy suites for jest: importing `tfjs-sage-attention/jest` in a test file registers the matcher `toMatchAttention`,
 * and `describeAttentionAccuracy` runs this package's accuracy cases on any attention: one of its recipes, a user's own,
 * or a whole model's layer.
 */
import * as tf from '@tensorflow/tfjs-core';
import {
  ACCURACY_CASES,
  accuracyInputs,
  type AccuracyCase,
  type AccuracyInputs,
} from './accuracy_cases.js';
import {compareArrays} from './metrics.js';
import type {AttentionTolerance} from './tolerances.js';

export {ACCURACY_CASES, type AccuracyCase} from './accuracy_cases.js';
export {toleranceOf, type AttentionTolerance} from './tolerances.js';
export {compareArrays, type AccuracyMetrics} from './metrics.js';

/** What `toMatchAttention` compares: a tensor, or its values. */
export type AttentionValues = tf.Tensor | ArrayLike<number>;

/** The attention under test: q [B,H,Nq,D], k and v [B,Hkv,Nk,D], float32, to [B,H,Nq,D]. */
export type AttentionUnderTest = (
  q: tf.Tensor4D,
  k: tf.Tensor4D,
  v: tf.Tensor4D,
  options: {readonly isCausal: boolean; readonly scale: number},
) => tf.Tensor | Promise<tf.Tensor>;

export interface AttentionAccuracySuite {
  readonly attention: AttentionUnderTest;
  /** Default: `ACCURACY_CASES`. */
  readonly cases?: readonly AccuracyCase[];
  /** One tolerance for all cases, or one for each. Default: `{cosine: 0.99}`. */
  readonly tolerances?: AttentionTolerance | ((c: AccuracyCase) => AttentionTolerance);
  /** Seed of the inputs. Default: 1. */
  readonly seed?: number;
  /** Time limit of one case, ms. Default: 30,000 (the float64 answer of the largest default case takes a second or two). */
  readonly timeoutMs?: number;
}

interface MatcherResult {
  readonly pass: boolean;
  readonly message: () => string;
}

interface JestGlobals {
  readonly expect: {
    (actual: AttentionValues): {
      toMatchAttention(expected: AttentionValues, tolerance?: AttentionTolerance): void;
    };
    extend(matchers: Record<string, (...args: never[]) => MatcherResult>): void;
  };
  readonly describe: (name: string, body: () => void) => void;
  readonly test: (name: string, body: () => Promise<void>, timeoutMs: number) => void;
}

const DEFAULT_TOLERANCE: AttentionTolerance = {cosine: 0.99};
const DEFAULT_TIMEOUT_MS = 30_000;

function jestGlobals(): JestGlobals {
  const globals = globalThis as Partial<Record<keyof JestGlobals, unknown>>;
  if (
    globals.expect === undefined ||
    globals.describe === undefined ||
    globals.test === undefined
  ) {
    throw new Error(
      "tfjs-sage-attention/jest: `expect`, `describe` or `test` is no global here. Import it in a jest test file, with jest's `injectGlobals` left on.",
    );
  }
  return globals as JestGlobals;
}

function valuesOf(values: AttentionValues): ArrayLike<number> {
  return values instanceof tf.Tensor ? values.dataSync() : values;
}

/** Two arrays have no shapes to compare; two tensors do. */
function shapesDiffer(a: AttentionValues, b: AttentionValues): string | null {
  if (!(a instanceof tf.Tensor) || !(b instanceof tf.Tensor)) return null;
  const [received, expected] = [a.shape.join(','), b.shape.join(',')];
  return received === expected ? null : `shape [${received}], expected [${expected}]`;
}

function toMatchAttention(
  received: AttentionValues,
  expected: AttentionValues,
  tolerance: AttentionTolerance = DEFAULT_TOLERANCE,
): MatcherResult {
  const shapes = shapesDiffer(received, expected);
  const [actual, wanted] = [valuesOf(received), valuesOf(expected)];
  if (shapes !== null || actual.length !== wanted.length) {
    const text = shapes ?? `${actual.length} values, expected ${wanted.length}`;
    return {pass: false, message: () => `toMatchAttention: ${text}`};
  }
  const metrics = compareArrays(actual, wanted);
  const {cosine = -Infinity, relativeL1 = Infinity} = tolerance;
  // Written so that a NaN fails.
  const pass =
    (cosine === -Infinity || metrics.cosine >= cosine) &&
    (relativeL1 === Infinity || metrics.relativeL1 <= relativeL1) &&
    !Number.isNaN(metrics.cosine);
  const line = (name: string, value: number, sign: string, bound: number): string =>
    Number.isFinite(bound) ? `  ${name} ${value.toPrecision(6)}, asked ${sign} ${bound}\n` : '';
  return {
    pass,
    message: () =>
      `toMatchAttention: ${pass ? 'within' : 'outside'} the tolerance\n` +
      line('cosine', metrics.cosine, '>=', cosine) +
      line('relativeL1', metrics.relativeL1, '<=', relativeL1) +
      `  rmse ${metrics.rmse.toPrecision(3)}, maxAbs ${metrics.maxAbs.toPrecision(3)}`,
  };
}

const {expect: jestExpect} = jestGlobals();
jestExpect.extend({toMatchAttention: toMatchAttention as (...args: never[]) => MatcherResult});

/**
 * A `describe` with one test for each case: the attention's output against exact attention in float64.
 *
 * ```js
 * import {describeAttentionAccuracy, toleranceOf} from 'tfjs-sage-attention/jest';
 * describeAttentionAccuracy('fp4', {
 *   attention: (q, k, v, options) => sageAttention(q, k, v, {...options, precision: 'fp4'}),
 *   tolerances: ({distribution, qLen}) => toleranceOf('fp4', distribution, qLen),
 * });
 * ```
 *
 * @param name Title of the suite.
 * @param suite `attention` (must not dispose its inputs), `cases`, `tolerances`, `seed`, `timeoutMs`.
 */
export function describeAttentionAccuracy(name: string, suite: AttentionAccuracySuite): void {
  const {describe, test, expect} = jestGlobals();
  const {attention, cases = ACCURACY_CASES, tolerances = DEFAULT_TOLERANCE, seed = 1} = suite;
  describe(name, () => {
    for (const c of cases) {
      test(
        titleOf(c),
        async () => {
          const inputs = accuracyInputs(c, seed);
          const actual = await attend(attention, c, inputs);
          const tolerance = typeof tolerances === 'function' ? tolerances(c) : tolerances;
          expect(actual).toMatchAttention(inputs.expected, tolerance);
        },
        suite.timeoutMs ?? DEFAULT_TIMEOUT_MS,
      );
    }
  });
}

async function attend(
  attention: AttentionUnderTest,
  c: AccuracyCase,
  {q, k, v}: AccuracyInputs,
): Promise<ArrayLike<number>> {
  const tensors = [
    tf.tensor4d(q, [c.batch, c.heads, c.qLen, c.headDim]),
    tf.tensor4d(k, [c.batch, c.kvHeads, c.kvLen, c.headDim]),
    tf.tensor4d(v, [c.batch, c.kvHeads, c.kvLen, c.headDim]),
  ] as const;
  let output: tf.Tensor | undefined;
  try {
    output = await attention(...tensors, {isCausal: c.causal, scale: 1 / Math.sqrt(c.headDim)});
    return await output.data();
  } finally {
    tf.dispose([...tensors, ...(output ? [output] : [])]);
  }
}

function titleOf(c: AccuracyCase): string {
  const heads = c.heads === c.kvHeads ? `${c.heads}` : `${c.heads}:${c.kvHeads}`;
  const lengths = c.qLen === c.kvLen ? `${c.qLen}` : `${c.qLen}x${c.kvLen}`;
  return `${c.distribution}, B${c.batch} H${heads} N${lengths} D${c.headDim}${c.causal ? ', causal' : ''}`;
}

declare global {
  // eslint-disable-next-line @typescript-eslint/no-namespace -- how jest's types are extended
  namespace jest {
    interface Matchers<R, T> {
      /** Compares with the expected output by cosine and relative L1; default tolerance `{cosine: 0.99}`. */
      toMatchAttention(expected: AttentionValues, tolerance?: AttentionTolerance): R;
    }
  }
}

declare module 'expect' {
  interface Matchers<R extends void | Promise<void>, T = unknown> {
    /** Compares with the expected output by cosine and relative L1; default tolerance `{cosine: 0.99}`. */
    toMatchAttention(expected: AttentionValues, tolerance?: AttentionTolerance): R;
  }
}
