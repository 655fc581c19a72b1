/** The options of `sageAttention`: types, defaults, and their validation. */
import type {Tensor, TensorLike} from '@tensorflow/tfjs-core';
import {
  GRANULARITIES,
  PRECISIONS,
  PV_ACCUMULATORS,
  VARIANTS,
  type Granularity,
  type Precision,
  type PvAccumulator,
  type RecipeChoice,
  type Variant,
} from '../numerics/recipes.js';
import type {CausalKind} from '../problem.js';
import type {SageAttentionError} from '../runtime/errors.js';
import {invalidOption as invalidOptionOf, listChoices} from '../runtime/errors.js';
import {nearestName} from '../runtime/nearest_name.js';
import {refuseUnknownKeys} from '../runtime/unknown_keys.js';

export const LAYOUTS = ['HND', 'NHD'] as const;
/** Axis order: `'HND'` is [batch, heads, tokens, head_dim], `'NHD'` is [batch, tokens, heads, head_dim]. */
export type Layout = (typeof LAYOUTS)[number];

/** Options of `sageAttention`. Every one may be left out; undefined means the default. */
export interface SageAttentionOptions {
  /**
   * Whether a query sees only keys up to its own position. Default `false`.
   * `true` is `'top_left'`: query i sees keys 0..i. `'bottom_right'`: the last query sees the last key, so that
   * query i sees keys 0..i + kv_len - q_len, as decoding with a key/value cache needs.
   */
  isCausal?: boolean | 'top_left' | 'bottom_right' | undefined;
  /**
   * bool (true = attend) or float32 (added to scale·q·k, natural-log domain), broadcastable to [B,H,Nq,Nk]
   * ([H,Nq,Nk], [Nq,Nk] for q of rank 3, 2) in every layout. Default: none.
   */
  mask?: Tensor | TensorLike | undefined;
  /** Multiplies q·k, natural-log domain. Any finite float32 number. Default 1 / sqrt(head_dim of q). */
  scale?: number | undefined;
  /** Axis order of q, k, v and of the output. Default `'HND'`. */
  layout?: Layout | undefined;
  /** The recipe: which number formats compute the attention. Default `'auto'`: the best for this backend and machine. */
  precision?: Precision | 'auto' | undefined;
  /** Subtracts from q its mean per block of 32 or 128 rows before quantising. Default: per recipe (docs/options.md). */
  smoothQ?: boolean | undefined;
  /** Subtracts from k its mean over all tokens before quantising. Default `true` wherever k is quantised. */
  smoothK?: boolean | undefined;
  /** Subtracts from v its mean per 128 tokens before quantising. Default: per recipe (docs/options.md). */
  smoothV?: boolean | undefined;
  /** How many tokens share a scale of q and k. Default: per recipe; recipes of one fixed form refuse it. */
  granularity?: Granularity | undefined;
  /** Accumulator of P·V, by the names of the published kernels. Default: per recipe. */
  pvAccumulator?: PvAccumulator | undefined;
  /**
   * `[left, right]` in tokens, -1 = no limit. Key j is seen by query i if i + off - left <= j <= i + off + right,
   * off = kv_len - q_len when `isCausal` is `'bottom_right'`, else 0. Causal sets right to 0. Default `[-1, -1]`.
   */
  windowSize?: readonly [left: number, right: number] | undefined;
  /** `'tuned'`: the most accurate form of the recipe; `'paper'`: as published. Default `'tuned'`. */
  variant?: Variant | undefined;
  /**
   * Returns `[o, lse]`. lse is the natural-log log-sum-exp of scale·q·k + mask per query,
   * [B,H,Nq], [H,Nq] or [Nq] in every layout. Default `false`.
   */
  returnLse?: boolean | undefined;
}

/** Options after validation, with what does not depend on the tensors filled in. */
export interface CheckedOptions {
  readonly causal: CausalKind;
  readonly mask: Tensor | TensorLike | null;
  /** NaN stands for the default, which depends on head_dim. */
  readonly scale: number;
  readonly layout: Layout;
  /** undefined: as configured. */
  readonly precision: Precision | 'auto' | undefined;
  /** null when every field has its default. */
  readonly recipeChoice: RecipeChoice | null;
  readonly windowLeft: number;
  readonly windowRight: number;
  readonly returnLse: boolean;
}

export const OPTION_NAMES = [
  'isCausal',
  'mask',
  'scale',
  'layout',
  'precision',
  'smoothQ',
  'smoothK',
  'smoothV',
  'granularity',
  'pvAccumulator',
  'windowSize',
  'variant',
  'returnLse',
] as const satisfies readonly (keyof SageAttentionOptions)[];

const KNOWN_KEYS: ReadonlySet<string> = new Set(OPTION_NAMES);

/** 2^128 - 2^104. The engines compute in float32, where a larger scale is Infinity. */
const LARGEST_FLOAT32 = 3.4028234663852886e38;

const NO_OPTIONS: CheckedOptions = {
  causal: 'none',
  mask: null,
  scale: NaN,
  layout: 'HND',
  precision: undefined,
  recipeChoice: null,
  windowLeft: -1,
  windowRight: -1,
  returnLse: false,
};

/** Validates `options`; `operation` opens every message. */
export function checkOptions(
  operation: string,
  options: SageAttentionOptions | undefined,
): CheckedOptions {
  if (options === undefined) return NO_OPTIONS;
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw invalidOption(operation, 'options', options, 'an object such as {isCausal: true}');
  }
  refuseUnknownKeys(operation, options, KNOWN_KEYS);
  const {scale, layout, precision, windowSize, returnLse, mask} = options;
  if (scale !== undefined && !(Number.isFinite(scale) && Math.abs(scale) <= LARGEST_FLOAT32)) {
    throw invalidOption(operation, 'scale', scale, 'a finite number within float32');
  }
  if (layout !== undefined) requireChoice(operation, 'layout', layout, LAYOUTS);
  if (precision !== undefined && precision !== 'auto') {
    requireChoice(operation, 'precision', precision, PRECISIONS, `'auto', `);
  }
  requireBoolean(operation, 'returnLse', returnLse);
  const causal = checkCausal(operation, options.isCausal);
  if (windowSize !== undefined) checkWindow(operation, windowSize);
  return {
    causal,
    mask: mask ?? null,
    scale: scale ?? NaN,
    layout: layout ?? 'HND',
    precision,
    recipeChoice: checkRecipeChoice(operation, options),
    windowLeft: windowSize?.[0] ?? -1,
    windowRight: causal === 'none' ? (windowSize?.[1] ?? -1) : 0,
    returnLse: returnLse ?? false,
  };
}

function checkCausal(operation: string, isCausal: SageAttentionOptions['isCausal']): CausalKind {
  if (isCausal === undefined || isCausal === false) return 'none';
  if (isCausal === true || isCausal === 'top_left') return 'top_left';
  if (isCausal === 'bottom_right') return 'bottom_right';
  throw invalidOption(operation, 'isCausal', isCausal, `true, false, 'top_left' or 'bottom_right'`);
}

function checkWindow(operation: string, windowSize: unknown): void {
  const valid =
    Array.isArray(windowSize) &&
    windowSize.length === 2 &&
    windowSize.every((side) => Number.isSafeInteger(side) && side >= -1);
  if (valid) return;
  const expected = '[left, right] with two integers of at least -1 (-1 = no limit)';
  throw invalidOption(operation, 'windowSize', windowSize, expected);
}

function checkRecipeChoice(operation: string, options: SageAttentionOptions): RecipeChoice | null {
  const {smoothQ, smoothK, smoothV, granularity, pvAccumulator, variant} = options;
  const untouched =
    smoothQ === undefined &&
    smoothK === undefined &&
    smoothV === undefined &&
    granularity === undefined &&
    pvAccumulator === undefined &&
    variant === undefined;
  if (untouched) return null;
  requireBoolean(operation, 'smoothQ', smoothQ);
  requireBoolean(operation, 'smoothK', smoothK);
  requireBoolean(operation, 'smoothV', smoothV);
  if (granularity !== undefined) {
    requireChoice(operation, 'granularity', granularity, GRANULARITIES);
  }
  if (pvAccumulator !== undefined) {
    requireChoice(operation, 'pvAccumulator', pvAccumulator, PV_ACCUMULATORS);
  }
  if (variant !== undefined) requireChoice(operation, 'variant', variant, VARIANTS);
  return {smoothQ, smoothK, smoothV, granularity, pvAccumulator, variant};
}

function requireBoolean(operation: string, name: string, value: unknown): void {
  if (value === undefined || typeof value === 'boolean') return;
  throw invalidOption(operation, name, value, 'true or false');
}

function requireChoice(
  operation: string,
  name: string,
  value: unknown,
  names: readonly string[],
  alsoExpected = '',
): void {
  if ((names as readonly unknown[]).includes(value)) return;
  const near = typeof value === 'string' ? nearestName(value, names) : undefined;
  throw invalidOption(operation, name, value, `${alsoExpected}${listChoices(names)}`, near);
}

function invalidOption(
  operation: string,
  argument: string,
  value: unknown,
  expected: string,
  near?: string,
): SageAttentionError {
  return invalidOptionOf(operation, argument, value, expected, 'docs/options.md', near);
}
