/** The options of `SageKvCache`: types, defaults, and their validation. */
import {checkOptions, type CheckedOptions, type SageAttentionOptions} from '../ops/options.js';
import type {SignalOption} from '../ops/signal_option.js';
import {MAX_HEAD_DIM} from '../ops/tensor_arguments.js';
import {CACHE_PRECISIONS, type CachePrecision} from '../numerics/kv_cache.js';
import {sageConfig} from '../runtime/config.js';
import type {SageAttentionError} from '../runtime/errors.js';
import {invalidOption, listChoices} from '../runtime/errors.js';
import {refuseUnknownKeys} from '../runtime/unknown_keys.js';

/** What a cache is made for. */
export interface SageKvCacheOptions {
  /** Sequences side by side. */
  batch: number;
  /** Query heads: a multiple of `kvHeads`. */
  heads: number;
  /** Key/value heads, each serving heads / kvHeads query heads. Default: `heads`. */
  kvHeads?: number | undefined;
  /** head_dim of q and k, 1 to 512. */
  headDim: number;
  /** head_dim of v and of the output, 1 to 512. Default: `headDim`. */
  valueDim?: number | undefined;
  /**
   * `'int8'`: k and v in 8 bits with one scale per token, q and p in 14; `'int8_int16'`: v in 16 bits; `'int16'`:
   * k and v in 16 bits; `'exact'`: float32. Default `'auto'`: `'exact'` if `configureSageAttention` says so, else `'int8'`.
   */
  precision?: CachePrecision | 'auto' | undefined;
  /** Tokens whose memory is taken at once; more may be appended. Default 0. */
  capacity?: number | undefined;
}

/** Options of `attend`; every one may be left out. */
export interface SageKvCacheAttendOptions extends Pick<
  SageAttentionOptions,
  'mask' | 'scale' | 'windowSize' | 'returnLse'
> {
  /** As in `sageAttention`, but `'bottom_right'` by default: the last query stands opposite the last token held. */
  isCausal?: SageAttentionOptions['isCausal'];
}

/** Options of `attendAsync`: those of `attend`, and a signal. */
export interface SageKvCacheAttendAsyncOptions extends SageKvCacheAttendOptions, SignalOption {}

/** `SageKvCacheOptions` with everything filled in. */
export interface CheckedCacheOptions {
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly precision: CachePrecision;
  readonly capacity: number;
}

const CACHE_KEYS: ReadonlySet<string> = new Set<keyof SageKvCacheOptions>([
  'batch',
  'heads',
  'kvHeads',
  'headDim',
  'valueDim',
  'precision',
  'capacity',
]);

const ATTEND_KEYS: ReadonlySet<string> = new Set<keyof SageKvCacheAttendOptions>([
  'isCausal',
  'mask',
  'scale',
  'windowSize',
  'returnLse',
]);

/** Validates the options of the constructor; `operation` opens every message. */
export function checkCacheOptions(operation: string, options: unknown): CheckedCacheOptions {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    const example = 'an object such as {batch: 1, heads: 12, headDim: 64}';
    throw invalid(operation, 'options', options, example);
  }
  refuseUnknownKeys(operation, options, CACHE_KEYS);
  const given = options as SageKvCacheOptions;
  const batch = requireSize(operation, 'batch', given.batch, 1);
  const heads = requireSize(operation, 'heads', given.heads, 1);
  const kvHeads = requireSize(operation, 'kvHeads', given.kvHeads ?? heads, 1);
  if (heads % kvHeads !== 0) {
    throw invalid(operation, 'kvHeads', kvHeads, `a divisor of \`heads\`, which is ${heads}`);
  }
  const headDim = requireSize(operation, 'headDim', given.headDim, 1, MAX_HEAD_DIM);
  const valueDim = requireSize(operation, 'valueDim', given.valueDim ?? headDim, 1, MAX_HEAD_DIM);
  const capacity = requireSize(operation, 'capacity', given.capacity ?? 0, 0);
  const asked = given.precision ?? 'auto';
  if (asked !== 'auto' && !CACHE_PRECISIONS.includes(asked)) {
    throw invalid(operation, 'precision', asked, `'auto', ${listChoices(CACHE_PRECISIONS)}`);
  }
  const usual = sageConfig().precision === 'exact' ? 'exact' : 'int8';
  const precision = asked === 'auto' ? usual : asked;
  return {batch, heads, kvHeads, headDim, valueDim, precision, capacity};
}

const NO_OPTIONS = checkOptions('', {isCausal: 'bottom_right'});

/** Validates the options of `attend` and fills in its default causality. */
export function checkAttendOptions(operation: string, options: unknown): CheckedOptions {
  if (options === undefined) return NO_OPTIONS;
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw invalid(operation, 'options', options, 'an object such as {windowSize: [1024, 0]}');
  }
  refuseUnknownKeys(operation, options, ATTEND_KEYS);
  const given = options as SageKvCacheAttendOptions;
  return checkOptions(operation, {...given, isCausal: given.isCausal ?? 'bottom_right'});
}

/** A whole number from `least` to `most`. */
export function requireSize(
  operation: string,
  name: string,
  value: unknown,
  least: number,
  most = Number.MAX_SAFE_INTEGER,
): number {
  if (Number.isSafeInteger(value) && (value as number) >= least && (value as number) <= most) {
    return value as number;
  }
  const range = most === Number.MAX_SAFE_INTEGER ? `of at least ${least}` : `${least} to ${most}`;
  throw invalid(operation, name, value, `a whole number ${range}`);
}

function invalid(
  operation: string,
  argument: string,
  value: unknown,
  expected: string,
): SageAttentionError {
  return invalidOption(operation, argument, value, expected, 'docs/kv_cache.md');
}
