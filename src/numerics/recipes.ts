/**
 * The recipes as data: which formats, scales, smoothing and accumulators one `precision` means.
 * The rules behind every field are in docs/numerics.md; `reference.ts` computes any recipe in float64.
 */

export const PRECISIONS = [
  'exact',
  'int16',
  'int8_int16',
  'int8_bf16',
  'int8_fp16',
  'int8_fp8',
  'int8',
  'int4_fp8',
  'fp4',
  'fp4_fp8',
] as const;
export type Precision = (typeof PRECISIONS)[number];

export const GRANULARITIES = ['per_token', 'per_warp', 'per_thread', 'per_block'] as const;
export type Granularity = (typeof GRANULARITIES)[number];

export const PV_ACCUMULATORS = ['fp32', 'fp16', 'fp16+fp32', 'fp32+fp32', 'fp32+fp16'] as const;
export type PvAccumulator = (typeof PV_ACCUMULATORS)[number];

export const VARIANTS = ['tuned', 'paper'] as const;
export type Variant = (typeof VARIANTS)[number];

/** Formats of q and k. `int8_pair` is the 107/153 quantiser (docs/numerics.md 4.3). */
export const QK_FORMATS = ['float32', 'int16', 'int8_pair', 'int8', 'int4', 'nvfp4'] as const;
export type QkFormat = (typeof QK_FORMATS)[number];

/** Formats of p and v. */
export const PV_FORMATS = ['float32', 'int16', 'bf16', 'fp16', 'e4m3', 'int8', 'nvfp4'] as const;
export type PvFormat = (typeof PV_FORMATS)[number];

/** Groups of tokens that share one scale of q or k (docs/numerics.md 4.1). */
export const TOKEN_GROUPS = [
  'token',
  'warp32',
  'thread32',
  'block128',
  'consecutive32',
  'warp64',
  'thread64',
  'block64',
] as const;
export type TokenGroup = (typeof TOKEN_GROUPS)[number];

/** How v is scaled: per channel over all tokens, per 64-token block, or not at all. */
export const V_SCALES = ['none', 'channel', 'block64'] as const;
export type VScale = (typeof V_SCALES)[number];

/** What the softmax denominator sums: p itself or the rounded p. */
export const ROW_SUMS = ['exact', 'quantized'] as const;
export type RowSum = (typeof ROW_SUMS)[number];

export const ROUNDINGS = ['even', 'away'] as const;
export type Rounding = (typeof ROUNDINGS)[number];

export interface RecipeFields {
  readonly precision: Precision;
  readonly variant: Variant;
  readonly qk: QkFormat;
  readonly pv: PvFormat;
  /** k minus its mean over all tokens. */
  readonly smoothK: boolean;
  /** Rows of q per subtracted mean, 0 = off. */
  readonly smoothQ: 0 | 32 | 128;
  /** Tokens of v per subtracted mean, 0 = off. */
  readonly smoothV: 0 | 128;
  readonly qGroup: TokenGroup;
  readonly kGroup: TokenGroup;
  readonly vScale: VScale;
  /** Rounding of q, k and v to integer codes. */
  readonly rounding: Rounding;
  /** Powers of two per channel moved between q and k until both are about as wide (nvfp4 only). */
  readonly balance: boolean;
  /** Hadamard rotation of q and k. */
  readonly rotate: boolean;
  /** Each group of 16 takes the best of amax/6, amax/4 and 2 amax/13 as its scale (nvfp4 only). */
  readonly fourSix: boolean;
  /** A power of two per head in front of nvfp4, so that no group scale over- or underflows. */
  readonly headExponent: boolean;
  readonly rowSum: RowSum;
  /** The code of p = 1: 8192, 255, 127, 448 or 2688; 1 for floating-point p. */
  readonly pTop: number;
  /** Largest code value of v: 2047, 127, 448 or 2.25; 0 where v keeps its own scale. */
  readonly vTop: number;
  readonly pvAccumulator: PvAccumulator;
}

/** A resolved recipe: its fields and the same as float64 words for `encodeProblem`. */
export interface Recipe extends RecipeFields {
  readonly words: Float64Array;
}

/** What a user may choose about numerics; undefined fields take the recipe's default. */
export interface RecipeChoice {
  readonly variant?: Variant | undefined;
  readonly granularity?: Granularity | undefined;
  readonly smoothQ?: boolean | undefined;
  readonly smoothK?: boolean | undefined;
  readonly smoothV?: boolean | undefined;
  readonly pvAccumulator?: PvAccumulator | undefined;
}

/** Why a choice is refused: the op words the error. */
export interface RecipeRefusal {
  readonly argument: 'granularity' | 'pvAccumulator' | 'variant';
  readonly received: string;
  readonly expected: string;
}

/** Recipes that a paper published; the others have no `variant: 'paper'`. */
export const PUBLISHED_FORMS: Readonly<Partial<Record<Precision, string>>> = {
  exact: 'FlashAttention',
  int8_fp16: 'SageAttention (arXiv 2410.02367)',
  int8_fp8: 'SageAttention2 (arXiv 2411.10958)',
  int8: 'SageAttention vB (arXiv 2410.02367), SageBwd (arXiv 2505.11594)',
  int4_fp8: 'SageAttention2 4 bit (arXiv 2411.10958)',
  fp4: 'SageAttention3 (arXiv 2505.11594)',
};

/** Which granularities a recipe honours. The CPU recipes and the FP4 recipes have one fixed form. */
export const HONOURED_GRANULARITIES: Readonly<Record<Precision, readonly Granularity[]>> = {
  exact: [],
  int16: ['per_token'],
  int8_int16: ['per_token'],
  int8_bf16: ['per_token'],
  int8_fp16: GRANULARITIES,
  int8_fp8: GRANULARITIES,
  int8: ['per_token', 'per_block'],
  int4_fp8: GRANULARITIES,
  fp4: [],
  fp4_fp8: [],
};

/** Which accumulators of P·V a recipe honours, by the names of the published kernels. */
export const HONOURED_ACCUMULATORS: Readonly<Record<Precision, readonly PvAccumulator[]>> = {
  exact: ['fp32'],
  int16: [],
  int8_int16: [],
  int8_bf16: ['fp32'],
  int8_fp16: ['fp32', 'fp16', 'fp16+fp32'],
  int8_fp8: ['fp32', 'fp32+fp32', 'fp32+fp16'],
  int8: [],
  int4_fp8: ['fp32', 'fp32+fp32', 'fp32+fp16'],
  fp4: ['fp32+fp32'],
  fp4_fp8: ['fp32+fp32'],
};

const GRANULARITY_GROUPS: Readonly<Record<Granularity, {q: TokenGroup; k: TokenGroup}>> = {
  per_token: {q: 'token', k: 'token'},
  per_warp: {q: 'warp32', k: 'warp64'},
  per_thread: {q: 'thread32', k: 'thread64'},
  per_block: {q: 'block128', k: 'block64'},
};

type TunedFields = Omit<RecipeFields, 'precision' | 'variant'>;

const EXACT: TunedFields = {
  qk: 'float32',
  pv: 'float32',
  smoothK: false,
  smoothQ: 0,
  smoothV: 0,
  qGroup: 'token',
  kGroup: 'token',
  vScale: 'none',
  rounding: 'even',
  balance: false,
  rotate: false,
  fourSix: false,
  headExponent: false,
  rowSum: 'exact',
  pTop: 1,
  vTop: 0,
  pvAccumulator: 'fp32',
};

/** Where the accuracy of each choice was measured: docs/numerics.md 7. */
const TUNED: Readonly<Record<Precision, TunedFields>> = {
  exact: EXACT,
  int16: {
    ...EXACT,
    qk: 'int16',
    pv: 'int16',
    smoothK: true,
    vScale: 'channel',
    rowSum: 'quantized',
    pTop: 8192,
    vTop: 2047,
  },
  int8_int16: {
    ...EXACT,
    qk: 'int8_pair',
    pv: 'int16',
    smoothK: true,
    vScale: 'channel',
    rowSum: 'quantized',
    pTop: 8192,
    vTop: 2047,
  },
  int8_bf16: {...EXACT, qk: 'int8', pv: 'bf16', smoothK: true},
  int8_fp16: {
    ...EXACT,
    qk: 'int8',
    pv: 'fp16',
    smoothK: true,
    kGroup: 'consecutive32',
    vScale: 'channel',
  },
  int8_fp8: {
    ...EXACT,
    qk: 'int8',
    pv: 'e4m3',
    smoothK: true,
    smoothV: 128,
    kGroup: 'consecutive32',
    vScale: 'channel',
    pTop: 448,
    vTop: 448,
    pvAccumulator: 'fp32+fp32',
  },
  int8: {
    ...EXACT,
    qk: 'int8',
    pv: 'int8',
    smoothK: true,
    vScale: 'channel',
    rowSum: 'quantized',
    pTop: 255,
    vTop: 127,
  },
  int4_fp8: {
    ...EXACT,
    qk: 'int4',
    pv: 'e4m3',
    smoothK: true,
    smoothQ: 32,
    smoothV: 128,
    kGroup: 'consecutive32',
    vScale: 'channel',
    pTop: 448,
    vTop: 448,
    pvAccumulator: 'fp32+fp32',
  },
  fp4: {
    ...EXACT,
    qk: 'nvfp4',
    pv: 'nvfp4',
    smoothK: true,
    smoothQ: 32,
    smoothV: 128,
    balance: true,
    rotate: true,
    fourSix: true,
    headExponent: true,
    pTop: 2688,
    pvAccumulator: 'fp32+fp32',
  },
  fp4_fp8: {
    ...EXACT,
    qk: 'nvfp4',
    pv: 'e4m3',
    smoothK: true,
    smoothQ: 32,
    smoothV: 128,
    vScale: 'channel',
    balance: true,
    rotate: true,
    fourSix: true,
    headExponent: true,
    pTop: 448,
    vTop: 448,
    pvAccumulator: 'fp32+fp32',
  },
};

/** What the published form changes against the tuned one (docs/numerics.md 6). */
const PAPER: Readonly<Partial<Record<Precision, Partial<TunedFields>>>> = {
  exact: {},
  int8_fp16: {
    qGroup: 'block128',
    kGroup: 'block64',
    rounding: 'away',
    pvAccumulator: 'fp16+fp32',
  },
  int8_fp8: {qGroup: 'thread32', kGroup: 'thread64', smoothV: 0, rounding: 'away'},
  int8: {
    qGroup: 'block128',
    kGroup: 'block64',
    vScale: 'block64',
    rounding: 'away',
    rowSum: 'exact',
    pTop: 127,
  },
  int4_fp8: {
    qGroup: 'thread32',
    kGroup: 'thread64',
    smoothQ: 128,
    smoothV: 0,
    rounding: 'away',
  },
  fp4: {
    smoothQ: 128,
    smoothV: 0,
    balance: false,
    rotate: false,
    fourSix: false,
    headExponent: false,
  },
};

function joined(names: readonly string[]): string {
  return names.length === 0 ? 'no value (this recipe has one fixed form)' : names.join(', ');
}

function encodeRecipe(fields: RecipeFields): Float64Array {
  return Float64Array.of(
    PRECISIONS.indexOf(fields.precision),
    VARIANTS.indexOf(fields.variant),
    QK_FORMATS.indexOf(fields.qk),
    PV_FORMATS.indexOf(fields.pv),
    fields.smoothK ? 1 : 0,
    fields.smoothQ,
    fields.smoothV,
    TOKEN_GROUPS.indexOf(fields.qGroup),
    TOKEN_GROUPS.indexOf(fields.kGroup),
    V_SCALES.indexOf(fields.vScale),
    ROUNDINGS.indexOf(fields.rounding),
    fields.balance ? 1 : 0,
    fields.rotate ? 1 : 0,
    fields.fourSix ? 1 : 0,
    fields.headExponent ? 1 : 0,
    ROW_SUMS.indexOf(fields.rowSum),
    fields.pTop,
    fields.vTop,
    PV_ACCUMULATORS.indexOf(fields.pvAccumulator),
  );
}

function refuse(
  argument: RecipeRefusal['argument'],
  received: string,
  expected: string,
): RecipeRefusal {
  return {argument, received, expected};
}

const resolved = new Map<string, Recipe>();

/**
 * The recipe that `precision` and the user's choices mean, or why they are refused.
 * `exact` quantises nothing, so smoothing changes nothing there and is accepted as written.
 */
export function resolveRecipe(precision: Precision, choice: RecipeChoice): Recipe | RecipeRefusal {
  const key = `${precision}|${choice.variant ?? ''}|${choice.granularity ?? ''}|${choice.smoothQ ?? ''}|${
    choice.smoothK ?? ''
  }|${choice.smoothV ?? ''}|${choice.pvAccumulator ?? ''}`;
  const known = resolved.get(key);
  if (known) return known;
  const {granularity, pvAccumulator} = choice;
  const variant = choice.variant ?? 'tuned';
  const paper = PAPER[precision];
  if (variant === 'paper' && !paper) {
    return refuse('variant', 'paper', `'tuned': no paper published ${precision}`);
  }
  if (granularity !== undefined && !HONOURED_GRANULARITIES[precision].includes(granularity)) {
    return refuse('granularity', granularity, joined(HONOURED_GRANULARITIES[precision]));
  }
  if (pvAccumulator !== undefined && !HONOURED_ACCUMULATORS[precision].includes(pvAccumulator)) {
    return refuse('pvAccumulator', pvAccumulator, joined(HONOURED_ACCUMULATORS[precision]));
  }
  const base: TunedFields = {...TUNED[precision], ...(variant === 'paper' ? paper : {})};
  const quantised = precision !== 'exact';
  const groups = granularity === undefined ? undefined : GRANULARITY_GROUPS[granularity];
  const accumulator = pvAccumulator ?? base.pvAccumulator;
  const fields: RecipeFields = {
    ...base,
    precision,
    variant,
    smoothK: quantised && (choice.smoothK ?? base.smoothK),
    smoothQ: quantised && (choice.smoothQ ?? base.smoothQ > 0) ? base.smoothQ || 128 : 0,
    smoothV: quantised && (choice.smoothV ?? base.smoothV > 0) ? 128 : 0,
    qGroup: groups?.q ?? base.qGroup,
    kGroup: groups?.k ?? base.kGroup,
    pvAccumulator: accumulator,
    // SageAttention2++: with fp16 accumulators 448 · 2.25 · 64 tokens stays below 65,504.
    vTop: accumulator === 'fp32+fp16' ? 2.25 : base.vTop,
  };
  const recipe: Recipe = {...fields, words: encodeRecipe(fields)};
  resolved.set(key, recipe);
  return recipe;
}

/** Whether `resolveRecipe` refused. */
export function isRefusal(result: Recipe | RecipeRefusal): result is RecipeRefusal {
  return 'argument' in result;
}
